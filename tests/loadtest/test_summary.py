"""Figures by hand, and what makes them less than they seem."""

import pytest

from loadtest.prompts import Calibration
from loadtest.running import Ran
from loadtest.sending import Sample
from loadtest.summary import compare, notes, percentile, report, summarise


def ran(samples: list[Sample], *, not_sent: int = 0) -> Ran:
    return Ran(samples, len(samples) + not_sent, not_sent, 100.0, Calibration(5, 1.2, measured=True))


def good(number: int, *, late: float = 0.0) -> Sample:
    sent = 100.0 + number
    return Sample(
        sent, late, ended=sent + 0.5, first=sent + 0.1, gaps=[0.02, 0.04], input_tokens=100, output_tokens=3
    )


@pytest.mark.parametrize(
    ("count", "share", "rank"), [(100, 0.99, 99), (100, 0.5, 50), (101, 0.99, 100), (1, 0.9, 1), (3, 0.5, 2)]
)
def test_percentiles_are_nearest_ranks(count: int, share: float, rank: int):
    assert percentile(list(map(float, range(1, count + 1))), share) == rank


def test_nothing_has_no_percentile():
    assert percentile([], 0.5) is None


def test_figures_by_hand():
    """Errors count in the wall time and nowhere else."""
    failed = Sample(102.0, ended=104.0, error="503 slow_down")
    summary = summarise(ran([good(0), good(1), failed]))
    assert summary["wall_s"] == pytest.approx(4.0)
    assert summary["requests_per_s"] == pytest.approx(0.5)
    assert summary["output_tokens_per_s"] == pytest.approx(1.5)
    assert summary["latency_ms"]["avg"] == pytest.approx(500)
    assert summary["ttft_ms"] == {name: pytest.approx(100) for name in ("p50", "p90", "p99")}
    assert summary["inter_token_ms"]["p50"] == pytest.approx(20)
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


def test_compare_shows_ratios_and_what_differs():
    a = {"settings": {"rate": 10, "url": "x"}, "summary": summarise(ran([good(n) for n in range(200)]))}
    slow = [good(n) for n in range(200)]
    for sample in slow:
        sample.ended += 0.5
    slow.append(Sample(300.0, ended=300.0, error="timeout"))
    b = {"settings": {"rate": 20, "url": "y"}, "summary": summarise(ran(slow))}
    text = compare(a, b)
    line = next(line for line in text.splitlines() if line.startswith("latency avg"))
    assert line.split()[-3:] == ["500.0", "1000.0", "2.000"]
    assert "rate is 10 in A, 20 in B" in text
    assert "url" not in text
    assert "B had 1 errors" in text
    assert "NOTE" not in compare(a, a)
