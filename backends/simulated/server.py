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
import json
import logging
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from aiohttp import web

from backends.simulated.dialects.common import ClosePhase, Dialect, Exchange, Handler, json_response
from backends.simulated.dialects.openai import OpenAIDialect
from backends.simulated.dialects.tgi import TgiDialect
from backends.simulated.dialects.triton import TritonDialect
from backends.simulated.dialects.trtllm import TrtllmDialect
from backends.simulated.engine import EngineProfile, EngineStatistics, Step, profile
from backends.simulated.faults import Fault, FaultPlan
from backends.simulated.live import LiveEngine
from backends.simulated.speech import Speaker
from backends.simulated.tokens import EngineTokenizer, default_tokenizer_directory

__all__ = ["DIALECTS", "Close", "Received", "ServerOptions", "SimulatedServer", "Statistics", "run", "serve"]

logger = logging.getLogger("headgate.simulated")

DIALECTS: Mapping[str, type[Dialect]] = MappingProxyType(
    {dialect.kind: dialect for dialect in (TrtllmDialect, TritonDialect, TgiDialect, OpenAIDialect)}
)
"""Engine kind -> the dialect that it speaks."""

Notice = Literal["at_once", "poll", "next_token", "next_write", "realistic"]

_KEPT_REQUESTS = 64
_KEPT_CLOSES = 10_000


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a simulated server is set up, beside its kind, profile and tokenizer."""

    model: str = "headgate-mini"
    """The model's name; trtllm and TGI answer to any name, as the real ones do, openai to this one only."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port, told by `url`."""
    max_input_tokens: int = 16_384
    """Longer prompts are refused as the real engine refuses them."""
    max_total_tokens: int = 16_384
    """Prompt and output together."""
    max_concurrent_requests: int = 128
    """TGI: requests beyond this are refused at once."""
    max_queue_size: int | None = None
    """Triton and openai: waiting sequences beyond this are refused; None: no bound."""
    seed: int = 0
    """Seed of what is said; engines of one model share it."""
    mean_tokens: float = 120.0
    """Mean length of an answer that `max_tokens` does not cut."""
    spread: float = 0.6
    """Sigma of the logarithm of that length."""
    fragments: float = 0.0
    """Share of places where a character is said byte by byte, 0 to 1."""
    notice: Notice = "at_once"
    """How a closed connection is noticed. `at_once`: the moment it closes. `poll`: at the next tick of a
    one-second clock that started with the request (divided by the profile's speed). `next_token`: when
    the engine has made another token. `next_write`: when the server writes next, so only at the end
    where nothing is streamed. `realistic`: trtllm polls, TGI by token, Triton by write, openai at once."""
    text_mode: Literal["delta", "cumulative"] = "delta"
    """Triton: what an event of `tensorrt_llm_bls` holds (`accumulate_tokens` false or true)."""
    echo_input: bool = True
    """Triton: whether an answer that is not streamed repeats the prompt where the request says nothing
    (the `exclude_input_in_output` parameter of the model being false, as it is by default)."""
    stream_interval: int = 1
    """trtllm: tokens per event."""
    keep_alive_s: float = 15.0
    """TGI: seconds of silence before a comment line."""
    idle_metrics_s: float = 2.0
    """trtllm: how long `GET /metrics` waits for an iteration before it answers `[]`."""
    version: str = "1.2.1"
    """What the version endpoint says, where there is one."""


@dataclass(frozen=True, slots=True)
class Close:
    """A client that went away before its answer was complete."""

    path: str
    phase: ClosePhase
    streamed: bool
    events: int
    """Events with content sent before."""
    closed_at: float
    """When the connection closed, monotonic seconds."""
    noticed_at: float | None
    """When the engine was told to stop; None: not yet, or never (the answer was made to its end)."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request to an inference route."""

    at: float
    """Monotonic seconds."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Any
    """Decoded JSON, or text where it is none."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a server saw and did. Times are monotonic seconds."""

    now: float
    kind: str
    listening: bool
    connections: int
    requests: int
    """Inference requests seen."""
    in_flight: int
    running: int
    waiting: int
    engine: EngineStatistics
    closes: tuple[Close, ...]
    faults: tuple[Mapping[str, Any], ...]
    recent: tuple[Received, ...]
    """The last requests, oldest first, at most 64."""


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
        self.live = LiveEngine(engine_profile, speaker, self.steps.append)
        self.dialect = DIALECTS[kind](self)
        self.faults = FaultPlan()
        self._first_faults = tuple(faults)
        self.exchanges: set[Exchange] = set()
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
                return await answer(exchange) if early is None else early
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

        def notice() -> None:
            noticed = dataclasses.replace(close, noticed_at=self._loop.time())
            # By identity: two closes may be equal in everything.
            for position, entry in enumerate(self._closes):
                if entry is close:
                    self._closes[position] = noticed
            exchange.output.on_token = None
            exchange.output.cancel()

        how = self.dialect.notices if self.options.notice == "realistic" else self.options.notice
        if how == "at_once" or not exchange.submitted:
            notice()
        elif how == "poll":
            period = 1.0 / self.profile.speed
            elapsed = self._loop.time() - exchange.started_at
            timer = self._loop.call_later(period - elapsed % period, notice)
            self._timers = {
                entry for entry in self._timers if not entry.cancelled() and entry.when() > close.closed_at
            }
            self._timers.add(timer)
        elif how == "next_token" or exchange.streamed:
            exchange.output.on_token = notice


def _bind(host: str, port: int, *, shared: bool = True) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
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

    kind: `trtllm`, `triton`, `tgi` or `openai`.
    engine: a profile or its name (`h200`, `h200-slow-host`, `demo`).
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
        try:
            engine = profile(engine)
        except KeyError:
            raise ValueError(f"unknown engine profile {engine!r}") from None
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

    kind: `trtllm`, `triton`, `tgi`, `openai`.
    engine: `h200`, `h200-slow-host` (6 ms of host time per step), `demo`.
    host, port: where to listen; port 0 takes any free one.
    speed: factor on the engine's pace.
    tokenizer: a tokenizer directory; default `headgate-mini`.
    faults: each `name[=value][*times]`: refuse=SECONDS, close, hang, overload, redirect, garbage, gzip,
        slow_first=SECONDS, silent_after=EVENTS, die_after=EVENTS, fin_after=EVENTS, error_after=EVENTS.
    on_start: called once it listens, e.g. to print `url`.
    options, with their defaults: model="headgate-mini", max_input_tokens=16384, max_total_tokens=16384,
        max_concurrent_requests=128 (TGI), max_queue_size=None (Triton, openai), seed=0, mean_tokens=120,
        spread=0.6, fragments=0, notice="at_once" (or poll, next_token, next_write, realistic),
        text_mode="delta" (Triton; or cumulative), echo_input=True (Triton), stream_interval=1 (trtllm),
        keep_alive_s=15 (TGI), idle_metrics_s=2 (trtllm), version="1.2.1".

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
