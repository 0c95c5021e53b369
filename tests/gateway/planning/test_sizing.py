"""Replicas by the formulas, and what replays make of them."""

from dataclasses import replace

import pytest

from backends.simulated.engine import PROFILES
from gateway.planning.sizing import (
    Objective,
    Seen,
    Traffic,
    cost_of,
    decode_rate,
    plan_pool,
    prefill_seconds,
    settle,
    shares_of,
)
from tests.gateway.planning.test_formulas import by_hand

H200 = PROFILES["h200"]
TRAFFIC = Traffic("short", 30.0, [1000] * 10, [200] * 10)
FAST = Seen(ttft_p95_ms=100, tpot_p99_ms=20, queue_p95_ms=10)
SLOW = Seen(ttft_p95_ms=9000, tpot_p99_ms=20, queue_p95_ms=8900)


def line(plan, what):
    return next(each for each in plan.lines if each.what == what)


def test_by_hand():
    """1,000 in, 200 out on the H200 profile, without a promise of pace.

    Prefill: 1000 x 22.3 us + 1.565 ns x 500,000 = 23.0825 ms, so P = 43,323. B = min(256, 0.92 x 880,000 /
    1200 = 674) = 256; its step: 4.66 + 172 x 0.00606 + 84 x 0.0223 + 281,600 x 0.0000315 + 0.5 ms = 16.946
    ms, so D = 15,107. By work: 1 / (0.0230825 + 200/15,107) = 27.53 requests/s; 30 of them at 70 %: 2.
    """
    plan = plan_pool(TRAFFIC, Objective(), H200, per_token=131_072)
    assert line(plan, "P").value == pytest.approx(43_323, rel=1e-4)
    assert line(plan, "B at most").value == plan.batch == 256
    assert line(plan, "D").value == pytest.approx(256 / 16.946e-3, rel=1e-3)
    assert plan.qps == pytest.approx(27.53, rel=1e-3)
    assert plan.replicas == plan.by_formula == 2
    assert plan.utilization == pytest.approx(30 / 2 / 27.53, rel=1e-3)
    assert line(plan, "KV bytes per request").value == 131_072 * 1200


@pytest.mark.parametrize("target", [None, 40.0, 60.0])
def test_every_formula_gives_what_it_says(target):
    plan = plan_pool(TRAFFIC, Objective(tpot_p99_ms=target), H200, per_token=131_072)
    for each in plan.lines:
        # "B at most" is the whole part of what it says.
        slack = 1.0 if each.what == "B at most" else 0.0
        assert by_hand(each) == pytest.approx(each.value, rel=2e-3, abs=slack), each


def test_a_promise_of_pace_bounds_the_batch():
    """The largest batch that keeps the pace when busy: one more would not."""
    tight = plan_pool(TRAFFIC, Objective(tpot_p99_ms=30), H200)
    loose = plan_pool(TRAFFIC, Objective(tpot_p99_ms=1000), H200)
    assert tight.batch < loose.batch == 256
    assert line(tight, "TPOT when busy").value <= 30
    assert tight.qps < loose.qps


def test_a_cache_bounds_the_batch():
    plan = plan_pool(TRAFFIC, Objective(), replace(H200, kv_tokens=12_000))
    assert plan.batch == 9  # 0.92 x 12,000 / 1,200 = 9.2


def test_rates_come_from_the_engine():
    assert prefill_seconds(H200, 1000) == pytest.approx(23.0825e-3)
    assert prefill_seconds(replace(H200, speed=2), 1000) == pytest.approx(11.54125e-3)
    assert decode_rate(H200, 1, 0, 0) == pytest.approx(1 / 5.16606e-3)


def test_impossible_promises_are_told():
    """No number of replicas reads a prompt faster than one of them; nor does an answer alone go faster."""
    plan = plan_pool(Traffic("long", 1.0, [60_000] * 10, [100] * 10), Objective(1000, 1.0), H200)
    assert any("no number of replicas keeps ttft_p95_ms 1000" in warning for warning in plan.warnings)
    assert any("one answer alone" in warning for warning in plan.warnings)
    with pytest.raises(ValueError, match="exceeds the cache"):
        plan_pool(Traffic("long", 1.0, [900_000], [1]), Objective(), H200)


def test_a_fleet_that_is_there():
    plan = plan_pool(TRAFFIC, Objective(), H200, replicas=1)
    assert plan.replicas == 1
    assert plan.utilization > 1
    assert "1 replicas, where 2 keep below 70%" in plan.warnings[0]


@pytest.mark.parametrize("needed", range(1, 12))
@pytest.mark.parametrize("start", [1, 4, 9])
def test_settle_finds_the_fewest(needed, start):
    """Whatever the formula said, the replay decides."""
    plan = replace(plan_pool(TRAFFIC, Objective(ttft_p95_ms=1000), H200), replicas=start)
    found = settle(plan, lambda count: FAST if count >= needed else SLOW, most=20)
    assert found.replicas == needed
    assert found.held
    assert found.trials[-1].missed or needed == 1 or found.trials[-1].replicas == needed


def test_settle_gives_up_and_says_so():
    asked = []
    plan = plan_pool(TRAFFIC, Objective(ttft_p95_ms=1000), H200)
    found = settle(plan, lambda count: asked.append(count) or SLOW, most=5)
    assert len(asked) == 5
    assert found.held is False
    assert found.trials[-1].missed == ("ttft_p95_ms 9000 > 1000",)


def test_settle_leaves_a_fleet_alone():
    plan = plan_pool(TRAFFIC, Objective(ttft_p95_ms=1000), H200, replicas=3)
    found = settle(plan, lambda count: SLOW, fixed=True)
    assert (found.replicas, len(found.trials), found.held) == (3, 1, False)


def test_what_is_missed():
    seen = Seen(ttft_p95_ms=1200, tpot_p99_ms=70, queue_p95_ms=300, unfinished=0.02)
    assert Objective(1000, 60, 200).missed(seen) == (
        "ttft_p95_ms 1200 > 1000", "tpot_p99_ms 70 > 60", "queue_ms 300 > 200", "2.0% not finished",
    )  # fmt: skip
    assert Objective().missed(replace(seen, unfinished=0.0)) == ()


def test_shares_and_cost():
    """Two pools with the same work, one with four times the replicas."""
    one = plan_pool(TRAFFIC, Objective(), H200, replicas=1)
    four = replace(plan_pool(TRAFFIC, Objective(), H200, replicas=4), pool="spoilt")
    assert [each.pool for each in shares_of([one, four])] == ["short", "spoilt"]
    assert shares_of([one, one]) == ()
    cost = cost_of([one, four], 2.0, 2)  # 10 GPUs at 2 an hour; 2 x 30 x 3600 x 1200 tokens
    assert cost.value == pytest.approx(20 / 259.2)
