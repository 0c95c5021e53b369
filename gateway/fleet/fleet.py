"""All pools and replicas of one configuration, alive: engines, ledgers, queues."""

from collections.abc import Callable, Mapping

from backends.contract import Endpoint, Engine, EngineAdapter
from gateway.config.snapshot import Pool, Replica, Snapshot
from gateway.fleet.ledger import ReplicaLedger

MakeEngine = Callable[[EngineAdapter, Endpoint, Pool], Engine]
"""Builds the engine of one replica; the composition root knows how."""


def endpoint_of(pool: Pool, replica: Replica) -> Endpoint:
    """Where a replica is, with the pool's own credentials: the client's are never sent upstream."""
    headers = dict(pool.upstream.headers)
    if pool.upstream.api_key is not None:
        headers["authorization"] = f"Bearer {pool.upstream.api_key}"
    return Endpoint(replica.url, headers, pool.upstream.ca_file)


class Fleet:
    """The ledgers of every replica, by pool."""

    def __init__(self, snapshot: Snapshot, make_engine: MakeEngine, clock: Callable[[], float]) -> None:
        self.pools: Mapping[str, tuple[ReplicaLedger, ...]] = {
            pool.name: tuple(
                ReplicaLedger(replica, make_engine(pool.adapter, endpoint_of(pool, replica), pool), clock)
                for replica in pool.replicas
            )
            for pool in snapshot.pools.values()
        }
