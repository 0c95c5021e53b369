"""What lives as long as one configuration: the parts a request takes hold of at its start.

A reload builds a new Runtime beside the old one; requests in flight keep theirs to the end. A change of
the state store's overlay, or of what engines tell of their limits, makes a Runtime that differs in its
snapshot, and what is worked out of it, alone and shares everything else.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType

from gateway.activation.sleeping import Sleeper
from gateway.activation.warming import Warming
from gateway.config.snapshot import EMPTY, Snapshot
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.probing import Target
from gateway.limits.limiter import Limiter
from gateway.pipeline import Pipeline
from gateway.planning.shares import PoolShare
from gateway.queueing.pool_queue import PoolQueue
from gateway.tokens.counting import Counting


class Leases:
    """Who still uses a configuration: `with runtime.leases:` around a request."""

    __slots__ = ("_gone", "held")

    def __init__(self) -> None:
        self.held = 0
        self._gone: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self.held += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held -= 1
        self._tell()

    def when_gone(self, gone: Callable[[], None]) -> None:
        """Call `gone` once, as soon as nobody holds a lease. For a configuration that was replaced."""
        self._gone = gone
        self._tell()

    def _tell(self) -> None:
        if self.held == 0 and self._gone is not None:
            gone, self._gone = self._gone, None
            gone()


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    snapshot: Snapshot
    """In force: the file, with the overlay's keys, and no pool limit above what its engines take."""
    queues: dict[str, PoolQueue]
    """Their pools are as the file has them."""
    limiter: Limiter
    counting: Counting
    pipeline: Pipeline
    leases: Leases = field(default_factory=Leases)
    sleepers: Mapping[str, Sleeper] = field(default_factory=lambda: EMPTY)
    """By pool, of those that may sleep."""
    warmings: Mapping[str, Warming] = field(default_factory=lambda: EMPTY)
    """By pool: what its replicas are sent before traffic."""
    targets: tuple[Target, ...] = ()
    """What is probed."""

    def on(self, snapshot: Snapshot) -> "Runtime":
        """The same parts, on another snapshot of the same file."""
        counting = self.counting
        if snapshot.pools != self.snapshot.pools:  # else no boundary has moved
            counting = counting.on(snapshot)
        pipeline = replace(self.pipeline, snapshot=snapshot, counting=counting)
        return replace(self, snapshot=snapshot, counting=counting, pipeline=pipeline)

    def ledgers(self) -> Iterator[tuple[str, ReplicaLedger]]:
        """(pool name, ledger) of every replica."""
        for name, queue in self.queues.items():
            for ledger in queue.ledgers:
                yield name, ledger

    def shares(self) -> list[PoolShare]:
        """Of each pool in service, the work that was asked of it in ten minutes, and its capacity: reference
        engines, by the measured speeds of the replicas that are not drained."""
        return [
            PoolShare(
                name,
                queue.demand()[1],
                sum(1 / ledger.model.slowness for ledger in queue.ledgers if ledger.drained is None),
            )
            for name, queue in self.queues.items()
            if self.snapshot.pools[name].state != "cold"
        ]

    def ready(self) -> bool:
        """Whether some replica may be tried, or will be woken for whoever asks."""
        return bool(self.sleepers) or any(ledger.usable() for _, ledger in self.ledgers())
