"""What policy allows, and what a pool leaves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.call import Bound, PromptCount
from gateway.config.snapshot import MaxTokens, Model, PoolLimits, Range, Tenant, TokenizerSpec, When
from gateway.errors import BadRequest, ContextLengthExceeded
from gateway.tokens.bounding import bound_output, bounded_by, fit_pool, fit_rule, lessened
from gateway.tokens.estimating import estimate


def prompt(tokens: int, *, exact: bool = True, longest: int | None = None, error: int = 0) -> PromptCount:
    return PromptCount(tokens=tokens, exact=exact, source="test", longest=longest or tokens, error=error)


def model(context=None, default=None, ceiling=None, policy="clamp", margin=0) -> Model:
    return Model(
        name="m",
        tokenizer=TokenizerSpec("estimate"),
        context=context,
        max_tokens=MaxTokens(default=default, ceiling=ceiling, policy=policy, margin=margin),
    )


def tenant(max_tokens=None) -> Tenant:
    return Tenant(name="t", max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("asked", "of_tenant", "ceiling", "context", "tokens", "by", "clamped"),
    [
        (100, 200, 300, 4096, 100, "asked", False),
        (100, 100, 100, 4096, 100, "asked", False),
        (250, 200, 300, 4096, 200, "tenant", True),
        (999, None, 300, 4096, 300, "model", True),
        (999, None, None, 1200, 200, "context", True),
        (None, 200, 300, 4096, 200, "tenant", False),
        (None, None, 300, 4096, 300, "model", False),
        (None, None, None, 1200, 200, "context", False),
        (None, None, None, None, None, "nothing", False),
        (7, None, None, None, 7, "asked", False),
    ],
)
def test_the_least_of_what_bounds(asked, of_tenant, ceiling, context, tokens, by, clamped):
    """What was not asked takes no part, and is not told as asked."""
    bound = bound_output(asked, model(context, ceiling=ceiling), tenant(of_tenant), prompt(1000))
    assert (bound.tokens, bound.asked, bound.by, bound.clamped) == (tokens, asked, by, clamped)


def test_a_prompt_that_fills_the_context_is_refused():
    """Not one token of room: 400, naming the field that holds the prompt."""
    assert bound_output(None, model(1001), tenant(), prompt(1000)).tokens == 1
    with pytest.raises(ContextLengthExceeded) as refused:
        bound_output(None, model(1000), tenant(), prompt(1000), param="prompt")
    assert refused.value.param == "prompt"
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("policy", ["clamp", "refuse"])
def test_what_generates_nothing_may_fill_the_context_and_the_pool(policy):
    """Embeddings and the like ask for no output."""
    bound = bound_output(0, model(1000, ceiling=9, policy=policy), tenant(5), prompt(1000), param="input")
    assert (bound.tokens, bound.clamped) == (0, False)
    fitted = fit_pool(bound, model(1000), PoolLimits(total=1000), prompt(1000))
    assert (fitted.sent, fitted.fits) == (0, True)
    assert not fit_pool(bound, model(1000), PoolLimits(total=999), prompt(1000)).fits
    with pytest.raises(ContextLengthExceeded) as refused:
        bound_output(0, model(999, policy=policy), tenant(), prompt(1000), param="input")
    assert refused.value.param == "input"


def test_the_longest_of_several_prompts_counts_for_the_context():
    """The context holds one prompt at a time."""
    several = PromptCount(tokens=3000, exact=True, source="test", longest=900, prompts=4)
    assert bound_output(500, model(1000), tenant(), several).tokens == 100


def test_an_estimated_prompt_is_refused_only_far_beyond_the_context():
    """The engine counts; a guess must not lose a good request."""
    assert bound_output(50, model(1000), tenant(), prompt(1999, exact=False)).tokens == 50
    with pytest.raises(ContextLengthExceeded):
        bound_output(50, model(1000), tenant(), prompt(2000, exact=False))


@pytest.mark.parametrize(("of_tenant", "ceiling"), [(200, None), (None, 200), (200, 300)])
def test_refuse_answers_400_above_a_ceiling(of_tenant, ceiling):
    """Under `refuse`, whoever set the ceiling."""
    refusing = model(4096, ceiling=ceiling, policy="refuse")
    assert bound_output(200, refusing, tenant(of_tenant), prompt(10)).tokens == 200
    with pytest.raises(BadRequest) as refused:
        bound_output(201, refusing, tenant(of_tenant), prompt(10))
    assert (refused.value.param, refused.value.code) == ("max_tokens", "max_tokens_too_large")


def test_prompt_and_output_beyond_the_context_follow_the_policy():
    """`clamp` sends what fits, `refuse` says no; asking for nothing is never refused."""
    assert bound_output(500, model(1000), tenant(), prompt(800)).tokens == 200
    with pytest.raises(ContextLengthExceeded):
        bound_output(201, model(1000, policy="refuse"), tenant(), prompt(800))
    assert bound_output(None, model(1000, policy="refuse", ceiling=900), tenant(), prompt(800)).tokens == 200


def test_the_margin_is_kept_free():
    """Of the context and of a pool's total; a prompt that reaches into it is refused, and told why."""
    of_16 = model(1000, margin=16)
    bound = bound_output(500, of_16, tenant(), prompt(800))
    assert (bound.tokens, bound.by) == (184, "context")
    assert bound_output(None, of_16, tenant(), prompt(983)).tokens == 1
    with pytest.raises(
        ContextLengthExceeded, match="1000 tokens, 16 of them kept free, but the prompt has 984"
    ):
        bound_output(None, of_16, tenant(), prompt(984))
    assert fit_pool(bound, of_16, PoolLimits(total=900), prompt(800)).sent == 84
    too_long = fit_pool(bound, of_16, PoolLimits(total=816), prompt(800))
    assert (too_long.sent, too_long.fits) == (None, False)
    assert too_long.why.endswith("816 with the output, 16 of them kept free")


