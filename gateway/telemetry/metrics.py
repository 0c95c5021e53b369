"""Every metric of the gateway, declared once.

Labels come from closed sets (configured names, outcomes), never from what a client typed. Gauges are read
from the ledgers at scrape time, so they cannot drift from the truth.
"""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gateway.telemetry.records import RequestRecord

SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300,
    600,
)  # fmt: skip
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

    def live_requests(self) -> int: ...

    def info(self) -> dict[str, str]:
        """Version and configuration hash."""
        ...

    def config(self) -> tuple[str, bool, float]:
        """Hash of the configuration in force; of the last load, whether it was good, and when it was, in
        seconds since 1970."""
        ...


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
            "headgate_prompt_counts", "Prompts counted", ("model", "exact"), registry=self.registry
        )
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
