"""What lives as long as one configuration: the parts a request takes hold of at its start.

A reload builds a new Runtime beside the old one; requests in flight keep theirs to the end. A change of
the state store's overlay makes a Runtime that differs in its keys alone and shares everything else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from gateway.config.snapshot import Snapshot
from gateway.fleet.ledger import ReplicaLedger
from gateway.limits.quotas import Limiter
from gateway.pipeline import Pipeline
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
    queues: dict[str, PoolQueue]
    limiter: Limiter
    counting: Counting
    pipeline: Pipeline
    leases: Leases = field(default_factory=Leases)

    def ledgers(self) -> Iterator[tuple[str, ReplicaLedger]]:
        """(pool name, ledger) of every replica."""
        for name, queue in self.queues.items():
            for ledger in queue.ledgers:
                yield name, ledger

    def ready(self) -> bool:
        """Whether some replica may be tried."""
        return any(ledger.usable() for _, ledger in self.ledgers())
