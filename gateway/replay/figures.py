"""From journeys to figures: percentiles by class, goodput under the objectives, fairness; the worst of seeds.

    short       prompt + output of at most 2,048 tokens; in time with its first token within 1 s and 60 ms per
                token after it
    long        the others; within max(3 s, 5 times its bare prefill) and 100 ms

Requests that were shed, refused by limits, failed or did not finish are not in time. The bare prefill is that
of the fleet's fastest engine, alone.

`jain` is Jain's index over tenants of x = weighted tokens served by the time of the last arrival / weighted
tokens asked for by then (a prompt token counts 1, an output token 4): 1 if all got the same part of what they
asked for, 1/n if one of n got it all. What limits refused is not counted as asked for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from backends.simulated.engine import EngineProfile
from gateway.config.snapshot import Slo
from gateway.replay.fleet import bare_prefill
from gateway.replay.requests import SHORT
from gateway.replay.twin import NEVER, Journey, Replayed, Sample

__all__ = ["CURVE", "Objectives", "Row", "Run", "figures_of", "percentile", "rank", "worst_of"]

OUTPUT_WEIGHT = 4.0
CURVE = (*(i / 50 for i in range(50)), 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999, 1.0)
"""Levels at which distributions are kept for plots."""
FEWER = 0.001
"""Part of the requests by which a policy may finish fewer than the best and still be ranked on latency."""


@dataclass(frozen=True, slots=True)
class Objectives:
    """When a request was in time. Seconds."""

    short_ttft: float = 1.0
    short_tpot: float = 0.060
    long_ttft: float = 3.0
    long_stretch: float = 5.0
    """Times the bare prefill, if that is more."""
    long_tpot: float = 0.100

    def in_words(self) -> str:
        return (
            f"In time: short, first token within {self.short_ttft:g} s and {self.short_tpot * 1e3:g} ms per "
            f"token; long, within max({self.long_ttft:g} s, {self.long_stretch:g} x its bare prefill) and "
            f"{self.long_tpot * 1e3:g} ms."
        )

    def ttft(self, tokens: int, bare: float) -> float:
        """Seconds to the first token that a request of that many tokens, prompt and output, has."""
        return self.short_ttft if tokens <= SHORT else max(self.long_ttft, self.long_stretch * bare)

    def budget(self, tokens: int, bare: float, slo: Slo) -> float:
        """Seconds to the first token after which a request is shed; a promise of the file wins, as it does
        live (`Policy.time_to_first`)."""
        seconds = self.ttft(tokens, bare)
        if slo.ttft_p95_ms is not None:
            seconds = max(slo.ttft_p95_ms / 1e3, self.long_stretch * bare)
        return seconds if slo.queue_ms is None else min(seconds, slo.queue_ms / 1e3 + bare)

    def met(self, journey: Journey, bare: float) -> bool:
        """Whether it was in time: by what the file promised it, and for what that leaves open, by these."""
        if journey.outcome != "completed":
            return False
        request, slo = journey.request, journey.promised
        # As it was asked: a brown-out makes no long request a short one.
        ttft = self.ttft(request.prompt_tokens + request.output_tokens, bare)
        tpot = self.short_tpot if request.short else self.long_tpot
        if slo.ttft_p95_ms is not None:
            ttft = slo.ttft_p95_ms / 1e3
        if slo.tpot_p99_ms is not None:
            tpot = slo.tpot_p99_ms / 1e3
        if slo.queue_ms is not None and (journey.sent - request.at) * 1e3 > slo.queue_ms:
            return False
        return journey.ttft <= ttft and journey.tpot <= tpot


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. Times are seconds; shares are of all requests of the row.

    Of several seeds, each figure is the worst."""

    policy: str
    load: float
    cls: str
    """`short`, `long` or `all`: by length."""
    priority: str
    """A priority class, or `all`."""
    tenant: str
    """`all`; in a flood, `victims` (their requests while it lasts) or the tenant that floods."""
    requests: int
    ttft_p50: float
    ttft_p95: float
    ttft_p99: float
    ttft_max: float
    e2e_p50: float
    e2e_p95: float
    e2e_p99: float
    tpot_p99: float
    goodput: float
    shed: float
    unfinished: float
    jain: float
    wait_max: float
    """Longest wait for a first token, or for the refusal."""
    ranked: bool = True
    """False: others finished more of these requests, so latencies do not compare."""
    failed: float = 0.0
    """Answered with an error that is no shedding, or broken off; over sockets only."""
    degraded: float = 0.0
    """Part that a brown-out took something from, whether or not it was missed."""
    cut: float = 0.0
    """Part whose answer it made shorter than the model had it."""
    goodput_whole: float = 0.0
    """In time, and not cut short by it."""
    limited: float = 0.0
    """Refused by limits."""
    limit_cut: float = 0.0
    """Part whose answer limits made shorter than the model had it."""
    taken_back: float = 0.0
    """Part that was taken back from an engine for a more urgent request, at least once."""

    def as_json(self) -> dict[str, Any]:
        row = {("class" if name == "cls" else name): value for name, value in asdict(self).items()}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """One policy at one load with one seed."""

    policy: str
    load: float
    seed: int
    rows: tuple[Row, ...]
    curves: Mapping[str, tuple[float, ...]]
    """Length class -> times to the first token at the levels of CURVE; of completed requests."""
    samples: tuple[Sample, ...]
    tenants: Mapping[str, float]
    """Tenant -> part of what it asked for that it got."""
    hit_share: float
    preempted: int
    seconds: float
    """Wall time of the replay."""


