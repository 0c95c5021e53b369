"""Brown-out in the twin: the steps that hold live, and figures that tell shorter answers from whole ones."""

from dataclasses import replace

import pytest

from backends.simulated.engine import PROFILES
from gateway.cli.replay import _overload
from gateway.config.snapshot import OverloadStep, PriorityClass
from gateway.queueing.policies import POLICIES
from gateway.replay.comparing import Scenario, compare, fleet_router
from gateway.replay.report import as_json, as_text
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import pools_of, router_of
from gateway.replay.twin import Sight, Twin, pool_of
from tests.gateway.builders import a_model, a_pool, a_rule, a_snapshot

ENGINE = PROFILES["h200"]
STEPS = (OverloadStep(waiting=3, max_tokens=100),)


def burst(count=40, **fields):
    given = {"prompt_tokens": 2000, "output_tokens": 300, "max_tokens": 400, **fields}
    return [TraceRequest(0.001 * number, "t", model="llama", **given) for number in range(count)]


def run(router, requests, pool=None):
    return Twin([pool or pool_of("fleet", [ENGINE], POLICIES["lanes"])], router).run(requests).journeys


def test_answers_become_shorter_once_the_line_is_long():
    journeys = run(fleet_router(STEPS), burst())
    lost = [journey for journey in journeys if journey.degraded]
    assert 0 < len(lost) < 40, "the first ones met no line"
    assert {journey.output_tokens for journey in lost if journey.outcome == "completed"} == {100}
    assert all(journey.cut for journey in lost)
    assert {journey.output_tokens for journey in journeys if not journey.degraded} == {300}
    assert journeys[-1].expected == 100, "what is expected of it, and so its place in line, is the lesser"


def test_who_asked_for_less_loses_nothing():
    assert not any(journey.degraded for journey in run(fleet_router(STEPS), burst(max_tokens=100)))


def test_a_bound_that_nobody_reaches_cuts_nothing():
    journeys = run(fleet_router(STEPS), burst(output_tokens=50))
    assert any(journey.degraded for journey in journeys)
    assert not any(journey.cut for journey in journeys)


def test_a_class_may_be_lowered():
    step = OverloadStep(waiting=3, priority_class=PriorityClass.batch)
    journeys = run(fleet_router((step,)), burst())
    assert {journey.item.priority for journey in journeys if journey.degraded} == {PriorityClass.batch}
    assert not any(journey.cut for journey in journeys)


def test_what_was_cut_is_not_learned():
    """Else the estimates of calm times would be those of the overload."""
    twin = Twin([pool_of("fleet", [ENGINE], POLICIES["lanes"])], fleet_router(STEPS))
    twin.run(burst(200))
    learned = twin.lengths.predict("t", "llama", 2000)
    assert learned is None or learned.p90 == 300


@pytest.mark.parametrize("variant", ["written", "merged"])
def test_the_steps_of_a_file_hold(variant):
    """Through the router and the code that serves live traffic."""
    pool = a_pool("pool", in_flight=4)
    rule = a_rule(pools=("pool",), overload=STEPS)
    snapshot = a_snapshot(models=(a_model(context=20_000),), pools=(pool,), rules=(rule,))
    twin = Twin(pools_of(snapshot, ENGINE, variant), router_of(snapshot, variant))
    journeys = twin.run(burst()).journeys
    lost = [journey for journey in journeys if journey.degraded]
    assert 0 < len(lost) < 40
    assert {journey.output_tokens for journey in lost if journey.outcome == "completed"} == {100}


def test_without_lines_nobody_is_degraded():
    """Which requests a file takes is asked before there is a fleet."""
    snapshot = a_snapshot(rules=(a_rule(overload=STEPS),))
    (stop,) = router_of(snapshot, "written")(burst(1)[0], Sight())
    assert stop.spared is None


def test_the_figures_tell_whole_answers_apart():
    """In overload: fewer shed, and fewer answered whole than in time."""
    scenario = Scenario((ENGINE,) * 2, requests=1500, samples=0)
    steps = (OverloadStep(queue_wait=0.2, max_tokens=64),)
    found = compare(replace(scenario, overload=steps), ["lanes"], [1.5], [1], processes=1)
    plain = compare(scenario, ["lanes"], [1.5], [1], processes=1)
    less, whole = (next(row for row in each.rows if row.cls == "all") for each in (found, plain))
    assert (whole.degraded, whole.cut, whole.goodput_whole) == (0.0, 0.0, whole.goodput)
    assert less.degraded >= less.cut > 0.1
    assert less.goodput > less.goodput_whole > 0.0
    assert less.shed < whole.shed
    assert {"degraded", "cut", "goodput_whole"} <= set(as_json(found, {})["rows"][0])
    assert "brown-out of lanes: " in as_text(found)
    assert "brown-out" not in as_text(plain)


def test_steps_on_the_command_line():
    assert _overload("1000:512,3000:256") == (
        OverloadStep(queue_wait=1.0, max_tokens=512),
        OverloadStep(queue_wait=3.0, max_tokens=256),
    )
    assert _overload(None) == ()
    for wrong in ("1000", "1000:x", "1000:0", "-1:5"):
        with pytest.raises(ValueError, match=r"overload|above zero"):
            _overload(wrong)
