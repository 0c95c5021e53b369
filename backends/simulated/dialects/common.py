"""What the dialects share: one HTTP exchange with its faults, and the shape of a dialect.

An `Exchange` is one inference request from its last byte in to its last byte out. It applies the faults
that are armed and watches the connection. When the client goes away the handler is cancelled at once;
*noticing* it, as the real server would, is another matter, and takes as long as the server's options say.

A dialect knows its server as a `Host`, so that dialects import no server.
"""

import abc
import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

from aiohttp import web

from backends.simulated.engine import EngineProfile, Step
from backends.simulated.faults import FaultPlan
from backends.simulated.live import LiveEngine, Output, Piece
from backends.simulated.options import ServerOptions
from backends.simulated.records import Close, ClosePhase
from backends.simulated.tokens import EngineTokenizer

__all__ = [
    "Dialect",
    "EngineFailed",
    "Exchange",
    "Handler",
    "Host",
    "json_body",
    "json_response",
    "sse",
    "voice_of",
]

_MEBIBYTE = 1 << 20
_DRIP_S = 1e-3


class EngineFailed(Exception):
    """The fault `error_after` struck: the dialect reports it as the real engine would."""

    def __init__(self) -> None:
        super().__init__("simulated failure of the engine")


Handler = Callable[["Exchange"], Awaitable[web.StreamResponse]]


def json_body(value: Any, *, sort_keys: bool = False) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys).encode()


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=json_body(value), status=status, content_type="application/json", headers=headers
    )


def sse(value: Any, *, sort_keys: bool = False) -> bytes:
    """One event as all current engines frame it."""
    return b"data: " + json_body(value, sort_keys=sort_keys) + b"\n\n"


def voice_of(adapter: str | None, seed: int | None) -> int | None:
    """The seed with which an adapter speaks: each differently, and none as the base model."""
    return seed if adapter is None else (seed or 0) ^ zlib.crc32(adapter.encode())


class Host(Protocol):
    """What a dialect and its exchanges may know of the server that they are part of."""

    profile: EngineProfile
    options: ServerOptions
    tokenizer: EngineTokenizer
    live: LiveEngine
    faults: FaultPlan
    steps: deque[Step]
    """Recent steps that no statistics endpoint has reported yet."""
    exchanges: "set[Exchange]"
    """Inference requests under way."""
    abandoned: "dict[Exchange, Close]"
    """Those whose clients are gone and which the engine computes all the same: nobody has told it yet, and
    where nothing is streamed some servers never do."""
    dialect: "Dialect"
    started_at: float
    """Monotonic seconds."""

    def notice(self, exchange: "Exchange") -> None:
        """Tell the engine of an abandoned request to stop, and note when."""
        ...

    def inference(self, answer: "Handler") -> Callable[[web.Request], Any]:
        """A handler for an inference route: records the request, applies faults, watches the connection."""
        ...


