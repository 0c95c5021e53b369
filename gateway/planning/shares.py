"""Whether the pools of a fleet have capacity where the work is."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MOST", "Lopsided", "PoolShare", "lopsided", "parts_of"]

MOST = 1.5
"""How many times a pool's share of the work may be its share of the capacity, or the reverse."""


@dataclass(frozen=True, slots=True)
class PoolShare:
    """`work` and `capacity` in any units that are the same for all pools of a comparison: seconds of a
    reference engine, and such engines, say."""

    pool: str
    work: float
    capacity: float


@dataclass(frozen=True, slots=True)
class Lopsided:
    """A pool whose share of the work and of the capacity differ by more than `MOST` times."""

    pool: str
    work_share: float
    capacity_share: float

    @property
    def factor(self) -> float:
        """Share of work / share of capacity: above 1 the pool is short of replicas."""
        return self.work_share / self.capacity_share if self.capacity_share else float("inf")

    def __str__(self) -> str:
        if self.factor > 1:
            many = f"{self.factor:.1f} times as much" if self.capacity_share else "and no capacity"
            what = f"{many}: it queues while others idle; give it replicas, or move the split"
        else:
            few = f"1/{1 / self.factor:.1f} as much" if self.work_share else "and no work"
            what = f"{few}: it idles while others queue; take replicas from it, or move the split"
        return (
            f"pool {self.pool} has {self.work_share:.0%} of the work and {self.capacity_share:.0%} of the "
            f"capacity, {what}"
        )


def parts_of(pools: Iterable[PoolShare]) -> tuple[PoolShare, ...]:
    """Each as parts of the whole; none where there is no work or no capacity."""
    pools = list(pools)
    work, capacity = sum(pool.work for pool in pools), sum(pool.capacity for pool in pools)
    if not work or not capacity:
        return ()
    return tuple(PoolShare(pool.pool, pool.work / work, pool.capacity / capacity) for pool in pools)


def lopsided(pools: Iterable[PoolShare], most: float = MOST) -> tuple[Lopsided, ...]:
    """Those that differ too much, the worst first; none where there is one pool, or no work at all."""
    parts = parts_of(pools)
    if len(parts) < 2:
        return ()
    found = [Lopsided(part.pool, part.work, part.capacity) for part in parts]
    far = [(max(each.factor, 1 / each.factor if each.factor else float("inf")), each) for each in found]
    return tuple(each for size, each in sorted(far, key=lambda pair: -pair[0]) if size > most)