@pytest.mark.parametrize(("error", "tokens"), [(0, 200), (30, 170), (100, 100), (5000, 100)])
def test_the_error_of_an_estimated_count_is_kept_free_up_to_half_of_the_room(error, tokens):
    """A doubtful count costs some output and not the answer; an exact one has no error."""
    doubtful = prompt(800, exact=False, error=error)
    assert bound_output(None, model(1000), tenant(), doubtful).tokens == tokens
    assert fit_pool(bound_output(500, model(), tenant(), doubtful), model(), PoolLimits(total=1000), doubtful)
    assert bound_output(None, model(1000), tenant(), prompt(800, error=error)).tokens == 200


def fit(asked, *, limits, tokens, **of_model):
    the_model = model(**of_model)
    count = prompt(tokens)
    return fit_pool(bound_output(asked, the_model, tenant(), count), the_model, limits, count)


def test_a_pool_that_leaves_enough():
    """The bound is sent as it is."""
    result = fit(500, limits=PoolLimits(prompt=2048, total=4096), tokens=1000)
    assert (result.sent, result.fits, result.clamped, result.why) == (500, True, False, "")


def test_a_pool_that_leaves_less_than_asked():
    """It does not fit; `sent` is what a clamp would send; a person can read why."""
    result = fit(500, limits=PoolLimits(total=1200), tokens=1000)
    assert (result.sent, result.fits, result.clamped) == (200, False, True)
    assert result.why == "500 output tokens asked, the pool leaves 200 of 1200"


def test_what_policy_cut_fits_and_is_disclosed():
    """The client asked 5000, the model's ceiling made it 100, and the pool leaves 200."""
    result = fit(5000, limits=PoolLimits(total=1200), tokens=1000, ceiling=100)
    assert (result.sent, result.fits, result.clamped) == (100, True, True)


@pytest.mark.parametrize("limits", [PoolLimits(prompt=999), PoolLimits(total=1000), PoolLimits(total=10)])
@pytest.mark.parametrize("asked", [None, 1])
def test_a_pool_that_the_prompt_does_not_fit(limits, asked):
    """Nothing can be sent, asked or not."""
    result = fit(asked, limits=limits, tokens=1000)
    assert (result.sent, result.fits) == (None, False)
    assert result.why


@pytest.mark.parametrize(
    ("default", "ceiling", "total", "sent"),
    [(512, 4096, 4096, 512), (512, 100, 4096, 100), (512, None, 1100, 100), (None, 4096, 1100, 100),
     (None, 4096, None, 4096), (None, None, 4096, 3096), (None, None, None, None), (512, None, None, 512)],
)  # fmt: skip
def test_where_nothing_was_asked_the_default_is_sent_and_it_always_fits(default, ceiling, total, sent):
    """Cut to the room that is left, so an engine is never sent more; None only where nothing is known."""
    result = fit(None, limits=PoolLimits(total=total), tokens=1000, default=default, ceiling=ceiling)
    assert (result.sent, result.fits, result.clamped) == (sent, True, False)


maybe = st.none() | st.integers(1, 5000)


