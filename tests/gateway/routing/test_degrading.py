"""What a brown-out takes: bounds, choices, class, model; from whom; and how it is told."""

from dataclasses import replace

import pytest
from msgspec import structs

from gateway.config.snapshot import Allow, Hop, MaxTokens, OverloadStep, PriorityClass
from gateway.routing.degrading import Brownout, cuts_of
from gateway.routing.router import choose_route
from gateway.tokens.bounding import bound_output
from gateway.tokens.estimating import estimate
from tests.gateway.builders import (
    Clock,
    a_call,
    a_model,
    a_pool,
    a_rule,
    a_snapshot,
    a_tenant,
    an_estimate,
)


class Line:
    """A line as long as the test says."""

    def __init__(self, wait=0.0, waiting=1):
        self.wait, self.waiting = wait, waiting

    def class_wait(self, priority):
        return self.wait if priority is not PriorityClass.batch else 10 * self.wait


STEPS = (
    OverloadStep(queue_wait=1.0, max_tokens=512),
    OverloadStep(queue_wait=3.0, max_tokens=256, n=1),
)


def world(steps=STEPS, *, classes=None, lines=None, **rule):
    model, small = a_model(), a_model("small", context=2000)
    snapshot = a_snapshot(
        models=(model, small),
        pools=(
            a_pool("pool", serves={"llama": "llama", "small": "small"}),
            a_pool("other", serves={"llama": "llama"}, replicas=("r2",)),
            a_pool("minor", serves={"small": "engine-small"}, replicas=("r3",)),
        ),
        rules=(a_rule(overload=steps, **{"pools": ("pool",), **rule}),),
        tenants=(a_tenant(),),
    )
    if classes is not None:
        snapshot = replace(snapshot, overload=classes)
    clock = Clock(100.0)
    return snapshot, Brownout(lines if lines is not None else {"pool": Line(3.5, 40)}, clock), clock


def degraded(snapshot, brownout, call=None, expected=None):
    call = call or a_call(asked=2048, n=4)
    expected = expected or an_estimate(100, 400, asked=call.asked_max_tokens, prompts=1)
    return brownout.degrade(snapshot, call, choose_route(snapshot, call, expected))


def test_steps_that_are_on_hold_together():
    snapshot, brownout, _ = world()
    lesser = degraded(snapshot, brownout)
    assert lesser.changes == {"max_tokens": 256, "n": 1}
    assert lesser.call.request.n == 1
    assert lesser.route.estimate.bound.tokens == 256
    assert lesser.route.estimate.bound.by == "overload"
    assert lesser.route.estimate.bound.clamped
    assert lesser.route.estimate.total == 100 + 256
    assert lesser.route.chain[0].fit.sent == 256
    assert lesser.causes == (("rule rule", 2),)
    assert str(lesser) == 'max_tokens=256, n=1, by="rule rule step 2", queue_wait_ms=3500, waiting=40'


def test_who_asks_for_less_loses_nothing():
    snapshot, brownout, _ = world()
    assert degraded(snapshot, brownout, a_call(asked=200)) is None
    assert degraded(snapshot, brownout, a_call(asked=256)) is None
    assert degraded(snapshot, brownout, a_call(asked=200, n=2)).changes == {"n": 1}


@pytest.mark.parametrize(("default", "loses"), [(128, False), (1000, True), (None, True)])
def test_who_asks_for_nothing_would_get_the_default(default, loses):
    """What is sent then is the model's default: only where that is more is something lost."""
    snapshot, brownout, _ = world()
    model = a_model(max_tokens=MaxTokens(default=default))
    snapshot.models["llama"] = model
    call = a_call(model=model)
    prompt = an_estimate().prompt
    expected = estimate(prompt, bound_output(None, model, call.tenant, prompt), 1, None, model)
    lesser = degraded(snapshot, brownout, call, expected)
    assert (lesser is not None) is loses
    if lesser is not None:
        assert lesser.route.chain[0].fit.sent == 256
        assert lesser.route.estimate.output == 256


