"""Explaining: the same decisions as for a real request, written down. Nothing is charged, and nothing sent
but, where an engine counts for the model, that question."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gateway.activation.sleeping import Sleeper
from gateway.call import Call
from gateway.config.snapshot import EMPTY, Pool
from gateway.errors import ContextLengthExceeded
from gateway.queueing.pool_queue import PoolQueue
from gateway.routing.affinity import opening_of, session_of
from gateway.routing.router import Route, Target, lenders_of, refusal_of, refused_at


def explain(
    call: Call,
    route: Route,
    queues: Mapping[str, PoolQueue],
    sleepers: Mapping[str, Sleeper] = EMPTY,
) -> dict[str, Any]:
    """Every rule tried, the count, the bounds, the chain, each candidate, and why; plain JSON."""
    estimate = route.estimate
    first = next((each for each in route.chain if each.usable or refused_at(route.rule, each)), None)
    refusal = refusal_of(route) if first is None else first.refusal
    return {
        "dialect": call.dialect,
        "model": call.model.name,
        "asked_model": call.asked_model,
        "tenant": call.tenant.name,
        "class": call.priority_class.name,
        "session": call.session,
        "stream": call.stream,
        "prompt": {
            "tokens": estimate.prompt.tokens,
            "exact": estimate.prompt.exact,
            "source": estimate.prompt.source,
            "tier": estimate.prompt.tier,
            "why": estimate.prompt.why,
        },
        "max_tokens": {
            "asked": estimate.bound.asked,
            "bound": estimate.bound.tokens,
            "by": estimate.bound.by,
            "clamped": estimate.bound.clamped,
        },
        "estimate": {
            "output": estimate.output,
            "output_by": estimate.output_by,
            "mean": estimate.mean,
            "n": call.request.n,
            "total": estimate.total,
        },
        "rules": [
            {
                "rule": trial.rule,
                "matched": trial.mismatch is None,
                "why": trial.mismatch or trial.clamped or "every condition holds",
            }
            for trial in route.tried
        ],
        "rule": route.rule.name,
        "fit": route.rule.fit,
        "on": sorted(route.rule.on),
        "split": [
            {"pool": draw.pool, "weight": draw.weight, "of": draw.total, "by": draw.by}
            for draw in route.draws
        ],
        "mirror": None
        if route.rule.mirror is None
        else {"pool": route.rule.mirror.pool, "share": route.rule.mirror.share},
        "chain": [
            {
                **_target(call, target, queues[target.pool.name], route),
                "activation": _activation(target.pool, sleepers),
            }
            for target in route.chain
        ],
        "goes_to": None if first is None or refusal is not None else first.pool.name,
        "refused": None if refusal is None else {"status": refusal.status, "message": refusal.message},
    }


def _target(call: Call, target: Target, queue: PoolQueue, route: Route) -> dict[str, Any]:
    pool = target.pool
    tokens = route.estimate.prompt.tokens
    opening = opening_of(call, target, tokens)
    lora = pool.loras.get(target.model.name)
    return {
        "pool": pool.name,
        "engine": pool.engine,
        "model": target.model.name,
        "engine_model": target.engine_model or None,
        "adapter": None if lora is None else lora.name,
        "prefix_blocks": len(opening.blocks),
        "usable": target.usable,
        "why": _why(target),
        "max_tokens": target.fit.sent,
        "by": target.fit.by,
        "clamped": target.fit.clamped,
        "limits": _limits(pool),
        "configured_limits": _limits(queue.pool),
        "lenders": [lender.pool.name for lender in lenders_of(route, target)],
        "candidates": _candidates(
            queue,
            queue.held(tokens, opening.blocks, opening.tokens, session_of(call)),
            None if lora is None else lora.name,
        ),
    }


def _activation(pool: Pool, sleepers: Mapping[str, Sleeper]) -> dict[str, Any] | None:
    """How a pool that may sleep stands, and what a request would meet."""
    sleeper = sleepers.get(pool.name)
    if sleeper is None:
        return None
    return {**asdict(sleeper.statistics()), "while_waking": sleeper.settings.while_waking}


def _why(target: Target) -> str:
    if target.refusal is None:
        return "takes it" if target.fit.fits else f"takes it, clamped: {target.fit.why}"
    return target.fit.why if isinstance(target.refusal, ContextLengthExceeded) else target.refusal.message


def _limits(pool: Pool) -> dict[str, int | None]:
    limits = pool.limits
    return {"prompt": limits.prompt, "total": limits.total, "in_flight": limits.in_flight}


def _candidates(queue: PoolQueue, held: Mapping[str, int], adapter: str | None) -> list[dict[str, Any]]:
    """The pool's replicas in the order in which they would be tried, and what each holds of the prompt."""
    order = queue.candidates()
    rest = [ledger for ledger in queue.ledgers if ledger not in order]
    rows = []
    for rank, ledger in enumerate([*order, *rest]):
        if ledger.drained is not None:
            why = f"drained by {ledger.drained.who}"
        elif ledger.hold is not None:
            why = "asleep" if ledger.hold == "asleep" else "gets its warm-up requests first"
        elif ledger in rest:
            why = "avoided: " + (ledger.last_error or "not ready")
        elif not queue.has_room(ledger):
            why = f"full: {ledger.in_flight} in flight"
        elif rank == 0:
            why = "least predicted time to first token"
        else:
            why = "a later first token predicted, or served more so far"
        rows.append(
            {
                "replica": ledger.replica.id,
                "outstanding_tokens": ledger.outstanding_tokens,
                "in_flight": ledger.in_flight,
                "weight": ledger.replica.weight,
                "cached_tokens": held.get(ledger.replica.id, 0),
                "has_adapter": None if adapter is None else adapter in ledger.adapters,
                "why": why,
            }
        )
    return rows
