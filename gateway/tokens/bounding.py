"""Output bounds: what policy allows before a pool is chosen, and what a pool leaves. Pure.

Three steps, because rules and pools are looked at between them (steps 4, 6 and 9 of a request's way
(pipeline.py)):

    bound_output   min(asked, tenant's ceiling, model's ceiling, context - prompt - margin)
    fit_rule       min(that, what a rule with `if_clamped` leaves), where only so the rule holds
    fit_pool       min(that, pool's total - prompt - margin), at every attempt

Where the client asked for nothing, `asked` takes no part in the minimum; it does not become the ceiling.
All bounds are tokens per choice, and a prompt means the longest one where a completion has several.

The margin is the model's. Of a prompt that was only estimated the error of its count is kept free too, but at
most half of the room: a doubtful count may cost some output, and must not cost the answer.
"""

import msgspec
from msgspec.structs import replace

from gateway.call import Bound, Estimate, PromptCount
from gateway.config.snapshot import Model, PoolLimits, Tenant, When
from gateway.errors import BadRequest, ContextLengthExceeded

__all__ = ["PoolFit", "bound_output", "bounded_by", "fit_pool", "fit_rule", "lessened"]


class PoolFit(msgspec.Struct, frozen=True, gc=False):
    """How a request fits a pool."""

    sent: int | None
    """max_tokens to send; None: no bound is known at all. Where `fits` is False: what `fit: clamp` would
    send, None if not even one token is left."""
    fits: bool
    """False: the client asked for more than the pool leaves, or the prompt is too long for it."""
    clamped: bool
    """`sent` is less than the client asked for, whoever cut it: to be disclosed."""
    why: str
    """Why it does not fit, for people; empty where it fits."""
    by: str = "nothing"
    """What set `sent`: as in Bound, or `default`, or `pool`."""


def bound_output(
    asked: int | None, model: Model, tenant: Tenant, prompt: PromptCount, *, param: str = "messages"
) -> Bound:
    """What policy allows a request to generate.

    Raises ContextLengthExceeded where the prompt leaves no room in the context, and, under the model's
    `refuse` policy, where prompt and asked output pass it; BadRequest (`max_tokens_too_large`) where a
    `refuse` policy meets a request above the tenant's or the model's ceiling. `param` names the field that
    holds the prompt. Of the context, the model's margin counts as used.

    A prompt that was only estimated is refused where the least that it may have is too much, or, while no
    error is known, twice the context: below that the engine, which counts, has the last word, and the context
    does not bound the output.
    """
    room = None
    if model.context is not None:
        room = _room(model.context, prompt, model)
        wanted = _wanted(asked)
        if room < wanted and not prompt.exact and prompt.least < model.context - model.max_tokens.margin:
            room = None
        elif room < wanted:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {model.context} tokens{_kept(model)}, "
                f"but the prompt has {_tokens(prompt)}. Please shorten the prompt.",
                param=param,
            )

    if asked is not None and model.max_tokens.policy == "refuse":
        for whose, ceiling in (
            ("this key's tenant", tenant.max_tokens),
            ("this model", model.max_tokens.ceiling),
        ):
            if ceiling is not None and asked > ceiling:
                raise BadRequest(
                    f"max_tokens is {asked}, but {whose} may generate at most {ceiling} tokens.",
                    code="max_tokens_too_large",
                    param="max_tokens",
                )
        if room is not None and asked > room:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {model.context} tokens{_kept(model)}, "
                f"but you asked for {prompt.longest + asked}: {_tokens(prompt)} of prompt and {asked} of "
                "output.",
                param=param,
            )

    ceilings = (
        (asked, "asked"),
        (tenant.max_tokens, "tenant"),
        (model.max_tokens.ceiling, "model"),
        (room, "context"),
    )
    tokens, by = _least(*ceilings)  # the first of equals: what was asked is not a clamp
    if tokens is None:
        return Bound(tokens=None, asked=None, by=by, clamped=False)
    return Bound(tokens=tokens, asked=asked, by=by, clamped=asked is not None and tokens < asked)


def bounded_by(bound: Bound, tokens: int, by: str) -> Bound:
    """`bound`, and no more than `tokens` either, whatever model answers."""
    cap = bound.cap if bound.cap is not None and bound.cap[0] <= tokens else (tokens, by)
    if bound.tokens is not None and bound.tokens <= tokens:
        return replace(bound, cap=cap)
    return Bound(tokens, bound.asked, by, clamped=bound.asked is not None and tokens < bound.asked, cap=cap)


