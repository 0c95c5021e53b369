"""What the conformance suite of `contract.Transport` is made of: any implementation, on a hostile wire.

`TRANSPORTS` lists the implementations; each test runs for each of them, on both event loops, against a
scripted server (`scripted_server.py`), and must leave neither task nor file nor connection behind.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from backends.contract import (
    Endpoint,
    Exchange,
    HttpRequest,
)
from backends.transport import AiohttpTransport
from tests.backends.loops import on_both_loops
from tests.backends.scripted_server import Peer, Script, ScriptedServer

TRANSPORTS = [pytest.param(AiohttpTransport, id="aiohttp")]

POST = HttpRequest("POST", "/v1/completions", {"Content-Type": "application/json"}, b'{"prompt":"once"}')
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

PROMPTLY = 1.0
"""Seconds within which an engine must see that it was cancelled; unloaded it takes a millisecond."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def at(server: ScriptedServer, scheme: str = "http", **options: Any) -> Endpoint:
    return Endpoint(f"{scheme}://127.0.0.1:{server.port}", **options)


async def read_all(exchange: Exchange) -> bytes:
    pieces = []
    while piece := await exchange.events():
        pieces.append(piece)
    return b"".join(pieces)


async def open_abreast(transport: AiohttpTransport, endpoint: Endpoint, count: int) -> list[Exchange]:
    """Exchanges opened at the same time, so that none can reuse another's connection."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(transport.open(endpoint, POST)) for _ in range(count)]
    return [task.result() for task in tasks]


async def until(condition: Callable[[], bool], patience: float = 3.0) -> None:
    """Wait for something that the other side does; TimeoutError if it does not within `patience` seconds."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.001)


def on_every_transport(test: Callable | None = None, /, **options: Any) -> Callable:
    """Give an async test a `transport` of each kind on each loop, and demand that it ends up empty."""
    if test is None:
        return functools.partial(on_every_transport, **options)

    async def main(make: Callable, **arguments: Any) -> None:
        transport = make(**options)
        try:
            await test(transport=transport, **arguments)
        finally:
            await transport.aclose()
        left = transport.statistics()
        assert (left.in_use, left.idle, left.draining) == (0, 0, 0)

    functools.update_wrapper(main, test)
    del main.__wrapped__
    parameters = [p for p in inspect.signature(test).parameters.values() if p.name != "transport"]
    make = inspect.Parameter("make", inspect.Parameter.KEYWORD_ONLY)
    main.__signature__ = inspect.Signature([*parameters, make])
    return pytest.mark.parametrize("make", TRANSPORTS)(on_both_loops(main))


def sends(*pieces: bytes, then: Callable[[Peer], Any] = Peer.close) -> Script:
    """A script: take one request, send the pieces, end."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
        ending = then(peer)
        if inspect.isawaitable(ending):
            await ending

    return script


async def keep_alive(peer: Peer) -> None:
    """A script: answer requests until the client leaves."""
    while True:
        await peer.request()
        await peer.send(OK)


def goes_stale(how: Callable[[Peer], Any]) -> Script:
    """A script: answer one request, and end the connection when the next one has come."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        how(peer)

    return script


class CancelledAt:
    """Awaits a coroutine, and cancels the task when the coroutine suspends for the `number`th time."""

    def __init__(self, awaitable: Awaitable[Any], number: int) -> None:
        self._awaitable = awaitable
        self._number = number

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaitable.__await__()
        number = self._number
        waiting = next(steps, steps)
        while waiting is not steps:
            if number == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            number -= 1
            try:
                got = yield waiting
            except BaseException as error:
                waiting = steps.throw(error)
            else:
                try:
                    waiting = steps.send(got)
                except StopIteration as end:
                    return end.value
        raise AssertionError("the coroutine never suspended")


async def open_cancelled_at(
    transport: AiohttpTransport, endpoint: Endpoint, request: HttpRequest, number: int
) -> bool:
    """Whether `open` was cancelled at its `number`th suspension, rather than done by then."""
    cancelled = True

    async def attempt() -> None:
        nonlocal cancelled
        exchange = await CancelledAt(transport.open(endpoint, request), number)
        cancelled = False
        exchange.cancel()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(attempt())
    return cancelled
