"""The outermost ring: a request id, a record, and one log line when it is over."""

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import Any

from gateway.api.asgi import App, Receive, Scope, Send, header
from gateway.api.errors import is_anthropic
from gateway.telemetry.logs import log_request
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook, outcome_of

FIT_TO_SHOW = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""A client's own `x-request-id` is echoed if it looks like this, else replaced."""

UNRECORDED = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Probes and scrapes: many, and of no interest."""


class RequestLog:
    """Opens a record for each request, closes it with exactly one outcome, and writes its line."""

    def __init__(
        self, app: App, book: RecordBook, metrics: Metrics | None, clock: Callable[[], float]
    ) -> None:
        self._app = app
        self._book = book
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNRECORDED:
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        record = self._book.open(request_id, scope["method"], scope["path"][:200], self._clock)
        asked_id = (header(scope, b"x-request-id") or b"").decode("latin-1")
        if FIT_TO_SHOW.fullmatch(asked_id):
            record.shown_id = asked_id
        record.task = asyncio.current_task()
        scope["headgate.record"] = record

        async def send_with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                shown = record.shown_id.encode()
                message["headers"] = [*message["headers"], (b"x-request-id", shown)]
                if is_anthropic(scope["path"]):
                    message["headers"].append((b"request-id", shown))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            record.status = record.status or 499  # from outside: shutdown
            record.finish("cancelled")
            raise
        except BaseException:
            record.finish("failed")
            raise
        finally:
            record.finish(outcome_of(record.status))
            now = self._clock()
            if self._metrics is not None:
                self._metrics.observe(record, now)
            log_request(record.outcome, record.as_row(now))
