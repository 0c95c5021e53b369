"""A comparison as text for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from gateway.replay.comparing import Comparison
from gateway.replay.figures import Row

__all__ = ["as_json", "as_text", "headline", "table"]


def as_json(comparison: Comparison, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything but the curves: rows, capacities by seed, loads carried. Times are seconds."""
    return {
        "version": 1,
        "settings": settings,
        "capacity": {str(seed): round(rate, 3) for seed, rate in sorted(comparison.capacities.items())},
        "carried": {policy: round(load, 4) for policy, load in comparison.carried.items()},
        "rows": [row.as_json() for row in comparison.rows],
        "seconds": round(comparison.seconds, 1),
    }


def headline(comparison: Comparison) -> str:
    rates = sorted(comparison.capacities.values())
    spread = f"{rates[0]:.1f}" if len(rates) == 1 else f"{rates[0]:.1f} to {rates[-1]:.1f}"
    return (
        f"capacity {spread} requests/s (all queued at t = 0); {len(comparison.runs)} replays in "
        f"{comparison.seconds:.0f} s; of {len(rates)} seed{'s' * (len(rates) > 1)} the worst"
    )


COLUMNS = (
    ("policy", ""),
    ("short TTFT", "p50 / p95 / p99 s"),
    ("short E2E", "p95 s"),
    ("TPOT", "p99 ms"),
    ("long TTFT", "p50 / p95 / p99 / max s"),
    ("long E2E", "p99 s"),
    ("goodput", "all (short, long)"),
    ("shed", "%"),
    ("left", "%"),
    ("jain", ""),
)


def as_text(comparison: Comparison, head: str | None = None) -> str:
    """A table for each load. Latencies in brackets: of policies that finished fewer requests than others.

    `head`: what stands above it, if not the replay's own line."""
    blocks = [headline(comparison) if head is None else head]
    plain = [row for row in comparison.rows if row.priority == "all" and row.tenant == "all"]
    for load in sorted({row.load for row in plain}):
        lines = [
            line
            for policy, classes in _by_policy([row for row in plain if row.load == load]).items()
            if (line := _line(policy, classes)) is not None
        ]
        blocks.append(f"load {load:g}\n" + table(COLUMNS, lines))
        blocks += [
            f"brown-out of {row.policy}: {row.degraded:.1%} of the requests lost something, {row.cut:.1%} "
            f"got a shorter answer; in time and whole: {row.goodput_whole:.3f}"
            for row in plain
            if row.load == load and row.cls == "all" and row.degraded
        ]
        blocks += [
            f"limits, {row.policy}: {row.limited:.1%} of the requests refused, {row.limit_cut:.1%} got a "
            "shorter answer"
            for row in plain
            if row.load == load and row.cls == "all" and (row.limited or row.limit_cut)
        ]
        blocks += [
            f"preemption, {row.policy}: {row.taken_back:.1%} of the requests gave way to more urgent ones"
            for row in plain
            if row.load == load and row.cls == "all" and row.taken_back
        ]
    groups = [row for row in comparison.rows if row.priority != "all" or row.tenant != "all"]
    if groups:
        lines = [
            (
                row.policy, f"{row.load:g}", row.priority if row.tenant == "all" else row.tenant, row.cls,
                str(row.requests), f"{row.ttft_p50:.2f} / {row.ttft_p95:.2f} / {row.ttft_p99:.2f}",
                f"{row.e2e_p95:.1f}", f"{row.goodput:.3f}", f"{row.shed:.1%}",
                f"{row.limited:.1%}",
            )
            for row in groups
        ]  # fmt: skip
        blocks.append(
            table(
                (
                    ("policy", ""), ("load", ""), ("of", ""), ("class", ""), ("requests", ""),
                    ("TTFT", "p50 / p95 / p99 s"), ("E2E", "p95 s"), ("goodput", ""), ("shed", ""),
                    ("limited", ""),
                ),
                lines,
            )
        )  # fmt: skip
    if comparison.carried:
        best = max(comparison.carried.values())
        lines = [
            (policy, f"{load:.3f}", f"{best / load:.2f}" if load else "-")
            for policy, load in comparison.carried.items()
        ]
        blocks.append(
            table((("policy", ""), ("load carried", "90 % in time"), ("best is", "times that")), lines)
        )
    return "\n\n".join(blocks)


def _by_policy(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.policy, {})[row.cls] = row
    return found


def _line(policy: str, classes: dict[str, Row]) -> tuple[str, ...] | None:
    every = classes.get("all")
    if every is None:
        return None
    short, long = classes.get("short"), classes.get("long")
    goodput = f"{every.goodput:.3f}"
    if short is not None and long is not None:
        goodput += f" ({short.goodput:.3f}, {long.goodput:.3f})"
    return (
        policy,
        _of(short, lambda row: f"{row.ttft_p50:.3f} / {row.ttft_p95:.2f} / {row.ttft_p99:.2f}"),
        _of(short, lambda row: f"{row.e2e_p95:.1f}"),
        _of(short, lambda row: f"{row.tpot_p99 * 1e3:.0f}"),
        _of(
            long,
            lambda row: f"{row.ttft_p50:.2f} / {row.ttft_p95:.1f} / {row.ttft_p99:.1f} / {row.ttft_max:.0f}",
        ),
        _of(long, lambda row: f"{row.e2e_p99:.0f}"),
        goodput,
        f"{every.shed:.1%}",
        f"{every.unfinished:.1%}",
        f"{every.jain:.3f}",
    )


def _of(row: Row | None, text: Any) -> str:
    if row is None:
        return "-"
    said: str = text(row)
    return said if row.ranked else f"[{said}]"


def table(columns: Sequence[tuple[str, str]], lines: Sequence[Sequence[str]]) -> str:
    """In columns, each with a name and a unit."""
    rows = [[head for head, _ in columns], [unit for _, unit in columns], *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows)
