"""What policy allows, and what a pool leaves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import PromptCount
from gateway.config.snapshot import MaxTokens, Model, PoolLimits, Tenant, TokenizerSpec
from gateway.errors import BadRequest, ContextLengthExceeded
from gateway.tokens.bounding import bound_output, fit_pool


def prompt(tokens: int, *, exact: bool = True, longest: int | None = None) -> PromptCount:
    return PromptCount(tokens=tokens, exact=exact, source="test", longest=longest or tokens)


def model(context=None, default=None, ceiling=None, policy="clamp") -> Model:
    return Model(
        name="m",
        tokenizer=TokenizerSpec("estimate"),
        context=context,
        max_tokens=MaxTokens(default=default, ceiling=ceiling, policy=policy),
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


@given(maybe, maybe, maybe, maybe, maybe, maybe, st.integers(0, 4999))
def test_no_engine_is_sent_more_than_anybody_allows(
    asked, of_tenant, ceiling, context, default, total, tokens
):
    """Whatever the numbers: sent never passes any bound, and a fit sends all that was asked and allowed."""
    the_model, count = model(context, default, ceiling), prompt(tokens)
    try:
        bound = bound_output(asked, the_model, tenant(of_tenant), count)
    except ContextLengthExceeded:
        assert context is not None
        assert tokens >= context
        return
    result = fit_pool(bound, the_model, PoolLimits(total=total), count)
    room = [limit - tokens for limit in (context, total) if limit is not None]
    bounds = [bound for bound in (asked, of_tenant, ceiling, *room) if bound is not None]
    if result.sent is not None:
        assert 1 <= result.sent <= min(bounds, default=result.sent)
    if result.fits and asked is not None:
        assert result.sent == bound.tokens
        assert result.clamped == (result.sent < asked)
    if bounds and result.fits:
        assert result.sent is not None
