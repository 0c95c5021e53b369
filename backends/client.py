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
    Generation,
    HttpRequest,
    Transport,
    TransportError,
)
from backends.fanning import AT_A_TIME, FannedGeneration, parts_of

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
        at_a_time: int | None = None,
    ) -> None:
        """`max_pending_bytes`: most bytes a decoder may take in without an event to show for it. It bounds
        an answer that is not a stream; streams have the framer's own, smaller limit. `at_a_time`: calls of
        one request that may be under way together, if that is less than `fanning.AT_A_TIME`."""
        self.adapter = adapter
        self._transport = transport
        self._endpoint = endpoint
        self._max_pending_bytes = max_pending_bytes
        self._at_a_time = AT_A_TIME if at_a_time is None else min(at_a_time, AT_A_TIME)

    def __repr__(self) -> str:
        return f"EngineClient({self.adapter.kind}, {self._endpoint.base_url})"

    async def generate(self, request: GenerateRequest) -> Generation:
        """Send `request` and wait for the head of the answer. Raises EngineError.

        An answer that refuses (4xx, 5xx) is a Generation too: its body, read by `events`, says why. What the
        engine does not take in one call is sent in parts, which begin when `events` is called.
        """
        if request.native is not None:
            return await self._call(request)
        parts = parts_of(request, self.adapter.takes)
        if len(parts) > 1:
            return FannedGeneration(parts, self._call, self._at_a_time)
        return await self._call(parts[0].request)

    async def _call(self, request: GenerateRequest) -> "ClientGeneration":
        dialect = self.adapter if request.native is None else self.adapter.doors
        decoder = dialect.decoder(request)
        encoded = dialect.encode(request)
        give_up = functools.partial(self._give_up, self.adapter.cancel_request(request))
        try:
            exchange = await self._transport.open(self._endpoint, encoded)
        except TransportError as error:
            raise _engine_error(error, retryable=True) from error
        except asyncio.CancelledError:
            give_up(lambda: None)  # engines that send no head before the first token are given up here
            raise
        try:
            decoder.head(exchange.status, exchange.headers)
        except BaseException:
            exchange.cancel()
            raise
        return ClientGeneration(exchange, decoder, self._max_pending_bytes, give_up)

    def _give_up(self, stop: HttpRequest | None, close: Callable[[], None]) -> None:
        """Make the engine stop: `close` its connection, and send it `stop`, in the order that it needs."""
        if stop is None:
            close()
        elif self.adapter.cancels_first:
            self._transport.dispatch(self._endpoint, stop, close)
        else:
            close()
            self._transport.dispatch(self._endpoint, stop)


class ClientGeneration:
    """`contract.Generation` over an exchange and a decoder."""

    __slots__ = (
        "_decoder", "_delivered", "_ended", "_error", "_exchange", "_give_up", "_max_pending_bytes",
        "_pending",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        decoder: Decoder,
        max_pending_bytes: int,
        give_up: Callable[[Callable[[], None]], None] = lambda close: close(),
    ) -> None:
        """`give_up` is called at most once, with what closes the connection: if the answer is given up before
        it ended or failed by itself."""
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
        self._give_up: Callable[[Callable[[], None]], None] | None = give_up

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
        give_up, self._give_up = self._give_up, None
        if not self._ended and give_up is not None:
            if self._error is None:
                give_up(self._exchange.cancel)
            else:
                self._exchange.cancel()


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
