"""Probes and metrics: `/livez`, `/readyz`, `/health`, `/metrics`. They answer GET and HEAD."""

import asyncio
import ipaddress
from collections.abc import Callable

from gateway.api.asgi import Receive, Scope, Send, authorization, send_body, send_json
from gateway.errors import InvalidKey, NoSuchRoute
from gateway.runtime import Runtime
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics
from gateway.tenants.authentication import Authenticator


class Liveness:
    """200 as long as the event loop turns; depends on nothing else."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(scope, send, 200, b"ok\n", "text/plain")


class Readiness:
    """200 when requests may be sent here: configured, not draining, some replica may be tried.

    That limits cannot be kept where they should be is told, but changes no status: each limit has its policy.
    """

    def __init__(
        self, runtime: Callable[[], Runtime], draining: Callable[[], bool], degraded: Callable[[], bool]
    ) -> None:
        self._runtime = runtime
        self._draining = draining
        self._degraded = degraded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = "draining" if self._draining() else "ready" if self._runtime().ready() else "no replica"
        told = {"status": status, "limits": "degraded"} if self._degraded() else {"status": status}
        await send_json(scope, send, 200 if status == "ready" else 503, told)


class MetricsEndpoint:
    """Prometheus' text. On the data listener by `server.metrics`; on the admin listener always, with the
    administrator's key where that listener is not on loopback."""

    def __init__(
        self, metrics: Metrics, runtime: Callable[[], Runtime], authenticator: Authenticator, *, admin: bool
    ) -> None:
        self._metrics = metrics
        self._runtime = runtime
        self._authenticator = authenticator
        self._admin = admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self._runtime().snapshot.server
        authorized = self._authenticator.is_admin(authorization(scope))
        if self._admin:
            if not authorized and not is_loopback(server.admin[0]):
                raise InvalidKey("Send the administrator's key as `authorization: Bearer <key>`.")
        elif server.metrics == "off":
            raise NoSuchRoute("Metrics are off on this listener.")
        elif server.metrics == "loopback" and not authorized and not is_loopback(server.listen[0]):
            raise InvalidKey("Metrics are open on loopback only; see `server.metrics`.")
        body = await asyncio.to_thread(self._metrics.render)
        await send_body(scope, send, 200, body, CONTENT_TYPE)


def is_loopback(host: str) -> bool:
    """Whether a listener bound to `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
