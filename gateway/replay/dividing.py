"""Which pool of a routes.yaml each request of a trace goes to first, and so where the work is.

By the real router, with output lengths learned as the trace goes by: rules see estimates, as they do live.
Spilling and lending between pools take no part: this is what is asked of each.
"""

from collections.abc import Sequence

from gateway.config.snapshot import Pool, Slo, Snapshot
from gateway.fleet.step_model import REFERENCE, StepModel
from gateway.planning.shares import PoolShare
from gateway.planning.sizing import Objective
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import router_of, with_models
from gateway.replay.twin import Sight

__all__ = ["divided", "objective_of", "work_shares"]


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
