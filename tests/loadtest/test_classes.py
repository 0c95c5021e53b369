"""What a client saw as journeys: outcomes, classes, the time from the plan, the queue over time."""

import pytest

from backends.simulated.engine import PROFILES
from gateway.config.snapshot import PriorityClass
from gateway.replay.requests import TraceRequest
from loadtest.classes import MOMENTS, replayed_of, run_of, side_by_side
from loadtest.prompts import Calibration
from loadtest.running import Answered, Ran
from loadtest.sending import Sample

STARTED = 100.0


def answered(at, *, prompt=100, output=11, ttft=0.5, seconds=1.0, error=None, late=0.0, tenant="t", **more):
    """A request due at `at`, whose first token came `ttft` later."""
    due = STARTED + at
    sample = Sample(due + late, late, due + seconds, None if ttft is None else due + ttft, error=error)
    sample.input_tokens, sample.output_tokens = prompt, output
    return Answered(TraceRequest(at, tenant, prompt, output, **more), sample)


def ran(*some, not_sent=()):
    return Ran(list(some), list(not_sent), STARTED, Calibration())


def rows_of(result, **options):
    found = run_of("x", 1.0, 0, result, PROFILES["h200"], **options)
    return {(row.cls, row.priority): row for row in found.rows}


def test_figures_by_class_by_hand():
    """A short one in time, a short one whose client was held up past its second, a long one."""
    rows = rows_of(
        ran(
            answered(0.0),
            answered(1.0, ttft=1.5, seconds=2.0, late=1.2),
            answered(2.0, prompt=3000, ttft=2.0, seconds=2.5),
        )
    )
    short, long = rows["short", "all"], rows["long", "all"]
    assert (short.requests, long.requests) == (2, 1)
    assert short.ttft_p50 == pytest.approx(1.0)
    assert short.ttft_max == pytest.approx(1.5)
    assert short.e2e_p50 == pytest.approx(1.5)
    assert short.tpot_p99 == pytest.approx(0.05)  # half a second for the ten tokens after the first
    assert (short.goodput, long.goodput) == (0.5, 1.0)
    assert rows["all", "all"].goodput == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        ("429 rate_limit_exceeded", "shed"),
        ("503 overloaded", "shed"),
        ("529", "shed"),
        ("timeout", "unfinished"),
        ("500 server_error", "failed"),
        ("stream ended without [DONE]", "failed"),
        ("connection broken", "failed"),
    ],
)
def test_what_became_of_it(error, field):
    """Nothing of it is in time, and its latency is in no percentile."""
    row = rows_of(ran(answered(0.0), answered(1.0, ttft=None, seconds=9.0, error=error)))["all", "all"]
    assert (row.goodput, row.e2e_p99) == (0.5, pytest.approx(1.0))
    assert {name: getattr(row, name) for name in ("shed", "unfinished", "failed")} == {
        "shed": 0, "unfinished": 0, "failed": 0, field: 0.5,
    }  # fmt: skip


def test_what_was_not_sent_counts_against_goodput():
    row = rows_of(ran(answered(0.0), not_sent=[TraceRequest(0.5, "t", 10, 10)]))["all", "all"]
    assert (row.requests, row.goodput, row.unfinished) == (2, 0.5, 0.5)


def test_a_whole_answer_has_its_first_token_at_its_end():
    row = rows_of(ran(answered(0.0, ttft=None, seconds=0.7)))["all", "all"]
    assert (row.ttft_p50, row.tpot_p99) == (pytest.approx(0.7), 0.0)


def test_a_datasets_prompt_has_the_length_that_the_server_told():
    each = answered(0.0, prompt=5000)
    told = Answered(TraceRequest(0.0, "t", 0, 0), each.sample)
    assert ("long", "all") in rows_of(ran(told))


def test_priorities_have_rows_of_their_own():
    rows = rows_of(
        ran(answered(0.0), answered(1.0, priority=PriorityClass.batch, ttft=5.0, seconds=9.0)),
        by_priority=True,
    )
    assert rows["short", "interactive"].goodput == 1.0
    assert rows["short", "batch"].goodput == 0.0


def test_fairness_over_tenants():
    """One of two tenants gets nothing: 1/2."""
    row = rows_of(ran(answered(0.0, tenant="a"), answered(9.0, tenant="a", ttft=0.0, seconds=0.0, output=1)))[
        "all", "all"
    ]
    assert row.jain == pytest.approx(1.0)
    starved = answered(0.1, tenant="b", ttft=None, error="503", seconds=0.2)
    row = rows_of(ran(answered(0.0, tenant="a"), starved, answered(9.0, tenant="a", ttft=0.0, seconds=0.0)))
    assert row["all", "all"].jain == pytest.approx(0.5)


def test_the_queue_over_time():
    """Two wait from 0 and 1 until 4; one is answered from 4 to 8, the other was refused at 4."""
    replayed = replayed_of(
        ran(answered(0.0, ttft=4.0, seconds=8.0), answered(1.0, ttft=None, seconds=3.0, error="503"))
    )
    assert replayed.ended == pytest.approx(8.0)
    assert len(replayed.samples) == MOMENTS
    by_time = {round(sample.at, 2): sample for sample in replayed.samples}
    assert (by_time[0.52].waiting, by_time[2.0].waiting, by_time[6.0].waiting) == (1, 2, 0)
    assert (by_time[2.0].running, by_time[6.0].running) == (0, 1)
    assert (by_time[2.0].oldest, by_time[6.0].oldest) == (pytest.approx(2.0), 0.0)


def test_one_that_finished_fewer_is_not_ranked():
    whole = run_of("a", 1.0, 0, ran(answered(0.0), answered(1.0)), PROFILES["h200"])
    fewer = run_of("b", 1.0, 0, ran(answered(0.0), answered(1.0, error="500")), PROFILES["h200"])
    ranked = {row.policy: row.ranked for row in side_by_side([whole, fewer]).rows if row.cls == "all"}
    assert ranked == {"a": True, "b": False}
