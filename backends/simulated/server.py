"""Simulated engines behind real sockets: `serve` in the caller's event loop, `run` as a process.

    async with serve("tgi", "h200", speed=50) as engine:
        ...  # POST to engine.url + "/generate_stream"
        engine.arm("die_after=3*1")
        assert engine.statistics().closes[0].phase == "during_stream"

Beside the dialect's own routes each server has a control route:

    GET  /_simulated/statistics   the statistics below as JSON
    POST /_simulated/faults       {"clear": true, "arm": ["die_after=3*1"]}; answers the plan

Everything a server starts ends with it: connections are aborted, timers cancelled, the socket closed.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import web

from backends.simulated.dialects.common import Dialect, Exchange, Handler, json_response
from backends.simulated.dialects.llamacpp import LlamacppDialect
from backends.simulated.dialects.openai import OpenAIDialect
from backends.simulated.dialects.sglang import SglangDialect
from backends.simulated.dialects.tgi import TgiDialect
from backends.simulated.dialects.triton import TritonDialect
from backends.simulated.dialects.triton_openai import TritonOpenAIDialect
from backends.simulated.dialects.trtllm import TrtllmDialect
from backends.simulated.dialects.vllm import VllmDialect
from backends.simulated.engine import EngineProfile, Step
from backends.simulated.faults import Fault, FaultPlan
from backends.simulated.live import LiveEngine
from backends.simulated.options import ServerOptions
from backends.simulated.profiles import profile_of
from backends.simulated.records import Close, Received, Statistics
from backends.simulated.speech import Speaker
from backends.simulated.tokens import EngineTokenizer, default_tokenizer_directory

__all__ = ["DIALECTS", "SimulatedServer", "run", "serve"]

logger = logging.getLogger("headgate.simulated")

DIALECTS: Mapping[str, type[Dialect]] = MappingProxyType(
    {
        dialect.kind: dialect
        for dialect in (
            TrtllmDialect,
            TritonDialect,
            TritonOpenAIDialect,
            TgiDialect,
            VllmDialect,
            SglangDialect,
            LlamacppDialect,
            OpenAIDialect,
        )
    }
)
"""Engine kind -> the dialect that it speaks."""

_KEPT_REQUESTS = 64
_KEPT_CLOSES = 10_000


class SimulatedServer:
    """One server. Made by `serve`; `start` and `aclose` bracket its life."""

    def __init__(
        self,
        kind: str,
        engine_profile: EngineProfile,
        options: ServerOptions,
        tokenizer: EngineTokenizer,
        faults: Sequence[str] = (),
    ) -> None:
        if options.max_total_tokens > engine_profile.kv_tokens:
            raise ValueError(
                f"max_total_tokens {options.max_total_tokens} exceeds the cache of "
                f"{engine_profile.kv_tokens} tokens"
            )
        self.kind = kind
        self.profile = engine_profile
        self.options = options
        self.tokenizer = tokenizer
        self._loop = asyncio.get_running_loop()
        speaker = Speaker(
            tokenizer,
            seed=options.seed,
            mean_tokens=options.mean_tokens,
            spread=options.spread,
            fragments=options.fragments,
        )
        self.steps: deque[Step] = deque(maxlen=1024)
        """Recent steps that no statistics endpoint has reported yet."""
        self.live = LiveEngine(
            engine_profile, speaker, self.steps.append, prefix_cache=self.options.prefix_cache
        )
        self.recite(options.says, spelled=options.spells)
        self.started_at = self._loop.time()
        self.dialect: Dialect = DIALECTS[kind](self)
        self.faults = FaultPlan()
        self._first_faults = tuple(faults)
        self.exchanges: set[Exchange] = set()
        self.abandoned: dict[Exchange, Close] = {}
        self._requests = 0
        self._recent: deque[Received] = deque(maxlen=_KEPT_REQUESTS)
        self._closes: deque[Close] = deque(maxlen=_KEPT_CLOSES)
        self._timers: set[asyncio.TimerHandle] = set()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._reservation: socket.socket | None = None
        self._reopening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SimulatedServer {self.kind} {self.url}: {self.live.model!r}>"

    # ----------------------------------------------------------------------------------- its life

    async def start(self) -> None:
        """Bind and listen. Raises OSError."""
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.add_routes(self.dialect.routes())
        application.router.add_get("/_simulated/statistics", self._get_statistics)
        application.router.add_post("/_simulated/faults", self._post_faults)
        # A closed connection cancels its handler at once; how late the *engine* hears of it is our choice.
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        if self.options.port:
            # The sockets below share their port, so they would share it with another engine too.
            _bind(self.options.host, self.options.port, shared=False).close()
        # Bound and never listening: it keeps the port ours while the fault `refuse` closes the other one.
        self._reservation = _bind(self.options.host, self.options.port)
        for fault in self._first_faults:
            self.arm(fault)
        if not self.faults.fired("refuse"):
            await self.listen()

    async def aclose(self) -> None:
        """End everything. Idempotent."""
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.gather(self._reopening, return_exceptions=True)
        self.live.close()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._runner is not None:
            self.crash()
            await self._runner.cleanup()
            self._runner = None
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    @property
    def port(self) -> int:
        assert self._reservation is not None, "the server is not started"
        port: int = self._reservation.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The base URL; it stays the same while the server refuses connections."""
        if self._reservation is None:
            return "(closed)"
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.port}"

    async def listen(self) -> None:
        """Accept connections. Does nothing while it already does."""
        assert self._runner is not None, "the server is not started"
        assert self._runner.server is not None
        if self._listener is None:
            sock = _bind(self.options.host, self.port)
            self._listener = await self._loop.create_server(self._runner.server, sock=sock, backlog=1024)

    def refuse(self) -> None:
        """Refuse new connections and close the idle ones; answers under way go on. Undone by `listen`."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        busy = {exchange.request.protocol for exchange in self.exchanges}
        for connection in self._connections():
            if connection not in busy:
                connection.force_close()

    def abort_connections(self) -> None:
        """Abort every connection, as when the process dies."""
        for connection in self._connections():
            if connection.transport is not None:
                connection.transport.abort()

    def crash(self) -> None:
        """Refuse new connections and abort the others: the process is gone. `listen` restarts it."""
        self.refuse()
        for exchange in self.exchanges:
            exchange.cut = True
        self.abort_connections()

    def _connections(self) -> list[web.RequestHandler]:
        server = self._runner.server if self._runner is not None else None
        return [] if server is None else list(server.connections)

    def recite(self, text: str | None, *, spelled: bool = False) -> None:
        """Say this in every answer from now on; None: a hash of its context. `spelled`: byte by byte."""
        self.live.script, self.live.spells = text, spelled

    # ------------------------------------------------------------------------------------- faults

    def arm(self, specification: str) -> Fault:
        """Arm a fault, see `backends.simulated.faults`. Raises ValueError."""
        if specification.startswith("overload") and not self.dialect.has_overload_answer:
            raise ValueError(f"{self.kind} has no overload answer: its requests wait")
        fault = self.faults.arm(specification)
        if fault.name == "refuse":
            self.faults.strike("refuse")
            fault.times = 0
            self.refuse()
            if fault.value > 0:
                self._reopening = self._loop.create_task(self._listen_later(fault.value))
        return fault

    async def _listen_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.listen()

    async def _post_faults(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            if body.get("clear"):
                self.faults.clear()
            for specification in body.get("arm", ()):
                self.arm(specification)
        except (ValueError, AttributeError, TypeError) as error:
            return json_response({"error": str(error)}, status=400)
        return json_response({"faults": self.faults.statistics()})

    # --------------------------------------------------------------------------------- statistics

    def statistics(self) -> Statistics:
        engine = self.live.statistics()
        return Statistics(
            now=self._loop.time(),
            kind=self.kind,
            listening=self._listener is not None,
            connections=len(self._connections()),
            requests=self._requests,
            in_flight=len(self.exchanges),
            running=engine.running,
            waiting=engine.waiting,
            engine=engine,
            closes=tuple(self._closes),
            faults=tuple(self.faults.statistics()),
            recent=tuple(self._recent),
        )

    async def _get_statistics(self, request: web.Request) -> web.Response:
        return json_response(dataclasses.asdict(self.statistics()))

    # ---------------------------------------------------------------------------------- exchanges

    def inference(self, answer: Handler) -> Callable[[web.Request], Any]:
        """A handler for an inference route: records the request, applies faults, watches the connection."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            exchange = Exchange(self, request, body)
            self._record(request, body)
            self.exchanges.add(exchange)
            lost = False
            try:
                early = await exchange.arrive()
                response = await answer(exchange) if early is None else early
                if exchange.response is None:  # a stream has held its own head back
                    await exchange.hold_head()
                return response
            except (asyncio.CancelledError, ConnectionError):
                lost = True
                raise
            finally:
                self.exchanges.discard(exchange)
                if lost and not exchange.cut:
                    self._client_gone(exchange)
                else:
                    exchange.output.cancel()

        return handle

    def _record(self, request: web.Request, body: bytes) -> None:
        self._requests += 1
        decoded: Any
        try:
            decoded = json.loads(body)
        except ValueError:
            decoded = body.decode("utf-8", errors="replace")
        headers = {name.lower(): value for name, value in request.headers.items()}
        self._recent.append(Received(self._loop.time(), request.method, request.path, headers, decoded))

    def _client_gone(self, exchange: Exchange) -> None:
        close = Close(
            path=exchange.request.path,
            phase=exchange.phase,
            streamed=exchange.streamed,
            events=exchange.events,
            closed_at=self._loop.time(),
            noticed_at=None,
        )
        self._closes.append(close)
        self.abandoned = {each: its for each, its in self.abandoned.items() if each.output.running}
        self.abandoned[exchange] = close
        notice = functools.partial(self.notice, exchange)
        how = self.dialect.notices if self.options.notice == "realistic" else self.options.notice
        if how == "at_once" or not exchange.submitted:
            notice()
        elif how == "poll":
            period = 1.0 / self.profile.speed
            elapsed = self._loop.time() - exchange.started_at
            self._later(period - elapsed % period, notice)
        elif how == "quiet_second" and not exchange.streamed:
            self._later(1.0 / self.profile.speed, functools.partial(self._notice_if_quiet, exchange))
        elif how in ("next_token", "quiet_second") or (how == "next_write" and exchange.streamed):
            exchange.output.on_token = notice

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        now = self._loop.time()
        self._timers = {entry for entry in self._timers if not entry.cancelled() and entry.when() > now}
        self._timers.add(self._loop.call_later(delay, call))

    def _notice_if_quiet(self, exchange: Exchange) -> None:
        """llama.cpp looks for the client of a whole answer when it had no result for anybody for a second."""
        if any(other.streamed and other.output.running for other in self.exchanges):
            self._later(1.0 / self.profile.speed, functools.partial(self._notice_if_quiet, exchange))
        else:
            self.notice(exchange)

    def notice(self, exchange: Exchange) -> None:
        """Tell the engine of an abandoned request to stop, and note when. Idempotent."""
        close = self.abandoned.pop(exchange, None)
        if close is None:
            return
        # By identity: two closes may be equal in everything.
        for position, entry in enumerate(self._closes):
            if entry is close:
                self._closes[position] = dataclasses.replace(close, noticed_at=self._loop.time())
        exchange.output.on_token = None
        exchange.output.cancel()


