"""All pools and replicas of one configuration, alive: engines, ledgers, queues."""

from collections.abc import Callable, Iterable, Mapping

from backends.contract import Endpoint, Engine, EngineAdapter
from gateway.config.snapshot import Pool, Replica, Snapshot
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.step_model import StepModel

MakeEngine = Callable[[EngineAdapter, Endpoint, Pool], Engine]
"""Builds the engine of one replica; the composition root knows how."""


def endpoint_of(pool: Pool, replica: Replica) -> Endpoint:
    """Where a replica is, with the pool's own credentials: the client's are never sent upstream."""
    headers = dict(pool.upstream.headers)
    if pool.upstream.api_key is not None:
        headers["authorization"] = f"Bearer {pool.upstream.api_key}"
    return Endpoint(replica.url, headers, pool.upstream.ca_file)


class Fleet:
    """The ledgers of every replica, by pool.

    A replica of `previous` (pool name, ledger) that stays in its pool, with its id, URL and the same engine
    options, keeps its ledger: what is in flight there stays in the books. It gets its new weight and
    credentials; streams in flight keep the connection they have.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        make_engine: MakeEngine,
        clock: Callable[[], float],
        previous: Iterable[tuple[str, ReplicaLedger]] = (),
    ) -> None:
        self._make_engine = make_engine
        self._clock = clock
        known = {(pool, each.replica.id, each.replica.url): each for pool, each in previous}
        self.pools: Mapping[str, tuple[ReplicaLedger, ...]] = {
            pool.name: tuple(
                self._ledger(pool, replica, known.get((pool.name, replica.id, replica.url)))
                for replica in pool.replicas
            )
            for pool in snapshot.pools.values()
        }

    def _ledger(self, pool: Pool, replica: Replica, before: ReplicaLedger | None) -> ReplicaLedger:
        engine = self._make_engine(pool.adapter, endpoint_of(pool, replica), pool)
        if before is None or not _alike(before.engine.adapter, pool.adapter):
            return ReplicaLedger(replica, engine, self._clock, StepModel(pool.pace))
        before.replica, before.engine = replica, engine
        return before


def _alike(one: EngineAdapter, other: EngineAdapter) -> bool:
    """Whether both do the same. Adapters hold their options and nothing that changes."""
    return one == other or (type(one) is type(other) and vars(one) == vars(other))
