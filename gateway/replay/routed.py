"""The pools and rules of a routes.yaml in the twin: the real router, one scheduler for each pool.

The same file in several ways, to see what its walls cost:

    walls     nothing is lent, and nobody goes on because a pool is overloaded
    written   as it stands
    spill     every rule also goes on when a pool is `overloaded`, after SPILL_AFTER seconds if it names none,
              and every later pool of a chain lends its idle replicas to the earlier ones
    merged    all engines in one pool, and the rules only say who may come in

A request meets what it would meet live: its output is bounded by the tenant, the model and the pool, the
estimate learns from past answers, the first rule that matches gives the chain, and at each pool it waits for
`after_ms`, at the last for the queue's own bound. The file's limits hold too (limiting.py), for its tenants:
those of the trace are taken for them by name, the others in turn. The engines' dialects take no part.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from backends.contract import GenerateRequest
from backends.simulated.engine import EngineProfile
from gateway.call import Bound, Call, Estimate, PromptCount
from gateway.config.snapshot import EMPTY, HopReason, Policy, Rule, Slo, Snapshot, Tenant
from gateway.errors import GatewayError, ModelNotFound
from gateway.queueing.scheduler import PoolScheduler
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import ReplayPool, Router, Sight, Stop, pool_of
from gateway.routing.degrading import Brownout
from gateway.routing.router import Route, choose_route, lenders_of
from gateway.tokens.bounding import bound_output
from gateway.tokens.estimating import OutputLengths, estimate

__all__ = [
    "VARIANTS",
    "Variant",
    "as_called",
    "engines_of",
    "pools_of",
    "router_of",
    "tenants_of",
    "way_of",
    "with_models",
]

Variant = Literal["walls", "written", "spill", "merged"]
VARIANTS: tuple[Variant, ...] = ("walls", "written", "spill", "merged")
SPILL_AFTER = 10.0
MERGED = "merged"


def pools_of(
    snapshot: Snapshot, engine: EngineProfile, variant: Variant, per_pool: int | None = None
) -> list[ReplayPool]:
    """The pools as the twin runs them, all of one kind of engine; `per_pool` replicas each, if given."""
    if variant == "merged":
        return [pool_of(MERGED, engines_of(snapshot, engine, per_pool), Policy())]
    loans = _loans(snapshot, variant)
    return [
        ReplayPool(
            pool.name,
            (engine,) * (per_pool or len(pool.replicas)),
            pool.policy,
            in_flight=pool.limits.in_flight,
            kv_tokens=pool.limits.kv_tokens,
            max_requests=pool.queue.max_requests,
            lends_to=loans[pool.name],
        )
        for pool in snapshot.pools.values()
    ]


def _loans(snapshot: Snapshot, variant: Variant) -> Mapping[str, tuple[str, ...]]:
    """Lender -> borrowers."""
    found = {
        pool.name: list(pool.lends_to if variant == "written" else ()) for pool in snapshot.pools.values()
    }
    if variant == "spill":
        for rule in snapshot.rules:
            for number, later in enumerate(rule.chain):
                found[later.pool] += [
                    hop.pool
                    for hop in rule.chain[:number]
                    if hop.model == later.model and hop.pool != later.pool
                ]
    return {name: tuple(dict.fromkeys(borrowers)) for name, borrowers in found.items()}


def _lending(snapshot: Snapshot, variant: Variant) -> Snapshot:
    loans = _loans(snapshot, variant)
    pools = {name: replace(pool, lends_to=loans[name]) for name, pool in snapshot.pools.items()}
    return replace(snapshot, pools=MappingProxyType(pools))


def engines_of(
    snapshot: Snapshot, engine: EngineProfile, per_pool: int | None = None
) -> tuple[EngineProfile, ...]:
    return (engine,) * sum(per_pool or len(pool.replicas) for pool in snapshot.pools.values())


def router_of(snapshot: Snapshot, variant: Variant) -> Router:
    """Where each request may go, by the rules."""
    if variant != "merged":
        snapshot = _lending(snapshot, variant)

    brownout: Brownout | None = None

    def route(request: TraceRequest, sight: Sight) -> Sequence[Stop]:
        nonlocal brownout
        if brownout is None:
            brownout = Brownout(_lines(snapshot, sight), sight.clock)
        try:
            call, way = way_of(snapshot, request, sight.lengths)
        except GatewayError:
            return ()
        expected, spared, priority = way.estimate.output, None, None
        promised = next((each.pool.promised(call.priority_class) for each in way.chain if each.usable), Slo())
        if (lesser := brownout.degrade(snapshot, call, way)) is not None:
            spared, way, priority = expected, lesser.route, lesser.call.priority_class
            expected = way.estimate.output
        targets = [target for target in way.chain if target.usable]
        if not targets:
            return ()
        longest = max(target.pool.queue.max_wait for target in targets)
        if variant == "merged":
            sent = targets[0].fit.sent
            return (
                Stop(
                    MERGED,
                    patience=longest,
                    expected=expected,
                    max_tokens=sent,
                    priority=priority,
                    spared=spared,
                    slo=promised,
                ),
            )
        on = _on(way.rule, variant)
        patience = way.rule.after if "overloaded" in on else None
        if variant == "spill" and not patience:
            patience = SPILL_AFTER
        return [
            Stop(
                target.pool.name,
                on,
                target.pool.queue.max_wait if patience is None or target is targets[-1] else patience,
                expected,
                target.fit.sent,
                {lender.pool.name: lender.fit.sent for lender in lenders_of(way, target)},
                priority,
                spared,
                promised,
            )
            for target in targets
        ]

    return route


def _on(rule: Rule, variant: Variant) -> frozenset[HopReason]:
    match variant:
        case "walls":
            return rule.on - {"overloaded"}
        case "spill":
            return rule.on | {"overloaded"}
        case "written" | "merged":
            return rule.on


def _lines(snapshot: Snapshot, sight: Sight) -> Mapping[str, PoolScheduler]:
    """By the file's pools, the lines in which their requests stand."""
    return {
        name: line
        for name in snapshot.pools
        if (line := sight.lines.get(MERGED) or sight.lines.get(name)) is not None
    }