@given(
    maybe, maybe, maybe, maybe, maybe, maybe, st.integers(0, 4999), st.integers(0, 200), st.integers(1, 5000),
    st.integers(1, 2000),
)  # fmt: skip
def test_no_engine_is_sent_more_than_anybody_allows(
    asked, of_tenant, ceiling, context, default, total, tokens, margin, lte, if_clamped
):
    """Whatever the numbers: sent never passes any bound, and a fit sends all that was asked and allowed."""
    the_model, count = model(context, default, ceiling, margin=margin), prompt(tokens)
    try:
        bound = bound_output(asked, the_model, tenant(of_tenant), count)
    except ContextLengthExceeded:
        assert context is not None
        assert tokens + margin >= context
        return
    when = When(estimated_total_tokens=Range(lte=lte), if_clamped=if_clamped)
    expected = estimate(count, bound, 1, None, the_model)
    ruled = None if expected.total <= lte else fit_rule("short", when, expected, the_model)
    if ruled is not None:
        bound = ruled.bound
        assert ruled.total <= lte
    result = fit_pool(bound, the_model, PoolLimits(total=total), count)
    room = [
        limit - tokens - margin for limit in (context, total, lte if ruled else None) if limit is not None
    ]
    bounds = [bound for bound in (asked, of_tenant, ceiling, *room) if bound is not None]
    if result.sent is not None:
        assert 1 <= result.sent <= min(bounds, default=result.sent)
        assert result.clamped is (asked is not None and result.sent < asked)
        assert result.by != "nothing"
    if result.fits:
        assert result.sent == min(
            (b for b in (*bounds, default if asked is None else None) if b), default=None
        )


def short(lte=4096, if_clamped=256, **lower) -> When:
    return When(estimated_total_tokens=Range(lte=lte, **lower), if_clamped=if_clamped)


def expected(asked, tokens, *, n=1, default=512, prompts=1, learned=None, **of_model):
    the_model = model(default=default, **of_model)
    count = PromptCount(tokens=tokens, exact=True, source="test", longest=tokens // prompts, prompts=prompts)
    return estimate(count, bound_output(asked, the_model, tenant(), count), n, learned, the_model)


@pytest.mark.parametrize(
    ("asked", "tokens", "n", "bound", "total", "clamped"),
    [
        (2000, 3800, 1, 296, 4096, True),  # 296 of 2,000: that many fit
        (None, 3800, 1, 296, 4096, False),  # nothing was asked, so nothing is taken away
        (400, 3800, 1, 296, 4096, True),
        (2000, 3840, 1, 256, 4096, True),
        (2000, 3841, 1, None, None, None),  # one less than 256
        (2000, 3500, 2, 298, 4096, True),
        (2000, 3600, 2, None, None, None),
        (2000, 4096, 1, None, None, None),
        (2000, 9000, 1, None, None, None),
    ],
)
def test_what_fits_if_clamped(asked, tokens, n, bound, total, clamped):
    """At least so many output tokens for each choice, and then as many as there is room for."""
    estimated = expected(asked, tokens, n=n)
    assert estimated.total > 4096
    fitted = fit_rule("short", short(), estimated, model())
    if bound is None:
        assert fitted is None
        return
    assert fitted is not None
    assert (fitted.bound.tokens, fitted.bound.by, fitted.bound.clamped) == (bound, "rule short", clamped)
    assert (fitted.total, fitted.output_by) == (total, "bound")
    assert fitted.mean <= bound


def test_margin_and_lower_bounds_hold_for_a_clamped_request_too():
    """The pool behind the rule keeps the same margin, so what the rule leaves fits it."""
    estimated = expected(2000, 3800)
    fitted = fit_rule("short", short(), estimated, model(margin=20))
    assert fitted is not None
    assert fitted.bound.tokens == 276
    assert fit_pool(fitted.bound, model(margin=20), PoolLimits(total=4096), fitted.prompt).sent == 276
    assert fit_rule("short", short(gt=4096), estimated, model()) is None
    assert fit_rule("short", When(if_clamped=256), estimated, model()) is None
    assert fit_rule("short", short(if_clamped=None), estimated, model()) is None


def test_the_first_bound_is_kept_where_it_is_less():
    """A rule takes away, and never gives."""
    bound = bound_output(100, model(), tenant(), prompt(10))
    kept, cut = bounded_by(bound, 200, "rule short"), bounded_by(bound, 50, "rule short")
    assert kept == replace(bound, cap=(200, "rule short"))
    assert cut == Bound(50, 100, "rule short", clamped=True, cap=(50, "rule short"))
    assert bounded_by(cut, 70, "overload") == cut
    assert bounded_by(kept, 150, "overload").cap == (150, "overload"), "for a model that would allow more"


def test_a_lesser_estimate_costs_less():
    """Bounded to 100 tokens for each of two choices, where 400 were expected for each of four."""
    before = expected(400, 1000, n=4)
    after = lessened(before, 100, "overload", choices=2)
    assert (after.output, after.total, after.choices, after.output_by) == (100, 1200, 2, "bound")
    assert after.bound.by == "overload"
    assert lessened(before, None, "overload", choices=1).total == 1400
    assert lessened(before, 4000, "rule x").total == before.total
