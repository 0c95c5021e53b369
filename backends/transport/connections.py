"""Connections: aiohttp's, with what a gateway needs corrected. Each point has its test.

Life of a connection, as `Connection` sees it:

    made -> request sent -> head read -> body ended -> idle -> next request ...
                |               |            |           |
                +--- dies, is invalid, or is dropped ----+-> aborted: never returns to the pool
"""

import asyncio
import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

HEAD_LIMIT = 64 * 1024
"""Bytes of status line and headers, those of interim (1xx) answers included."""


class ReusedConnectionError(Exception):
    """A kept connection ended before the first byte of the answer: the request may be sent again."""


class Connection(ResponseHandler):
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

    def __init__(self, alive: "set[Connection]", loop: asyncio.AbstractEventLoop) -> None:
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
        if self._body is None and self.received > HEAD_LIMIT:
            self.set_exception(HttpProcessingError(message=f"head of more than {HEAD_LIMIT} bytes"))
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


class Connector(aiohttp.TCPConnector):
    """A pool of `Connection`s, each registered in `alive` while it is connected."""

    def __init__(self, alive: set[Connection], **options: Any) -> None:
        super().__init__(**options)
        make = functools.partial(Connection, alive, loop=self._loop)
        self._factory = make  # type: ignore[assignment]  # partial is invariant in what it makes


class Response(aiohttp.ClientResponse):
    """An answer that tells a kept connection's death from an engine's."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        try:
            return await super().start(connection)
        except aiohttp.ClientConnectionError as error:
            if protocol.requests > 1 and protocol.received == 0:
                raise ReusedConnectionError from error
            raise
