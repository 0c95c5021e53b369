"""The transport: sessions, the one retry, what is sent along, and the end of it all."""

import asyncio
import io
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    Endpoint,
    HttpRequest,
    TransportError,
)
from backends.transport.connections import Connection, Connector, Response, ReusedConnectionError
from backends.transport.errors import FOREIGN, translate
from backends.transport.exchanges import AiohttpExchange, refuse_unusable
from backends.transport.resolving import LastGoodResolver

_KEEP_ALIVE = 4.0
"""Seconds an idle connection may be reused; uvicorn, and so `trtllm-serve`, closes it after 5."""

_CLOSE = 5.0
"""Seconds `aclose` waits for aborted connections; they need one turn of the loop, this is a guard."""

_DISPATCH = 5.0
"""Seconds that a dispatched request may take."""

_MOST_DISPATCHED = 256
"""Dispatched requests under way at a time; those above are not sent: an engine this far behind is no better
off for being told."""

_READ_LIMIT = 3 * 1024
"""aiohttp's `read_bufsize`. It stops reading from the socket above twice this size. One read may then have
brought 250 KiB more (libuv's buffer; asyncio's has 256): together at most 256 KiB per answer nobody reads.
A small limit also bounds the objects that tiny chunks leave behind: it allows a sixteenth of it in chunks."""

_LINE_LIMIT = 8 * 1024
_HEADER_COUNT = 128

_LARGE_BODY = 256 * 1024
"""Bytes from which a request body is written piece by piece, so that one write never holds the loop."""


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """The connections at one moment, and two counts since the start."""

    in_use: int
    """Carrying an exchange, draining ones included; not those still being connected."""
    idle: int
    """Kept alive for the next request."""
    draining: int
    """Exchanges that were finished by their readers and wait for their last bytes."""
    answered: int
    """Requests whose answer began."""
    retried: int
    """Requests sent again because a kept connection had died."""


