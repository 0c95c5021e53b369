"""Every metric of the gateway, declared once.

Labels come from closed sets (configured names, outcomes), never from what a client typed. Gauges are read
from the ledgers at scrape time, so they cannot drift from the truth.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gateway.call import Estimate, PromptCount
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

    def drained(self) -> Iterator[tuple[str, str, bool]]:
        """(pool, replica, whether it was taken out of service)."""
        ...

    def queues(self) -> Iterator[tuple[str, int]]:
        """(pool, requests waiting)."""
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


class Metrics:
    """The metrics of one gateway, on a registry of their own."""

    def __init__(self) -> None:
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
        self.attempts = Counter(
            "headgate_attempts",
            "Sends to engines by how they ended",
            ("pool", "outcome"),
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
            ("pool",),
            buckets=WAITS,
            registry=self.registry,
        )
        self.overhead = Histogram(
            "headgate_overhead_seconds",
            "Time to the first byte that the gateway itself took",
            (),
            buckets=WAITS,
            registry=self.registry,
        )

    def watch(self, gauges: Gauges) -> None:
        """Serve `gauges` from now on."""
        self.registry.register(_GaugeCollector(gauges))

    def observe(self, record: RequestRecord, now: float) -> None:
        """Count one finished request."""
        model, pool, tenant = record.model or "", record.pool or "", record.tenant or ""
        outcome = record.outcome or "failed"
        self.requests.labels(model, pool, tenant, outcome, record.error_code or "").inc()
        if record.pool is None:
            return
        self.duration.labels(model, pool).observe(now - record.received)
        self.queue_wait.labels(pool).observe(record.queued)
        if record.first_byte is not None:
            self.first_token.labels(model, pool).observe(record.first_byte - record.received)
            self.overhead.observe(record.overhead(now))
            self.tokens.labels(model, pool, tenant, "prompt").inc(record.prompt_tokens or 0)
            self.tokens.labels(model, pool, tenant, "completion").inc(record.completion_tokens)
        if record.max_tokens_by is not None:
            self.clamped.labels(model, pool, record.max_tokens_by).inc()

    def note_count(self, model: str, prompt: PromptCount) -> None:
        """Count one prompt by who counted it."""
        self.counts.labels(model, str(prompt.exact).lower(), prompt.tier).inc()

    def observe_count(self, model: str, tier: str, ratio: float, verification: str | None) -> None:
        """Hold a prompt's count against the engine's. `ratio` is the engine's by ours."""
        self.count_drift.labels(model, "estimated" if tier == "estimate" else "exact").observe(ratio)
        if verification is not None:
            self.verified_estimates.labels(model, verification).inc()

    def observe_output(self, model: str, expected: Estimate, sent: int | None, came: int) -> None:
        """Hold the prediction against a whole answer, in tokens per choice. `sent` is the max_tokens that the
        engine got: where it is less than the prediction, it is the prediction."""
        p90, mean = expected.output, expected.mean
        if sent is not None:
            p90, mean = min(p90, sent), min(mean, sent)
        passed = str(came > p90).lower()
        self.output_predictions.labels(model, expected.output_by, passed).inc()
        if expected.learned:
            self.output_error.labels(model, "mean").observe(mean / max(came, 1))
            self.output_error.labels(model, "p90").observe(p90 / max(came, 1))

    def render(self) -> bytes:
        """Prometheus' text format. Takes milliseconds: call it off the loop."""
        return generate_latest(self.registry)


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
        queued = GaugeMetricFamily("headgate_queued_requests", "Requests waiting in a pool", labels=("pool",))
        for pool, waiting in self._gauges.queues():
            queued.add_metric((pool,), waiting)
        yield from (in_flight, outstanding, up, queued)
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