def percentile(ordered: Sequence[float], level: float) -> float:
    """Of sorted values; between two of them, evenly. NaN-free: 0 where there are none."""
    if not ordered:
        return 0.0
    place = level * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def figures_of(
    policy: str,
    load: float,
    seed: int,
    replayed: Replayed,
    reference: EngineProfile,
    *,
    objectives: Objectives | None = None,
    flooder: str | None = None,
    by_priority: bool = False,
    weights: Mapping[str, float] | None = None,
    seconds: float = 0.0,
) -> Run:
    """The figures of one replay; `reference` is the fleet's fastest engine."""
    objectives = objectives or Objectives()

    @cache
    def bare(tokens: int) -> float:
        return bare_prefill(reference, tokens)

    journeys = replayed.journeys
    shares = _shares(journeys, weights or {})
    fairness = _jain(shares.values())
    met = {id(journey): objectives.met(journey, bare(journey.prompt_tokens)) for journey in journeys}

    def row(some: list[Journey], cls: str, priority: str, tenant: str) -> Row:
        done = [journey for journey in some if journey.outcome == "completed"]
        ttft = sorted(journey.ttft for journey in done)
        e2e = sorted(journey.e2e for journey in done)
        tpot = sorted(journey.tpot for journey in done)
        count = max(len(some), 1)
        return Row(
            policy=policy,
            load=load,
            cls=cls,
            priority=priority,
            tenant=tenant,
            requests=len(some),
            ttft_p50=percentile(ttft, 0.5),
            ttft_p95=percentile(ttft, 0.95),
            ttft_p99=percentile(ttft, 0.99),
            ttft_max=percentile(ttft, 1.0),
            e2e_p50=percentile(e2e, 0.5),
            e2e_p95=percentile(e2e, 0.95),
            e2e_p99=percentile(e2e, 0.99),
            tpot_p99=percentile(tpot, 0.99),
            goodput=sum(met[id(journey)] for journey in some) / count,
            shed=sum(journey.outcome == "shed" for journey in some) / count,
            unfinished=sum(journey.outcome == "unfinished" for journey in some) / count,
            failed=sum(journey.outcome == "failed" for journey in some) / count,
            degraded=sum(journey.degraded for journey in some) / count,
            cut=sum(journey.cut for journey in some if journey.outcome == "completed") / count,
            goodput_whole=sum(met[id(journey)] and not journey.cut for journey in some) / count,
            limited=sum(journey.outcome == "limited" for journey in some) / count,
            limit_cut=sum(journey.limit_cut for journey in some if journey.outcome == "completed") / count,
            taken_back=sum(journey.taken_back > 0 for journey in some) / count,
            jain=fairness,
            wait_max=max((_waited(journey, replayed.ended) for journey in some), default=0.0),
        )

    rows = [row(some, cls, "all", "all") for cls, some in _classes(journeys).items() if some or cls == "all"]
    if by_priority:
        groups: dict[str, list[Journey]] = defaultdict(list)
        for journey in journeys:
            groups[journey.request.priority.name].append(journey)
        rows += [
            row(some, cls, name, "all")
            for name, group in sorted(groups.items())
            for cls, some in _classes(group).items()
            if some
        ]
    if flooder is None and any(journey.outcome == "limited" for journey in journeys):
        of_tenant: dict[str, list[Journey]] = defaultdict(list)
        for journey in journeys:
            of_tenant[journey.request.tenant].append(journey)
        rows += [row(some, "all", "all", name) for name, some in sorted(of_tenant.items())]
    if flooder is not None:
        flood = [journey.request.at for journey in journeys if journey.request.flood]
        start, end = (min(flood), max(flood)) if flood else (0.0, 0.0)
        during = [journey for journey in journeys if start <= journey.request.at <= end]
        for name, group in (
            ("victims", [journey for journey in during if journey.request.tenant != flooder]),
            (flooder, [journey for journey in during if journey.request.tenant == flooder]),
        ):
            rows += [row(some, cls, "all", name) for cls, some in _classes(group).items() if some]
    curves = {
        cls: tuple(percentile(ordered, level) for level in CURVE)
        for cls, ordered in (
            (cls, sorted(journey.ttft for journey in some if journey.outcome == "completed"))
            for cls, some in _classes(journeys).items()
        )
    }
    return Run(
        policy=policy,
        load=load,
        seed=seed,
        rows=tuple(rows),
        curves=curves,
        samples=tuple(replayed.samples),
        tenants=shares,
        hit_share=replayed.hit_share,
        preempted=replayed.preempted,
        seconds=seconds,
    )


