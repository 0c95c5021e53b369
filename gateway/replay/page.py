"""A comparison as one HTML page: drawings inline, no scripts, nothing fetched."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gateway.replay.comparing import CARRIED, Comparison
from gateway.replay.figures import CURVE, Objectives, Row, Run
from gateway.replay.report import headline

__all__ = ["as_html"]

COLOURS = (
    "#0b6e4f", "#c1292e", "#235789", "#e08e00", "#6a4c93", "#1ca3a3", "#8a5a44", "#d16ba5", "#5b6770",
    "#7a9e00", "#000000",
)  # fmt: skip
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1b1b}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}
.plots{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0}figcaption{font-size:13px;color:#444}
.key span{display:inline-block;margin-right:1.2rem;font-size:13px}
.key i{display:inline-block;width:1.4em;height:.25em;vertical-align:middle;margin-right:.4em}
.not{color:#999}p.note{font-size:13px;color:#444;max-width:60rem}
svg text{font:11px system-ui,sans-serif;fill:#333}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}svg{background:#fff}
figcaption,p.note{color:#aaa}th,td{border-color:#333}}
"""

NOTE = """<p class=note>{how} short: prompt and output of at most 2,048 tokens. {slo} What was shed,
refused by limits, failed or did not finish was not in time.</p>"""

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40


