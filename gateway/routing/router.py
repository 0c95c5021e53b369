"""Rules -> the chain of pools a request may use. Pure: a call, its estimate and a snapshot in, a Route out.

The first rule whose condition holds wins. Its chain is kept whole, usable or not, with the reason for
each pool that cannot take this request: the attempt loop walks the usable ones, and `explain` prints all.
"""

from collections.abc import Mapping
from itertools import dropwhile

import msgspec

from backends.contract import Unsupported
from gateway.call import PROMPT_FIELDS, ROUTES, Call, Estimate
from gateway.config.snapshot import Fit, Hop, Model, Pool, Rule, Snapshot, When
from gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    EndpointNotServed,
    GatewayError,
    ModelNotFound,
    Unavailable,
    UnsupportedByEngine,
)
from gateway.routing.splitting import Draw, drawn
from gateway.tokens.bounding import PoolFit, bound_output, bounded_by, fit_pool, fit_rule


class RuleTrial(msgspec.Struct, frozen=True, gc=False):
    """One rule that was looked at: `mismatch` is the first condition that failed, None for the winner."""

    rule: str
    mismatch: str | None
    clamped: str | None = None
    """Of a winner: the condition that holds only because the output was bounded, and to what."""


class Target(msgspec.Struct, frozen=True):
    """One pool of the chain, as far as this request is concerned."""

    pool: Pool
    model: Model
    engine_model: str
    """The name this pool's engine wants; empty where it serves no such model."""
    fit: PoolFit
    refusal: GatewayError | None
    """Why this pool cannot take the request; None where it can."""

    @property
    def usable(self) -> bool:
        return self.refusal is None


class Route(msgspec.Struct, frozen=True):
    rule: Rule
    chain: tuple[Target, ...]
    tried: tuple[RuleTrial, ...]
    estimate: Estimate
    """What the request is expected to cost on this route: less where the rule bounds its output."""
    draws: tuple[Draw, ...] = ()
    """What it got of the chain's splits."""


def choose_route(snapshot: Snapshot, call: Call, estimate: Estimate) -> Route:
    """The winning rule and its chain. Raises ModelNotFound where no rule takes the model."""
    tried: list[RuleTrial] = []
    for rule in snapshot.rules:
        mismatch = mismatch_of(rule.when, call, estimate)
        clamped = None
        if mismatch is not None and (fitted := fit_rule(rule.name, rule.when, estimate, call.model)):
            other = mismatch_of(rule.when, call, fitted)
            if other is None:
                clamped, mismatch, estimate = _clamped(mismatch, fitted), None, fitted
        tried.append(RuleTrial(rule.name, mismatch, clamped))
        if mismatch is None:
            hops, draws = drawn(rule, call)
            chain = tuple(target_of(snapshot, rule, hop, call, estimate) for hop in hops)
            return Route(rule, chain, tuple(tried), estimate, draws)
    raise ModelNotFound(f"No rule takes the model {call.asked_model!r} of this request.", param="model")


def _clamped(mismatch: str, fitted: Estimate) -> str:
    return f"{mismatch}, but holds with the output bounded to {fitted.bound.tokens}"


def mismatch_of(when: When, call: Call, estimate: Estimate) -> str | None:
    """The first condition of `when` that does not hold, in words; None where all do."""
    if when.model and call.model.name not in when.model:
        return f"model {call.model.name} is not {_any_of(when.model)}"
    if when.tenant and call.tenant.name not in when.tenant:
        return f"tenant {call.tenant.name} is not {_any_of(when.tenant)}"
    if when.priority_class and call.priority_class not in when.priority_class:
        names = tuple(each.name for each in when.priority_class)
        return f"class {call.priority_class.name} is not {_any_of(names)}"
    if when.stream is not None and call.stream is not when.stream:
        return f"stream is {str(call.stream).lower()}"
    if when.prompt_tokens is not None and not when.prompt_tokens.holds(estimate.prompt.tokens):
        return f"prompt_tokens {estimate.prompt.tokens} is not {when.prompt_tokens}"
    if when.estimated_total_tokens is not None and not when.estimated_total_tokens.holds(estimate.total):
        return f"estimated_total_tokens {estimate.total} is not {when.estimated_total_tokens}"
    return None


