"""What lives as long as one configuration: the parts a request takes hold of at its start.

A reload builds a new Runtime beside the old one; requests in flight keep theirs to the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.config.snapshot import Snapshot
from gateway.fleet.ledger import ReplicaLedger
from gateway.limits.quotas import Limiter
from gateway.pipeline import Pipeline
from gateway.queueing.pool_queue import PoolQueue
from gateway.tokens.counting import Counting


@dataclass(frozen=True, slots=True)
class Runtime:
    snapshot: Snapshot
    queues: dict[str, PoolQueue]
    limiter: Limiter
    counting: Counting
    pipeline: Pipeline

    def ledgers(self) -> Iterator[tuple[str, ReplicaLedger]]:
        """(pool name, ledger) of every replica."""
        for name, queue in self.queues.items():
            for ledger in queue.ledgers:
                yield name, ledger

    def ready(self) -> bool:
        """Whether some replica may be tried."""
        return any(not ledger.cooling() for _, ledger in self.ledgers())