class AiohttpTransport:
    """Keep-alive HTTP/1.1 to any number of endpoints. Belongs to the event loop that first calls `open`."""

    def __init__(
        self,
        *,
        connect_timeout: float = 5.0,
        drain_timeout: float = 1.0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """Open nothing yet.

        `connect_timeout`: seconds for one connection: name, TCP and TLS together, half of them for the name.
        `drain_timeout`: seconds a finished exchange's last bytes may take (`AiohttpExchange.finish`).
        `resolver`: names to addresses; the system's, asked in threads, if None.
        """
        self._connect_timeout = connect_timeout
        self._drain_timeout = drain_timeout
        self._resolver = resolver
        self._names: LastGoodResolver | None = None
        self._alive: set[Connection] = set()
        self._draining: dict[AiohttpExchange, asyncio.TimerHandle] = {}
        self._pooled: aiohttp.ClientSession | None = None
        self._unpooled: aiohttp.ClientSession | None = None
        self._tls: dict[str, ssl.SSLContext] = {}
        self._answered = 0
        self._retried = 0
        self._closed = False
        self._dispatched: set[asyncio.Task[None]] = set()

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            in_use=sum(connection.in_use for connection in self._alive),
            idle=sum(connection.idle for connection in self._alive),
            draining=len(self._draining),
            answered=self._answered,
            retried=self._retried,
        )

    async def open(self, endpoint: Endpoint, request: HttpRequest) -> AiohttpExchange:
        """Send `request` and wait for the head of the answer.

        Raises ConnectFailed, ConnectionBroken or ResponseInvalid. Has no timeout once connected. Cancelling
        it leaves nothing behind but, at most, a name lookup in a thread that has to end by itself.
        """
        if self._closed:
            raise ConnectFailed("the transport is closed")
        try:
            response = await self._exchange(endpoint, request)
        except FOREIGN as error:
            failure = translate(error)
            raise failure from failure.__cause__
        try:
            exchange = AiohttpExchange(response, self._draining, self._drain_timeout)
            refuse_unusable(exchange, response.raw_headers)
        except BaseException:
            response.close()
            raise
        self._answered += 1
        return exchange

    def dispatch(
        self, endpoint: Endpoint, request: HttpRequest, then: Callable[[], None] = lambda: None
    ) -> None:
        """Send `request` in the background and forget its answer; call `then` once it is over, by whichever
        way. Never waits, never raises.

        It gets `_DISPATCH` seconds, and ends with the transport; at most `_MOST_DISPATCHED` are under way.
        """
        if self._closed or len(self._dispatched) >= _MOST_DISPATCHED:
            then()
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._deliver(endpoint, request), name=f"dispatch {request.path}")
        self._dispatched.add(task)
        task.add_done_callback(self._dispatched.discard)
        task.add_done_callback(lambda _: then())

    async def _deliver(self, endpoint: Endpoint, request: HttpRequest) -> None:
        """Send it and read the answer to its end, so that the connection can be kept."""
        exchange: AiohttpExchange | None = None
        try:
            async with asyncio.timeout(_DISPATCH):
                exchange = await self.open(endpoint, request)
                while await exchange.events():
                    pass
        except (TransportError, TimeoutError):
            pass  # it was a favour to the engine; whoever asked has left
        finally:
            if exchange is not None:
                exchange.cancel()

    async def _exchange(self, endpoint: Endpoint, request: HttpRequest) -> aiohttp.ClientResponse:
        context = True if endpoint.ca_file is None else await self._tls_context(endpoint.ca_file)
        if self._pooled is None:
            self._pooled = self._session(keep_alive=True)
        try:
            return await self._send(self._pooled, endpoint, request, context)
        except ReusedConnectionError as death:
            if self._closed:
                raise ConnectionBroken("the transport was closed") from death.__cause__
        self._retried += 1
        if self._unpooled is None:
            self._unpooled = self._session(keep_alive=False)
        return await self._send(self._unpooled, endpoint, request, context)

    async def _send(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        request: HttpRequest,
        context: ssl.SSLContext | bool,
    ) -> aiohttp.ClientResponse:
        headers = {"user-agent": "headgate"}
        headers.update((name.lower(), value) for name, value in request.headers.items())
        headers.update((name.lower(), value) for name, value in endpoint.headers.items())
        headers["accept-encoding"] = "identity"
        body = request.body
        return await session.request(
            request.method,
            endpoint.base_url.rstrip("/") + request.path,
            data=(io.BytesIO(body) if len(body) > _LARGE_BODY else body) or None,
            headers=headers,
            allow_redirects=False,
            ssl=context,
        )

    def _session(self, *, keep_alive: bool) -> aiohttp.ClientSession:
        if self._names is None:
            self._names = LastGoodResolver(self._resolver or ThreadedResolver(), self._connect_timeout / 2)
        connector = Connector(
            self._alive,
            limit=0,
            resolver=self._names,
            **{"keepalive_timeout": _KEEP_ALIVE} if keep_alive else {"force_close": True},
        )
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            response_class=Response,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_LIMIT,
            max_line_size=_LINE_LIMIT,
            max_field_size=_LINE_LIMIT,
            max_headers=_HEADER_COUNT,
        )
        session._retry_connection = False  # aiohttp's own retry takes any connection, and only for GET
        return session

    async def _tls_context(self, ca_file: str) -> ssl.SSLContext:
        """The context that trusts `ca_file` alone. Reading certificates blocks, so a thread does it, once.

        Connections are pooled by context: whoever comes second in a race takes the first one's.
        """
        if (context := self._tls.get(ca_file)) is not None:
            return context
        try:
            async with asyncio.timeout(self._connect_timeout):
                made = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file)
        except OSError as error:  # ssl.SSLError and TimeoutError are
            raise ConnectFailed(f"cannot load the CA file {ca_file}: {error}") from error
        made.set_alpn_protocols(["http/1.1"])
        return self._tls.setdefault(ca_file, made)

    async def aclose(self) -> None:
        """Drop every connection. Exchanges still under way raise ConnectionBroken. Idempotent."""
        self._closed = True
        for task in self._dispatched:
            task.cancel()
        if self._dispatched:
            await asyncio.wait(list(self._dispatched), timeout=_CLOSE)
        for exchange in list(self._draining):
            exchange.cancel()
        leaving = [closed for connection in self._alive if (closed := connection.closed) is not None]
        async with asyncio.timeout(_CLOSE):
            for session in (self._pooled, self._unpooled):
                if session is not None:
                    await session.close()
            # Connections that were aborted just now still hold their sockets.
            await asyncio.gather(*leaving, return_exceptions=True)
