"""What the dialects share: one HTTP exchange with its faults, and the shape of a dialect.

An `Exchange` is one inference request from its last byte in to its last byte out. It applies the faults
that are armed and watches the connection. When the client goes away the handler is cancelled at once;
*noticing* it, as the real server would, is another matter, and takes as long as the server's options say.
"""

import abc
import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from aiohttp import web

from backends.simulated.live import Output

if TYPE_CHECKING:
    from backends.simulated.server import SimulatedServer

__all__ = [
    "ClosePhase",
    "Dialect",
    "EngineFailed",
    "Exchange",
    "Handler",
    "json_body",
    "json_response",
    "sse",
]

ClosePhase = Literal["unanswered", "queued", "before_first_token", "during_stream"]
"""Where a request was when its client closed the connection; `unanswered` where it never reached the
engine (a `hang`, say)."""


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


class Dialect(abc.ABC):
    """One engine's HTTP interface over a simulated engine."""

    kind: str
    notices: str
    """How the real server notices that a client is gone; see `ServerOptions.notice`."""
    has_overload_answer = True

    def __init__(self, host: "SimulatedServer") -> None:
        self.host = host
        self.options = host.options
        self.tokenizer = host.tokenizer

    @abc.abstractmethod
    def routes(self) -> list[web.RouteDef]: ...

    @abc.abstractmethod
    async def overload(self, exchange: "Exchange") -> web.StreamResponse:
        """The engine's own answer when it takes no more work."""

    def limit_output(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """`max_tokens`, or all that the context leaves."""
        left = self.options.max_total_tokens - prompt_tokens
        return left if max_tokens is None else min(left, max_tokens)


class Exchange:
    """One inference request. `output` gathers its answers, `events` counts the events with content sent."""

    def __init__(self, host: "SimulatedServer", request: web.Request, body: bytes) -> None:
        self.host = host
        self.request = request
        self.body = body
        self.output: Output = host.live.output()
        self.events = 0
        self.streamed = False
        self.submitted = False
        self.cut = False
        """We closed the connection ourselves."""
        self.response: web.StreamResponse | None = None
        self.started_at = asyncio.get_running_loop().time()

    # ---------------------------------------------------------------------------------- the answer

    async def open(
        self, content_type: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the head of a streamed answer."""
        response = web.StreamResponse(
            status=status, headers={**(headers or {}), "Content-Type": content_type}
        )
        response.enable_chunked_encoding()
        self.response = response
        await response.prepare(self.request)

    async def send(self, data: bytes) -> None:
        """Send bytes of the body, one chunk."""
        assert self.response is not None
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
