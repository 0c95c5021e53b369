"""What engines hold, against what the file says that they hold: the smaller is used.

Each replica is asked for its limits (`probing`), and its ledger keeps what it told. A pool takes what the
smallest of its replicas takes, so that whichever is chosen can serve; what the file says is never exceeded.
An engine that tells nothing changes nothing. Requests in flight (`in_flight`) are the file's alone: an engine
that has too many makes the rest wait, it does not refuse them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from backends.contract import EngineLimits, Metadata
from gateway.config.snapshot import Pool, PoolLimits, Snapshot
from gateway.fleet.ledger import ReplicaLedger

__all__ = ["Shortfall", "first_name", "limits_for", "narrowed", "shortfalls"]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A pool's limit in tokens that an engine does not hold."""

    pool: str
    limit: Literal["prompt", "total"]
    configured: int | None
    """None: the file sets no limit."""
    takes: int
    replica: str
    """The one that takes least."""


def first_name(names: Iterable[str]) -> str | None:
    """A name of the engine's own that its metadata can be asked for; `*` stands for all, and is none."""
    return next((name for name in names if name != "*"), None)


def limits_for(metadata: Metadata, names: Collection[str]) -> EngineLimits:
    """What holds for each of the models `names`, as the engine calls them.

    A server may list models of different lengths beside the ones that are meant. Behind `*` any of them may
    be meant: nothing is told then, unless all are alike.
    """
    apart = metadata.per_model or {}
    if "*" in names:
        return metadata.limits if len(set(apart.values())) < 2 else EngineLimits()
    if not names or not apart.keys() >= set(names):
        return metadata.limits
    return replace(
        metadata.limits,
        context_tokens=_least(apart[name].context_tokens for name in names),
        prompt_tokens=_least(apart[name].prompt_tokens for name in names),
    )


def shortfalls(
    pools: Mapping[str, Pool], ledgers: Iterable[tuple[str, ReplicaLedger]]
) -> tuple[Shortfall, ...]:
    """Where replicas told less than their pool's limits; of several, the one that takes least."""
    least: dict[tuple[str, str], Shortfall] = {}
    for name, ledger in ledgers:
        limits, told = pools[name].limits, ledger.told
        for each in (
            _shortfall(name, "prompt", limits.prompt, told.prompt_tokens, ledger.replica.id),
            _shortfall(name, "total", limits.total, told.context_tokens, ledger.replica.id),
        ):
            if each is not None:
                known = least.setdefault((name, each.limit), each)
                if each.takes < known.takes:
                    least[name, each.limit] = each
    return tuple(least.values())


def narrowed(snapshot: Snapshot, found: Iterable[Shortfall]) -> Snapshot:
    """`snapshot` with the limits that hold."""
    pools = dict(snapshot.pools)
    for each in found:
        pool = pools[each.pool]
        limits: PoolLimits = replace(pool.limits, **{each.limit: each.takes})
        pools[each.pool] = replace(pool, limits=limits)
    return replace(snapshot, pools=pools)


def _shortfall(
    pool: str, limit: Literal["prompt", "total"], configured: int | None, engine: int | None, replica: str
) -> Shortfall | None:
    if not engine or (configured is not None and configured <= engine):  # 0 is no limit that anyone meant
        return None
    return Shortfall(pool, limit, configured, engine, replica)


def _least(counts: Iterable[int | None]) -> int | None:
    return min((count for count in counts if count is not None), default=None)