def test_best_of_is_bounded_too():
    snapshot, brownout, _ = world()
    call = a_call(dialect="completions", asked=100, n=2, parameters={"best_of": 5, "seed": 1})
    lesser = degraded(snapshot, brownout, call)
    assert lesser.call.request.parameters == {"best_of": 1, "seed": 1}
    assert call.request.parameters["best_of"] == 5, "the call as it came is another"


def test_who_opted_out_is_queued_as_ever():
    snapshot, brownout, _ = world()
    call = a_call(asked=2048)
    assert degraded(snapshot, brownout, structs.replace(call, degradable=False)) is None


def test_the_class_is_lowered_and_never_raised():
    steps = (OverloadStep(queue_wait=1.0, priority_class=PriorityClass.batch),)
    snapshot, brownout, _ = world(steps)
    lesser = degraded(snapshot, brownout, a_call(priority_class=PriorityClass.interactive))
    assert lesser.changes == {"class": "batch"}
    assert lesser.call.priority_class is PriorityClass.batch
    assert degraded(snapshot, brownout, a_call(priority_class=PriorityClass.batch)) is None


def test_another_model_comes_before_the_chain():
    steps = (OverloadStep(queue_wait=1.0, model="small", pools=("minor",), max_tokens=100),)
    snapshot, brownout, _ = world(steps)
    lesser = degraded(snapshot, brownout)
    assert [(target.pool.name, target.model.name) for target in lesser.route.chain] == [
        ("minor", "small"),
        ("pool", "llama"),
    ]
    assert lesser.changes == {"max_tokens": 100, "model": "small"}
    assert [target.fit.sent for target in lesser.route.chain] == [100, 100], "whatever model answers"
    assert 'model="small"' in str(lesser)


def test_a_model_that_cannot_take_it_is_no_choice():
    """Its context is too short, or the tenant may not use it: the request stays where it is."""
    steps = (OverloadStep(queue_wait=1.0, model="small", pools=("minor",)),)
    snapshot, brownout, _ = world(steps)
    assert degraded(snapshot, brownout, expected=an_estimate(5000, 100, asked=2048)) is None
    barred = a_tenant(allow=Allow(models=("llama",)))
    assert degraded(snapshot, brownout, a_call(tenant=barred, asked=100)) is None


def test_a_request_for_the_small_model_stays_as_it_is():
    steps = (OverloadStep(queue_wait=1.0, model="small", pools=("pool",)),)
    snapshot, brownout, _ = world(steps)
    assert degraded(snapshot, brownout, a_call(model=snapshot.models["small"])) is None


def test_a_chain_that_has_the_model_already_names_it_once():
    steps = (OverloadStep(queue_wait=1.0, model="small", pools=("minor",)),)
    snapshot, brownout, _ = world(steps, pools=("pool", Hop("minor", "small")))
    lesser = degraded(snapshot, brownout)
    assert [target.pool.name for target in lesser.route.chain] == ["minor", "pool"]


def test_rule_and_class_hold_together_and_each_says_so():
    classes = {
        PriorityClass.standard: (
            OverloadStep(queue_wait=2.0, n=2, max_tokens=1000),
            OverloadStep(queue_wait=99.0, n=1),
        )
    }
    snapshot, brownout, _ = world((OverloadStep(queue_wait=1.0, max_tokens=300),), classes=classes)
    lesser = degraded(snapshot, brownout)
    assert lesser.changes == {"max_tokens": 300, "n": 2}
    assert lesser.causes == (("rule rule", 1), ("class standard", 1))
    urgent = degraded(snapshot, brownout, a_call(asked=2048, n=4, priority_class=PriorityClass.interactive))
    assert urgent.causes == (("rule rule", 1),)


def test_of_several_steps_the_last_model_counts_and_a_rules_before_a_classs():
    one, two = OverloadStep(model="a", pools=("x",)), OverloadStep(model="b", pools=("y",))
    assert (cuts_of([one, two]).model, cuts_of([one, two]).pools) == ("b", ("y",))
    assert cuts_of([one, OverloadStep(n=1)]).model == "a"
    assert cuts_of([]).model is None


