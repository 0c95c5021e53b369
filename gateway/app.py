"""The composition root: builds every part once, wires them, owns start and end.

Nothing else in the gateway imports `backends.registry`, the transport or the engine client.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from starlette.routing import Route, Router

from backends.client import EngineClient
from backends.contract import Endpoint, Engine, EngineAdapter
from backends.registry import REGISTRY
from backends.transport import AiohttpTransport
from gateway.admin.admin_key import AdminKey, find_admin_key
from gateway.admin.endpoints import AdminEndpoint, AdminHandlers
from gateway.api.asgi import App
from gateway.api.errors import ErrorRing
from gateway.api.generation import GenerationEndpoint
from gateway.api.models import ModelsEndpoint
from gateway.api.probes import Liveness, MetricsEndpoint, Readiness, is_loopback
from gateway.config.loading import load_with_warnings
from gateway.config.problems import Problem
from gateway.config.snapshot import Pool, Snapshot
from gateway.fallbacks import Attempts, RetryBudget
from gateway.fleet.fleet import Fleet, endpoint_of
from gateway.fleet.probing import Prober
from gateway.limits.quotas import Limiter
from gateway.middleware.request_log import RequestLog
from gateway.pipeline import Pipeline
from gateway.queueing.pool_queue import PoolQueue
from gateway.runtime import Runtime
from gateway.settings import Settings
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from gateway.telemetry.tracing import NoTracing, Tracing, tracing_of
from gateway.tenants.authentication import Authenticator
from gateway.tokens.counting import Counting
from gateway.tokens.estimating import OutputLengths


def load_snapshot(
    path: str | Path, *, environ: Mapping[str, str] = os.environ, force_open: bool = False
) -> tuple[Snapshot, tuple[Problem, ...]]:
    """routes.yaml -> Snapshot, with the engines there are, and what is odd in it. Raises ConfigInvalid."""
    return load_with_warnings(path, REGISTRY, environ=environ, force_open=force_open)


class Gateway:
    """One gateway: its two ASGI applications and everything behind them.

    Use `async with`: entering starts the background work, leaving ends it and closes every connection.
    `clock` is monotonic seconds; not the loop's own, which uvloop rounds to milliseconds.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        counting: Counting,
        admin_key: AdminKey,
        *,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
        probe: bool = True,
    ) -> None:
        self.clock = clock
        self.tracing: Tracing = NoTracing() if tracing is None else tracing
        self.admin_key = admin_key
        self.metrics = Metrics()
        self.book = RecordBook()
        self.tasks = TaskSet()
        self._draining = False
        self._probe = probe
        self._started = int(time.time())
        self._transports: dict[float, AiohttpTransport] = {}
        self._lengths = OutputLengths()
        self._budget = RetryBudget(clock)
        self.runtime = self._build(snapshot, counting)
        self.metrics.watch(_Gauges(self))
        authenticator = Authenticator(admin_key.digest)
        self.data_app = self._ringed(self._data_routes(authenticator), self.book, self.metrics)
        # Looking is not counted: the admin listener has a book of its own, and no metrics.
        self.admin_app = self._ringed(self._admin_routes(authenticator), RecordBook(), None)

    @classmethod
    async def create(
        cls, snapshot: Snapshot, settings: Settings | None = None, *, probe: bool = True
    ) -> "Gateway":
        """Load the tokenizers off the loop, find the admin key, and build."""
        settings = settings if settings is not None else Settings()
        counting = await asyncio.to_thread(Counting.build, snapshot)
        admin_key = await asyncio.to_thread(
            find_admin_key,
            settings.admin_key,
            Path(snapshot.server.state),
            loopback=is_loopback(snapshot.server.admin[0]),
        )
        tracing = tracing_of(settings.traces)
        return cls(snapshot, counting, admin_key, tracing=tracing, probe=probe)

    async def __aenter__(self) -> "Gateway":
        if self._probe:
            runtime = self.runtime
            pools = runtime.snapshot.pools
            targets = (
                (ledger, endpoint_of(pools[pool], ledger.replica), runtime.queues[pool].dispatch)
                for pool, ledger in runtime.ledgers()
            )
            self.tasks.start(Prober(targets).run(), "probing")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tasks.aclose()
        await self.runtime.counting.aclose()
        for transport in self._transports.values():
            await transport.aclose()
        await asyncio.to_thread(self.tracing.close)

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Refuse new requests from now on; those in flight go on."""
        self._draining = True

    def cut(self) -> None:
        """End what is still in flight after the drain; its clients are told."""
        for record in self.book:
            if record.task is not None:
                record.task.cancel("the drain is over")

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until no request is in flight, at most `seconds`; whether it came to that."""
        end = self.clock() + seconds
        while len(self.book) and self.clock() < end:  # noqa: ASYNC110  # only while draining
            await asyncio.sleep(0.05)
        return not len(self.book)

    def transports(self) -> tuple[AiohttpTransport, ...]:
        """The upstream connection pools, for statistics."""
        return tuple(self._transports.values())

    # -------------------------------------------------------------------------------------- the parts

    def _build(self, snapshot: Snapshot, counting: Counting) -> Runtime:
        fleet = Fleet(snapshot, self._make_engine, self.clock)
        queues = {name: PoolQueue(pool, fleet.pools[name]) for name, pool in snapshot.pools.items()}
        limiter = Limiter(snapshot, self.clock)
        attempts = Attempts(queues, counting, self._budget, self.metrics, self.clock)
        pipeline = Pipeline(
            snapshot=snapshot,
            counting=counting,
            lengths=self._lengths,
            limiter=limiter,
            attempts=attempts,
            metrics=self.metrics,
            tracing=self.tracing,
            clock=self.clock,
        )
        return Runtime(snapshot, queues, limiter, counting, pipeline)

    def _make_engine(self, adapter: EngineAdapter, endpoint: Endpoint, pool: Pool) -> Engine:
        """The engine of one replica. Replicas with one connect timeout share a connection pool."""
        connect = pool.timeouts.connect
        transport = self._transports.get(connect)
        if transport is None:
            transport = self._transports[connect] = AiohttpTransport(connect_timeout=connect)
        return EngineClient(adapter, transport, endpoint)

    # ------------------------------------------------------------------------------------- the routes

    def _data_routes(self, authenticator: Authenticator) -> list[Route]:
        chat, completions = (
            GenerationEndpoint(dialect, self._current, authenticator, self._is_draining, self.clock)
            for dialect in ("chat", "completions")
        )
        models = ModelsEndpoint(self._current, authenticator, lambda: self._started)
        return [
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model:path}", models, methods=["GET"]),
            *self._probe_routes(authenticator, admin=False),
        ]

    def _admin_routes(self, authenticator: Authenticator) -> list[Route]:
        handlers = AdminHandlers(self._current, self.book, self.clock)

        def guarded(handler: Callable[..., object]) -> AdminEndpoint:
            return AdminEndpoint(handler, self._current, authenticator)  # type: ignore[arg-type]

        return [
            Route("/admin/pools", guarded(handlers.pools), methods=["GET"]),
            Route("/admin/replicas", guarded(handlers.replicas), methods=["GET"]),
            Route("/admin/requests", guarded(handlers.requests), methods=["GET"]),
            Route("/admin/quotas", guarded(handlers.quotas), methods=["GET"]),
            Route("/admin/routes/explain", guarded(handlers.explain), methods=["POST"]),
            *self._probe_routes(authenticator, admin=True),
        ]

    def _probe_routes(self, authenticator: Authenticator, *, admin: bool) -> list[Route]:
        ready = Readiness(self._current, self._is_draining)
        metrics = MetricsEndpoint(self.metrics, self._current, authenticator, admin=admin)
        return [
            Route("/livez", Liveness(), methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
            Route("/health", ready, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ]

    def _ringed(self, routes: list[Route], book: RecordBook, metrics: Metrics | None) -> App:
        router = Router(routes=routes, redirect_slashes=False)
        return RequestLog(ErrorRing(_with_app(router), self.clock), book, metrics, self.clock)

    def _current(self) -> Runtime:
        return self.runtime

    def _is_draining(self) -> bool:
        return self._draining


def _with_app(router: Router) -> App:
    """Starlette raises its 404 and 405, for the error ring to answer, only below an application."""

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        scope["app"] = router
        await router(scope, receive, send)

    return app


class _Gauges:
    """What the metrics read at scrape time."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def replicas(self) -> Iterator[tuple[str, str, int, int, bool]]:
        for pool, ledger in self._gateway.runtime.ledgers():
            ready = not ledger.cooling()
            yield pool, ledger.replica.id, ledger.in_flight, ledger.outstanding_tokens, ready

    def queues(self) -> Iterator[tuple[str, int]]:
        for name, queue in self._gateway.runtime.queues.items():
            yield name, queue.statistics().waiting

    def live_requests(self) -> int:
        return len(self._gateway.book)

    def info(self) -> dict[str, str]:
        return {"version": version("headgate"), "config": self._gateway.runtime.snapshot.hash[:12]}
