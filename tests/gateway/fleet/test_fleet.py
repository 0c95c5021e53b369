"""Which books a reload keeps."""

from dataclasses import replace

import pytest

from backends.registry import REGISTRY
from gateway.config.snapshot import Pool, Replica, Upstream
from gateway.fleet.fleet import Fleet
from tests.gateway.builders import Clock, NoEngine, a_pool, a_snapshot


def a_fleet(pool: Pool, before: Fleet | None = None) -> Fleet:
    previous = () if before is None else [("pool", ledger) for ledger in before.pools["pool"]]
    return Fleet(
        a_snapshot(pools=[pool]), lambda adapter, endpoint, pool: NoEngine(adapter), Clock(), previous
    )


POOL = a_pool(engine="triton", replicas=("r1", "r2"))
HEAVY = tuple(replace(replica, weight=2.0) for replica in POOL.replicas)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        pytest.param(POOL, [True, True], id="nothing"),
        pytest.param(replace(POOL, adapter=REGISTRY.adapter("triton", {})), [True, True], id="adapter anew"),
        pytest.param(replace(POOL, replicas=HEAVY), [True, True], id="weight"),
        pytest.param(replace(POOL, upstream=Upstream(api_key="new")), [True, True], id="credentials"),
        pytest.param(
            replace(POOL, adapter=REGISTRY.adapter("triton", {"text_mode": "cumulative"})),
            [False, False],
            id="engine options",
        ),
        pytest.param(replace(POOL, adapter=REGISTRY.adapter("tgi", {})), [False, False], id="engine"),
        pytest.param(
            replace(POOL, replicas=(Replica("r1", "http://other:1"), POOL.replicas[1])),
            [False, True],
            id="url",
        ),
        pytest.param(
            replace(POOL, replicas=(Replica("r9", POOL.replicas[0].url), POOL.replicas[1])),
            [False, True],
            id="id",
        ),
    ],
)
def test_a_replica_that_stays_keeps_its_ledger(changed, kept):
    before = a_fleet(POOL)
    after = a_fleet(changed, before)
    pairs = list(zip(before.pools["pool"], after.pools["pool"], strict=True))
    assert [old is new for old, new in pairs] == kept
    for new, replica in zip(after.pools["pool"], changed.replicas, strict=True):
        assert new.replica == replica
        assert new.engine.adapter is changed.adapter
