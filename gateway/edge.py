"""The edge: uvicorn's HTTP protocol with the bounds that it lacks.

Checked before any application code runs, so that neither memory nor a connection can be had for nothing: the
size and number of headers, the length of the URL, the Host header, and the time a client may take to send
them. Refusals carry OpenAI's error envelope like all others.
"""

import asyncio
import re
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.api.asgi import encode_json

MAX_HEADER = 16 * 1024
MAX_HEAD = 64 * 1024
"""Bytes of one header, and of all of them with the request line."""
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
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._answer(431, f"The headers are larger than {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["headgate.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # ours
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        self._refusal = self._fault()
        if self._refusal is not None:
            raise _Refused
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        status, message = self._refusal or (400, "This is not a valid HTTP request.")
        self._answer(status, message)

    def _fault(self) -> tuple[int, str] | None:
        """What is wrong with the head: status and sentence."""
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
        """Refuse and close. Where an earlier answer is still under way on this connection, only close."""
        if self.transport.is_closing():
            return
        self._stop_timer()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
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

    def _unsupported_upgrade_warning(self) -> None:
        """Upgrades are ignored, as HTTP allows; a line in the log for each would be the client's to write."""
