"""Figures by length class, priority class and tenant: those of `headgate replay`, from what a client saw.

Every request of the plan is a journey (gateway/replay/twin.py), also one that was refused or never sent.
Times count from its place in the plan. An answer in one piece shows no first token: its first is its end.

    completed     a whole answer
    shed          429, 503 or 529: refused, with more or less grace
    unfinished    `--timeout` ran out, or it was not sent (`--max-in-flight`)
    failed        every other error, a stream that broke off included
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from backends.simulated.engine import EngineProfile
from gateway.replay.comparing import Comparison
from gateway.replay.figures import Objectives, Run, figures_of, rank
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import NEVER, Journey, Outcome, Replayed
from gateway.replay.twin import Sample as Moment
from loadtest.running import Ran
from loadtest.sending import Sample

SHED = frozenset({"429", "503", "529"})
"""Status codes of servers that will not take a request now (529: Dynamo, Anthropic)."""
MOMENTS = 200


def replayed_of(ran: Ran) -> Replayed:
    """The run as a replay tells its own; seconds from the plan's beginning."""
    journeys = [_journey(each.request, each.sample, ran.started) for each in ran.answered]
    journeys += [Journey(request, 0) for request in ran.not_sent]
    journeys.sort(key=lambda journey: journey.request.at)
    ended = max((sample.ended for sample in ran.samples), default=ran.started) - ran.started
    return Replayed(journeys, list(_moments(journeys, ended)), ended)


def run_of(
    name: str,
    load: float,
    seed: int,
    ran: Ran,
    reference: EngineProfile,
    *,
    objectives: Objectives | None = None,
    by_priority: bool = False,
) -> Run:
    """The figures of one run; `reference` is the engine to whose bare prefill long prompts are held."""
    return figures_of(
        name,
        load,
        seed,
        replayed_of(ran),
        reference,
        objectives=objectives,
        by_priority=by_priority,
        seconds=max((sample.ended for sample in ran.samples), default=ran.started) - ran.started,
    )


def side_by_side(runs: Sequence[Run], capacity: float | None = None) -> Comparison:
    """Runs as a comparison, for the replay's reports."""
    return Comparison(
        rows=tuple(rank([row for run in runs for row in run.rows])),
        runs=tuple(runs),
        capacities={} if capacity is None else {runs[0].seed: capacity},
        carried={},
        seconds=sum(run.seconds for run in runs),
    )


def _journey(request: TraceRequest, sample: Sample, started: float) -> Journey:
    told = sample.error is None
    if told and not request.prompt_tokens:  # a dataset's prompt: nobody knew its lengths before
        request = replace(
            request, prompt_tokens=sample.input_tokens or 0, output_tokens=max(1, sample.output_tokens)
        )
    journey = Journey(request, 0)
    if told:
        journey.output_tokens = max(1, sample.output_tokens)
    journey.outcome = _outcome(sample.error)
    journey.sent = sample.sent - started
    if journey.outcome != "unfinished":
        journey.end = sample.ended - started
    if sample.first is not None:
        journey.first = sample.first - started
    elif told:
        journey.first = journey.end
    return journey


def _outcome(error: str | None) -> Outcome:
    if error is None:
        return "completed"
    if error.partition(" ")[0] in SHED:
        return "shed"
    return "unfinished" if error == "timeout" else "failed"


def _moments(journeys: Sequence[Journey], ended: float) -> Iterator[Moment]:
    """How many waited for their first token, and how many were being answered. A client cannot tell the
    gateway's queue from the engines'."""
    came = [journey.request.at for journey in journeys]
    stopped_waiting = [min(journey.first, journey.end) for journey in journeys]
    first = sorted(journey.first for journey in journeys)
    over = sorted(journey.end for journey in journeys if journey.first < NEVER)
    waited = sorted(stopped_waiting)
    oldest = 0
    for number in range(1, MOMENTS + 1):
        at = ended * number / MOMENTS
        here = bisect_right(came, at)
        while oldest < here and stopped_waiting[oldest] <= at:
            oldest += 1
        yield Moment(
            at,
            waiting=here - bisect_right(waited, at),
            queued=0,
            running=bisect_right(first, at) - bisect_right(over, at),
            oldest=at - came[oldest] if oldest < here else 0.0,
        )
