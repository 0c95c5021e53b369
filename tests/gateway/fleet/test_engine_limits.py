"""The smaller of what the file says and what engines hold, for any of both."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from backends.contract import EngineLimits, Metadata
from gateway.config.snapshot import Snapshot
from gateway.fleet.engine_limits import Shortfall, first_name, limits_for, narrowed, shortfalls
from gateway.fleet.ledger import ReplicaLedger
from tests.gateway.builders import Clock, NoEngine, a_pool, a_snapshot


def ledgers(snapshot: Snapshot, **told: EngineLimits) -> list[tuple[str, ReplicaLedger]]:
    """One for each replica; `told` by its id."""
    found = []
    for pool in snapshot.pools.values():
        for replica in pool.replicas:
            ledger = ReplicaLedger(replica, NoEngine(pool.adapter), Clock())
            ledger.told = told.get(replica.id, EngineLimits())
            found.append((pool.name, ledger))
    return found


def test_the_replica_that_takes_least_speaks_for_its_pool():
    snapshot = a_snapshot(
        pools=[a_pool("a", replicas=("r1", "r2", "r3"), total=8192), a_pool("b", replicas=("r4",))]
    )
    told = {
        "r1": EngineLimits(context_tokens=4096),
        "r2": EngineLimits(context_tokens=2048, prompt_tokens=1000),
        "r4": EngineLimits(in_flight=3, train_context_tokens=100),
    }
    found = shortfalls(snapshot.pools, ledgers(snapshot, **told))
    assert set(found) == {
        Shortfall("a", "total", 8192, 2048, "r2"),
        Shortfall("a", "prompt", None, 1000, "r2"),
    }
    effective = narrowed(snapshot, found)
    assert (effective.pools["a"].limits.total, effective.pools["a"].limits.prompt) == (2048, 1000)
    assert effective.pools["b"] == snapshot.pools["b"]
    assert snapshot.pools["a"].limits.total == 8192
    assert narrowed(snapshot, ()) == snapshot


COUNTS = st.none() | st.integers(0, 5)


@given(COUNTS, COUNTS, st.lists(COUNTS, max_size=4))
def test_nothing_lifts_a_limit_and_nothing_told_is_passed(prompt, total, contexts):
    """No limit in force is above the file's, or above one that was told; untold and 0 change nothing."""
    names = [f"r{number}" for number in range(len(contexts))]
    told = {name: EngineLimits(context_tokens=context) for name, context in zip(names, contexts, strict=True)}
    snapshot = a_snapshot(pools=[a_pool(replicas=names or ["r"], prompt=prompt, total=total, in_flight=1)])
    effective = narrowed(snapshot, shortfalls(snapshot.pools, ledgers(snapshot, **told)))
    known = [context for context in contexts if context]
    bounds = [bound for bound in (total, *known) if bound is not None]
    assert effective.pools["pool"].limits.total == min(bounds, default=None)
    assert replace(effective.pools["pool"].limits, total=total) == snapshot.pools["pool"].limits


def test_models_are_told_apart_where_the_server_does():
    """Another model of the same server is no reason to take less; behind `*` it may be any."""
    small, large = EngineLimits(context_tokens=100), EngineLimits(context_tokens=900)
    metadata = Metadata(limits=small, per_model={"small": small, "large": large})
    assert limits_for(metadata, ["large"]) == large
    assert limits_for(metadata, ["large", "small"]) == small
    assert limits_for(metadata, ["adapter"]) == small
    assert limits_for(metadata, ["*"]) == EngineLimits()
    assert limits_for(Metadata(limits=small, per_model={"small": small}), ["*"]) == small
    assert limits_for(Metadata(limits=small), ["*"]) == small
    assert limits_for(Metadata(limits=small, per_model={}), []) == small


def test_a_wildcard_is_no_name_to_ask_for():
    assert (first_name(["*", "m"]), first_name(["*"]), first_name([])) == ("m", None, None)