def as_called(snapshot: Snapshot, request: TraceRequest) -> tuple[Call, PromptCount, Bound]:
    """The request as the gateway has it, counted and bounded. Raises GatewayError."""
    name = request.model if request.model is not None else next(iter(snapshot.models))
    model = snapshot.model(name)
    if model is None:
        raise ModelNotFound(f"The file has no model {name!r}.", param="model")
    tenant = snapshot.tenants.get(request.tenant) or Tenant(request.tenant)
    prompt = PromptCount(request.prompt_tokens, True, "trace", request.prompt_tokens)
    bound = bound_output(request.max_tokens, model, tenant, prompt)
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
    return call, prompt, bound


def way_of(snapshot: Snapshot, request: TraceRequest, lengths: OutputLengths) -> tuple[Call, Route]:
    """The request as the gateway has it, and its chain. Raises GatewayError."""
    call, prompt, bound = as_called(snapshot, request)
    learned = lengths.predict(request.tenant, request.model or "", request.prompt_tokens)
    cost: Estimate = estimate(prompt, bound, 1, learned, call.model)
    return call, choose_route(snapshot, call, cost)


def tenants_of(names: Iterable[str], snapshot: Snapshot) -> dict[str, str]:
    """Tenant of the trace -> tenant of the file, in the order of `names`: the one of that name, else those of
    which the trace has none in turn; all of them, where it has all."""
    names = dict.fromkeys(names)
    left = [name for name in snapshot.tenants if name not in names] or list(snapshot.tenants)
    turns = itertools.cycle(left)
    return {name: name if name in snapshot.tenants or not left else next(turns) for name in names}


def with_models(
    requests: Sequence[TraceRequest],
    models: dict[str, tuple[str, ...]],
    snapshot: Snapshot,
    tenants: Mapping[str, str] = EMPTY,
) -> list[TraceRequest]:
    """Name the models that tenants ask for, several in turn; the others ask for all that they may use.

    `tenants`: as whom of the file they come."""
    every = {
        name: tuple(
            model
            for model in snapshot.models
            if (tenant := snapshot.tenants.get(tenants.get(name, name))) is None or tenant.allow.model(model)
        )
        for name in {request.tenant for request in requests}
    }
    turns: dict[str, int] = {}
    named = []
    for request in requests:
        if request.model is not None and snapshot.model(request.model) is not None:
            named.append(request)
            continue
        names = models.get(request.tenant) or every[request.tenant] or tuple(snapshot.models)
        turn = turns[request.tenant] = turns.get(request.tenant, -1) + 1
        named.append(replace(request, model=names[turn % len(names)]))
    return named
