"""Every metric of the gateway, declared once.

Labels come from closed sets (configured names, outcomes), never from what a client typed. Gauges are read
from the ledgers at scrape time, so they cannot drift from the truth.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from backends.contract import Load
from gateway.call import Estimate, PromptCount
from gateway.telemetry.attainment import Attainment
from gateway.telemetry.records import RequestRecord

SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300,
    600,
)  # fmt: skip
DRIFT = (
    0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.9999, 1, 1.005, 1.01, 1.02, 1.05, 1.1, 1.25, 2,
)  # fmt: skip
RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)
WAITS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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


class Tally:
    """Tokens of requests under limits of one tenant and model. Plain numbers: a counter of prometheus' own
    costs more than the limit itself."""

    __slots__ = ("reserved", "settled")

    def __init__(self) -> None:
        self.reserved = 0
        self.settled = 0


class LimitTokens(Collector):
    """The tallies there are."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}

    def of(self, tenant: str, model: str) -> Tally:
        return self._tallies.setdefault((tenant, model), Tally())

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "headgate_limit_tokens",
            "Tokens of requests under limits, as reserved before and as settled after",
            labels=("tenant", "model", "kind"),
        )
        for (tenant, model), tally in list(self._tallies.items()):
            tokens.add_metric((tenant, model, "reserved"), tally.reserved)
            tokens.add_metric((tenant, model, "settled"), tally.settled)
        yield tokens


M = TypeVar("M", bound=MetricWrapperBase)


class Children(dict[tuple[str, ...], M], Generic[M]):
    """The children of a metric by their labels, made where they are missing.

    `labels` of prometheus takes a microsecond to find one that is there, and a request touches a dozen.
    Labels come from closed sets, so there are no more of these than there are time series.
    """

    def __init__(self, metric: M) -> None:
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        child = self[labels] = self._metric.labels(*labels)
        return child


