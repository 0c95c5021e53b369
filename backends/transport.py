"""The data path's HTTP client: `contract.Transport` on aiohttp.

What it promises, beyond the contract:

- **Bytes only.** `Exchange.events` returns what one read brought; nothing here knows a line or an event.
- **Nothing implicit.** No redirects, proxies, cookies or decompression; answers that are encoded all the
  same are refused. No timeouts but the one for connecting: the caller knows what a wait is worth.
- **One retry, and only the safe one.** Engines close idle connections just as we write to them. A reused
  connection that dies before the first byte of the answer is replaced once, by a connection out of a second
  session that keeps none alive: fresh by construction, however many dead ones the pool still holds.
- **Dropping is immediate.** A connection that is given up is aborted, not closed: no waiting for unsent
  bytes or for a TLS farewell that a stuck peer never sends.
- **Bounded.** Read buffer: see `_READ_LIMIT`. Head of an answer, interim (1xx) answers included: 64 KiB.

Most of it is aiohttp configured; `_Connection` corrects what aiohttp cannot be told (each point names its
reason there, and has its test). Connections are not limited in number: the gateway bounds what is in flight.

Life of a connection, as `_Connection` sees it:

    made -> request sent -> head read -> body ended -> idle -> next request ...
                |               |            |           |
                +--- dies, is invalid, or is dropped ----+-> aborted: never returns to the pool
"""

import asyncio
import errno
import functools
import io
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_exceptions import UploadAbortedError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.resolver import ThreadedResolver

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    Endpoint,
    HttpRequest,
    ResponseInvalid,
    TransportError,
)

__all__ = ["AiohttpExchange", "AiohttpTransport", "TransportStatistics"]

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

_HEAD_LIMIT = 64 * 1024
"""Bytes of status line and headers, those of interim (1xx) answers included."""

_LINE_LIMIT = 8 * 1024
_HEADER_COUNT = 128

_LARGE_BODY = 256 * 1024
"""Bytes from which a request body is written piece by piece, so that one write never holds the loop."""


# --------------------------------------------------------------------------------------------- errors

_MEANING: Mapping[type[BaseException], type[TransportError]] = {
    # Nothing was sent. DNS, refused, TLS and certificate errors are all ClientConnectorErrors.
    aiohttp.ClientConnectorError: ConnectFailed,
    aiohttp.ConnectionTimeoutError: ConnectFailed,
    aiohttp.ServerFingerprintMismatch: ConnectFailed,
    aiohttp.InvalidURL: ConnectFailed,
    aiohttp.NonHttpUrlClientError: ConnectFailed,
    # The connection ended too early.
    aiohttp.ClientConnectionError: ConnectionBroken,
    aiohttp.ClientPayloadError: ConnectionBroken,
    UploadAbortedError: ConnectionBroken,
    aiohttp.EofStream: ConnectionBroken,
    OSError: ConnectionBroken,
    # It lives, and what it says is wrong.
    aiohttp.ClientResponseError: ResponseInvalid,
    aiohttp.InvalidUrlRedirectClientError: ResponseInvalid,
    aiohttp.NonHttpUrlRedirectClientError: ResponseInvalid,
    aiohttp.RedirectClientError: ResponseInvalid,
    HttpProcessingError: ResponseInvalid,
}
"""The one map from foreign errors to ours; the nearest class in an error's ancestry decides."""

_FOREIGN = (aiohttp.ClientError, HttpProcessingError, aiohttp.EofStream, OSError)


def translate(error: BaseException) -> TransportError:
    """`error` of aiohttp or of the system as one of ours, its cause set."""
    meaning = next((_MEANING[kind] for kind in type(error).__mro__ if kind in _MEANING), ConnectionBroken)
    cause: BaseException | None = error
    detail = str(error)
    if isinstance(error, aiohttp.ClientResponseError):
        # Its `repr` holds our request headers, credentials among them: pass on what it stands for instead.
        cause, detail = error.__cause__, error.message
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        detail = "closed before the end of the answer"  # its own text may be the repr of half an answer
    translated = meaning(" ".join(detail.split())[:300] or type(error).__name__)
    translated.__cause__ = cause
    return translated


