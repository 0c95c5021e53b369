"""The edge: uvicorn's HTTP protocol with the bounds that it lacks.

Checked before any application code runs, so that neither memory nor a connection can be had for nothing: the
size and number of headers, the length of the URL, the Host header, the time a client may take to send them,
and what a chunked body may carry beside its content. Refusals carry OpenAI's error envelope like all others.

Upgrades are ignored (RFC 9110, 7.8). llhttp cannot be told to: it ends such a request after its head and
takes what follows for another protocol. So the head is fed to a new parser without its Upgrade field, and
then the rest: the body stays a body, however the bytes arrive.
"""

import asyncio
import re
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.api.asgi import encode_json

MAX_HEADER = 16 * 1024
MAX_HEAD = 64 * 1024
"""Bytes of one header, and of all of them with the request line."""
MAX_FRAMING = 64 * 1024
"""Bytes of chunk sizes, chunk extensions and trailers, beyond FRAMING_PER_BYTE for each byte of the body."""
FRAMING_PER_BYTE = 8
"""A chunk of one byte takes five more."""
MAX_HEADERS = 100
MAX_URL = 8 * 1024
HEAD_SECONDS = 10.0
"""From the connection, or the first byte of a later request, to the end of its headers."""

HOST = re.compile(rb"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class _Refused(Exception):
    """The request on this connection is refused; raised through the parser."""


class EdgeProtocol(HttpToolsProtocol):
    """One client connection.

    The scope holds `headgate.abort`, which cuts the connection: ASGI has no such thing, and closing a
    connection whose client does not read would wait for that client for ever.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
        super().connection_made(transport)
        self._refusal: tuple[int, str] | None = None
        self._in_head = True
        self._idle_bytes = 0  # of the head; after it, those that are no body and that no body has paid for
        self._body_bytes = 0
        self._uncounted = False  # a head began or ended in the bytes being fed, but who knows where
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._uncounted, self._body_bytes = False, 0
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError:
            self._answer(*self._refusal or (400, "This is not a valid HTTP request."))
            return
        if self._uncounted:
            return
        idle = len(data) - self._body_bytes
        self._idle_bytes = max(0, self._idle_bytes + idle - FRAMING_PER_BYTE * self._body_bytes)
        if self._in_head and self._idle_bytes > MAX_HEAD:
            self._answer(431, f"The headers are larger than {MAX_HEAD} bytes.")
        elif self._idle_bytes > MAX_FRAMING:
            self._answer(400, f"Chunk extensions and trailers are larger than {MAX_FRAMING} bytes.")

    def _feed(self, data: memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                (end,) = upgrade.args
                data = data[end:]
            else:
                return
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        lines = [
            b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["headgate.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # ours
        if not self._in_head:
            self._in_head, self._uncounted = True, True
        self._idle_bytes = 0
        self._unset_keepalive_if_required()
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        # A trailer is dropped: kept, it would become a header of a request that has been let in without it.

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._refusal = self._fault()
        if self._refusal is not None:
            raise _Refused
        self._idle_bytes, self._uncounted = 0, True
        if self.parser.should_upgrade():
            return  # it comes again, without
        # An answer that ended since this head began has set it.
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _fault(self) -> tuple[int, str] | None:
        """What is wrong with the head: status and sentence."""
        if self.parser.get_method() == b"CONNECT":
            return 400, "This is not a proxy."
        if len(self.url) > MAX_URL:
            return 414, f"The URL is longer than {MAX_URL} bytes."
        sizes = [len(name) + len(value) for name, value in self.headers]
        if len(sizes) > MAX_HEADERS:
            return 431, f"There are more than {MAX_HEADERS} headers."
        if sum(sizes) > MAX_HEAD or max(sizes, default=0) > MAX_HEADER:
            return 431, f"The headers are larger than {MAX_HEAD} bytes, or one than {MAX_HEADER}."
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            return 400, "There must be one Host header."
        if hosts and HOST.fullmatch(hosts[0]) is None:
            return 400, "The Host header is not valid."
        return None

    def _late(self) -> None:
        self._head_timer = None
        self._answer(408, f"The headers did not arrive within {HEAD_SECONDS:g} s.")

    def _answer(self, status: int, message: str) -> None:
        """Refuse and close. Where an answer is under way, or this request has had its own, only close."""
        if self.transport.is_closing():
            return
        self._stop_timer()
        cycle: RequestResponseCycle | None = self.cycle
        if self._in_head:
            unanswered = cycle is None or cycle.response_complete
        else:
            unanswered = cycle is not None and not cycle.response_started and not self.pipeline
        if unanswered:
            if cycle is not None:
                # The application must not answer too; it hears of the end as in connection_lost.
                cycle.disconnected = True
                cycle.message_event.set()
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            body = encode_json({"error": error})
            phrase = HTTPStatus(status).phrase.encode()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n" % (status, phrase)
                + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
                + body
            )
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
