"""Which pool of a routes.yaml each request of a trace goes to first, and so where the work is.

By the real router, with output lengths learned as the trace goes by: rules see estimates, as they do live.
Spilling and lending between pools take no part: this is what is asked of each.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.config.snapshot import Pool, Slo, Snapshot
from gateway.errors import GatewayError
from gateway.fleet.step_model import REFERENCE, StepModel
from gateway.planning.shares import PoolShare
from gateway.planning.sizing import Objective
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import router_of, way_of, with_models
from gateway.replay.twin import Sight
from gateway.tokens.estimating import OutputLengths

__all__ = ["PassedBy", "divided", "objective_of", "passed_by", "work_shares"]

MOST_PASSED = 0.1
"""Part of a rule's requests that may pass its first pool by without a word."""


@dataclass(frozen=True, slots=True)
class PassedBy:
    """A rule whose first pool has no room for the output that many of its requests ask for: however short
    their answers will be, they go to the next pool."""

    rule: str
    pool: str
    total: int
    """Tokens of prompt and output that the pool takes."""
    part: float
    """Of the rule's requests."""

    def __str__(self) -> str:
        return (
            f"{self.part:.0%} of the requests of rule {self.rule} pass by its first pool, {self.pool}: "
            f"prompt and max_tokens are more than its total, {self.total}, whatever answer is expected; "
            "raise that, if the engines can, or let the rule say `fit: clamp`"
        )


def divided(
    snapshot: Snapshot, requests: Sequence[TraceRequest], models: dict[str, tuple[str, ...]]
) -> tuple[dict[str, list[TraceRequest]], int]:
    """The file's pools with the requests that go there first, in order of time; and how many fit nowhere.

    `models`: what tenants of the trace ask for, as of `with_models`.
    """
    route, sight = router_of(snapshot, "written"), Sight()
    pools: dict[str, list[TraceRequest]] = {name: [] for name in snapshot.pools}
    homeless = 0
    for request in with_models(requests, models, snapshot):
        stops = route(request, sight)
        if stops:
            pools[stops[0].pool].append(request)
            sight.lengths.observe(
                request.tenant, request.model or "", request.prompt_tokens, request.output_tokens
            )
        else:
            homeless += 1
    return pools, homeless


def passed_by(
    snapshot: Snapshot, requests: Sequence[TraceRequest], models: dict[str, tuple[str, ...]]
) -> list[PassedBy]:
    """Rules of which more than `MOST_PASSED` of the requests are too much for the first pool only by the
    output that they ask for, the worst first. Arguments as of `divided`."""
    lengths = OutputLengths()
    seen: Counter[str] = Counter()
    passed: Counter[tuple[str, str, int]] = Counter()
    for request in with_models(requests, models, snapshot):
        try:
            _, way = way_of(snapshot, request, lengths)
        except GatewayError:
            continue
        first, rule = way.chain[0], way.rule.name
        seen[rule] += 1
        total = first.pool.limits.total
        if not first.usable and first.fit.sent is not None and first.fit.clamped and total is not None:
            passed[rule, first.pool.name, total] += 1
        lengths.observe(request.tenant, request.model or "", request.prompt_tokens, request.output_tokens)
    found = [PassedBy(*key, number / seen[key[0]]) for key, number in passed.items()]
    return sorted((each for each in found if each.part > MOST_PASSED), key=lambda each: -each.part)


def work_shares(snapshot: Snapshot, pools: dict[str, list[TraceRequest]]) -> list[PoolShare]:
    """Work (seconds of the reference engine, prompts uncached) and capacity (such engines) of each pool.

    An engine counts as its `profile` says, or as the reference engine; a cold pool has none running.
    """
    return [
        PoolShare(
            name,
            sum(REFERENCE.work(r.prompt_tokens, r.prompt_tokens, r.output_tokens) for r in requests),
            len(snapshot.pools[name].replicas) / StepModel(snapshot.pools[name].pace).slowness,
        )
        for name, requests in pools.items()
        if snapshot.pools[name].state != "cold" or requests
    ]


def objective_of(pool: Pool, requests: Sequence[TraceRequest]) -> Objective:
    """The strictest of what the pool promises to the classes that come there."""
    slos = [pool.promised(priority) for priority in {request.priority for request in requests}] or [pool.slo]

    def least(name: str) -> float | None:
        return min((value for slo in slos if (value := getattr(slo, name)) is not None), default=None)

    return Objective(**{name: least(name) for name in Slo.__dataclass_fields__})
