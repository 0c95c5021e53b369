"""One run against another: ratios, what makes them no comparison, and what became worse than allowed."""

from collections.abc import Iterator, Mapping
from typing import Any

from loadtest.summary import notes, number

COMPARED = (
    ("requests/s", ("requests_per_s",)),
    ("output tokens/s", ("output_tokens_per_s",)),
    *((f"latency {name} ms", ("latency_ms", name)) for name in ("avg", "p50", "p90", "p99")),
    *((f"first token {name} ms", ("ttft_ms", name)) for name in ("p50", "p90", "p99")),
    *((f"between tokens {name} ms", ("inter_token_ms", name)) for name in ("p50", "p90", "p99")),
    ("average input tokens", ("input_tokens_mean",)),
    ("average output tokens", ("output_tokens_mean",)),
    ("completed", ("completed",)),
)

BY_CLASS = (
    "ttft_p50",
    "ttft_p95",
    "ttft_p99",
    "e2e_p50",
    "e2e_p95",
    "e2e_p99",
    "tpot_p99",
    "goodput",
    "jain",
)
"""Of each class, what is shown beside the baseline."""
JUDGED = frozenset({"ttft_p50", "ttft_p95", "ttft_p99", "e2e_p95", "tpot_p99", "goodput"})
"""... and what must not become worse."""
MORE_IS_BETTER = frozenset({"goodput", "jain"})
NOISE = 0.005
"""Seconds: latencies that differ by less are no regression, whatever their ratio."""

INDIFFERENT = frozenset({"url", "json", "html", "baseline", "fail_above"})
"""Settings that may differ between two runs that are compared."""


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Two written runs side by side: A, B and B/A. Raises KeyError for what is no such run."""
    lines = [f"{'':34} {'A':>12} {'B':>12} {'B/A':>8}"]
    if "summary" in a and "summary" in b:
        lines += [
            _line(label, _at(a["summary"], path), _at(b["summary"], path), number) for label, path in COMPARED
        ]
    rows_a, rows_b = _rows(a), _rows(b)
    for key in (key for key in rows_a if key in rows_b):
        for field in BY_CLASS:
            label = f"{' '.join(part for part in key if part != 'all') or 'all'} {field}"
            lines.append(_line(label, rows_a[key][field], rows_b[key][field], lambda value: f"{value:.3f}"))
    for name, run in (("A", a), ("B", b)):
        summary = run.get("summary")
        if summary is None:
            continue
        errors = sum(summary["errors"].values())
        if errors:
            lines.append(f"NOTE: {name} had {errors} errors; latencies are those of the others")
        lines += [f"NOTE: {name}: {note}" for note in notes(summary)]
    settings_a, settings_b = a["settings"], b["settings"]
    for name in sorted({*settings_a, *settings_b} - INDIFFERENT):
        if settings_a.get(name) != settings_b.get(name):
            values = f"{settings_a.get(name)!r} in A, {settings_b.get(name)!r} in B"
            lines.append(f"NOTE: not the same load: {name} is {values}")
    return "\n".join(lines)


def regressions(baseline: Mapping[str, Any], now: Mapping[str, Any], bound: float) -> list[str]:
    """What is worse than in the baseline by more than the factor `bound`, in words."""
    return list(_regressions(_rows(baseline), _rows(now), bound))


def _regressions(before: "_Rows", now: "_Rows", bound: float) -> Iterator[str]:
    for key, old in before.items():
        new = now.get(key)
        if new is None:
            yield f"{' '.join(key)}: not there any more"
            continue
        for field in sorted(JUDGED):
            was, is_ = old[field], new[field]
            worse = is_ * bound < was if field in MORE_IS_BETTER else is_ > max(was * bound, was + NOISE)
            if worse:
                label = " ".join(part for part in key if part != "all") or "all"
                yield f"{label} {field}: {was:.3f} -> {is_:.3f}, bound {bound:g}"


_Rows = dict[tuple[str, ...], Mapping[str, Any]]


def _rows(run: Mapping[str, Any]) -> _Rows:
    """By policy, length class, priority class and tenant; the twin's own rows are no measurement."""
    return {
        (row["policy"], row["class"], row["priority"], row["tenant"]): row
        for row in run["rows"]
        if not row["policy"].endswith(TWIN)
    }


TWIN = " (twin)"
"""What follows a policy's name where the figures are the digital twin's."""


def _line(label: str, left: float | None, right: float | None, text: Any) -> str:
    ratio = f"{right / left:.3f}" if left and right is not None else "-"
    shown = ["-" if value is None else text(value) for value in (left, right)]
    return f"{label:34} {shown[0]:>12} {shown[1]:>12} {ratio:>8}"


def _at(summary: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = summary
    for name in path:
        value = value[name]
    return None if value is None else float(value)
