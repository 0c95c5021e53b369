"""Connections are reused, the dead ones replaced, and nobody gets another's answer."""

import asyncio
from collections.abc import Callable

import pytest

from backends.contract import (
    ConnectionBroken,
)
from backends.transport import AiohttpTransport
from tests.backends.scripted_server import Peer, scripted_server
from tests.backends.transport.conformance import (
    OK,
    POST,
    at,
    goes_stale,
    keep_alive,
    on_every_transport,
    open_abreast,
    read_all,
    sends,
    until,
)


@on_every_transport
async def test_connections_are_reused(transport: AiohttpTransport) -> None:
    """One after the other, requests share one connection; abreast, each has its own."""
    async with scripted_server(keep_alive) as server:
        for _ in range(5):
            assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert server.connections == 1
        assert transport.statistics().idle == 1

        for exchange in await open_abreast(transport, at(server), 3):
            assert await read_all(exchange) == b"ok"
        assert server.connections == 3
        assert transport.statistics().idle == 3


@on_every_transport
async def test_cancel_after_the_end_keeps_the_connection(transport: AiohttpTransport) -> None:
    """After the clean end, `cancel` and `finish` do nothing."""
    async with scripted_server(keep_alive) as server:
        for _ in range(3):
            exchange = await transport.open(at(server), POST)
            await read_all(exchange)
            exchange.cancel()
            exchange.finish()
            exchange.cancel()
            assert await exchange.events() == b""
        assert server.connections == 1


@on_every_transport
@pytest.mark.parametrize("how", [Peer.reset, Peer.close])
async def test_stale_connection_is_replaced(transport: AiohttpTransport, how: Callable[[Peer], None]) -> None:
    """A kept connection that dies under a POST is replaced by a fresh one, unseen by the caller.

    Three dead ones lie in the pool: the second try must not take another of them.
    """
    stale = goes_stale(how)
    async with scripted_server(stale, stale, stale, keep_alive) as server:
        for exchange in await open_abreast(transport, at(server), 3):
            await read_all(exchange)
        assert server.connections == 3
        assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert server.connections == 4
        assert len(server.requests) == 5  # three, the one that died, its repetition
        assert transport.statistics().retried == 1
        for _ in range(2):  # the other two dead ones
            assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert await read_all(await transport.open(at(server), POST)) == b"ok"


@on_every_transport
@pytest.mark.parametrize("how", [Peer.reset, Peer.close])
async def test_stale_twice_is_an_error(transport: AiohttpTransport, how: Callable[[Peer], None]) -> None:
    """The fresh connection dies as well: that is the engine's doing, and there is no third try."""
    async with scripted_server(goes_stale(how), sends(then=how), keep_alive) as server:
        await read_all(await transport.open(at(server), POST))
        with pytest.raises(ConnectionBroken):
            await transport.open(at(server), POST)
        assert len(server.requests) == 3
        assert server.connections == 2


@on_every_transport
@pytest.mark.parametrize("how", [Peer.reset, Peer.close])
async def test_no_retry_once_the_answer_began(
    transport: AiohttpTransport, how: Callable[[Peer], None]
) -> None:
    """One byte of an answer on a reused connection rules the retry out."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")
        await asyncio.sleep(0.02)  # a reset would overtake the byte
        how(peer)

    async with scripted_server(script, keep_alive) as server:
        await read_all(await transport.open(at(server), POST))
        with pytest.raises(ConnectionBroken):
            await transport.open(at(server), POST)
        assert len(server.requests) == 2


@on_every_transport
async def test_idle_connection_that_was_closed_is_not_used(transport: AiohttpTransport) -> None:
    """A connection whose end was seen while it was idle costs no retry."""
    async with scripted_server(sends(OK), keep_alive) as server:
        await read_all(await transport.open(at(server), POST))
        await until(lambda: transport.statistics().idle == 0)
        assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert transport.statistics().retried == 0


@on_every_transport
@pytest.mark.parametrize("length", [None, 20, 1])
async def test_unasked_answer_reaches_nobody(transport: AiohttpTransport, length: int | None) -> None:
    """Bytes on an idle connection (a parting 408, another's answer) are never the next request's answer."""
    unasked = b"HTTP/1.1 408 Too Late\r\ncontent-length: 6\r\n\r\nsecret"[:length]
    said = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await said.wait()
        await peer.send(unasked)
        await peer.wait_closed()

    async with scripted_server(script, keep_alive) as server:
        await read_all(await transport.open(at(server), POST))
        said.set()
        await until(lambda: server.closes_seen == 1)
        assert await read_all(await transport.open(at(server), POST)) == b"ok"


@on_every_transport
@pytest.mark.parametrize("first", [OK, OK[:-1]], ids=["in its packet", "with its last byte"])
async def test_second_answer_reaches_nobody(transport: AiohttpTransport, first: bytes) -> None:
    """Two answers to one request: the second goes, with its connection."""
    second = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret"
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if first != OK:
            await peer.send(first)
            await go_on.wait()
        await peer.send((OK + second).removeprefix(b"" if first == OK else first))
        await peer.wait_closed()

    async with scripted_server(script, keep_alive) as server:
        exchange = await transport.open(at(server), POST)
        begun = await exchange.events()
        go_on.set()
        assert begun + await read_all(exchange) == b"ok"
        await until(lambda: server.closes_seen == 1)
        assert await read_all(await transport.open(at(server), POST)) == b"ok"