class Dialect(abc.ABC):
    """One engine's HTTP interface over a simulated engine."""

    kind: str
    notices: str
    """How the real server notices that a client is gone; see `ServerOptions.notice`."""
    version = "1.0"
    """The release that this was written from."""
    has_overload_answer = True
    keep_alive = b":\n\n"
    """The comment that fills silence in a stream."""
    keep_alive_s = 0.0
    """After so many seconds; 0: never."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.options = host.options
        self.tokenizer = host.tokenizer
        if self.options.version is not None:
            self.version = self.options.version
        if self.options.keep_alive_s is not None:
            self.keep_alive_s = self.options.keep_alive_s

    @abc.abstractmethod
    def routes(self) -> list[web.RouteDef]: ...

    @abc.abstractmethod
    async def overload(self, exchange: "Exchange") -> web.StreamResponse:
        """The engine's own answer when it takes no more work."""

    def limit_output(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """`max_tokens`, or all that the context leaves."""
        left = self.options.max_total_tokens - prompt_tokens
        return left if max_tokens is None else min(left, max_tokens)

    @property
    def loading(self) -> bool:
        """Whether it is still starting (`loading_s`)."""
        return asyncio.get_running_loop().time() - self.host.started_at < self.options.loading_s

    async def next(self, exchange: "Exchange") -> list[Piece]:
        """The next pieces of an answer; in an open stream, a comment line for every interval of silence."""
        while exchange.response is not None and self.keep_alive_s > 0:
            try:
                async with asyncio.timeout(self.keep_alive_s):
                    return await exchange.output.next()
            except TimeoutError:
                await exchange.send(self.keep_alive)
        return await exchange.output.next()

    def cancel(self, request_ids: "set[str] | None") -> list["Exchange"]:
        """Stop the requests with these ids, None: all, as a client asks by an explicit route; those found.

        An engine knows a request by its id as long as it computes it, whether or not anybody still listens.
        """
        found = [
            exchange
            for exchange in (*self.host.exchanges, *self.host.abandoned)
            if exchange.submitted and (request_ids is None or exchange.id in request_ids)
        ]
        for exchange in found:
            exchange.cancelled = exchange.output.running
            if exchange in self.host.abandoned:
                self.host.notice(exchange)
            else:
                exchange.output.cancel()
        return found


class Exchange:
    """One inference request. `output` gathers its answers, `events` counts the events with content sent."""

    def __init__(self, host: Host, request: web.Request, body: bytes) -> None:
        self.host = host
        self.request = request
        self.body = body
        self.output: Output = host.live.output()
        self.id: str | None = None
        """What the engine calls this request, where it takes or tells an id."""
        self.events = 0
        self.streamed = False
        self.submitted = False
        self.cut = False
        """We closed the connection ourselves."""
        self.cancelled = False
        """An explicit request stopped it."""
        self.response: web.StreamResponse | None = None
        self.started_at = asyncio.get_running_loop().time()
        self._drips = False

    # ---------------------------------------------------------------------------------- the answer

    async def open(
        self, content_type: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the head of a streamed answer."""
        await self.hold_head()
        response = web.StreamResponse(
            status=status, headers={**(headers or {}), "Content-Type": content_type}
        )
        response.enable_chunked_encoding()
        self.response = response
        await response.prepare(self.request)

    async def send(self, data: bytes) -> None:
        """Send bytes of the body, one chunk."""
        assert self.response is not None
        if self.events == 1 and self.streamed and (fault := self.host.faults.strike("huge_event")):
            await self._send_padding(round(fault.value * _MEBIBYTE))
        if self._drips:
            self._drips = False
            for byte in data:
                await self.response.write(bytes([byte]))
                await asyncio.sleep(_DRIP_S)
            return
        await self.response.write(data)

    async def finish(self) -> web.StreamResponse:
        """End the body cleanly."""
        assert self.response is not None
        await self.response.write_eof()
        return self.response

    async def content(self) -> None:
        """Call before each event with content (each token, where nothing is streamed). Faults strike here.

        Raises EngineFailed; does not return where the fault ends the exchange.
        """
        faults = self.host.faults
        if self.events == 0 and (fault := faults.strike("slow_first")) is not None:
            await asyncio.sleep(fault.value)
        if faults.strike("silent_after", self.events):
            await self._wait_for_the_end()
        if faults.strike("die_after", self.events):
            await self.die()
        if faults.strike("fin_after", self.events):
            await self.close()
        if faults.strike("error_after", self.events):
            raise EngineFailed
        self._drips = self.streamed and faults.strike("drip", self.events) is not None
        self.events += 1

    # ---------------------------------------------------------------------------------- its faults

    async def arrive(self) -> web.StreamResponse | None:
        """Faults that strike before the engine sees the request; None if there is none."""
        faults = self.host.faults
        if faults.strike("close"):
            await self.close()
        if faults.strike("hang"):
            await self._wait_for_the_end()
        if faults.strike("redirect"):
            return web.Response(status=301, headers={"Location": "http://192.0.2.1/latest/meta-data"})
        if faults.strike("garbage"):
            return web.Response(body=b"<html>\xff\xfe\x00 not an answer", content_type="text/event-stream")
        if faults.strike("gzip"):
            packed = gzip.compress(b"data: {}\n\n" * 1000)
            return web.Response(
                body=packed, headers={"Content-Encoding": "gzip"}, content_type="application/json"
            )
        if faults.strike("overload"):
            return await self.host.dialect.overload(self)
        return None

    async def hold_head(self) -> None:
        """Where `slow_headers` strikes: wait before the status line goes out."""
        if (fault := self.host.faults.strike("slow_headers")) is not None:
            await asyncio.sleep(fault.value)

    async def _send_padding(self, size: int) -> None:
        """One event of about so many bytes."""
        assert self.response is not None
        await self.response.write(b'data: {"padding":"')
        for _ in range(0, size, 1 << 16):
            await self.response.write(b"x" * (1 << 16))
        await self.response.write(b'"}\n\n')

    async def die(self) -> NoReturn:
        """Abort the connection: RST, what was not read yet is lost."""
        self.cut = True
        transport = self.request.transport
        if transport is not None:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        await self._wait_for_the_end()

    async def close(self) -> NoReturn:
        """Close the connection with FIN, in the middle of whatever it was. An answer that is not streamed
        gets a head that promises more than comes."""
        self.cut = True
        transport = self.request.transport
        if transport is not None:
            if self.submitted and not self.streamed:
                transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4096\r\n\r\n"
                    b'{"id":"cut"'
                )
            transport.close()
        await self._wait_for_the_end()

    async def _wait_for_the_end(self) -> NoReturn:
        """Wait until the connection is closed, by us or by the client: the handler is cancelled then."""
        await asyncio.Event().wait()
        raise AssertionError("cancellation ends this wait")

    # ------------------------------------------------------------------------------------- its end

    @property
    def phase(self) -> ClosePhase:
        if not self.submitted:
            return "unanswered"
        if self.output.produced:
            return "during_stream"
        return "before_first_token" if self.output.phase == "prefill" else "queued"
