"""Samples -> the figures that a client sees. Latencies count from the scheduled time."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gateway.replay.figures import percentile
from loadtest.running import Ran

LATE = 0.050
"""Seconds: a plan whose p99 lateness is above this was not kept, and the figures are of another load."""


def summarise(ran: Ran) -> dict[str, Any]:
    """Every figure of one run, as it is written and printed. Times in milliseconds; None: no data."""
    good = [sample for sample in ran.samples if sample.error is None]
    last = max((sample.ended for sample in ran.samples), default=ran.started)
    wall = max(last - ran.started, 1e-9)
    told = [sample.input_tokens for sample in good if sample.input_tokens is not None]
    output = sum(sample.output_tokens for sample in good)
    late = sorted(sample.late for sample in ran.samples)
    late_p99 = percentile(late, 0.99) if late else None
    return {
        "requests_per_s": len(good) / wall,
        "output_tokens_per_s": output / wall,
        "latency_ms": _figures([sample.latency for sample in good], mean=True),
        "ttft_ms": _figures([sample.ttft for sample in good if sample.ttft is not None]),
        "inter_token_ms": _figures([gap for sample in good for gap in sample.gaps]),
        "input_tokens_mean": sum(told) / len(told) if told else None,
        "output_tokens_mean": output / len(good) if good else None,
        "output_counted_by": "pieces" if any(sample.counted for sample in good) else "usage",
        "completed": len(good),
        "errors": dict(
            Counter(sample.error for sample in ran.samples if sample.error is not None).most_common()
        ),
        "wall_s": wall,
        "schedule": {
            "planned": ran.planned,
            "sent": len(ran.samples),
            "not_sent": len(ran.not_sent),
            "late_p99_ms": None if late_p99 is None else 1e3 * late_p99,
            "kept": not ran.not_sent and (late_p99 or 0.0) <= LATE,
        },
        "calibration": {
            "fixed": ran.calibration.fixed,
            "per_word": ran.calibration.per_word,
            "measured": ran.calibration.measured,
        },
    }


def _figures(seconds: list[float], *, mean: bool = False) -> dict[str, float | None]:
    seconds.sort()
    figures: dict[str, float | None] = {}
    if mean:
        figures["avg"] = 1e3 * sum(seconds) / len(seconds) if seconds else None
    for share in (0.5, 0.9, 0.99):
        figures[f"p{100 * share:.0f}"] = 1e3 * percentile(seconds, share) if seconds else None
    return figures


def report(summary: Mapping[str, Any]) -> str:
    """The figures for people."""
    latency, first, gaps = (summary[name] for name in ("latency_ms", "ttft_ms", "inter_token_ms"))
    schedule = summary["schedule"]
    rows = (
        ("requests/s", number(summary["requests_per_s"])),
        ("output tokens/s", number(summary["output_tokens_per_s"])),
        ("latency ms", _named(latency, "avg", "p90", "p99")),
        ("first token ms", _named(first, "p50", "p90", "p99")),
        ("between tokens ms", _named(gaps, "p50", "p90", "p99")),
        (
            "average tokens",
            f"in {number(summary['input_tokens_mean'])}   out {number(summary['output_tokens_mean'])}",
        ),
        ("completed", f"{summary['completed']} of {schedule['planned']} in {number(summary['wall_s'])} s"),
        *(("error", f"{name}: {count}") for name, count in summary["errors"].items()),
    )
    lines = [f"{label:20} {text}" for label, text in rows]
    return "\n".join([*lines, *(f"NOTE: {note}" for note in notes(summary))])


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What makes figures less than they seem."""
    schedule, found = summary["schedule"], []
    if schedule["not_sent"]:
        found.append(
            f"{schedule['not_sent']} requests were not sent: too many were under way (--max-in-flight)"
        )
    if (schedule["late_p99_ms"] or 0.0) > 1e3 * LATE:
        found.append(
            f"the schedule was not kept: p99 {schedule['late_p99_ms']:.0f} ms late. This client was the "
            "limit, and the load was not the one asked for"
        )
    if not summary["calibration"]["measured"]:
        found.append("prompt sizes are a guess: the server told no usage in the warm-up")
    if summary["output_counted_by"] == "pieces":
        found.append("output tokens are pieces of a stream: the server told no usage")
    if summary["completed"] and 0.01 * summary["completed"] < 1:
        found.append(f"p99 of {summary['completed']} requests is their slowest")
    return found


def _named(figures: Mapping[str, float | None], *names: str) -> str:
    return "   ".join(f"{name} {number(figures[name])}" for name in names)


def number(value: float | None) -> str:
    """As the tables show it."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
