"""Boundaries: an estimate that has none within decides as the exact count would. Against the real router."""

from functools import partial

from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.call import Call, Estimate, PromptCount
from gateway.config.snapshot import Hop, MaxTokens, Model, Range, Snapshot, When
from gateway.errors import GatewayError
from gateway.routing.router import choose_route
from gateway.tokens.bounding import bound_output
from gateway.tokens.deciding import Boundaries
from gateway.tokens.estimating import OutputLengths, estimate
from tests.gateway.builders import a_call, a_model, a_pool, a_rule, a_snapshot, a_tenant


def exactly(tokens: int) -> PromptCount:
    return PromptCount(tokens, exact=True, source="test", longest=tokens)


def expect(call: Call, lengths: OutputLengths, prompt: PromptCount) -> Estimate:
    """As the pipeline does."""
    bound = bound_output(call.asked_max_tokens, call.model, call.tenant, prompt)
    learned = lengths.predict(call.tenant.name, call.model.name, prompt.tokens)
    return estimate(prompt, bound, call.request.n, learned, call.model)


def decision(snapshot: Snapshot, call: Call, lengths: OutputLengths, prompt: PromptCount):
    """All that is decided by the length of a prompt, and the bounds that are sent."""
    try:
        expected = expect(call, lengths, prompt)
        route = choose_route(snapshot, call, expected)
    except GatewayError as error:
        return type(error), []
    targets = [
        (target.pool.name, target.usable, type(target.refusal), target.fit.fits, target.fit.clamped,
         target.fit.sent if call.asked_max_tokens is not None else None)
        for target in route.chain
    ]  # fmt: skip
    return (route.rule.name, targets), [(target.fit.sent, target) for target in route.chain]


lengths_around = st.integers(1, 40).map(lambda index: index * 100)
maybe_length = st.none() | st.none() | lengths_around
ranges = st.none() | st.builds(
    Range, lt=maybe_length, lte=maybe_length, gt=st.none() | st.integers(0, 2000), gte=st.none()
)


@st.composite
def models(draw, name: str) -> Model:
    ceiling = draw(maybe_length)
    return a_model(
        name,
        context=draw(st.none() | st.integers(500, 4000)),
        max_tokens=MaxTokens(
            default=draw(st.none() | st.integers(1, ceiling or 800)),
            ceiling=ceiling,
            policy=draw(st.sampled_from(["clamp", "refuse"])),
            margin=draw(st.sampled_from([0, 16])),
        ),
    )


@st.composite
def houses(draw) -> tuple[Snapshot, Call, OutputLengths]:
    asked, other = draw(models("llama")), draw(models("other"))
    pools = [
        a_pool(
            f"p{index}",
            serves={"llama": "a", "other": "b"},
            prompt=draw(maybe_length),
            total=draw(maybe_length),
        )
        for index in range(3)
    ]
    hops = st.builds(Hop, st.sampled_from(["p0", "p1", "p2"]), st.sampled_from([None, None, "other"]))
    rules = []
    for index in range(draw(st.integers(0, 3))):
        total = draw(ranges)
        clamps = total is not None and total.most is not None
        when = When(
            prompt_tokens=draw(ranges),
            estimated_total_tokens=total,
            if_clamped=draw(st.none() | st.integers(1, 300)) if clamps else None,
            stream=draw(st.sampled_from([None, None, True])),
        )
        chain = draw(st.lists(hops, min_size=1, max_size=3))
        rules.append(
            a_rule(f"r{index}", chain, when=when, fit=draw(st.sampled_from(["next", "clamp", "refuse"])))
        )
    rules.append(a_rule("else", draw(st.lists(hops, min_size=1, max_size=2))))
    tenant = a_tenant(max_tokens=draw(st.none() | lengths_around))
    snapshot = a_snapshot(models=[asked, other], pools=pools, rules=rules, tenants=[tenant])
    lengths = OutputLengths(learned_after=1)
    for size, length in draw(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 900)), max_size=4)):
        lengths.observe(tenant.name, "llama", size, length)
    call = a_call(
        model=asked, tenant=tenant, asked=draw(st.none() | st.integers(1, 2000)), n=draw(st.integers(1, 3))
    )
    return snapshot, call, lengths


@settings(max_examples=400)
@given(house=houses(), low=st.integers(1, 3000), data=st.data())
def test_an_estimate_without_a_boundary_within_decides_as_the_exact_count(house, low, data):
    """For any truth in the interval: same rule, same pools usable, same clamps, same bound where one was
    asked for; and what is sent without having been asked for fits."""
    snapshot, call, lengths = house
    high = data.draw(st.integers(low, 2 * low) | st.integers(low, min(low + 60, 2 * low)), label="high")
    middle = data.draw(st.integers(low, high), label="estimate")
    true = data.draw(st.integers(low, high), label="true")
    boundaries = Boundaries.of(snapshot, call.model)
    ends = partial(expect, call, lengths)
    try:
        within = boundaries.within(call, ends(exactly(low)), ends(exactly(high)), None)
    except GatewayError:
        within = "a refusal"
    event("a boundary" if within else "none")
    if within is not None:
        return
    guess = PromptCount(middle, exact=False, source="", longest=middle, low=low, error=high - middle)
    estimated, sent = decision(snapshot, call, lengths, guess)
    for tokens in (low, true, high):
        exact, most = decision(snapshot, call, lengths, exactly(tokens))
        assert estimated == exact
        for (ours, target), (bound, _) in zip(sent, most, strict=True):
            if ours is not None and target.usable and bound is not None:
                assert ours <= bound