def target_of(snapshot: Snapshot, rule: Rule, hop: Hop, call: Call, estimate: Estimate) -> Target:
    """Whether and how `hop` can take the call."""
    pool = snapshot.pools[hop.pool]
    model, bound = call.model, estimate.bound
    if hop.model is not None:
        # Another model has its own ceilings. Its tokenizer may differ too; the count of the asked one serves.
        model = snapshot.models[hop.model]
        try:
            bound = bound_output(
                call.asked_max_tokens, model, call.tenant, estimate.prompt, param=prompt_param(call)
            )
        except BadRequest as error:
            return Target(pool, model, "", PoolFit(None, False, False, error.message), error)
        if estimate.bound.cap is not None:
            bound = bounded_by(bound, *estimate.bound.cap)
    fit = fit_pool(bound, model, pool.limits, estimate.prompt)
    engine_model = engine_model_of(pool, model, call)
    refusal = _refusal(pool, model, engine_model, fit, rule.fit, call)
    return Target(pool, model, engine_model or "", fit, refusal)


def engine_model_of(pool: Pool, model: Model, call: Call) -> str | None:
    """The engine's name for the model; a `*` entry passes the asked name on, or the one it names."""
    if (name := pool.serves.get(model.name)) is not None:
        return call.asked_model if name == "*" else name
    return None


def _refusal(
    pool: Pool, model: Model, engine_model: str | None, fit: PoolFit, rule_fit: Fit, call: Call
) -> GatewayError | None:
    if pool.state == "cold" and pool.activation is None:
        return Unavailable(f"pool {pool.name} is cold", reason="no_replica")
    if engine_model is None:
        return ModelNotFound(f"pool {pool.name} does not serve {model.name}", param="model")
    if not call.tenant.allow.model(call.asked_model if model.name == "*" else model.name):
        return ModelNotFound(f"the tenant may not use {model.name}", param="model")
    if (fault := call.tenant.allow.pool_fault(pool)) is not None:
        return ModelNotFound(f"the tenant may not use pool {pool.name}: {fault}", param="model")
    if call.dialect not in pool.doors:
        return EndpointNotServed(f"This model is not served at {ROUTES[call.dialect]}.", param="model")
    unsupported: Unsupported | None = None
    if call.request.native is None:
        unsupported = pool.adapter.unsupported(call.request)
    elif model.name in pool.loras and call.dialect not in pool.adapter.doors.adapted:
        message = f"This engine cannot be asked for a LoRA adapter at {ROUTES[call.dialect]}."
        unsupported = Unsupported("model", message)
    if unsupported is not None:
        return UnsupportedByEngine(unsupported.message, param=unsupported.param)
    if fit.fits or (rule_fit == "clamp" and fit.sent is not None):
        return None
    return ContextLengthExceeded(
        f"No pool takes this request: {fit.why}.",
        param=prompt_param(call) if fit.sent is None else "max_tokens",
    )


def refused_at(rule: Rule, target: Target) -> bool:
    """Whether the walk along the chain ends here with this target's refusal: `fit: refuse`.

    It speaks of output only: a pool that is too small for the prompt is passed over all the same.
    """
    return (
        rule.fit == "refuse"
        and target.fit.sent is not None
        and isinstance(target.refusal, ContextLengthExceeded)
    )


def lenders_of(route: Route, here: Target) -> tuple[Target, ...]:
    """Who may serve a request that waits for `here`: usable pools that come later in the chain, lend to this
    one, and would give the same model no smaller an output."""
    return tuple(
        later
        for later in dropwhile(lambda each: each is not here, route.chain)
        if here.pool.name in later.pool.lends_to
        and later.usable
        and later.model is here.model
        and (later.fit.sent is None or (here.fit.sent is not None and later.fit.sent >= here.fit.sent))
    )


def refusal_of(route: Route) -> GatewayError:
    """What to answer when no pool of the chain is usable.

    The reason nearest to what the client can change: a field no engine supports, then lengths, then
    pools that are asleep, then the endpoint; what a tenant may not use is told as an unknown model.
    """
    refusals = [target.refusal for target in route.chain if target.refusal is not None]
    for kind in (UnsupportedByEngine, ContextLengthExceeded, BadRequest, Unavailable, EndpointNotServed):
        for refusal in refusals:
            if isinstance(refusal, kind):
                return refusal
    return ModelNotFound("This model is not available to you. GET /v1/models lists what is.", param="model")


def prompt_param(call: Call) -> str:
    """The field that holds the prompt, for error messages."""
    return PROMPT_FIELDS[call.dialect]


def _any_of(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def served_models(snapshot: Snapshot) -> Mapping[str, tuple[Pool, ...]]:
    """Model name -> the pools that serve it."""
    return {
        name: tuple(pool for pool in snapshot.pools.values() if name in pool.serves)
        for name in snapshot.models
    }
