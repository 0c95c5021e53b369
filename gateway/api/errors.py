"""Errors on the wire: the one place where a GatewayError becomes a status, headers and a body."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

from gateway.api.asgi import App, Receive, Scope, Send, send_json
from gateway.errors import (
    RETRY_AFTER_CAP,
    ClientGone,
    GatewayError,
    MethodNotAllowed,
    NoSuchRoute,
    QuotaExceeded,
)
from gateway.telemetry.records import RequestRecord

log = logging.getLogger("headgate.api")


def error_body(error: GatewayError) -> dict[str, Any]:
    """OpenAI's error envelope."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


ANTHROPIC_PREFIX = "/v1/messages"
"""Routes whose answers have Anthropic's shape."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
    """Anthropic's error envelope. Statuses stay: overload is 503 here as everywhere, not 529, which no proxy
    on the way knows."""
    told: dict[str, Any] = {
        "type": _ANTHROPIC_TYPES.get(error.status, "invalid_request_error"),
        "message": error.message,
    }
    if error.code is not None or error.param is not None:
        told["details"] = {"error_code": error.code, "param": error.param}
    body: dict[str, Any] = {"type": "error", "error": told}
    return body if request_id is None else {**body, "request_id": request_id}


def is_anthropic(path: str) -> bool:
    """Whether answers on this path have Anthropic's shape."""
    return path == ANTHROPIC_PREFIX or path.startswith(ANTHROPIC_PREFIX + "/")


def error_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    """What SDKs obey: when to come back, or not to."""
    headers: list[tuple[bytes, bytes]] = []
    if error.hopeless:
        headers.append((b"x-should-retry", b"false"))
    elif error.retry_after is not None:
        milliseconds = math.ceil(round(error.retry_after * 1000, 6))  # 4.035 s are 4035.0000000000005 ms
        headers.append((b"retry-after", str(-(-milliseconds // 1000)).encode()))
        headers.append((b"retry-after-ms", str(milliseconds).encode()))
        if error.retry_after > RETRY_AFTER_CAP:
            headers.append((b"x-should-retry", b"false"))  # they would not wait so long, and try in vain
    if isinstance(error, QuotaExceeded) and error.limit is not None:
        headers.append((b"x-headgate-limit", error.limit.encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


class ErrorRing:
    """Answers for everything that the rooms inside raise, as long as nothing has been sent."""

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        record: RequestRecord | None = scope.get("headgate.record")
        try:
            await self._app(scope, receive, watched_send)
            return
        except GatewayError as raised:
            error = raised
        except HTTPException as raised:
            error = (
                MethodNotAllowed(f"This route does not take {scope['method']}.")
                if raised.status_code == 405
                else NoSuchRoute(f"There is no route {scope['path'][:200]}.")
            )
        except ClientGone:
            if record is not None:
                record.status, record.error_code = 499, "client_closed"
                record.finish("cancelled")
            if (abort := scope.get("headgate.abort")) is not None:
                abort()  # it may be there still, without reading
                await asyncio.sleep(0)  # let the server notice, or it complains of an unfinished answer
            return
        except Exception:
            # A fault of ours. The client learns that much; the log has the rest.
            log.exception("unexpected error")
            error = GatewayError("The gateway failed to handle this request.", code="internal_error")
        if record is not None and record.error_code is None:
            record.error_code = error.code
        if started:
            if record is not None:
                record.finish("failed")
            raise error
        headers = error_headers(error) + ([] if record is None else record.headers(self._clock()))
        body = error_body(error)
        if is_anthropic(scope["path"]):
            body = anthropic_error(error, None if record is None else record.shown_id)
        await send_json(scope, send, error.status, body, headers)
