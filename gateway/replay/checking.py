"""Does a number of replicas hold what was promised? The planner's question to the twin."""

from collections.abc import Sequence
from dataclasses import replace

from backends.simulated.engine import EngineProfile
from gateway.planning.sizing import Seen
from gateway.queueing.policies import Policy
from gateway.replay.figures import percentile
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import NEVER, replay

__all__ = ["seen_with"]


def seen_with(
    requests: Sequence[TraceRequest], profile: EngineProfile, replicas: int, policy: Policy, batch: int
) -> Seen:
    """Replay `requests` on `replicas` engines with at most `batch` requests in each; nothing is shed, since
    who plans to refuse needs no replicas."""
    fleet = [replace(profile, max_sequences=batch)] * replicas
    journeys = replay(requests, fleet, replace(policy, shed=frozenset()), samples=1).journeys
    done = [journey for journey in journeys if journey.outcome == "completed"]
    waits = sorted(journey.sent - journey.request.at for journey in journeys if journey.sent < NEVER)
    return Seen(
        ttft_p95_ms=1e3 * percentile(sorted(journey.ttft for journey in done), 0.95),
        tpot_p99_ms=1e3 * percentile(sorted(journey.tpot for journey in done), 0.99),
        queue_p95_ms=1e3 * percentile(waits, 0.95),
        unfinished=1 - len(done) / max(len(journeys), 1),
    )
