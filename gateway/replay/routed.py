"""The pools and rules of a routes.yaml in the twin: the real router, one scheduler for each pool.

The same file in three ways, to see what its walls cost:

    written   as it stands
    spill     every rule also goes on when a pool is `overloaded`
    merged    all engines in one pool, and the rules only say who may come in

A request meets what it would meet live: its output is bounded by the tenant, the model and the pool, the
estimate learns from past answers, the first rule that matches gives the chain, and at each pool it waits for
`after_ms`, at the last for the queue's own bound. Quotas, keys and the engines' dialects take no part.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from backends.contract import GenerateRequest
from backends.simulated.engine import EngineProfile
from gateway.call import Call, Estimate, PromptCount
from gateway.config.snapshot import HopReason, Policy, Rule, Snapshot, Tenant
from gateway.errors import GatewayError, ModelNotFound
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import ReplayPool, Router, Stop, pool_of
from gateway.routing.router import Route, choose_route
from gateway.tokens.bounding import bound_output
from gateway.tokens.estimating import OutputLengths, estimate

__all__ = ["VARIANTS", "Variant", "engines_of", "pools_of", "router_of", "with_models"]

Variant = Literal["written", "spill", "merged"]
VARIANTS: tuple[Variant, ...] = ("written", "spill", "merged")
MERGED = "merged"


def pools_of(
    snapshot: Snapshot, engine: EngineProfile, variant: Variant, per_pool: int | None = None
) -> list[ReplayPool]:
    """The pools as the twin runs them, all of one kind of engine; `per_pool` replicas each, if given."""
    if variant == "merged":
        return [pool_of(MERGED, engines_of(snapshot, engine, per_pool), Policy())]
    return [
        ReplayPool(
            pool.name,
            (engine,) * (per_pool or len(pool.replicas)),
            pool.policy,
            in_flight=pool.limits.in_flight,
            kv_tokens=pool.limits.kv_tokens,
            max_requests=pool.queue.max_requests,
        )
        for pool in snapshot.pools.values()
    ]


def engines_of(
    snapshot: Snapshot, engine: EngineProfile, per_pool: int | None = None
) -> tuple[EngineProfile, ...]:
    return (engine,) * sum(per_pool or len(pool.replicas) for pool in snapshot.pools.values())


def router_of(snapshot: Snapshot, variant: Variant) -> Router:
    """Where each request may go, by the rules."""

    def route(request: TraceRequest, lengths: OutputLengths) -> Sequence[Stop]:
        try:
            expected, way = _route(snapshot, request, lengths)
        except GatewayError:
            return ()
        targets = [target for target in way.chain if target.usable]
        if not targets:
            return ()
        longest = max(target.pool.queue.max_wait for target in targets)
        if variant == "merged":
            return (Stop(MERGED, patience=longest, expected=expected, max_tokens=targets[0].fit.sent),)
        on = _on(way.rule, variant)
        patience = way.rule.after if "overloaded" in on else None
        return [
            Stop(
                target.pool.name,
                on,
                target.pool.queue.max_wait if patience is None or target is targets[-1] else patience,
                expected,
                target.fit.sent,
            )
            for target in targets
        ]

    return route


def _on(rule: Rule, variant: Variant) -> frozenset[HopReason]:
    return rule.on | {"overloaded"} if variant == "spill" else rule.on


def _route(snapshot: Snapshot, request: TraceRequest, lengths: OutputLengths) -> tuple[int, Route]:
    """Expected output tokens and the chain. Raises GatewayError."""
    name = request.model if request.model is not None else next(iter(snapshot.models))
    model = snapshot.model(name)
    if model is None:
        raise ModelNotFound(f"The file has no model {name!r}.", param="model")
    tenant = snapshot.tenants.get(request.tenant) or Tenant(request.tenant)
    prompt = PromptCount(request.prompt_tokens, True, "trace", request.prompt_tokens)
    bound = bound_output(request.max_tokens, model, tenant, prompt)
    learned = lengths.predict(request.tenant, request.model or "", request.prompt_tokens)
    cost: Estimate = estimate(prompt, bound, 1, learned, model)
    call = Call(
        id="replay",
        dialect="chat",
        tenant=tenant,
        key_id=None,
        priority_class=request.priority,
        model=model,
        asked_model=name,
        request=GenerateRequest(
            request_id="replay", model=name, stream=request.streamed, messages=(), max_tokens=bound.tokens
        ),
        stream=request.streamed,
        include_usage=False,
        asked_max_tokens=request.max_tokens,
        received=request.at,
    )
    way = choose_route(snapshot, call, cost)
    return way.estimate.output, way


def with_models(
    requests: Sequence[TraceRequest], models: dict[str, tuple[str, ...]], snapshot: Snapshot
) -> list[TraceRequest]:
    """Name the models that tenants ask for, several in turn; the others ask for all there are."""
    every = tuple(snapshot.models)
    turns: dict[str, int] = {}
    named = []
    for request in requests:
        if request.model is not None and snapshot.model(request.model) is not None:
            named.append(request)
            continue
        names = models.get(request.tenant, every)
        turn = turns[request.tenant] = turns.get(request.tenant, -1) + 1
        named.append(replace(request, model=names[turn % len(names)]))
    return named
