"""An answer under way: read in the pieces that arrive, dropped at once, or finished while nobody waits."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

import aiohttp

from backends.contract import (
    ConnectionBroken,
    ResponseInvalid,
)
from backends.transport.connections import HEAD_LIMIT
from backends.transport.errors import FOREIGN, translate


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
        except FOREIGN as error:
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


def refuse_unusable(exchange: AiohttpExchange, raw_headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Raise ResponseInvalid for a head that is HTTP, but not of a kind that we accept."""
    if exchange.status == 101:
        raise ResponseInvalid("switched protocols, unasked")
    coding = exchange.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise ResponseInvalid(f"body with content-encoding {coding[:40]!r}, though identity was asked for")
    # The connection checks a head that comes in many reads; this one makes the limit exact.
    if sum(len(name) + len(value) + 4 for name, value in raw_headers) > HEAD_LIMIT:
        raise ResponseInvalid(f"head of more than {HEAD_LIMIT} bytes")
