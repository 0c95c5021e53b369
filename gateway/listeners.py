"""What the two listeners serve: which path is answered by what, of the API and of the admin API."""

from collections.abc import Callable

from starlette.routing import Route, Router

from gateway.admin.endpoints import AdminEndpoint, AdminHandlers, Handler
from gateway.admin.limits import LimitHandlers
from gateway.admin.operating import ConfigHandlers, KeyHandlers, PoolHandlers, ReplicaHandlers
from gateway.api.asgi import App, Receive, Scope, Send
from gateway.api.count_tokens import CountTokensEndpoint
from gateway.api.errors import ErrorRing
from gateway.api.generation import GenerationEndpoint
from gateway.api.models import ModelsEndpoint
from gateway.api.probes import Liveness, MetricsEndpoint, Readiness
from gateway.api.stored import StoredResponses
from gateway.api.tokenize import TokenizeEndpoint
from gateway.call import ROUTES, Dialect
from gateway.config.snapshot import Snapshot
from gateway.middleware.request_log import RequestLog
from gateway.reloading import Reloader
from gateway.runtime import Runtime
from gateway.state.live import LiveState
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from gateway.tenants.authentication import Authenticator


class Listeners:
    """Makes the applications of the two listeners."""

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        authenticator: Authenticator,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        draining: Callable[[], bool],
        degraded: Callable[[], bool],
    ) -> None:
        """`runtime`: the one in force. `degraded`: whether limits are kept without their store."""
        self._runtime = runtime
        self._authenticator = authenticator
        self._metrics = metrics
        self._clock = clock
        self._draining = draining
        self._degraded = degraded

    def data_app(self, book: RecordBook, *, started: int) -> App:
        """The API. `started`: seconds since 1970, told as the age of models."""
        return self._ringed(self._data_routes(started), book, self._metrics)

    def admin_app(
        self,
        book: RecordBook,
        state: LiveState,
        reloader: Reloader,
        *,
        written: Callable[[], Snapshot],
        older_in_use: Callable[[], int],
    ) -> App:
        """The admin API, over the API's `book`. `written`: the configuration as the file says, without what
        was decided at run time. `older_in_use`: how many configurations that were replaced are still used."""
        routes = self._admin_routes(book, state, reloader, written, older_in_use)
        # Looking is not counted: the admin listener has a book of its own, and no metrics.
        return self._ringed(routes, RecordBook(), None)

    def _data_routes(self, started: int) -> list[Route]:
        doors: dict[Dialect, GenerationEndpoint] = {
            dialect: GenerationEndpoint(
                dialect, self._runtime, self._authenticator, self._draining, self._clock
            )
            for dialect in ROUTES
        }
        stored = StoredResponses(self._runtime, self._authenticator)
        count_tokens = CountTokensEndpoint(self._runtime, self._authenticator, self._clock)
        models = ModelsEndpoint(self._runtime, self._authenticator, lambda: started)
        tokenize = TokenizeEndpoint(self._runtime, self._authenticator, self._clock)
        return [
            *(Route(ROUTES[dialect], door, methods=["POST"]) for dialect, door in doors.items()),
            *(Route(path, doors["rerank"], methods=["POST"]) for path in ("/rerank", "/v2/rerank")),
            Route("/v1/score", doors["score"], methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
            Route("/v1/responses/{id:path}", stored, methods=["GET", "POST", "DELETE"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model:path}", models, methods=["GET"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            *self._probe_routes(admin=False),
        ]

    def _admin_routes(
        self,
        book: RecordBook,
        state: LiveState,
        reloader: Reloader,
        written: Callable[[], Snapshot],
        older_in_use: Callable[[], int],
    ) -> list[Route]:
        handlers = AdminHandlers(self._runtime, book, self._clock)
        limits = LimitHandlers(self._runtime)
        keys = KeyHandlers(state, written)
        replicas = ReplicaHandlers(state, self._runtime)
        pools = PoolHandlers(state, self._runtime)
        config = ConfigHandlers(state, self._runtime, reloader, older_in_use)

        def guarded(handler: Handler) -> AdminEndpoint:
            return AdminEndpoint(handler, self._runtime, self._authenticator)

        return [
            Route("/admin/pools", guarded(handlers.pools), methods=["GET"]),
            Route("/admin/replicas", guarded(handlers.replicas), methods=["GET"]),
            Route("/admin/queues", guarded(handlers.queues), methods=["GET"]),
            Route("/admin/requests", guarded(handlers.requests), methods=["GET"]),
            Route("/admin/limits", guarded(limits.show), methods=["GET"]),
            Route("/admin/limits/try", guarded(limits.try_), methods=["POST"]),
            Route("/admin/lengths", guarded(handlers.lengths), methods=["GET"]),
            Route("/admin/routes/explain", guarded(handlers.explain), methods=["POST"]),
            Route("/admin/keys", guarded(keys.list), methods=["GET"]),
            Route("/admin/keys", guarded(keys.create), methods=["POST"]),
            Route("/admin/keys/{id}/rotate", guarded(keys.rotate), methods=["POST"]),
            Route("/admin/keys/{id}/revoke", guarded(keys.revoke), methods=["POST"]),
            Route("/admin/replicas/{id}/drain", guarded(replicas.drain), methods=["POST"]),
            Route("/admin/replicas/{id}/enable", guarded(replicas.enable), methods=["POST"]),
            Route("/admin/pools/{name}/wake", guarded(pools.wake), methods=["POST"]),
            Route("/admin/pools/{name}/cool", guarded(pools.cool), methods=["POST"]),
            Route("/admin/config", guarded(config.show), methods=["GET"]),
            Route("/admin/config/reload", guarded(config.reload), methods=["POST"]),
            Route("/admin/audit", guarded(config.audit), methods=["GET"]),
            *self._probe_routes(admin=True),
        ]

    def _probe_routes(self, *, admin: bool) -> list[Route]:
        ready = Readiness(self._runtime, self._draining, self._degraded)
        metrics = MetricsEndpoint(self._metrics, self._runtime, self._authenticator, admin=admin)
        return [
            Route("/livez", Liveness(), methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
            Route("/health", ready, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ]

    def _ringed(self, routes: list[Route], book: RecordBook, metrics: Metrics | None) -> App:
        router = Router(routes=routes, redirect_slashes=False)
        return RequestLog(ErrorRing(_with_app(router), self._clock), book, metrics, self._clock)


def _with_app(router: Router) -> App:
    """Starlette raises its 404 and 405, for the error ring to answer, only below an application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router
        await router(scope, receive, send)

    return app