def _bind(host: str, port: int, *, shared: bool = True) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: asyncio switches Nagle's algorithm off only where it is told that this is TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.asynccontextmanager
async def serve(
    kind: str,
    engine: str | EngineProfile = "demo",
    *,
    speed: float | None = None,
    tokenizer: EngineTokenizer | Path | str | None = None,
    faults: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[SimulatedServer]:
    """A simulated engine in this event loop, listening on 127.0.0.1 unless told otherwise.

    kind: one of `DIALECTS`.
    engine: a profile, the name of one (`h200`, `demo`, ...), or a file that `headgate calibrate` wrote.
    speed: overrides the profile's speed; 50 makes everything fifty times faster.
    tokenizer: a tokenizer directory or a loaded tokenizer; None: `headgate-mini`.
    faults: specifications as in `backends.simulated.faults`.
    options: fields of `ServerOptions`.

    Raises ValueError for an unknown kind, profile, option or fault, OSError if it cannot listen.
    """
    if kind not in DIALECTS:
        raise ValueError(f"unknown engine kind {kind!r}; there are {', '.join(DIALECTS)}")
    known = {field.name for field in dataclasses.fields(ServerOptions)}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    if isinstance(engine, str):
        engine = profile_of(engine)
    if speed is not None:
        engine = dataclasses.replace(engine, speed=speed)
    if not isinstance(tokenizer, EngineTokenizer):
        tokenizer = EngineTokenizer.load(Path(tokenizer) if tokenizer else default_tokenizer_directory())
    server = SimulatedServer(kind, engine, ServerOptions(**options), tokenizer, faults)
    try:
        await server.start()
        yield server
    finally:
        await server.aclose()


def run(
    kind: str,
    engine: str = "demo",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    speed: float | None = None,
    tokenizer: str | None = None,
    faults: Sequence[str] = (),
    on_start: Callable[[SimulatedServer], None] | None = None,
    **options: Any,
) -> None:
    """Serve one simulated engine until SIGINT or SIGTERM. Blocks; for the command line.

    kind: one of `DIALECTS`.
    engine: the name of a profile (`h200`, `h200-slow-host` with 6 ms of host time per step, `demo`, ...), or
    a file that `headgate calibrate` wrote.
    host, port: where to listen; port 0 takes any free one.
    speed: factor on the engine's pace.
    tokenizer: a tokenizer directory; default `headgate-mini`.
    faults: each `name[=value][*times]`, see `backends.simulated.faults`.
    on_start: called once it listens, e.g. to print `url`.
    options: fields of `ServerOptions`.

    Raises what `serve` raises.
    """

    async def main() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        async with serve(
            kind, engine, speed=speed, tokenizer=tokenizer, faults=faults, host=host, port=port, **options
        ) as server:
            logger.info("simulated %s engine at %s", kind, server.url)
            if on_start is not None:
                on_start(server)
            await stopped.wait()

    asyncio.run(main())
