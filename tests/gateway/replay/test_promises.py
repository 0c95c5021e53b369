"""A file's promises in the twin, and how its rules divide a trace."""

from dataclasses import replace

import pytest

from backends.simulated.engine import PROFILES
from gateway.config.snapshot import Pace, Policy, PriorityClass, Range, Slo, When
from gateway.planning.sizing import Objective
from gateway.replay.dividing import divided, objective_of, work_shares
from gateway.replay.figures import Objectives
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import pools_of, router_of
from gateway.replay.twin import Journey, Sight, Stop, Twin
from tests.gateway.builders import a_model, a_pool, a_rule, a_snapshot

INTERACTIVE, BATCH = PriorityClass.interactive, PriorityClass.batch
SLO = Slo(ttft_p95_ms=400, tpot_p99_ms=20, queue_ms=100)


def request(at=0.0, prompt=100, output=50, asked=60, **fields):
    return TraceRequest(at, "acme", prompt, output, asked, model="llama", **fields)


def a_journey(slo=None, *, sent=0.05, first=0.3, end=1.0, prompt=100, output=51):
    asked = request(prompt=prompt, output=output)
    journey = Journey(asked, 50, () if slo is None else (Stop("p", slo=slo),))
    journey.sent, journey.first, journey.end, journey.outcome = sent, first, end, "completed"
    return journey


@pytest.mark.parametrize(
    ("slo", "times", "met"),
    [
        (None, {}, True),
        (SLO, {}, True),
        (SLO, {"first": 0.41}, False),
        (None, {"first": 0.41}, True),  # nobody promised 400 ms
        (SLO, {"sent": 0.11}, False),
        (SLO, {"end": 1.4}, False),  # 22 ms per token
        (None, {"end": 1.4}, True),
        (Slo(ttft_p95_ms=400), {"end": 3.5}, False),  # left open: 60 ms per token, as ever
        (Slo(ttft_p95_ms=5000), {"first": 4.0, "end": 4.5}, True),  # a lenient promise is one, too
    ],
)
def test_in_time_is_what_was_promised_else_the_reports_own(slo, times, met):
    assert Objectives().met(a_journey(slo, **times), bare=0.01) is met


def test_the_budget_of_shedding_is_the_one_of_the_scheduler():
    """Whether the twin or the pool's policy works it out."""
    for slo in (SLO, Slo(ttft_p95_ms=800), Slo(queue_ms=200)):
        for bare in (0.01, 0.5):
            ours = Objectives().budget(100, bare, slo)
            ttft = 1.0 if slo.ttft_p95_ms is None else max(slo.ttft_p95_ms / 1e3, 5 * bare)
            queue = float("inf") if slo.queue_ms is None else slo.queue_ms / 1e3 + bare
            assert ours == pytest.approx(min(ttft, queue))


@pytest.fixture
def snapshot():
    small = a_pool(
        "small", total=1000, in_flight=1, slo=SLO, class_slos={BATCH: Slo(queue_ms=60_000)},
        policy=Policy(shed=frozenset()),
    )  # fmt: skip
    large = a_pool("large", total=10_000, replicas=("r2", "r3"))
    rules = (
        a_rule("short", pools=("small", "large"), when=When(estimated_total_tokens=Range(lte=1000))),
        a_rule("long", pools=("large",)),
    )
    return a_snapshot(models=(a_model(context=20_000),), pools=(small, large), rules=rules)


@pytest.mark.parametrize("variant", ["written", "spill", "merged"])
def test_a_promise_is_the_first_pools_in_every_variant(snapshot, variant):
    route = router_of(snapshot, variant)
    assert {stop.slo for stop in route(request(priority=INTERACTIVE), Sight())} == {SLO}
    assert {stop.slo for stop in route(request(priority=BATCH), Sight())} == {Slo(queue_ms=60_000)}
    assert {stop.slo for stop in route(request(prompt=5000), Sight())} == {Slo()}


def test_goodput_is_of_the_promises(snapshot):
    """One engine, one at a time: the second waits longer than the 100 ms that were promised."""
    asked = [request(at=0.0), request(at=0.01)]
    engine = PROFILES["h200"]
    found = Twin(pools_of(snapshot, engine, "written"), router_of(snapshot, "written")).run(asked)
    assert [Objectives().met(journey, 0.01) for journey in found.journeys] == [True, False]


def test_rules_divide_a_trace_by_what_they_expect(snapshot):
    """Prompt and p90 of answers seen so far; whoever fits nowhere is counted."""
    asked = [request(at=i, output=40, asked=60) for i in range(5)]
    asked += [request(at=9, prompt=4000), request(at=10, prompt=19_990)]
    pools, homeless = divided(snapshot, asked, {})
    assert ({name: len(some) for name, some in pools.items()}, homeless) == ({"small": 5, "large": 1}, 1)


def test_shares_of_work_and_capacity(snapshot):
    """A profile that is twice as slow is half an engine; a cold pool without work is none."""
    pace = Pace(2 * 22.3e-6, 2 * 0.78e-9, 1e-2, 1e-5, 6e-8)
    pools = {
        "small": replace(snapshot.pools["small"], pace=pace),
        "large": snapshot.pools["large"],
        "asleep": a_pool("asleep", state="cold"),
    }
    shares = work_shares(replace(snapshot, pools=pools), {"small": [request()], "large": [], "asleep": []})
    assert [(share.pool, pytest.approx(share.capacity)) for share in shares] == [("small", 0.5), ("large", 2)]
    assert shares[0].work > shares[1].work == 0


def test_a_plan_holds_the_strictest_promise_of_those_that_come(snapshot):
    small = snapshot.pools["small"]
    assert objective_of(small, [request(priority=BATCH)]) == Objective(queue_ms=60_000)
    both = [request(priority=BATCH), request(priority=INTERACTIVE)]
    assert objective_of(small, both) == Objective(400, 20, 100)
