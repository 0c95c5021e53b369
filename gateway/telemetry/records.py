"""What is known about one request so far: the source of its log line, metrics, headers and admin row.

A record is created when a request arrives and ends exactly once, with one outcome. Live records are kept
in a `RecordBook`; at rest the book is empty and `accepted` equals the sum over all outcomes.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from gateway.config.snapshot import Slo
from gateway.telemetry.tracing import NO_SPAN, Span

Outcome = Literal["completed", "failed", "cancelled", "rejected"]
"""`rejected` requests were refused for their own sake (4xx, and 501: they ask for what nobody here does);
`failed` ones for ours or an engine's; `cancelled` ones lost their client, or the gateway was told to end at
once."""

Stage = Literal["receiving", "counting", "waking", "queued", "waiting", "streaming", "done"]


def outcome_of(status: int) -> Outcome:
    """How a request ended that was answered with this status."""
    if status < 400:
        return "completed"
    return "rejected" if status < 500 or status == 501 else "failed"


class RequestRecord:
    """Facts of one request, filled in as they become known. Times are loop times in seconds."""

    __slots__ = (
        "_book",
        "answering_model",
        "attempts",
        "choices",
        "completion_tokens",
        "cut_by",
        "cut_off",
        "degraded",
        "engine",
        "error_code",
        "estimated_total",
        "first_byte",
        "held",
        "key_id",
        "max_tokens",
        "max_tokens_by",
        "method",
        "model",
        "outcome",
        "path",
        "pool",
        "priority_class",
        "prompt_tier",
        "prompt_tokens",
        "queued",
        "queued_in",
        "rate_headers",
        "received",
        "replica",
        "request_id",
        "rule",
        "shown_id",
        "slo",
        "span",
        "stage",
        "status",
        "stream",
        "task",
        "tenant",
        "upstream_wait",
        "usage_source",
    )  # fmt: skip

    def __init__(
        self,
        book: "RecordBook",
        request_id: str,
        method: str,
        path: str,
        received: float,
    ) -> None:
        self._book = book
        self.request_id = request_id
        self.task: asyncio.Task[Any] | None = None
        """The task that serves it; cancelling it ends the request."""
        self.shown_id = request_id
        """The client's own `x-request-id` where it is fit to be shown, else ours."""
        self.method = method
        self.path = path
        self.received = received
        self.stage: Stage = "receiving"
        self.outcome: Outcome | None = None
        self.status = 0
        self.error_code: str | None = None
        self.tenant: str | None = None
        self.key_id: str | None = None
        self.priority_class: str | None = None
        self.model: str | None = None
        self.answering_model: str | None = None
        """Where it is not the one that was asked for."""
        self.stream = False
        self.rule: str | None = None
        self.pool: str | None = None
        self.slo: Slo | None = None
        """What that pool promises to this class."""
        self.replica: str | None = None
        self.engine: str | None = None
        self.queued_in: str | None = None
        """The pool in whose line it stood, where another one lent it a replica."""
        self.attempts = 0
        self.prompt_tokens: int | None = None
        """The gateway's count."""
        self.prompt_tier: str | None = None
        """Who counted: `exact`, `cached` or `estimate`."""
        self.estimated_total: int | None = None
        self.max_tokens: int | None = None
        """Sent to the engine, per choice."""
        self.max_tokens_by: str | None = None
        """What cut it below what the client asked for; None where nothing did."""
        self.degraded: str | None = None
        """What it lost in overload, and why."""
        self.completion_tokens = 0
        """Over all choices."""
        self.choices = 1
        self.usage_source: Literal["engine", "counted"] = "counted"
        self.cut_by: str | None = None
        """The limit, or the time budget (`stop-after`, `max-generation`), that cut the answer short."""
        self.cut_off = False
        """The gateway ends what is left after its drain, this request too."""
        self.rate_headers: Callable[[], list[tuple[str, str]]] = list
        """The `x-ratelimit-*` headers: how the limits stood when they were asked."""
        self.queued = 0.0
        """Seconds spent waiting for a replica."""
        self.held = 0.0
        """Seconds of that until a pool was awake."""
        self.upstream_wait = 0.0
        """Seconds spent waiting for engines before the first byte."""
        self.span: Span = NO_SPAN
        """The request's span; attempts are its children."""
        self.first_byte: float | None = None
        """When the first event was ready for the client."""

    def finish(self, outcome: Outcome) -> None:
        """Give the record its one outcome. Later calls do nothing."""
        if self.outcome is None:
            self.outcome = outcome
            self.stage = "done"
            self._book.close(self)

    def overhead(self, now: float) -> float:
        """Seconds until the first byte that neither the queue nor an engine is to blame for."""
        until = self.first_byte if self.first_byte is not None else now
        return max(0.0, until - self.received - self.queued - self.upstream_wait)

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """`x-headgate-*`: who answered, or failed to, and what it took so far; and `x-ratelimit-*`."""
        facts = (
            (b"x-headgate-pool", self.pool),
            (b"x-headgate-replica", self.replica),
            (b"x-headgate-rule", self.rule),
            (b"x-headgate-attempts", self.attempts or None),
            (b"x-headgate-prompt-tokens", self.prompt_tokens),
            (b"x-headgate-prompt-count", self.prompt_tier),
            (b"x-headgate-max-tokens", self.max_tokens),
            (b"x-headgate-max-tokens-bound-by", self.max_tokens_by),
            (b"x-headgate-model", self.answering_model),
            (b"x-headgate-degraded", self.degraded),
            (b"x-headgate-cut-by", self.cut_by),
        )
        headers = [(name, str(fact).encode()) for name, fact in facts if fact is not None]
        if self.rule is not None:
            headers.append((b"x-headgate-queue-ms", b"%.1f" % (self.queued * 1e3)))
            if self.held >= 0.0005:
                headers.append((b"x-headgate-wake-ms", b"%.1f" % (self.held * 1e3)))
            headers.append((b"x-headgate-overhead-ms", b"%.1f" % (self.overhead(now) * 1e3)))
        for name, value in self.rate_headers():
            headers.append((name.encode(), value.encode()))
        return headers

    def as_row(self, now: float) -> dict[str, Any]:
        """The record for people: admin listing and log line."""
        ttft = None if self.first_byte is None else (self.first_byte - self.received) * 1e3
        return {
            "request_id": self.request_id,
            "shown_id": self.shown_id if self.shown_id != self.request_id else None,
            "method": self.method,
            "path": self.path,
            "status": self.status or None,
            "outcome": self.outcome,
            "error_code": self.error_code,
            "stage": self.stage,
            "tenant": self.tenant,
            "key": self.key_id,
            "class": self.priority_class,
            "model": self.model,
            "stream": self.stream,
            "rule": self.rule,
            "pool": self.pool,
            "replica": self.replica,
            "engine": self.engine,
            "queued_in": self.queued_in,
            "attempts": self.attempts,
            "prompt_tokens": self.prompt_tokens,
            "prompt_count": self.prompt_tier,
            "estimated_total": self.estimated_total,
            "max_tokens": self.max_tokens,
            "max_tokens_by": self.max_tokens_by,
            "degraded": self.degraded,
            "completion_tokens": self.completion_tokens,
            "cut_by": self.cut_by,
            "usage_source": self.usage_source,
            "queue_ms": round(self.queued * 1e3, 2),
            "wake_ms": round(self.held * 1e3, 2) if self.held >= 0.0005 else None,
            "ttft_ms": None if ttft is None else round(ttft, 2),
            "overhead_ms": round(self.overhead(now) * 1e3, 2),
            "duration_ms": round((now - self.received) * 1e3, 2),
        }


class RecordBook:
    """The live records, and how many ended how."""

    def __init__(self) -> None:
        self._live: dict[str, RequestRecord] = {}
        self.accepted = 0
        self.outcomes: Counter[Outcome] = Counter()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[RequestRecord]:
        return iter(self._live.values())

    def open(self, request_id: str, method: str, path: str, clock: Callable[[], float]) -> RequestRecord:
        record = RequestRecord(self, request_id, method, path, clock())
        self._live[request_id] = record
        self.accepted += 1
        return record

    def close(self, record: RequestRecord) -> None:
        """Called by the record itself, once."""
        if self._live.pop(record.request_id, None) is not None and record.outcome is not None:
            self.outcomes[record.outcome] += 1