def lessened(estimate: Estimate, most: int | None, by: str, choices: int | None = None) -> Estimate:
    """The estimate of a request that may generate at most `most` tokens for each choice, of which there are
    `choices` in all; None: as many as before."""
    bound, output, mean = estimate.bound, estimate.output, estimate.mean
    if most is not None:
        bound, output, mean = bounded_by(bound, most, by), min(output, most), min(mean, most)
    choices = estimate.choices if choices is None else choices
    return replace(
        estimate,
        bound=bound,
        output=output,
        output_by=estimate.output_by if output == estimate.output else "bound",
        mean=mean,
        total=estimate.prompt.tokens + choices * output,
        choices=choices,
    )


def fit_rule(rule: str, when: When, estimate: Estimate, model: Model) -> Estimate | None:
    """The estimate with its output bounded so that `when.estimated_total_tokens` holds, by `if_clamped`.

    None where that is not given, or prompt and so many tokens for each choice do not pass below its bound.
    For requests that do not pass as they are.
    """
    span = when.estimated_total_tokens
    if when.if_clamped is None or span is None or span.most is None:
        return None
    prompt, choices = estimate.prompt, estimate.choices
    each = _left((span.most - prompt.tokens) // choices, prompt, model)
    if each < when.if_clamped:
        return None
    fitted = lessened(estimate, each, f"rule {rule}")
    if not span.holds(fitted.total):
        return None  # below its lower bound: cut down, it is another rule's
    return fitted


def fit_pool(bound: Bound, model: Model, limits: PoolLimits, prompt: PromptCount) -> PoolFit:
    """What to send to a pool with these `limits`.

    Where the client asked for nothing, the model's default is sent, or its bound without one, cut to
    what the pool leaves: it fits as soon as one token is left. So an engine is never sent more than its room.
    """
    if limits.prompt is not None and prompt.longest > limits.prompt:
        why = f"the prompt has {_tokens(prompt)}, the pool takes {limits.prompt}"
        return PoolFit(sent=None, fits=False, clamped=False, why=why)
    left = None if limits.total is None else _room(limits.total, prompt, model)
    if left is not None and left < _wanted(bound.asked):
        why = f"the prompt has {_tokens(prompt)}, the pool takes {limits.total} with the output"
        why += _kept(model)
        return PoolFit(sent=None, fits=False, clamped=False, why=why)

    if bound.asked is not None:
        sent, by = _least((bound.tokens, bound.by), (left, "pool"))
        if by == "pool":
            why = f"{bound.tokens} output tokens asked, the pool leaves {left} of {limits.total}"
            return PoolFit(sent=sent, fits=False, clamped=True, why=why, by=by)
        return PoolFit(sent=sent, fits=True, clamped=bound.clamped, why="", by=by)
    sent, by = _least((bound.tokens, bound.by), (model.max_tokens.default, "default"), (left, "pool"))
    return PoolFit(sent=sent, fits=True, clamped=False, why="", by=by)


def _wanted(asked: int | None) -> int:
    """Output tokens that there must be room for, at least."""
    return 0 if asked == 0 else 1


def _room(total: int, prompt: PromptCount, model: Model) -> int:
    """Output tokens per choice that `total` tokens leave beside the prompt; below 1: none."""
    return _left(total - prompt.longest, prompt, model)


def _left(tokens: int, prompt: PromptCount, model: Model) -> int:
    """What is left of `tokens` for the output, less the margin and the error of an estimated count."""
    left = tokens - model.max_tokens.margin
    return left - min(prompt.error, left // 2) if left > 1 and not prompt.exact else left


def _kept(model: Model) -> str:
    margin = model.max_tokens.margin
    return f", {margin} of them kept free" if margin else ""


def _least(*bounds: tuple[int | None, str]) -> tuple[int | None, str]:
    """The least of what is known, and whose it is: the first of equals."""
    known = [(tokens, by) for tokens, by in bounds if tokens is not None]
    return min(known, key=lambda one: one[0]) if known else (None, "nothing")


def _tokens(prompt: PromptCount) -> str:
    return f"{prompt.longest} tokens" if prompt.exact else f"about {prompt.longest} tokens"
