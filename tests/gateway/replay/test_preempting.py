"""Preemption in the twin: an engine drops what it has read of a batch request, which is answered later."""

from dataclasses import replace

import pytest

from backends.simulated.engine import PROFILES
from gateway.config.snapshot import PriorityClass
from gateway.queueing.policies import POLICIES
from gateway.replay.comparing import Comparison, policy_of
from gateway.replay.figures import figures_of
from gateway.replay.report import as_text
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import Stop, Twin, pool_of

ENGINE = replace(PROFILES["h200"], step_tokens=1000)
BATCH, INTERACTIVE = PriorityClass.batch, PriorityClass.interactive
LONG = 4000
"""Tokens of a prompt: four steps of 26 ms or more."""


def batch(at=0.0, **fields):
    return TraceRequest(at, "jobs", LONG, 20, priority=BATCH, **fields)


def urgent(at):
    return TraceRequest(at, "chat", 200, 5, priority=INTERACTIVE)


def run(requests, policy="lanes:preempt=1", in_flight=1, **fields):
    pool = replace(pool_of("fleet", [ENGINE], policy_of(policy)), in_flight=in_flight, **fields)
    twin = Twin([pool], lambda request, sight: (Stop("fleet"),))
    return twin, twin.run(requests)


def at_rest(twin):
    (replica,) = twin.replicas
    ledger, engine = replica.ledger, replica.engine.statistics()
    assert (ledger.in_flight, ledger.outstanding_tokens, ledger.unstarted_tokens) == (0, 0, 0)
    assert (ledger.kv_reserved, ledger.kv_seen, sum(ledger.by_class.values())) == (0, 0, 0)
    assert (engine.running, engine.waiting, engine.kv_used) == (0, 0, 0)
    return engine


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("at", "submitted"), [(0.001, 2), (0.01, 3), (0.06, 3)], ids=["under way", "in its first step", "later"]
)
def test_what_was_read_of_it_is_read_again(streamed, at, submitted):
    """Also one that had not reached its engine yet; the urgent one is served as if there were no other."""
    twin, found = run([batch(streamed=streamed), urgent(at)])
    job, chat = found.journeys
    assert [job.outcome, chat.outcome] == ["completed", "completed"]
    assert (job.taken_back, chat.taken_back) == (1, 0)
    assert chat.ttft < 0.06, "the step under way, and its own"
    assert chat.end <= job.sent < job.first < job.end
    engine = at_rest(twin)
    assert (engine.submitted, engine.cancelled, engine.finished) == (submitted, submitted - 2, 2)
    read = engine.prompt_tokens - 200 - LONG
    assert read == {0.001: 0, 0.01: 1000, 0.06: 3000}[at]
    assert job.slot.streamed == 20, "its answer is whole"


def test_it_gives_way_so_often_and_no_more():
    for times in (0, 1, 2):
        # Each comes while the batch request is read anew.
        _, found = run([batch(), urgent(0.05), urgent(0.15), urgent(0.25)], f"lanes:preempt={times}")
        assert found.journeys[0].taken_back == times
        assert {journey.outcome for journey in found.journeys} == {"completed"}


def test_one_that_speaks_is_left_alone():
    twin, found = run([batch(), urgent(0.16)])
    job, chat = found.journeys
    assert job.first < 0.16 < job.end < chat.first
    assert (job.taken_back, at_rest(twin).cancelled) == (0, 0)


def test_many_come_and_go():
    """A burst of both classes on a small fleet: everybody is answered once, and the figures tell."""
    requests = sorted(
        [batch(0.02 * number) for number in range(60)] + [urgent(0.05 * number) for number in range(80)],
        key=lambda request: request.at,
    )
    waits = {}
    for times in (0, 1, 3):
        twin, found = run(requests, f"lanes:preempt={times}", in_flight=4)
        engine = at_rest(twin)
        assert {journey.outcome for journey in found.journeys} == {"completed"}
        assert engine.submitted == engine.finished + engine.cancelled
        assert (max(journey.taken_back for journey in found.journeys), engine.finished) == (times, 140)
        figures = figures_of("lanes", 1.0, 1, found, ENGINE, by_priority=True)
        rows = {row.priority: row for row in figures.rows if row.cls == "all"}
        waits[times] = rows["interactive"].ttft_p95
        assert (rows["batch"].taken_back > 0) == (times > 0)
        assert rows["interactive"].taken_back == 0
        text = as_text(Comparison(figures.rows, (figures,), {1: 1.0}, {}, 0.0))
        assert ("preemption, lanes: " in text) == (times > 0)
    assert max(waits[1], waits[3]) < waits[0]


def test_a_full_line_keeps_nobody_out_who_need_not_wait():
    twin, found = run([batch(), batch(0.001), urgent(0.01)], max_requests=1)
    assert [journey.outcome for journey in found.journeys] == ["completed"] * 3
    assert POLICIES["lanes"].preempt == 0, "off unless asked for"
    assert at_rest(twin).cancelled == 1