def test_where_the_rule_goes_on_the_shortest_line_counts():
    """A request that may spill into an idle pool loses nothing."""
    lines = {"pool": Line(9.0), "other": Line(0.1)}
    snapshot, brownout, _ = world(pools=("pool", "other"), on=frozenset({"overloaded"}), lines=lines)
    assert degraded(snapshot, brownout) is None
    snapshot, brownout, _ = world(pools=("pool", "other"), lines=lines)
    assert degraded(snapshot, brownout) is not None


def test_who_has_to_wait_before_it_may_go_on_counts_as_waiting():
    lines = {"pool": Line(9.0), "other": Line(0.1)}
    given = {"pools": ("pool", "other"), "on": frozenset({"overloaded"}), "lines": lines}
    snapshot, brownout, _ = world(**given, after=20.0)
    assert degraded(snapshot, brownout) is not None


def test_whoever_watches_switches_nothing():
    """Neither the admin API nor a scrape; and they see what requests see: the shortest line they may use."""
    lines = {"pool": Line(0.0), "other": Line(0.0)}
    snapshot, brownout, _ = world(pools=("pool", "other"), on=frozenset({"overloaded"}), lines=lines)
    assert degraded(snapshot, brownout) is None
    lines["pool"].wait = 9.0
    assert {row.active for row in brownout.rows()} == {0}
    lines["other"].wait = 9.0
    assert {row.active for row in brownout.rows()} == {2}
    call = a_call(asked=2048, n=4)
    route = choose_route(snapshot, call, an_estimate(100, 400, asked=2048))
    assert {row.active for row in brownout.rows_for(snapshot, call, route)} == {2}
    lines["pool"].wait = lines["other"].wait = 0.0
    assert degraded(snapshot, brownout) is None, "it was on for those who watched only"


def test_each_class_has_a_view_of_its_own():
    """A long line of batch work does not cut interactive answers."""
    snapshot, brownout, _ = world(lines={"pool": Line(0.2)})
    assert degraded(snapshot, brownout, a_call(asked=2048, priority_class=PriorityClass.batch)) is not None
    assert degraded(snapshot, brownout) is None
    assert {(row.priority_class, row.active) for row in brownout.rows()} == {("batch", 1), ("standard", 0)}


def test_it_ends_when_the_line_was_short_for_the_dwell():
    line = Line(3.5)
    snapshot, brownout, clock = world(lines={"pool": line})
    assert degraded(snapshot, brownout) is not None
    line.wait = 0.0
    for _ in range(10):
        clock.tick(1.0)
        assert degraded(snapshot, brownout) is not None
    clock.tick(1.0)
    assert degraded(snapshot, brownout) is None
    (row,) = brownout.rows()
    assert (row.of, row.pool, row.active, row.steps[0].on, row.steps[0].for_s) == (
        "rule rule", "pool", 0, False, 0.0,
    )  # fmt: skip
    assert row.steps[1].takes == {"max_tokens": 256, "n": 1}
    assert row.steps[1].when == {"queue_wait_ms": 3000.0}


def test_rows_for_a_request_tell_of_steps_that_are_off_too():
    snapshot, brownout, _ = world(lines={"pool": Line(1.5, 7)})
    call = a_call(asked=2048)
    rows = brownout.rows_for(snapshot, call, choose_route(snapshot, call, an_estimate(asked=2048)))
    assert [(row.active, row.queue_wait_ms, row.waiting) for row in rows] == [(1, 1500.0, 7)]
    assert [step.on for step in rows[0].steps] == [True, False]


def test_without_steps_or_pools_there_is_nothing_to_take():
    snapshot, brownout, _ = world(())
    assert degraded(snapshot, brownout) is None
    snapshot, brownout, _ = world(pools=("minor",))
    assert degraded(snapshot, brownout) is None, "no pool of the chain serves the model"
    assert list(brownout.rows()) == []