@dataclass(frozen=True, slots=True)
class _Axis:
    label: str
    low: float
    high: float
    log: bool = False
    name: Callable[[float], str] = lambda value: f"{value:g}"
    ticks: tuple[float, ...] | None = None

    def place(self, value: float) -> float:
        """0 to 1."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            value = math.log10(min(max(value, self.low), self.high))
        else:
            low, high = self.low, self.high
            value = min(max(value, low), high)
        return (value - low) / (high - low) if high > low else 0.0

    def marks(self) -> list[float]:
        if self.ticks is not None:
            return list(self.ticks)
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            return [10.0**e for e in range(first, last + 1) if self.low <= 10.0**e <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4 or 1))
        for times in (1, 2, 5, 10):
            if (self.high - self.low) / (step * times) <= 6:
                step *= times
                break
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, int(self.high / step + 1e-9) + 1)]


def as_html(
    comparison: Comparison,
    settings: Mapping[str, Any],
    command: str,
    *,
    title: str = "Headgate replay",
    head: str | None = None,
    how: str = "Virtual time: the gateway's own scheduler over simulated engines.",
    objectives: Objectives | None = None,
) -> str:
    """The whole page. `head`: what stands above the tables, if not the replay's own line; `how`: where its
    figures come from."""
    policies = list(dict.fromkeys(row.policy for row in comparison.rows))
    colours = {policy: COLOURS[number % len(COLOURS)] for number, policy in enumerate(policies)}
    rows = [row for row in comparison.rows if row.priority == "all" and row.tenant == "all"]
    loads = sorted({row.load for row in rows})
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p><code>{escape(command)}</code></p>",
        f"<p>{escape(headline(comparison) if head is None else head)}</p>",
        NOTE.format(how=escape(how), slo=escape((objectives or Objectives()).in_words())),
        _key(colours),
    ]
    if len(loads) > 1:
        parts += ["<h2>Over load</h2><div class=plots>"]
        parts += [
            _over_load(rows, "all", colours, loads, "goodput", "part in time", mark=CARRIED),
            _over_load(rows, "short", colours, loads, "ttft_p99", "short TTFT p99, s", log=True),
            _over_load(rows, "long", colours, loads, "ttft_p99", "long TTFT p99, s", log=True),
            _over_load(rows, "short", colours, loads, "e2e_p95", "short end to end p95, s", log=True),
            _over_load(rows, "all", colours, loads, "wait_max", "starvation: longest wait, s", log=True),
            _over_load(rows, "all", colours, loads, "jain", "fairness: Jain's index over tenants"),
        ]
        parts += ["</div>"]
    for load in _chosen(loads):
        runs = _first_seed([run for run in comparison.runs if run.load == load])
        here = [row for row in rows if row.load == load]
        parts += [f"<h2>At load {load:g}</h2>", _rows_table(here), "<div class=plots>"]
        parts += [_tail(runs, cls, colours) for cls in ("short", "long")]
        parts += [
            _over_time(
                runs,
                colours,
                "queue: requests waiting, in the gateway and in engines",
                lambda s: s.waiting + s.queued,
            ),
            _over_time(runs, colours, "oldest request without a first token, s", lambda s: s.oldest),
            _bars(here, colours, "goodput", "goodput: part in time"),
            _bars(here, colours, "wait_max", "starvation: longest wait for a first token or a refusal, s"),
            _bars(here, colours, "jain", "fairness: Jain's index over tenants"),
            _tenants(runs, colours),
        ]
        parts += ["</div>"]
    groups = [row for row in comparison.rows if row.priority != "all" or row.tenant != "all"]
    if groups:
        parts += ["<h2>By priority or tenant</h2>", _rows_table(groups)]
    if comparison.carried:
        parts += ["<h2>Load carried with 90 % in time</h2><table><tr><th>policy<th>load"]
        parts += [f"<tr><td>{escape(p)}<td>{load:.3f}" for p, load in comparison.carried.items()]
        parts += ["</table>"]
    parts += ["<h2>Settings</h2><table>"]
    parts += [f"<tr><td>{escape(str(name))}<td>{escape(str(value))}" for name, value in settings.items()]
    return "\n".join([*parts, "</table></html>"])


def _chosen(loads: Sequence[float]) -> Sequence[float]:
    """Of many loads, those that the tables are about."""
    if len(loads) <= 4:
        return loads
    return [load for load in loads if load in (0.7, 0.9, 1.1)] or loads[-1:]


def _first_seed(runs: Sequence[Run]) -> list[Run]:
    seed = min(run.seed for run in runs)
    return [run for run in runs if run.seed == seed]


def _key(colours: Mapping[str, str]) -> str:
    names = "".join(
        f"<span><i style='background:{colour}'></i>{escape(name)}</span>" for name, colour in colours.items()
    )
    return f"<p class=key>{names}</p>"


def _rows_table(rows: Iterable[Row]) -> str:
    heads = (
        "policy", "load", "class", "of", "requests", "TTFT p50", "p95", "p99", "max s", "E2E p50", "p95",
        "p99 s", "TPOT p99 ms", "goodput", "whole", "degraded", "shed", "limited", "failed", "left", "jain",
        "longest wait s",
    )  # fmt: skip
    lines = ["<table><tr>" + "".join(f"<th>{head}" for head in heads)]
    for row in rows:
        of = row.tenant if row.tenant != "all" else row.priority
        cells = (
            escape(row.policy), f"{row.load:g}", row.cls, escape(of), str(row.requests),
            f"{row.ttft_p50:.3f}", f"{row.ttft_p95:.2f}", f"{row.ttft_p99:.2f}", f"{row.ttft_max:.1f}",
            f"{row.e2e_p50:.1f}", f"{row.e2e_p95:.1f}", f"{row.e2e_p99:.1f}", f"{row.tpot_p99 * 1e3:.0f}",
            f"{row.goodput:.3f}", f"{row.goodput_whole:.3f}", f"{row.degraded:.2%}", f"{row.shed:.2%}",
            f"{row.limited:.2%}", f"{row.failed:.2%}", f"{row.unfinished:.2%}", f"{row.jain:.3f}",
            f"{row.wait_max:.1f}",
        )  # fmt: skip
        unranked = "" if row.ranked else " class=not"
        lines.append(f"<tr{unranked}>" + "".join(f"<td>{cell}" for cell in cells))
    note = "<p class=note>Grey: finished fewer requests than others, so latencies do not compare.</p>"
    return "".join(lines) + "</table>" + note


def _tail(runs: Sequence[Run], cls: str, colours: Mapping[str, str]) -> str:
    """Time to first token against the part of requests that waited longer, on a logarithmic scale."""
    lines = {}
    for run in runs:
        points = [
            (value, 1 - level) for value, level in zip(run.curves[cls], CURVE, strict=True) if level < 1
        ]
        lines[run.policy] = [(max(value, 0.01), left) for value, left in points]
    values = [value for line in lines.values() for value, _ in line]
    across = _Axis(f"{cls} TTFT, s", 0.01, max([*values, 1.0]), log=True)
    up = _Axis("part that waited longer", 0.001, 1.0, log=True)
    return _plot(lines, colours, across, up, f"Tail of the time to first token, {cls}")


def _over_load(
    rows: Sequence[Row],
    cls: str,
    colours: Mapping[str, str],
    loads: Sequence[float],
    field: str,
    label: str,
    *,
    log: bool = False,
    mark: float | None = None,
) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row.load):
        if row.cls == cls:
            lines.setdefault(row.policy, []).append((row.load, getattr(row, field)))
    values = [value for line in lines.values() for _, value in line] or [1.0]
    across = _Axis("load", loads[0], loads[-1], ticks=tuple(loads) if len(loads) < 10 else None)
    up = _Axis(label, 0.0, 1.0)
    if log:
        up = _Axis(label, max(min(values), 0.01), max(*values, 0.1), log=True)
    return _plot(lines, colours, across, up, label, mark=mark)


def _over_time(
    runs: Sequence[Run], colours: Mapping[str, str], label: str, value: Callable[[Any], float]
) -> str:
    lines = {run.policy: [(sample.at, float(value(sample))) for sample in run.samples] for run in runs}
    points = [point for line in lines.values() for point in line] or [(1.0, 1.0)]
    across = _Axis("s", 0.0, max(at for at, _ in points) or 1.0)
    up = _Axis(label, 0.0, max(each for _, each in points) or 1.0)
    return _plot(lines, colours, across, up, f"Over time: {label}")


def _plot(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    colours: Mapping[str, str],
    across: _Axis,
    up: _Axis,
    caption: str,
    *,
    mark: float | None = None,
) -> str:
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [f"<figure><svg viewBox='0 0 {WIDTH} {HEIGHT}' width={WIDTH} height={HEIGHT} role=img>"]
    parts.append(f"<title>{escape(caption)}</title>")
    for value in across.marks():
        x = LEFT + wide * across.place(value)
        parts.append(f"<path d='M{x:.1f} {TOP}V{TOP + high}' stroke='#eee'/>")
        parts.append(f"<text x={x:.1f} y={TOP + high + 14} text-anchor=middle>{across.name(value)}</text>")
    for value in up.marks():
        y = TOP + high * (1 - up.place(value))
        parts.append(f"<path d='M{LEFT} {y:.1f}H{LEFT + wide}' stroke='#eee'/>")
        parts.append(f"<text x={LEFT - 5} y={y + 4:.1f} text-anchor=end>{up.name(value)}</text>")
    if mark is not None:
        y = TOP + high * (1 - up.place(mark))
        parts.append(f"<path d='M{LEFT} {y:.1f}H{LEFT + wide}' stroke='#999' stroke-dasharray='4 3'/>")
    parts.append(f"<path d='M{LEFT} {TOP}V{TOP + high}H{LEFT + wide}' fill='none' stroke='#888'/>")
    parts.append(f"<text x={LEFT + wide / 2} y={HEIGHT - 8} text-anchor=middle>{escape(across.label)}</text>")
    for name, points in lines.items():
        if not points:
            continue
        path = "L".join(
            f"{LEFT + wide * across.place(x):.1f} {TOP + high * (1 - up.place(y)):.1f}" for x, y in points
        )
        parts.append(
            f"<path d='M{path}' fill='none' stroke='{colours[name]}' stroke-width='1.8'>"
            f"<title>{escape(name)}</title></path>"
        )
    parts.append(f"</svg><figcaption>{escape(caption)}</figcaption></figure>")
    return "".join(parts)


def _bars(rows: Sequence[Row], colours: Mapping[str, str], field: str, caption: str) -> str:
    values = {row.policy: float(getattr(row, field)) for row in rows if row.cls == "all"}
    return _bar_chart(values, colours, caption)


def _tenants(runs: Sequence[Run], colours: Mapping[str, str]) -> str:
    lowest = {run.policy: min(run.tenants.values(), default=0.0) for run in runs}
    return _bar_chart(lowest, colours, "fairness: part of its demand that the worst served tenant got")


def _bar_chart(values: Mapping[str, float], colours: Mapping[str, str], caption: str) -> str:
    most = max([*values.values(), 1e-9])
    step, left = 22, 150
    height = step * len(values) + 8
    parts = [f"<figure><svg viewBox='0 0 {WIDTH} {height}' width={WIDTH} height={height} role=img>"]
    parts.append(f"<title>{escape(caption)}</title>")
    for number, (name, value) in enumerate(values.items()):
        y = 4 + step * number
        wide = (WIDTH - left - 70) * value / most
        parts.append(f"<text x={left - 6} y={y + 13} text-anchor=end>{escape(name)}</text>")
        parts.append(f"<rect x={left} y={y} width={max(wide, 0.5):.1f} height=16 fill='{colours[name]}'/>")
        parts.append(f"<text x={left + wide + 6:.1f} y={y + 13}>{value:.3g}</text>")
    parts.append(f"</svg><figcaption>{escape(caption)}</figcaption></figure>")
    return "".join(parts)
