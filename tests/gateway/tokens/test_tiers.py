"""Which tier answers: the service with a real tokenizer, learned the real way."""

import random
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from backends.contract import GenerateRequest
from gateway.call import Call, Estimate, PromptCount
from gateway.config.snapshot import MaxTokens, Model, Range, Snapshot, TokenizerSpec, When
from gateway.errors import ContextLengthExceeded
from gateway.tokens.bounding import bound_output
from gateway.tokens.counting import Counting, CountingLimits
from gateway.tokens.estimating import estimate
from tests.gateway.builders import a_call, a_pool, a_rule, a_snapshot, a_tenant

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "and",
    "gate",
    "at",
    "head",
    "of",
    "canal",
    "opens",
    "slowly",
]
CHANCE = random.Random(7)


def prose(words: int) -> str:
    return " ".join(CHANCE.choices(WORDS, k=words)) + "."


def expect(call: Call, prompt: PromptCount) -> Estimate:
    bound = bound_output(call.asked_max_tokens, call.model, call.tenant, prompt)
    return estimate(prompt, bound, call.request.n, None, call.model)


@pytest.fixture
def model(tokenizer_dirs) -> Model:
    spec = TokenizerSpec("huggingface", path=str(tokenizer_dirs["chatml"]))
    return Model("llama", spec, context=8192, max_tokens=MaxTokens(default=64, ceiling=512))


def house(model: Model) -> Snapshot:
    return a_snapshot(
        models=[model],
        pools=[a_pool("short", total=4096), a_pool("long")],
        rules=[
            a_rule("ru-short", ["short"], when=When(estimated_total_tokens=Range(lte=1500))),
            a_rule("ru-long", ["long"]),
        ],
    )


@pytest.fixture
async def counting(model):
    service = Counting.build(house(model))
    yield service
    await service.aclose()


def asks(model: Model, text: str, tenant: str = "acme", **parameters) -> Call:
    call = a_call(model=model, tenant=a_tenant(tenant), parameters=parameters)
    messages = [{"role": "user", "content": text}]
    return msgspec.structs.replace(call, request=_with(call.request, messages=messages))


def _with(request: GenerateRequest, **fields) -> GenerateRequest:
    return GenerateRequest(
        **{**{name: getattr(request, name) for name in request.__struct_fields__}, **fields}
    )


async def count(counting: Counting, call: Call, room=None) -> PromptCount:
    return await counting.count_for(call, partial(expect, call), room)


async def teach(counting: Counting, model: Model, times: int = 64, words: int = 600, tenant="acme") -> None:
    for _ in range(times):
        counted = await count(counting, asks(model, prose(words), tenant))
        assert counted.exact


async def test_a_kind_of_text_is_counted_until_it_is_learned(counting, model):
    """Then it is estimated; the truth lies within."""
    await teach(counting, model)
    for _ in range(20):
        call = asks(model, prose(600))
        guess = await count(counting, call)
        exact = await counting.count(model, call.request)
        assert (guess.tier, exact.tier) == ("estimate", "exact")
        assert guess.low <= exact.tokens <= guess.tokens + guess.error
    why = counting.reason(call, guess, partial(expect, call))
    assert why.startswith(f"estimate {guess.low}..{guess.tokens + guess.error} tokens, ")
    assert why.endswith("from the nearest boundary, rule ru-short (1500)")
    other = await count(counting, asks(model, "渠首的闸门决定有多少水进入" * 200))
    assert (other.exact, other.why) == (True, "too few texts like this were seen (0 of 64)")


async def test_near_a_boundary_it_is_counted(counting, model):
    """And the reason is told."""
    await teach(counting, model, words=1200)
    guess = await count(counting, asks(model, prose(1200)))
    assert guess.tier == "estimate"
    words = round(1200 * 1436 / guess.tokens)  # 64 tokens of output are expected
    near = await count(counting, asks(model, prose(words)))
    assert near.exact
    assert near.why.startswith("rule ru-short (1500) lies within the estimate, ")


async def test_boundaries_follow_the_snapshot_in_force(counting, model):
    """The service on another snapshot has all that was learned, and shares what it learns."""
    await teach(counting, model)
    call = asks(model, prose(600))
    guess = await count(counting, call)
    narrow = house(model)
    narrow = replace(narrow, pools={**narrow.pools, "short": a_pool("short", total=guess.tokens + 1)})
    narrower = counting.on(narrow)
    assert (await count(narrower, call)).why.startswith("pool short lies within the estimate, ")
    assert (await count(counting, asks(model, prose(600)))).tier == "estimate"
    await teach(narrower, model, words=2000)
    assert (await count(counting, asks(model, prose(2000)))).tier == "estimate"
    assert narrower.statistics() == counting.statistics()


