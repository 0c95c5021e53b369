"""Every metric that is counted as it happens, declared once.

Labels come from closed sets (configured names, outcomes), never from what a client typed. What is counted as
it happens is here; what is read when somebody asks, in gauges.py.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gateway.call import Estimate, PromptCount
from gateway.telemetry.attainment import Attainment
from gateway.telemetry.gauges import GaugeCollector, Gauges
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
PLACES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
WAIT_ERRORS = (-60, -30, -10, -5, -2, -1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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
        self.mirror_attempts = Counter(
            "headgate_mirror_attempts",
            "Sends of copies to engines by how they ended: beside headgate_attempts, which has none of them",
            ("pool", "outcome"),
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
        self.queue_position = Histogram(
            "headgate_queue_position",
            "Place in line of requests that had to wait, when they came",
            ("pool", "class"),
            buckets=PLACES,
            registry=self.registry,
        )
        self.queue_wait_error = Histogram(
            "headgate_queue_wait_error_seconds",
            "Time in line less what was expected when they came, of requests that got a replica",
            ("pool", "class"),
            buckets=WAIT_ERRORS,
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
        self._queue_position = Children(self.queue_position)
        self._queue_wait_error = Children(self.queue_wait_error)

    def watch(self, gauges: Gauges) -> None:
        """Serve `gauges` from now on."""
        self.registry.register(GaugeCollector(gauges))

    def note_standing(self, pool: str, priority: str, position: int) -> None:
        """A request came to stand in line."""
        self._queue_position[pool, priority].observe(position)

    def note_foretold(self, pool: str, priority: str, expected: float, waited: float) -> None:
        """A request in line got its replica."""
        self._queue_wait_error[pool, priority].observe(waited - expected)

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
        """Count what a request cost an engine for nobody (`gateway/answering/abandoning.py`)."""
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
