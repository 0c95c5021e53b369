"""Rules -> chains: the first match wins, and each pool says why it cannot take a request."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Lora, NativeRequest
from gateway.call import Estimate
from gateway.config.snapshot import Allow, Hop, MaxTokens, PriorityClass, Range, When
from gateway.errors import (
    ContextLengthExceeded,
    GatewayError,
    ModelNotFound,
    Unavailable,
    UnsupportedByEngine,
)
from gateway.routing.router import (
    choose_route,
    lenders_of,
    mismatch_of,
    refusal_of,
    refused_at,
    served_models,
)
from tests.gateway.builders import a_call, a_model, a_pool, a_rule, a_snapshot, a_tenant, an_estimate


def of_total(total: int) -> Estimate:
    return msgspec.structs.replace(an_estimate(prompt=min(10, total)), total=total)


# --------------------------------------------------------------------------------------------- rules


@pytest.fixture
def shipped():
    """The rule set of short and long pools that operators write today."""
    llama, code = When(model=("llama3-8b-ru",)), When(model=("code-7b",))
    short = replace(llama, estimated_total_tokens=Range(lte=4096))
    names = ("llama3-8b-ru", "code-7b", "other")
    serves = {name: name for name in names}
    pools = [a_pool(f"{name}-pool", serves=serves) for name in ("short", "long", "code", "default")]
    rules = [
        a_rule("ru-short", ["short-pool", "long-pool"], when=short),
        a_rule("ru-long", ["long-pool"], when=llama),
        a_rule("code", ["code-pool"], when=code),
        a_rule("else", ["default-pool"]),
    ]
    return a_snapshot(models=map(a_model, names), pools=pools, rules=rules)


@pytest.mark.parametrize(
    ("model", "total", "rule", "first"),
    [
        ("llama3-8b-ru", 1, "ru-short", "short-pool"),
        ("llama3-8b-ru", 4096, "ru-short", "short-pool"),
        ("llama3-8b-ru", 4097, "ru-long", "long-pool"),
        ("code-7b", 100_000, "code", "code-pool"),
        ("other", 1, "else", "default-pool"),
    ],
)
def test_the_shipped_rules_mean_what_they_say(shipped, model, total, rule, first):
    route = choose_route(shipped, a_call(model=shipped.models[model]), of_total(total))
    assert route.rule.name == rule
    assert route.chain[0].pool.name == first


def test_every_rule_tried_is_kept_with_its_first_mismatch(shipped):
    route = choose_route(shipped, a_call(model=shipped.models["llama3-8b-ru"]), of_total(5000))
    assert [(trial.rule, trial.mismatch) for trial in route.tried] == [
        ("ru-short", "estimated_total_tokens 5000 is not <= 4096"),
        ("ru-long", None),
    ]


SHORT = When(model=("llama",), estimated_total_tokens=Range(lte=100), if_clamped=16)


@pytest.mark.parametrize(
    ("prompt", "output", "asked", "rule", "total"),
    [
        (60, 40, None, "short", 100),
        (60, 41, None, "short", 100),
        (60, 900, 900, "short", 100),
        (84, 900, 900, "short", 100),
        (85, 900, 900, "long", 985),
        (85, 15, 15, "short", 100),
        (85, 16, 16, "long", 101),
    ],
)
def test_what_fits_the_short_pool_if_clamped(prompt, output, asked, rule, total):
    """With 16 tokens of output it does; what it may have more is bounded to the room there is."""
    short, long = a_pool("short", total=100), a_pool("long", total=1000)
    rules = [a_rule("short", ["short", "long"], when=SHORT), a_rule("long", ["long"])]
    call = a_call(asked=asked)
    route = choose_route(
        a_snapshot(pools=[short, long], rules=rules), call, an_estimate(prompt, output, asked=asked)
    )
    assert (route.rule.name, route.estimate.total) == (rule, total)
    if rule == "short" and output > 100 - prompt:
        assert route.tried[0].clamped is not None
        assert [target.fit.sent for target in route.chain] == [100 - prompt] * 2
        assert {target.fit.by for target in route.chain} == {"rule short"}
    else:
        assert route.tried[0].clamped is None


def test_the_bound_of_a_rule_holds_for_another_model_too():
    """The chain's second model has a ceiling of its own, and the rule's bound."""
    other = a_model("small", max_tokens=MaxTokens(ceiling=500))
    pools = [a_pool("a"), a_pool("b", serves={"small": "s"})]
    rules = [a_rule("short", ["a", Hop("b", "small")], when=SHORT)]
    snapshot = a_snapshot(models=[a_model(), other], pools=pools, rules=rules)
    route = choose_route(snapshot, a_call(asked=900), an_estimate(60, 900, asked=900))
    assert [(target.fit.sent, target.fit.by) for target in route.chain] == [(40, "rule short")] * 2


def test_what_is_cut_for_another_reason_does_not_match_if_clamped():
    """Every other condition must hold as ever."""
    rules = [a_rule("short", when=When(stream=True, estimated_total_tokens=Range(lte=100), if_clamped=16))]
    with pytest.raises(ModelNotFound):
        choose_route(a_snapshot(rules=rules), a_call(stream=False), an_estimate(60, 900))


def test_no_rule_is_an_unknown_model():
    snapshot = a_snapshot(rules=[a_rule(when=When(model=("other",)))])
    with pytest.raises(ModelNotFound) as refused:
        choose_route(snapshot, a_call(), an_estimate())
    assert refused.value.param == "model"


CALL = {"tenant": a_tenant("acme"), "stream": True, "priority_class": PriorityClass.standard}


@pytest.mark.parametrize(
    ("when", "mismatch"),
    [
        (When(), None),
        (When(model=("llama",)), None),
        (When(model=("x", "y")), "model llama is not one of x, y"),
        (When(tenant=("acme",)), None),
        (When(tenant=("globex",)), "tenant acme is not globex"),
        (When(priority_class=(PriorityClass.standard,)), None),
        (When(priority_class=(PriorityClass.batch,)), "class standard is not batch"),
        (When(stream=True), None),
        (When(stream=False), "stream is true"),
        (When(prompt_tokens=Range(gte=10, lt=11)), None),
        (When(prompt_tokens=Range(gt=10)), "prompt_tokens 10 is not > 10"),
        (When(estimated_total_tokens=Range(lte=15)), None),
        (
            When(estimated_total_tokens=Range(gt=3, lt=15)),
            "estimated_total_tokens 15 is not > 3 and < 15",
        ),
        (When(model=("llama",), stream=False, tenant=("globex",)), "tenant acme is not globex"),
    ],
)
def test_every_condition_must_hold(when, mismatch):
    assert mismatch_of(when, a_call(**CALL), an_estimate(prompt=10, output=5)) == mismatch


# -------------------------------------------------------------------------------------------- targets


def target(
    call=None, estimate=None, *, tenant=None, hop="pool", rule_fields=None, models=None, **pool_fields
):
    """The only target of a chain with one pool."""
    models = [a_model()] if models is None else models
    snapshot = a_snapshot(
        models=models, pools=[a_pool(**pool_fields)], rules=[a_rule(pools=[hop], **(rule_fields or {}))]
    )
    call = a_call(model=models[0], tenant=tenant) if call is None else call
    route = choose_route(snapshot, call, an_estimate() if estimate is None else estimate)
    return route.chain[0]


def test_a_pool_that_serves_the_model_is_usable_under_its_engines_name():
    it = target()
    assert it.usable
    assert (it.engine_model, it.refusal) == ("engine-llama", None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"serves": {"other": "x"}}, "does not serve"),
        ({"tenant": a_tenant(allow=Allow(models=("code*",)))}, "may not use llama"),
        (
            {
                "tenant": a_tenant(allow=Allow(labels={"environment": ("prod",)})),
                "labels": {"environment": "dev"},
            },
            "environment=dev",
        ),
        ({"tenant": a_tenant(allow=Allow(labels={"environment": ("prod",)}))}, "environment=None"),
    ],
)
def test_what_a_tenant_may_not_use_is_refused_as_unknown(fields, words):
    it = target(**fields)
    assert isinstance(it.refusal, ModelNotFound)
    assert words in it.refusal.message


def test_a_cold_pool_is_not_an_unknown_model():
    """It may wake up: come back later."""
    it = target(state="cold")
    assert isinstance(it.refusal, Unavailable)
    assert it.refusal.retry_after


@pytest.mark.parametrize("state", ["hot", "warm"])
def test_hot_and_warm_pools_take_traffic(state):
    assert target(state=state).usable


def test_a_field_that_the_engine_cannot_serve_names_itself():
    it = target(a_call(parameters={"use_beam_search": True}))
    assert isinstance(it.refusal, UnsupportedByEngine)
    assert it.refusal.param == "use_beam_search"


@pytest.mark.parametrize(
    ("estimate", "limits", "fit", "sent", "param"),
    [
        (an_estimate(prompt=10, asked=90), {"total": 100}, "next", 90, None),
        (an_estimate(prompt=10, asked=91), {"total": 100}, "next", 90, "max_tokens"),
        (an_estimate(prompt=10, asked=91), {"total": 100}, "refuse", 90, "max_tokens"),
        (an_estimate(prompt=10, asked=91), {"total": 100}, "clamp", 90, None),
        (an_estimate(prompt=10), {"total": 100}, "next", 90, None),
        (an_estimate(prompt=11), {"prompt": 10}, "clamp", None, "messages"),
        (an_estimate(prompt=10), {"prompt": 10}, "next", None, None),
        (an_estimate(prompt=100), {"total": 100}, "clamp", None, "messages"),
    ],
)
def test_lengths_at_their_edges(estimate, limits, fit, sent, param):
    """`fit` decides about output only; a prompt that is too long fits nowhere."""
    it = target(estimate=estimate, rule_fields={"fit": fit}, **limits)
    if it.fit.sent is not None and estimate.bound.asked is not None:
        assert it.fit.sent == sent
    if param is None:
        assert it.usable
    else:
        assert isinstance(it.refusal, ContextLengthExceeded)
        assert it.refusal.param == param


@pytest.mark.parametrize(
    ("estimate", "limits", "fit", "ends"),
    [
        (an_estimate(prompt=10, asked=91), {"total": 100}, "refuse", True),
        (an_estimate(prompt=10, asked=91), {"total": 100}, "next", False),
        (an_estimate(prompt=10, asked=9), {"total": 100}, "refuse", False),
        (an_estimate(prompt=11, asked=9), {"prompt": 10}, "refuse", False),
    ],
)
def test_only_too_much_output_ends_the_walk_under_refuse(estimate, limits, fit, ends):
    """A pool whose `prompt` limit is below the prompt is skipped, whatever `fit` says."""
    it = target(estimate=estimate, rule_fields={"fit": fit}, **limits)
    assert refused_at(a_rule(fit=fit), it) is ends


# ------------------------------------------------------------------------------- other models, wildcards


def test_a_hop_to_another_model_takes_that_models_bounds():
    small = a_model("small", max_tokens=MaxTokens(ceiling=7))
    it = target(
        a_call(asked=50),
        an_estimate(asked=50),
        hop=Hop("pool", model="small"),
        models=[a_model(), small],
        serves={"small": "engine-small"},
    )
    assert it.usable
    assert (it.model, it.engine_model, it.fit.sent, it.fit.clamped) == (small, "engine-small", 7, True)


def test_a_hop_to_a_model_whose_context_is_too_short_is_refused_not_raised():
    small = a_model("small", context=8)
    it = target(
        estimate=an_estimate(prompt=10), hop=Hop("pool", model="small"), models=[a_model(), small],
        serves={"small": "s"},
    )  # fmt: skip
    assert isinstance(it.refusal, ContextLengthExceeded)
    assert it.fit.sent is None


def test_a_hop_to_a_model_that_the_tenant_may_not_use_is_refused():
    it = target(
        tenant=a_tenant(allow=Allow(models=("llama",))),
        hop=Hop("pool", model="small"),
        models=[a_model(), a_model("small")],
        serves={"small": "s"},
    )
    assert isinstance(it.refusal, ModelNotFound)


@pytest.mark.parametrize(("serves", "engine_model"), [("*", "llama-9"), ("fixed", "fixed")])
def test_the_wildcard_model_passes_the_asked_name_on(serves, engine_model):
    star = a_model("*")
    it = target(a_call(model=star, asked_model="llama-9"), models=[star], serves={"*": serves})
    assert it.engine_model == engine_model


@pytest.mark.parametrize(("asked", "usable"), [("llama-9", True), ("code-9", False)])
def test_a_tenants_patterns_hold_for_the_asked_name_behind_the_wildcard(asked, usable):
    """The same decision as reading took: the pattern is about `llama-9`, not about `*`."""
    star = a_model("*")
    call = a_call(model=star, asked_model=asked, tenant=a_tenant(allow=Allow(models=("llama*",))))
    assert target(call, models=[star], serves={"*": "*"}).usable is usable


# --------------------------------------------------------------------------------------- whole refusals


def route_of(*pools, call=None, estimate=None, **rule_fields):
    rule = a_rule(pools=[pool.name for pool in pools], **rule_fields)
    snapshot = a_snapshot(pools=pools, rules=[rule])
    return choose_route(snapshot, call or a_call(), estimate or an_estimate())


def test_the_refusal_nearest_to_what_the_client_can_change():
    """A field beats lengths, lengths beat access."""
    foreign, short = a_pool("foreign", serves={}), a_pool("short", total=5)
    engine = a_pool("engine")
    odd = a_call(parameters={"use_beam_search": True})
    assert isinstance(refusal_of(route_of(foreign)), ModelNotFound)
    assert isinstance(refusal_of(route_of(foreign, short)), ContextLengthExceeded)
    assert isinstance(refusal_of(route_of(foreign, short, engine, call=odd)), UnsupportedByEngine)


def test_access_is_told_without_saying_why():
    """No probing: neither the pool's name nor its labels leave the house."""
    secret = a_pool("secret-pool", labels={"environment": "dev"})
    tenant = a_tenant(allow=Allow(labels={"environment": ("prod",)}))
    error = refusal_of(route_of(secret, call=a_call(tenant=tenant)))
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "secret" not in error.message
    assert "environment" not in error.message


