"""Figures by hand, and what makes them less than they seem."""

import pytest

from gateway.replay.requests import TraceRequest
from loadtest.prompts import Calibration
from loadtest.running import Answered, Ran
from loadtest.sending import Sample
from loadtest.summary import notes, report, summarise

REQUEST = TraceRequest(0.0, "all", 100, 3)


def ran(samples: list[Sample], *, not_sent: int = 0) -> Ran:
    answered = [Answered(REQUEST, sample) for sample in samples]
    return Ran(answered, [REQUEST] * not_sent, 100.0, Calibration(5, 1.2, measured=True))


def good(number: int, *, late: float = 0.0) -> Sample:
    sent = 100.0 + number
    return Sample(
        sent, late, ended=sent + 0.5, first=sent + 0.1, gaps=[0.02, 0.04], input_tokens=100, output_tokens=3
    )


def test_what_was_not_seen_has_no_percentile():
    """A whole answer shows no first token: no figure, rather than 0."""
    sample = good(0)
    sample.first, sample.gaps = None, []
    summary = summarise(ran([sample]))
    assert summary["ttft_ms"] == summary["inter_token_ms"] == {"p50": None, "p90": None, "p99": None}
    assert "first token ms" in report(summary)


def test_figures_by_hand():
    """Errors count in the wall time and nowhere else."""
    failed = Sample(102.0, ended=104.0, error="503 slow_down")
    summary = summarise(ran([good(0), good(1), failed]))
    assert summary["wall_s"] == pytest.approx(4.0)
    assert summary["requests_per_s"] == pytest.approx(0.5)
    assert summary["output_tokens_per_s"] == pytest.approx(1.5)
    assert summary["latency_ms"]["avg"] == pytest.approx(500)
    assert summary["ttft_ms"] == {name: pytest.approx(100) for name in ("p50", "p90", "p99")}
    assert summary["inter_token_ms"]["p50"] == pytest.approx(30)  # of 20, 20, 40, 40: in the middle
    assert summary["inter_token_ms"]["p99"] == pytest.approx(40)
    assert (summary["input_tokens_mean"], summary["output_tokens_mean"]) == (100, 3)
    assert summary["errors"] == {"503 slow_down": 1}
    assert summary["schedule"]["kept"]
    text = report(summary)
    assert "503 slow_down: 1" in text
    assert "2 of 3" in text


def test_a_run_of_errors_still_has_a_report():
    summary = summarise(ran([Sample(100.0, ended=101.0, error="timeout")]))
    assert summary["completed"] == 0
    assert "timeout: 1" in report(summary)


def test_a_schedule_that_was_not_kept_is_told():
    late = summarise(ran([good(number, late=0.2) for number in range(200)]))
    assert not late["schedule"]["kept"]
    assert any("not kept" in note for note in notes(late))
    passed_over = summarise(ran([good(number) for number in range(200)], not_sent=3))
    assert not passed_over["schedule"]["kept"]
    assert any("3 requests were not sent" in note for note in notes(passed_over))
    assert notes(summarise(ran([good(number) for number in range(200)]))) == []
