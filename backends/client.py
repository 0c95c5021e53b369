"""One replica as the gateway sees it: an adapter, a transport and an endpoint make an `Engine`.

The way of a request: encode -> open -> head -> bytes in, events out, until a terminal event:

    Done       handed out last; the exchange is *finished*: its connection may return to the pool
    Failure    what came before it is handed out, then its error is raised; the connection is dropped
    (neither)  a body that ends without either, or a connection that breaks, is an EngineError all the same

Who retries what is decided elsewhere; here an error only learns the facts: whether the replica was reached
at all, and whether a piece of the answer had been handed out before it.
"""

import asyncio
import functools
from collections.abc import Callable

from backends.contract import (
    ConnectFailed,
    Decoder,
    Delta,
    Done,
    Endpoint,
    EngineAdapter,
    EngineError,
    ErrorKind,
    Event,
    Exchange,
    Failure,
    GenerateRequest,
    HttpRequest,
    Transport,
    TransportError,
)

__all__ = ["ClientGeneration", "EngineClient"]

DEFAULT_MAX_PENDING_BYTES = 64 * 1024 * 1024


class EngineClient:
    """`contract.Engine` over HTTP. Holds no state of its own: any number of requests at a time."""

    def __init__(
        self,
        adapter: EngineAdapter,
        transport: Transport,
        endpoint: Endpoint,
        *,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
    ) -> None:
        """`max_pending_bytes`: most bytes a decoder may take in without an event to show for it. It bounds
        an answer that is not a stream; streams have the framer's own, smaller limit."""
        self.adapter = adapter
        self._transport = transport
        self._endpoint = endpoint
        self._max_pending_bytes = max_pending_bytes

    def __repr__(self) -> str:
        return f"EngineClient({self.adapter.kind}, {self._endpoint.base_url})"

    async def generate(self, request: GenerateRequest) -> "ClientGeneration":
        """Send `request` and wait for the head of the answer. Raises EngineError.

        An answer that refuses (4xx, 5xx) is a Generation too: its body, read by `events`, says why.
        """
        decoder = self.adapter.decoder(request)
        encoded = self.adapter.encode(request)
        stop = functools.partial(self._stop, self.adapter.cancel_request(request))
        try:
            exchange = await self._transport.open(self._endpoint, encoded)
        except TransportError as error:
            raise _engine_error(error, retryable=True) from error
        except asyncio.CancelledError:
            stop()  # engines that send no head before the first token are given up here
            raise
        try:
            decoder.head(exchange.status, exchange.headers)
        except BaseException:
            exchange.cancel()
            raise
        return ClientGeneration(exchange, decoder, self._max_pending_bytes, stop)

    def _stop(self, request: HttpRequest | None) -> None:
        """Send what stops the engine, where dropping the connection alone is noticed late."""
        if request is not None:
            self._transport.dispatch(self._endpoint, request)


class ClientGeneration:
    """`contract.Generation` over an exchange and a decoder."""

    __slots__ = (
        "_decoder", "_delivered", "_ended", "_error", "_exchange", "_max_pending_bytes", "_pending", "_stop",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        decoder: Decoder,
        max_pending_bytes: int,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`stop` is called at most once, if the answer is given up before it ended or failed by itself."""
        self._exchange = exchange
        self._decoder = decoder
        self._max_pending_bytes = max_pending_bytes
        self._pending = 0
        """Bytes fed since the last event."""
        self._delivered = False
        """Whether a Delta was handed out."""
        self._error: EngineError | None = None
        """How the answer failed, once it has."""
        self._ended = False
        self._stop: Callable[[], None] | None = stop

    async def events(self) -> list[Event]:
        """The next events, at least one; `Done` is the last.

        Raises EngineError, again and again once it failed; RuntimeError when called after `Done`. No
        timeout of its own. Cancelling it loses no event: it may be called again.
        """
        if self._ended:
            raise RuntimeError("events() called after Done")
        while self._error is None:
            try:
                data = await self._exchange.events()
            except TransportError as error:
                self._fail(_engine_error(error, retryable=not self._delivered))
                break
            events = self._decode(data)
            if events:
                return events
        assert self._error is not None
        raise self._error

    def _decode(self, data: bytes) -> list[Event]:
        """What `data`, or the end of the body, amounts to. Takes note of a terminal event."""
        try:
            events = self._decoder.feed(data) if data else self._decoder.end()
        except BaseException:
            self._exchange.cancel()  # a decoder never raises; if one does, no connection pays for it
            raise
        last = None
        if events:
            last = events[-1]
            self._pending = 0
            self._delivered = self._delivered or any(type(event) is Delta for event in events)
        if type(last) is Done:
            self._ended = True
            self._exchange.finish()
        elif type(last) is Failure:
            del events[-1]
            self._fail(last.error)
        elif not data:
            self._fail(self._engine_fault("the answer ended without its terminal event"))
        elif not events:
            self._pending += len(data)
            if self._pending > self._max_pending_bytes:
                self._fail(self._engine_fault(f"more than {self._max_pending_bytes} bytes without an event"))
        return events

    def _engine_fault(self, message: str) -> EngineError:
        return EngineError(
            ErrorKind.ENGINE, message, retryable=not self._delivered, status=self._exchange.status
        )

    def _fail(self, error: EngineError) -> None:
        self._error = error
        self._exchange.cancel()

    def cancel(self) -> None:
        """Tell the engine to stop, by dropping the connection. Idempotent; a no-op after the end."""
        if not self._ended:
            self._exchange.cancel()
            stop, self._stop = self._stop, None
            if stop is not None and self._error is None:
                stop()


def _engine_error(error: TransportError, *, retryable: bool) -> EngineError:
    """What a failed connection means to the caller."""
    engine_error = EngineError(
        ErrorKind.ENGINE,
        str(error) or type(error).__name__,
        retryable=retryable,
        reached=not isinstance(error, ConnectFailed),
    )
    engine_error.__cause__ = error
    return engine_error