def test_served_models():
    a, b = a_pool("a", serves={"llama": "x"}), a_pool("b", serves={"llama": "y", "code": "z"})
    snapshot = a_snapshot(models=[a_model(), a_model("code"), a_model("idle")], pools=[a, b])
    assert served_models(snapshot) == {"llama": (a, b), "code": (b,), "idle": ()}


# ------------------------------------------------------------------------------------------ properties


limits = st.one_of(st.none(), st.integers(1, 200))
pools = st.lists(
    st.builds(
        dict,
        prompt=limits,
        total=limits,
        state=st.sampled_from(["hot", "cold"]),
        serves=st.sampled_from([{"llama": "x"}, {}]),
    ),
    min_size=1,
    max_size=4,
)


@given(
    pools,
    st.integers(1, 200),
    st.one_of(st.none(), st.integers(1, 200)),
    st.sampled_from(["next", "clamp", "refuse"]),
)
def test_no_usable_pool_is_ever_sent_more_than_it_takes(fields, prompt, asked, fit):
    """And a chain without a usable pool always has a refusal to tell."""
    chain = [a_pool(f"p{i}", **each) for i, each in enumerate(fields)]
    route = route_of(*chain, call=a_call(asked=asked), estimate=an_estimate(prompt, asked=asked), fit=fit)
    assert len(route.chain) == len(chain)
    for it in route.chain:
        limits = it.pool.limits
        if it.usable:
            assert it.pool.state != "cold"
            assert limits.prompt is None or prompt <= limits.prompt
            if limits.total is not None:
                assert it.fit.sent is not None
                assert 1 <= it.fit.sent <= limits.total - prompt
            if asked is not None:
                assert it.fit.sent <= asked
                assert fit == "clamp" or it.fit.sent == asked
        else:
            assert isinstance(it.refusal, GatewayError)
            assert it.refusal.message
    if not any(it.usable for it in route.chain):
        assert refusal_of(route).status in (400, 404, 503)


