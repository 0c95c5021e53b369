"""How many requests were served as promised (`slo`), by pool and class.

Four objectives, of those that the pool that served a request (or was tried last) promises to its class:

    queue   it waited no longer in line
    ttft    its first token came in time; of streamed requests, for the others show none
    tpot    its tokens followed each other in time; of streamed ones with two tokens or more
    all     it was answered, and missed none of the above

What was refused for want of capacity (503), or failed, has missed them. What was refused for its own sake
(4xx) does not count. Of what a client gave up, that counts which was known by then: a first token that had
come, or one that was overdue.

Told twice: as counters, for sums and burn rates over any time; and as the share of the last five minutes, for
people. Without requests in that time there is no share.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.telemetry.records import RequestRecord
from gateway.telemetry.windows import Window

__all__ = ["OBJECTIVES", "Attained", "Attainment", "judged"]

Objective = Literal["queue", "ttft", "tpot", "all"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

Verdict = tuple[bool | None, bool | None, bool | None, bool | None]
"""Met, missed, or None: not promised, or not to be known; in the order of OBJECTIVES."""
NOTHING: Verdict = (None, None, None, None)


def judged(record: RequestRecord, now: float) -> Verdict:
    """Which promises a request that ends now was served with. Pure."""
    slo = record.slo
    if slo is None or record.outcome == "rejected" or not slo:
        return NOTHING
    failed = record.outcome == "failed"
    queue = ttft = tpot = None
    if slo.queue_ms is not None:
        late = record.queued * 1e3 > slo.queue_ms
        if record.attempts or late:
            queue = not late
        elif failed:
            queue = False
    if record.stream:
        first = record.first_byte
        if slo.ttft_p95_ms is not None:
            late = ((now if first is None else first) - record.received) * 1e3 > slo.ttft_p95_ms
            if first is not None or late:
                ttft = not late
            elif failed:
                ttft = False
        if slo.tpot_p99_ms is not None:
            following = record.completion_tokens // record.choices - 1
            if first is not None and following > 0:
                tpot = (now - first) * 1e3 <= slo.tpot_p99_ms * following
            elif failed:
                tpot = False
    if failed or queue is False or ttft is False or tpot is False:
        return queue, ttft, tpot, False
    known = record.outcome == "completed" and (queue or ttft or tpot)
    return queue, ttft, tpot, True if known else None


@dataclass(frozen=True, slots=True)
class Attained:
    """One objective over the last minutes."""

    pool: str
    priority_class: str
    objective: Objective
    requests: int
    share: float


class _Series:
    """One pool and class. Plain numbers: counters of prometheus' own cost more than all of the above."""

    __slots__ = ("totals", "window")

    def __init__(self) -> None:
        self.totals = [0] * 8
        """Missed and met, of each objective in turn."""
        self.window = Window(8)

    def note(self, verdict: Verdict, now: float) -> None:
        part, totals = self.window.part(now), self.totals
        for place, met in enumerate(verdict):
            if met is not None:
                part[2 * place + met] += 1
                totals[2 * place + met] += 1


class Attainment(Collector):
    """All pools and classes that are promised something."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._series: dict[tuple[str, str], _Series] = {}

    def note(self, record: RequestRecord, now: float) -> None:
        """Count a request that has ended."""
        verdict = judged(record, now)
        if verdict is not NOTHING:
            key = (record.pool or "", record.priority_class or "")
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = _Series()
            series.note(verdict, now)

    def rows(self) -> Iterator[Attained]:
        """Shares of the last minutes, where there were requests."""
        now = self._clock()
        for (pool, priority), series in list(self._series.items()):
            sums = series.window.totals(now)
            for place, objective in enumerate(OBJECTIVES):
                missed, met = sums[2 * place], sums[2 * place + 1]
                if missed + met:
                    yield Attained(pool, priority, objective, int(missed + met), met / (missed + met))

    def collect(self) -> Iterator[Metric]:
        labels = ("pool", "class", "objective")
        requests = CounterMetricFamily(
            "headgate_slo_requests",
            "Requests by whether they were served as promised",
            labels=(*labels, "met"),
        )
        for (pool, priority), series in list(self._series.items()):
            for place, objective in enumerate(OBJECTIVES):
                missed, met = series.totals[2 * place : 2 * place + 2]
                if missed + met:
                    requests.add_metric((pool, priority, objective, "false"), missed)
                    requests.add_metric((pool, priority, objective, "true"), met)
        share = GaugeMetricFamily(
            "headgate_slo_attainment",
            "Share of the requests of the last five minutes that were served as promised",
            labels=labels,
        )
        for row in self.rows():
            share.add_metric((row.pool, row.priority_class, row.objective), row.share)
        yield from (requests, share)