class _ReusedConnectionError(Exception):
    """A kept connection ended before the first byte of the answer: the request may be sent again."""


# ---------------------------------------------------------------------------------------- connections


class _Connection(ResponseHandler):
    """aiohttp's connection, with what a gateway needs corrected:

    - `close` aborts. aiohttp's lets the transport flush first: a peer that stopped reading would keep the
      connection of a cancelled request open for good, and a TLS peer for half a minute.
    - An answer that nobody asked for (an idle server's parting 408, a second answer to one request) ends
      the connection. aiohttp would hand it to the next request, perhaps of another tenant.
    - Interim answers are dropped here and count against the head limit. aiohttp reads them for ever.
    - A body never outlives its connection: malformed chunks left aiohttp's reader waiting, and a reset was
      the clean end of a body that lasts until the connection closes.
    - It knows how often it was used and whether an answer began, which decides on the one retry.
    """

    def __init__(self, alive: "set[_Connection]", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.requests = 0
        self.received = 0
        """Bytes since the request was sent."""
        self._alive = alive
        self._body: aiohttp.StreamReader | None = None
        """Of the final answer to the current request, once its head was read."""

    @property
    def in_use(self) -> bool:
        return self.connected and not self._is_idle()

    @property
    def idle(self) -> bool:
        return self.connected and self._is_idle()

    def _is_idle(self) -> bool:
        return self._body is not None and self._body.is_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._alive.discard(self)
        if exc is not None:
            self._fail_body(aiohttp.ClientOSError(*exc.args))
        super().connection_lost(exc)
        self._fail_body(aiohttp.ServerDisconnectedError())

    def _fail_body(self, error: BaseException) -> None:
        if self._body is not None and not self._body.is_eof() and self._body.exception() is None:
            self._body.set_exception(error)

    def close(self) -> None:
        self.abort()

    def set_response_params(self, **options: Any) -> None:
        self.requests += 1
        self.received = 0
        self._body = None
        if self.connected:
            # Not in `connection_made`: uvloop drops a cancelled connection between that and the call that
            # would return it, and never reports it lost.
            self._alive.add(self)
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        if data and self._is_idle():
            self.abort()
            return
        self.received += len(data)
        super().data_received(data)
        if self._body is None and self.received > _HEAD_LIMIT:
            self.set_exception(HttpProcessingError(message=f"head of more than {_HEAD_LIMIT} bytes"))
        if isinstance(invalid := self.exception(), HttpProcessingError):
            self._fail_body(invalid)

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Take a parsed head and its body to come; the parser calls it for each answer."""
        message, body = data
        if 100 <= message.code < 200 and message.code != 101:
            return
        if self._body is not None:
            self.abort()
            return
        self._body = body
        super().feed_data(data, size)


class _Connector(aiohttp.TCPConnector):
    """A pool of `_Connection`s, each registered in `alive` while it is connected."""

    def __init__(self, alive: set[_Connection], **options: Any) -> None:
        super().__init__(**options)
        make = functools.partial(_Connection, alive, loop=self._loop)
        self._factory = make  # type: ignore[assignment]  # partial is invariant in what it makes


class _Response(aiohttp.ClientResponse):
    """An answer that tells a kept connection's death from an engine's."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        try:
            return await super().start(connection)
        except aiohttp.ClientConnectionError as error:
            if protocol.requests > 1 and protocol.received == 0:
                raise _ReusedConnectionError from error
            raise


class LastGoodResolver(AbstractResolver):
    """Names to addresses within a time limit; while the name service is down, the last good answer.

    An engine that was reachable a minute ago must not be lost to a name server's bad moment.
    """

    _CAPACITY = 1024

    def __init__(self, resolver: AbstractResolver, timeout: float) -> None:
        """`timeout` in seconds; a lookup that takes longer counts as failed."""
        self._resolver = resolver
        self._timeout = timeout
        self._known: dict[tuple[str, int, int], list[ResolveResult]] = {}

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        key = (host, port, int(family))
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._resolver.resolve(host, port, family)
        except OSError as error:  # TimeoutError is one
            if (known := self._known.get(key)) is not None:
                return known
            if isinstance(error, TimeoutError):
                raise OSError(errno.ETIMEDOUT, f"{host} not resolved within {self._timeout:g} s") from error
            raise
        self._known.pop(key, None)
        self._known[key] = answer
        if len(self._known) > self._CAPACITY:
            del self._known[next(iter(self._known))]
        return answer

    async def close(self) -> None:
        await self._resolver.close()


# ------------------------------------------------------------------------------------------ transport


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


class AiohttpExchange:
    """An answer under way, its body read in whatever pieces arrive."""

    __slots__ = ("_cancelled", "_content", "_drain_timeout", "_draining", "_response", "headers", "status")

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        draining: dict["AiohttpExchange", asyncio.TimerHandle],
        drain_timeout: float,
    ) -> None:
        self.status = response.status
        headers: dict[str, str] = {}
        for raw_name, raw_value in response.raw_headers:
            # Latin-1 is total and lossless; aiohttp's own strings may hold lone surrogates.
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.headers: Mapping[str, str] = MappingProxyType(headers)
        self._response = response
        self._content = response.content
        self._draining = draining
        self._drain_timeout = drain_timeout
        self._cancelled = False

    async def events(self) -> bytes:
        """The next body bytes as they arrived; b"" at the clean end, again and again.

        Bytes that arrived before a break are returned before it is raised. Cancelling it loses nothing.
        """
        try:
            return await self._content.readany()
        except _FOREIGN as error:
            if self._cancelled:
                raise ConnectionBroken("dropped by us") from error
            self._response.close()
            # aiohttp raises what broke the connection ahead of what it had already read.
            if rest := self._content._read_nowait(-1):
                return rest
            failure = translate(error)
            raise failure from failure.__cause__

    def cancel(self) -> None:
        """Drop the connection at once, unless the body has ended cleanly. Idempotent, never waits."""
        self._stop_draining()
        if not self._response.closed:
            self._cancelled = True
            self._response.close()

    def finish(self) -> None:
        """Want no more of it, though its end may still be under way. Idempotent, never waits.

        The event that ends an answer comes just ahead of the end of its body. Dropping the connection in
        between would cost a new one for every request; so the end gets the transport's `drain_timeout` to
        arrive, while nobody waits for it, and the connection returns to the pool, or is dropped.
        """
        if self._response.closed or self in self._draining:
            return
        if self._content.exception() is not None:
            self._response.close()
            return
        self._draining[self] = asyncio.get_running_loop().call_later(self._drain_timeout, self.cancel)
        self._content.on_eof(self._stop_draining)

    def _stop_draining(self) -> None:
        if (timer := self._draining.pop(self, None)) is not None:
            timer.cancel()


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
        self._alive: set[_Connection] = set()
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
        except _FOREIGN as error:
            failure = translate(error)
            raise failure from failure.__cause__
        try:
            exchange = AiohttpExchange(response, self._draining, self._drain_timeout)
            _refuse_unusable(exchange, response.raw_headers)
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
        except _ReusedConnectionError as death:
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
        connector = _Connector(
            self._alive,
            limit=0,
            resolver=self._names,
            **{"keepalive_timeout": _KEEP_ALIVE} if keep_alive else {"force_close": True},
        )
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            response_class=_Response,
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


def _refuse_unusable(exchange: AiohttpExchange, raw_headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Raise ResponseInvalid for a head that is HTTP, but not of a kind that we accept."""
    if exchange.status == 101:
        raise ResponseInvalid("switched protocols, unasked")
    coding = exchange.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise ResponseInvalid(f"body with content-encoding {coding[:40]!r}, though identity was asked for")
    # The connection checks a head that comes in many reads; this one makes the limit exact.
    if sum(len(name) + len(value) + 4 for name, value in raw_headers) > _HEAD_LIMIT:
        raise ResponseInvalid(f"head of more than {_HEAD_LIMIT} bytes")