@given(st.integers(0, 5000), st.integers(0, 6))
def test_an_idle_model_or_pool_changes_no_decision(total, extra):
    """M3."""
    when = When(estimated_total_tokens=Range(lte=1000))
    rules = [a_rule("short", when=when), a_rule("long", ["long"])]
    own = [a_pool(), a_pool("long")]
    idle = [a_pool(f"idle{i}", serves={}) for i in range(extra)]
    names = []
    for chosen in (own, [*idle, *own]):
        snapshot = a_snapshot(pools=chosen, rules=rules)
        names.append(choose_route(snapshot, a_call(), of_total(total)).rule.name)
    assert names[0] == names[1]


def test_who_may_lend_to_whom():
    """Later pools that lend to this one, can take the request, and would not send less; of the same model."""
    lends = {"lends_to": ("first",)}
    pools = (
        a_pool("before", **lends),
        a_pool("first", total=1000),
        a_pool("good", **lends),
        a_pool("lends nothing"),
        a_pool("cold", state="cold", **lends),
        a_pool("small", total=500, **lends),
        a_pool("other", serves={"llama": "a", "phi": "b"}, **lends),
    )
    chain = (*(pool.name for pool in pools[:-1]), Hop("other", "phi"))
    snapshot = a_snapshot(
        models=(a_model(), a_model("phi")), pools=pools, rules=[a_rule(pools=chain, fit="clamp")]
    )
    route = choose_route(snapshot, a_call(), an_estimate(prompt=100, asked=5000))
    found = {here.pool.name: [each.pool.name for each in lenders_of(route, here)] for here in route.chain}
    assert found.pop("first") == ["good"]
    assert not any(found.values())


@pytest.mark.parametrize(
    ("engine", "reached"),
    [
        ("vllm", {"messages", "responses"}),
        ("sglang", {"messages"}),
        ("llamacpp", {"responses"}),
        ("trtllm", set()),
    ],
)
@pytest.mark.parametrize("door", ["messages", "responses"])
def test_adapters_are_reached_where_the_engine_has_a_form_for_it(engine, reached, door):
    """Else the body would name the base model: it would answer without the adapter, and nobody would know."""
    pool = {
        "engine": engine,
        "loras": {"llama": Lora(name="french", id=0)},
        "doors": frozenset({"chat", "responses", "messages"}),
    }
    call = a_call()
    assert target(call, **pool).usable
    native = NativeRequest(door=door, body=b"{}")
    request = msgspec.structs.replace(call.request, native=native, messages=None)
    refusal = target(msgspec.structs.replace(call, dialect=door, request=request), **pool).refusal
    if door in reached:
        assert refusal is None
    else:
        assert isinstance(refusal, UnsupportedByEngine)
        assert refusal.param == "model"
