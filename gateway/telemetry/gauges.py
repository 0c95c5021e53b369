"""Every metric that is read at scrape time: from the ledgers, so that it cannot drift from the truth.

`Gauges` says what there is to read; whoever owns the parts provides it (`gateway/scraping.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from backends.contract import Load


class Gauges(Protocol):
    """Where the gauges are read at scrape time."""

    def replicas(self) -> Iterator[tuple[str, str, int, int, bool]]:
        """(pool, replica, requests in flight, outstanding tokens, ready)."""
        ...

    def warming(self) -> Iterator[tuple[str, str, bool]]:
        """(pool, replica, whether it gets its warm-up requests)."""
        ...

    def sleepers(self) -> Iterator[tuple[str, str, int]]:
        """(pool that may sleep, its state, requests held until it is awake)."""
        ...

    def engine_loads(self) -> Iterator[tuple[str, str, Load, float, int]]:
        """(pool, replica, what its engine says of its load, seconds since, requests there that are not ours),
        of those that tell."""
        ...

    def drained(self) -> Iterator[tuple[str, str, bool]]:
        """(pool, replica, whether it was taken out of service)."""
        ...

    def queues(self) -> Iterator[tuple[str, Mapping[tuple[str, str], int], Mapping[str, float]]]:
        """(pool, requests waiting by (class, lane), seconds that a newcomer of a class must reckon with)."""
        ...

    def shares(self) -> Iterator[tuple[str, float, float]]:
        """(pool, its share of the work that came lately, its share of the capacity), where work came."""
        ...

    def overload(self) -> Iterator[tuple[str, str, str, int]]:
        """(whose steps, pool, class, number of the last step that is on; 0 for none)."""
        ...

    def limit_store(self) -> tuple[bool, int, int, int] | None:
        """Of the store that limits are shared in: whether it can be asked, how often its breaker opened,
        settlements that wait for it, and those that were dropped. None where there is none."""
        ...

    def pool_limits(self) -> Iterator[tuple[str, str, int | None, int]]:
        """(pool, `prompt` or `total`, tokens as configured, tokens in force); where no limit is, none."""
        ...

    def counted_bytes(self) -> tuple[int, int]:
        """Bytes of prompts counted by tokenizers, and those whose count was remembered."""
        ...

    def forced_estimates(self) -> Mapping[str, int]:
        """Prompts estimated because counting them failed, by reason."""
        ...

    def live_requests(self) -> int: ...

    def info(self) -> dict[str, str]:
        """Version and configuration hash."""
        ...

    def config(self) -> tuple[str, bool, float]:
        """Hash of the configuration in force; of the last load, whether it was good, and when it was, in
        seconds since 1970."""
        ...


class GaugeCollector(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def describe(self) -> list[Metric]:
        return []  # nothing to collect at registration: pools do not exist yet

    def collect(self) -> Iterator[Metric]:
        replica = ("pool", "replica")
        in_flight = GaugeMetricFamily("headgate_in_flight_requests", "Requests at a replica", labels=replica)
        outstanding = GaugeMetricFamily(
            "headgate_outstanding_tokens", "Expected tokens still to be computed at a replica", labels=replica
        )
        up = GaugeMetricFamily("headgate_replica_ready", "Whether a replica is ready", labels=replica)
        for pool, name, requests, tokens, ready in self._gauges.replicas():
            in_flight.add_metric((pool, name), requests)
            outstanding.add_metric((pool, name), tokens)
            up.add_metric((pool, name), float(ready))
        drained = GaugeMetricFamily(
            "headgate_replica_drained", "Whether a replica was taken out of service", labels=replica
        )
        for pool, name, out in self._gauges.drained():
            drained.add_metric((pool, name), float(out))
        yield drained
        warming = GaugeMetricFamily(
            "headgate_replica_warming", "Whether a replica gets its warm-up requests", labels=replica
        )
        for pool, name, now in self._gauges.warming():
            warming.add_metric((pool, name), float(now))
        yield warming
        yield from _sleepers(self._gauges.sleepers())
        queued = GaugeMetricFamily(
            "headgate_queued_requests", "Requests waiting for a replica", labels=("pool", "class", "lane")
        )
        wait = GaugeMetricFamily(
            "headgate_queue_expected_wait_seconds",
            "What a request that comes now must reckon with, however long it is",
            labels=("pool", "class"),
        )
        for pool, waiting, waits in self._gauges.queues():
            for standing, number in waiting.items():
                queued.add_metric((pool, *standing), number)
            for priority, seconds in waits.items():
                wait.add_metric((pool, priority), seconds)
        yield from (in_flight, outstanding, up, queued, wait)
        work = GaugeMetricFamily(
            "headgate_pool_work_share", "Its part of the work that came in ten minutes", labels=("pool",)
        )
        capacity = GaugeMetricFamily(
            "headgate_pool_capacity_share", "Its part of the fleet, by measured speeds", labels=("pool",)
        )
        for pool, worked, able in self._gauges.shares():
            work.add_metric((pool,), worked)
            capacity.add_metric((pool,), able)
        yield from (work, capacity)
        steps = GaugeMetricFamily(
            "headgate_overload_step",
            "The last step of a brown-out that is on; 0: none",
            labels=("of", "pool", "class"),
        )
        for of, pool, priority_class, number in self._gauges.overload():
            steps.add_metric((of, pool, priority_class), number)
        yield steps
        yield from _limit_store(self._gauges.limit_store())
        limit = ("pool", "limit")
        in_force = GaugeMetricFamily(
            "headgate_pool_limit_tokens", "What a pool takes: the smaller of file and engines", labels=limit
        )
        configured = GaugeMetricFamily(
            "headgate_pool_configured_limit_tokens", "What the file says that a pool takes", labels=limit
        )
        for pool, name, said, tokens in self._gauges.pool_limits():
            in_force.add_metric((pool, name), tokens)
            if said is not None:
                configured.add_metric((pool, name), said)
        yield from (in_force, configured)
        yield from _engine_loads(self._gauges.engine_loads())
        counted = CounterMetricFamily(
            "headgate_prompt_bytes", "Bytes of prompts by what counted them exactly", labels=("by",)
        )
        for by, size in zip(("tokenizer", "memory"), self._gauges.counted_bytes(), strict=True):
            counted.add_metric((by,), size)
        yield counted
        forced = CounterMetricFamily(
            "headgate_prompt_estimates_forced",
            "Prompts estimated because they could not be counted",
            labels=("reason",),
        )
        for reason, times in self._gauges.forced_estimates().items():
            forced.add_metric((reason,), times)
        yield forced
        live = GaugeMetricFamily("headgate_live_requests", "Requests that have not ended")
        live.add_metric((), self._gauges.live_requests())
        yield live
        digest, good, at = self._gauges.config()
        yield InfoMetricFamily("headgate_config", "The configuration in force", value={"hash": digest})
        successful = GaugeMetricFamily(
            "headgate_config_last_reload_successful", "Whether the last load was good"
        )
        successful.add_metric((), float(good))
        when = GaugeMetricFamily(
            "headgate_config_last_reload_timestamp_seconds", "When the last load was, since 1970"
        )
        when.add_metric((), at)
        yield from (successful, when)
        yield InfoMetricFamily("headgate_build", "Version and configuration", value=self._gauges.info())


def _sleepers(told: Iterator[tuple[str, str, int]]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "headgate_pool_state", "1 for the state that a pool is in", labels=("pool", "state")
    )
    held = GaugeMetricFamily(
        "headgate_held_requests", "Requests held until a pool is awake", labels=("pool",)
    )
    for pool, current, waiting in told:
        for each in ("asleep", "waking", "awake", "cooling"):
            state.add_metric((pool, each), float(each == current))
        held.add_metric((pool,), waiting)
    yield from (state, held)


ENGINE_LOAD = (
    ("running", GaugeMetricFamily, "headgate_engine_running_requests", "Requests that the engine computes"),
    ("waiting", GaugeMetricFamily, "headgate_engine_waiting_requests", "Requests in the engine's own queue"),
    ("in_flight", GaugeMetricFamily, "headgate_engine_in_flight_requests",
     "Both together, where the engine does not tell them apart"),
    ("kv_usage", GaugeMetricFamily, "headgate_engine_kv_usage_ratio", "Used share of its KV cache"),
    ("prefix_hit_ratio", GaugeMetricFamily, "headgate_engine_prefix_hit_ratio",
     "Share of prompt tokens that it found in its cache"),
    ("requests_total", CounterMetricFamily, "headgate_engine_requests", "Requests that ended well there"),
    ("failures_total", CounterMetricFamily, "headgate_engine_failures", "Requests that failed there"),
    ("preemptions_total", CounterMetricFamily, "headgate_engine_preemptions",
     "Times that it took a running request's cache away"),
)  # fmt: skip
"""Field of `Load`, kind of metric, name, help. One name for each figure, whatever the engine calls it."""


def _engine_loads(loads: Iterator[tuple[str, str, Load, float, int]]) -> Iterator[Metric]:
    """Figures that an engine does not tell have no series; none is ever zero for want of an answer."""
    labels = ("pool", "replica")
    families = [(field, kind(name, text, labels=labels)) for field, kind, name, text in ENGINE_LOAD]
    ages = GaugeMetricFamily(
        "headgate_engine_load_age_seconds", "Seconds since the engine told any of these", labels=labels
    )
    foreign = GaugeMetricFamily(
        "headgate_engine_foreign_requests", "Requests there that are not this gateway's", labels=labels
    )
    for pool, replica, load, age, others in loads:
        for field, family in families:
            if (value := getattr(load, field)) is not None:
                family.add_metric((pool, replica), value)
        ages.add_metric((pool, replica), age)
        foreign.add_metric((pool, replica), others)
    yield from (family for _, family in families if family.samples)
    if ages.samples:
        yield from (ages, foreign)


def _limit_store(told: tuple[bool, int, int, int] | None) -> Iterator[Metric]:
    if told is None:
        return
    up, opened, kept, dropped = told
    gauge = GaugeMetricFamily(
        "headgate_limit_store_up",
        "Whether the store that limits are shared in can be asked; 0: store_down holds",
    )
    gauge.add_metric((), float(up))
    opening = CounterMetricFamily(
        "headgate_limit_store_breaker_opened", "How often it was given up, to be probed until it is back"
    )
    opening.add_metric((), opened)
    waiting = GaugeMetricFamily("headgate_limit_settlements_kept", "Settlements that wait for it")
    waiting.add_metric((), kept)
    lost = CounterMetricFamily("headgate_limit_settlements_dropped", "Settlements that never reached it")
    lost.add_metric((), dropped)
    yield from (gauge, opening, waiting, lost)