class Metrics:
    """The metrics of one gateway, on a registry of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: that of the records it observes."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        request = ("model", "pool", "tenant")
        self.requests = Counter(
            "headgate_requests",
            "Requests by how they ended",
            (*request, "outcome", "code"),
            registry=self.registry,
        )
        self.tokens = Counter(
            "headgate_tokens",
            "Prompt tokens as counted here, completion tokens as engines tell",
            (*request, "kind"),
            registry=self.registry,
        )
        self.clamped = Counter(
            "headgate_max_tokens_clamped",
            "Requests that got fewer output tokens than they asked for",
            ("model", "pool", "by"),
            registry=self.registry,
        )
        self.degraded = Counter(
            "headgate_degraded_requests",
            "Requests that lost something in overload, by whose last step that was on",
            ("of", "step"),
            registry=self.registry,
        )
        self.attempts = Counter(
            "headgate_attempts",
            "Sends to engines by how they ended",
            ("pool", "outcome"),
            registry=self.registry,
        )
        self.mirrored = Counter(
            "headgate_mirrored_requests",
            "Copies of requests sent to a rule's mirror, by how they ended",
            ("rule", "pool", "outcome"),
            registry=self.registry,
        )
        self.lent = Counter(
            "headgate_lent_requests",
            "Sends to replicas of a pool for requests that waited for another",
            ("pool", "borrower"),
            registry=self.registry,
        )
        self.prefix_tokens = Counter(
            "headgate_prefix_tokens",
            "Prompt tokens that engines told of: what the gateway expected in their caches, what they had",
            ("pool", "by"),
            registry=self.registry,
        )
        self.counts = Counter(
            "headgate_prompt_counts", "Prompts counted", ("model", "exact", "tier"), registry=self.registry
        )
        self.count_drift = Histogram(
            "headgate_prompt_count_drift_ratio",
            "Prompt tokens as the engine told, divided by those counted here; 1 is right",
            ("model", "count"),
            buckets=DRIFT,
            registry=self.registry,
        )
        self.verified_estimates = Counter(
            "headgate_prompt_estimates_verified",
            "Estimated prompts by the engine's count: within the estimate's interval, outside, or so far off "
            "that something was decided otherwise",
            ("model", "result"),
            registry=self.registry,
        )
        self.output_error = Histogram(
            "headgate_output_length_error_ratio",
            "Output tokens predicted, as divided by those that came; 1 is right",
            ("model", "predicted"),
            buckets=RATIOS,
            registry=self.registry,
        )
        self.output_predictions = Counter(
            "headgate_output_length_predictions",
            "Whole answers by whether they passed the 90th percentile that was predicted",
            ("model", "by", "passed"),
            registry=self.registry,
        )
        self.limit_refusals = Counter(
            "headgate_limit_refusals",
            "Requests that a limit refused, or would have (enforced=false)",
            ("limit", "unit", "enforced"),
            registry=self.registry,
        )
        self.limit_store_seconds = Histogram(
            "headgate_limit_store_seconds",
            "Round trips to the store that limits are shared in",
            (),
            buckets=WAITS,
            registry=self.registry,
        )
        self.limit_store_down = Counter(
            "headgate_limit_store_down",
            "Decisions made without the store that limits are shared in, by policy",
            ("policy",),
            registry=self.registry,
        )
        self.limit_cuts = Counter(
            "headgate_limit_cuts", "Answers that a limit cut short", ("limit",), registry=self.registry
        )
        self.abandoned = Counter(
            "headgate_abandoned_tokens",
            "Tokens that engines computed for nobody, as far as seen, else estimated",
            ("pool", "kind", "cause"),
            registry=self.registry,
        )
        self.limit_tokens = LimitTokens()
        self.registry.register(self.limit_tokens)
        self.first_token = Histogram(
            "headgate_time_to_first_token_seconds",
            "Receipt of a request to its first event from an engine",
            ("model", "pool"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "headgate_request_duration_seconds",
            "Receipt of a request to its end",
            ("model", "pool"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_wait = Histogram(
            "headgate_queue_wait_seconds",
            "Time spent waiting for a replica",
            ("pool", "class"),
            buckets=WAITS,
            registry=self.registry,
        )
        self.wakes = Counter(
            "headgate_wakes", "Wakes of pools by how they ended", ("pool", "outcome"), registry=self.registry
        )
        self.wake_seconds = Histogram(
            "headgate_wake_seconds",
            "Time from the request that woke a pool until it took requests",
            ("pool",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.warm_ups = Counter(
            "headgate_warm_ups", "Warm-ups of replicas by how they ended", ("pool", "outcome"),
            registry=self.registry,
        )  # fmt: skip
        self.warm_up_seconds = Histogram(
            "headgate_warm_up_seconds",
            "Time that a replica's warm-up requests took",
            ("pool",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.overhead = Histogram(
            "headgate_overhead_seconds",
            "Time to the first byte that the gateway itself took",
            (),
            buckets=WAITS,
            registry=self.registry,
        )

        self.attainment = Attainment(clock)
        self.registry.register(self.attainment)
        # What each request touches:
        self._requests = Children(self.requests)
        self._tokens = Children(self.tokens)
        self._attempts = Children(self.attempts)
        self._counts = Children(self.counts)
        self._count_drift = Children(self.count_drift)
        self._verified_estimates = Children(self.verified_estimates)
        self._output_error = Children(self.output_error)
        self._output_predictions = Children(self.output_predictions)
        self._first_token = Children(self.first_token)
        self._duration = Children(self.duration)
        self._queue_wait = Children(self.queue_wait)

    def watch(self, gauges: Gauges) -> None:
        """Serve `gauges` from now on."""
        self.registry.register(_GaugeCollector(gauges))

    def observe(self, record: RequestRecord, now: float) -> None:
        """Count one finished request."""
        model, pool, tenant = record.model or "", record.pool or "", record.tenant or ""
        outcome = record.outcome or "failed"
        self._requests[model, pool, tenant, outcome, record.error_code or ""].inc()
        if record.pool is None:
            return
        self._duration[model, pool].observe(now - record.received)
        self._queue_wait[pool, record.priority_class or ""].observe(record.queued)
        self.attainment.note(record, now)
        if record.first_byte is not None:
            self._first_token[model, pool].observe(record.first_byte - record.received)
            self.overhead.observe(record.overhead(now))
            self._tokens[model, pool, tenant, "prompt"].inc(record.prompt_tokens or 0)
            self._tokens[model, pool, tenant, "completion"].inc(record.completion_tokens)
        if record.max_tokens_by is not None:
            self.clamped.labels(model, pool, record.max_tokens_by).inc()

    def note_degraded(self, causes: Iterable[tuple[str, int]]) -> None:
        """Count a request that lost something: whose steps took it, and the number of the last."""
        for of, step in causes:
            self.degraded.labels(of, str(step)).inc()

    def note_attempt(self, pool: str, outcome: str) -> None:
        """Count one send to an engine by how it ended."""
        self._attempts[pool, outcome].inc()

    def note_abandoned(self, pool: str, cause: str, prompt: int, output: int) -> None:
        """Count what a request cost an engine for nobody (`gateway/abandoning.py`)."""
        for kind, tokens in (("prompt", prompt), ("output", output)):
            if tokens > 0:
                self.abandoned.labels(pool, kind, cause).inc(tokens)

    def note_count(self, model: str, prompt: PromptCount) -> None:
        """Count one prompt by who counted it."""
        self._counts[model, _words(prompt.exact), prompt.tier].inc()

    def note_prefix(self, pool: str, expected: int, cached: int) -> None:
        """Hold what a prompt was expected to find in an engine's cache against what the engine told."""
        self.prefix_tokens.labels(pool, "expected").inc(expected)
        self.prefix_tokens.labels(pool, "cached").inc(cached)

    def observe_count(self, model: str, tier: str, ratio: float, verification: str | None) -> None:
        """Hold a prompt's count against the engine's. `ratio` is the engine's by ours."""
        self._count_drift[model, "estimated" if tier == "estimate" else "exact"].observe(ratio)
        if verification is not None:
            self._verified_estimates[model, verification].inc()

    def observe_output(self, model: str, expected: Estimate, sent: int | None, came: int) -> None:
        """Hold the prediction against a whole answer, in tokens per choice. `sent` is the max_tokens that the
        engine got: where it is less than the prediction, it is the prediction."""
        p90, mean = expected.output, expected.mean
        if sent is not None:
            p90, mean = min(p90, sent), min(mean, sent)
        self._output_predictions[model, expected.output_by, _words(came > p90)].inc()
        if expected.learned:
            self._output_error[model, "mean"].observe(mean / max(came, 1))
            self._output_error[model, "p90"].observe(p90 / max(came, 1))

    def render(self) -> bytes:
        """Prometheus' text format. Takes milliseconds: call it off the loop."""
        return generate_latest(self.registry)


def _words(flag: bool) -> str:
    return "true" if flag else "false"


class _GaugeCollector(Collector):
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