def test_a_default_that_only_fits_at_one_end_is_counted():
    """Found by the test above: 2 tokens were sent where the true prompt left 1."""
    model = a_model(context=784, max_tokens=MaxTokens(default=2))
    boundaries = Boundaries.of(a_snapshot(models=[model]), model)
    ends = partial(expect, a_call(model=model, asked=None), OutputLengths())
    assert boundaries.within(a_call(model=model, asked=None), ends(exactly(392)), ends(exactly(783)), None)
    assert not boundaries.within(
        a_call(model=model, asked=None), ends(exactly(392)), ends(exactly(500)), None
    )


def test_a_refusal_that_an_estimate_would_not_see_is_counted():
    """Found by the first test: 499 and 500 are refused by the other model, about 500 was not."""
    other = a_model("other", context=500, max_tokens=MaxTokens(policy="refuse"))
    model = a_model()
    pool = a_pool("p", serves={"llama": "a", "other": "b"})
    snapshot = a_snapshot(models=[model, other], pools=[pool], rules=[a_rule("else", [Hop("p", "other")])])
    call = a_call(model=model, asked=2)
    ends = partial(expect, call, OutputLengths())
    boundaries = Boundaries.of(snapshot, model)
    assert boundaries.within(call, ends(exactly(499)), ends(exactly(500)), None)
    assert not boundaries.within(call, ends(exactly(501)), ends(exactly(510)), None)


def cuts(**when) -> Boundaries:
    rules = [a_rule("short", when=When(**when)), a_rule("else")]
    return Boundaries.of(a_snapshot(rules=rules), a_model())


def within(boundaries: Boundaries, low: int, high: int, room: int | None = None, **asked) -> str | None:
    call = a_call(asked=asked.get("asked", 10))
    ends = (expect(call, OutputLengths(), exactly(tokens)) for tokens in (low, high))
    return boundaries.within(call, *ends, room)


def test_a_threshold_belongs_to_the_side_that_it_says():
    """`lte: 100` parts 100 from 101, `lt: 100` parts 99 from 100."""
    assert within(cuts(prompt_tokens=Range(lte=100)), 90, 100) is None
    assert within(cuts(prompt_tokens=Range(lte=100)), 100, 101) == "rule short (100)"
    assert within(cuts(prompt_tokens=Range(lt=100)), 99, 100) == "rule short (100)"
    assert within(cuts(prompt_tokens=Range(lt=100)), 100, 110) is None
    assert within(cuts(prompt_tokens=Range(gt=100)), 100, 101) == "rule short (100)"
    assert within(cuts(prompt_tokens=Range(gte=100)), 99, 100) == "rule short (100)"


def test_both_thresholds_of_a_range_may_lie_within():
    """The decision is the same at both ends, and not between them."""
    assert within(cuts(prompt_tokens=Range(gte=100, lte=110)), 90, 120) is not None


def test_totals_are_of_prompt_and_output():
    """10 tokens of output are asked for."""
    assert within(cuts(estimated_total_tokens=Range(lte=100)), 80, 90) is None
    assert within(cuts(estimated_total_tokens=Range(lte=100)), 80, 91) == "rule short (100)"


def test_nobody_is_refused_by_a_limit_on_an_estimate():
    """The upper end has to pass."""
    assert within(cuts(), 80, 90, room=100) is None
    assert within(cuts(), 80, 90, room=99) == "what the limits leave (99)"
    assert within(cuts(), 80, 90, room=-5) is not None


def test_only_rules_that_can_take_the_model_count():
    """Nor does what comes after a rule that takes it all."""
    snapshot = a_snapshot(
        rules=[
            a_rule("others", when=When(model=("other",), prompt_tokens=Range(lt=100))),
            a_rule("all"),
            a_rule("never", when=When(prompt_tokens=Range(lt=200))),
        ]
    )
    assert Boundaries.of(snapshot, a_model()).prompt == ()


def test_the_nearest_boundary_is_told():
    """In tokens of prompt or total, from the end that is nearer."""
    boundaries = cuts(estimated_total_tokens=Range(lte=4096))
    call = a_call(asked=10)
    low, high = (expect(call, OutputLengths(), exactly(tokens)) for tokens in (812, 861))
    nearest = boundaries.nearest(low, high, None)
    assert nearest is not None
    assert (nearest.at, nearest.name) == (4097 - 871, "rule short (4096)")


def test_pools_and_contexts_are_boundaries():
    """Where the prompt no longer fits, where the output is cut, and where another model of the chain ends."""
    model = a_model(context=1000)
    other = a_model("other", context=500)
    pools = [a_pool(prompt=300, total=2000), a_pool("rest", serves={"other": "b"})]
    rules = [a_rule(pools=["pool", Hop("rest", "other")])]
    snapshot = a_snapshot(models=[model, other], pools=pools, rules=rules)
    boundaries = Boundaries.of(snapshot, model)

    def lies(low: int, high: int) -> str | None:
        call = a_call(model=model, asked=100)
        return boundaries.within(
            call, *(expect(call, OutputLengths(), exactly(tokens)) for tokens in (low, high)), None
        )

    assert lies(200, 300) is None
    assert lies(300, 301) == "pool pool"
    assert lies(301, 400) is None
    assert lies(400, 401) == "pool rest", "of the other model, 100 tokens of output no longer fit"
    assert lies(899, 901) == "context (1000)"


def test_where_a_rule_bounds_the_output_the_count_is_exact():
    """`if_clamped`: what is sent is what the very count leaves."""
    boundaries = cuts(estimated_total_tokens=Range(lte=100), if_clamped=20)
    assert within(boundaries, 60, 65, asked=30) is None, "it passes as it is"
    assert within(boundaries, 75, 78, asked=30) == "rule short (100, by a bound)"
    assert within(boundaries, 85, 88, asked=30) is None, "not even bounded does it pass"