async def test_what_the_limits_leave_is_a_boundary(counting, model):
    """Nobody is refused on an estimate."""
    await teach(counting, model)
    guess = await count(counting, asks(model, prose(600)), lambda: 10_000)
    assert guess.tier == "estimate"
    needed = guess.tokens + guess.error + 64
    assert (await count(counting, asks(model, prose(600)), lambda: needed // 2)).exact
    assert (await count(counting, asks(model, prose(600)), lambda: None)).tier == "estimate"


async def test_refusals_are_counted(counting, model):
    """A prompt beyond the context."""
    await teach(counting, model, words=4000)
    call = asks(model, prose(15000))
    counted = await count(counting, call)
    assert counted.exact
    assert counted.tokens > 8192
    with pytest.raises(ContextLengthExceeded):
        expect(call, counted)


async def test_policies(tokenizer_dirs, model):
    """`exact` never estimates, `estimate` always does, from the configured ratio on."""
    policies = [replace(model, name=name, count=name) for name in ("exact", "estimate")]
    counting = Counting.build(
        a_snapshot(models=policies, pools=[a_pool(serves={"exact": "a", "estimate": "b"})])
    )
    for policy in policies:
        for _ in range(70):
            counted = await count(counting, asks(policy, prose(600)))
        assert counted.exact is (policy.count == "exact")
    assert counted.source == "estimate 4.0 bytes/token"
    assert counted.low is None
    for _ in range(64):
        call = asks(policies[1], prose(600))
        guess = await count(counting, call)
        tell(counting, call, guess, (await counting.count(model, call.request)).tokens)
    call = asks(policies[1], prose(600))
    guess, exact = await count(counting, call), await counting.count(model, call.request)
    assert guess.source == "learned bytes/token"
    assert guess.low <= exact.tokens <= guess.tokens + guess.error
    await counting.aclose()


def tell(counting: Counting, call: Call, prompt: PromptCount, tokens: int, cached: int | None = None):
    return counting.told(
        call, prompt, partial(expect, call), tokens=tokens, cached=cached, pool="short", now=0.0
    )


async def test_a_tenant_that_taught_prose_and_sends_worse_gets_no_free_pass(counting, model):
    """Random words that look like words: two and a half times as many tokens. The engine's usage shows it
    once; from then on this tenant is counted, and only this one."""
    letters = "bcdefghijklmnopqrstuvwxyzaeiouaeiou"
    dense = "x, ".join("".join(CHANCE.choices(letters, k=5)) for _ in range(500))
    await teach(counting, model)
    call = asks(model, dense.replace("x, ", " "))
    guess = await count(counting, call)
    true = (await counting.count(model, call.request)).tokens
    if guess.tier == "estimate":
        assert true > guess.tokens + guess.error
        told = tell(counting, call, guess, true)
        assert told.verification in ("outside", "crossed")
    again = await count(counting, asks(model, prose(600)))
    assert (again.exact, again.why) == (True, "this tenant's last prompts were not as expected")
    assert (await count(counting, asks(model, prose(600), "other"))).tier == "estimate"
    for _ in range(64):
        await count(counting, asks(model, prose(600)))
    assert (await count(counting, asks(model, prose(600)))).tier == "estimate"


async def test_an_estimate_that_decided_otherwise_is_known(counting, model):
    """Across the rule's threshold, beside the interval only, and within."""
    await teach(counting, model)
    call = asks(model, prose(600))
    guess = await count(counting, call)
    assert tell(counting, call, guess, 3000).verification == "crossed"
    assert tell(counting, call, guess, guess.tokens + guess.error + 20).verification == "outside"
    assert tell(counting, call, guess, guess.tokens).verification == "within"
    assert tell(counting, call, guess, guess.tokens).ratio == 1


async def test_what_is_not_one_text_is_counted(counting, model):
    """Several prompts, token ids, parts that are not text."""
    call = asks(model, "")
    several = msgspec.structs.replace(call, request=_with(call.request, messages=None, prompt=["a", "b"]))
    assert (await count(counting, several)).why == "it is not one text"
    ids = msgspec.structs.replace(call, request=_with(call.request, messages=None, prompt=[1, 2]))
    assert (await count(counting, ids)).exact


async def test_unverified_estimates_end(counting, model):
    """An engine that tells nothing: every 65th prompt is counted."""
    await teach(counting, model)
    tiers = [(await count(counting, asks(model, prose(600)))).tier for _ in range(130)]
    assert tiers.count("exact") == 2
    assert tiers[64] == "exact"


async def test_a_counter_that_is_lost_falls_back_to_what_was_learned(model):
    """Better than four bytes to the token."""
    counting = Counting.build(house(model), CountingLimits(characters=16_000))
    await teach(counting, model, words=2100)
    counting._tiers.learned.trust.verified("acme", "llama", far=True)  # must be counted, but is too long
    call = asks(model, prose(3800))
    counted = await count(counting, call)
    assert counted.tier == "estimate"
    assert counted.source == "estimate 4.0 bytes/token (too long)"
    assert counted.low is not None
    await counting.aclose()


async def test_a_reload_keeps_what_was_learned_and_another_tokenizer_starts_anew(
    counting, model, tokenizer_dirs
):
    await teach(counting, model)
    second = Counting.build(house(model), previous=counting)
    assert (await count(second, asks(model, prose(600)))).tier == "estimate"
    other = replace(model, tokenizer=TokenizerSpec("huggingface", path=str(tokenizer_dirs["gemma"])))
    third = Counting.build(house(other), previous=second)
    assert (await count(third, asks(other, prose(600)))).exact
    await second.aclose()
    await third.aclose()