def worst_of(rows: Iterable[Row]) -> list[Row]:
    """One row for each (policy, load, class, priority, tenant): of each figure the worst of the seeds."""
    groups: dict[tuple[str, float, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.policy, row.load, row.cls, row.priority, row.tenant), []).append(row)
    numbers = [each.name for each in fields(Row) if each.name not in _LABELS]

    def worst(name: str, group: list[Row]) -> float:
        values = [getattr(row, name) for row in group]
        found: float = min(values) if name in ("goodput", "goodput_whole", "jain") else max(values)
        return found

    return [
        Row(
            policy, load, cls, priority, tenant,
            **{name: worst(name, group) for name in numbers},  # type: ignore[arg-type]  # `requests` is a count
            ranked=all(row.ranked for row in group),
        )
        for (policy, load, cls, priority, tenant), group in groups.items()
    ]  # fmt: skip


_LABELS = {"policy", "load", "cls", "priority", "tenant", "ranked"}


def rank(rows: Sequence[Row]) -> list[Row]:
    """Mark those whose latencies do not compare, since others finished more of the same requests."""
    key: Callable[[Row], tuple[float, str, str, str]] = lambda row: (  # noqa: E731  # a key is best seen whole
        row.load, row.cls, row.priority, row.tenant,
    )  # fmt: skip
    best: dict[tuple[float, str, str, str], float] = {}
    for row in rows:
        best[key(row)] = max(best.get(key(row), 0.0), _finished(row))
    return [Row(**{**asdict(row), "ranked": _finished(row) >= best[key(row)] - FEWER}) for row in rows]


def _finished(row: Row) -> float:
    return 1 - row.shed - row.limited - row.unfinished - row.failed


def _classes(journeys: list[Journey]) -> dict[str, list[Journey]]:
    return {
        "all": journeys,
        "short": [journey for journey in journeys if journey.request.short],
        "long": [journey for journey in journeys if not journey.request.short],
    }


def _waited(journey: Journey, ended: float) -> float:
    if journey.first < NEVER:
        return journey.ttft
    return min(journey.end, ended) - journey.request.at


def _shares(journeys: list[Journey], weights: Mapping[str, float]) -> dict[str, float]:
    """Tenant -> weighted service / demand, at the time of the last arrival."""
    last = journeys[-1].request.at if journeys else 0.0
    demand: dict[str, float] = defaultdict(float)
    service: dict[str, float] = defaultdict(float)
    for journey in journeys:
        if journey.outcome == "limited":
            continue
        tenant = journey.request.tenant
        output = OUTPUT_WEIGHT * journey.output_tokens
        demand[tenant] += journey.prompt_tokens + output
        if journey.first <= last:
            made = 1.0
            if journey.end > last:
                made = (last - journey.first) / (journey.end - journey.first) if journey.end < NEVER else 0.0
            service[tenant] += journey.prompt_tokens + output * made
    return {tenant: service[tenant] / demand[tenant] / weights.get(tenant, 1.0) for tenant in sorted(demand)}


def _jain(values: Iterable[float]) -> float:
    some = list(values)
    squares = sum(value * value for value in some)
    return sum(some) ** 2 / (len(some) * squares) if squares else 1.0
