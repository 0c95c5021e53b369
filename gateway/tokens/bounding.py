"""Output bounds: what policy allows before a pool is chosen, and what a pool leaves. Pure.

Two steps, because a pool is chosen between them (steps 4 and 9 of a request's way (pipeline.py)):

    bound_output   min(asked, tenant's ceiling, model's ceiling, context - prompt)
    fit_pool       min(that, pool's total - prompt), at every attempt

Where the client asked for nothing, `asked` takes no part in the minimum; it does not become the ceiling.
All bounds are tokens per choice, and a prompt means the longest one where a completion has several.
"""

from dataclasses import dataclass

from gateway.call import Bound, PromptCount
from gateway.config.snapshot import Model, PoolLimits, Tenant
from gateway.errors import BadRequest, ContextLengthExceeded

__all__ = ["PoolFit", "bound_output", "fit_pool"]


@dataclass(frozen=True, slots=True)
class PoolFit:
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


def bound_output(
    asked: int | None, model: Model, tenant: Tenant, prompt: PromptCount, *, param: str = "messages"
) -> Bound:
    """What policy allows a request to generate.

    Raises ContextLengthExceeded where the prompt leaves no room in the context, and, under the model's
    `refuse` policy, where prompt and asked output pass it; BadRequest (`max_tokens_too_large`) where a
    `refuse` policy meets a request above the tenant's or the model's ceiling. `param` names the field that
    holds the prompt.

    A prompt that was only estimated is refused from twice the context on: below that the engine, which
    counts, has the last word, and the context does not bound the output.
    """
    room = None
    if model.context is not None:
        if prompt.longest < model.context:
            room = model.context - prompt.longest
        elif prompt.exact or prompt.longest >= 2 * model.context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {model.context} tokens, but the prompt has "
                f"{_tokens(prompt)}. Please shorten the prompt.",
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
                f"This model's maximum context length is {model.context} tokens, but you asked for "
                f"{prompt.longest + asked}: {_tokens(prompt)} of prompt and {asked} of output.",
                param=param,
            )

    ceilings = (
        (asked, "asked"),
        (tenant.max_tokens, "tenant"),
        (model.max_tokens.ceiling, "model"),
        (room, "context"),
    )
    known = [(tokens, by) for tokens, by in ceilings if tokens is not None]
    if not known:
        return Bound(tokens=None, asked=None, by="nothing", clamped=False)
    tokens, by = min(known, key=lambda one: one[0])  # the first of equals: what was asked is not a clamp
    return Bound(tokens=tokens, asked=asked, by=by, clamped=asked is not None and tokens < asked)


def fit_pool(bound: Bound, model: Model, limits: PoolLimits, prompt: PromptCount) -> PoolFit:
    """What to send to a pool with these `limits`.

    Where the client asked for nothing, the model's default is sent, or its bound without one, cut to
    what the pool leaves: it fits as soon as one token is left. So an engine is never sent more than its room.
    """
    if limits.prompt is not None and prompt.longest > limits.prompt:
        why = f"the prompt has {_tokens(prompt)}, the pool takes {limits.prompt}"
        return PoolFit(sent=None, fits=False, clamped=False, why=why)
    left = None if limits.total is None else limits.total - prompt.longest
    if left is not None and left < 1:
        why = f"the prompt has {_tokens(prompt)}, the pool takes {limits.total} with the output"
        return PoolFit(sent=None, fits=False, clamped=False, why=why)

    if bound.asked is not None:
        sent = _least(bound.tokens, left)
        if bound.tokens is not None and left is not None and bound.tokens > left:
            why = f"{bound.tokens} output tokens asked, the pool leaves {left} of {limits.total}"
            return PoolFit(sent=sent, fits=False, clamped=True, why=why)
        return PoolFit(sent=sent, fits=True, clamped=bound.clamped, why="")
    return PoolFit(
        sent=_least(model.max_tokens.default, bound.tokens, left), fits=True, clamped=False, why=""
    )


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _tokens(prompt: PromptCount) -> str:
    return f"{prompt.longest} tokens" if prompt.exact else f"about {prompt.longest} tokens"
