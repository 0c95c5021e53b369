"""Given up at any moment, an exchange leaves nothing behind; nor does a slow one hold much."""

import asyncio
import contextlib
import os

import pytest

from backends.contract import (
    ConnectionBroken,
    Endpoint,
    HttpRequest,
)
from backends.transport import AiohttpTransport
from tests.backends.scripted_server import Peer, scripted_server
from tests.backends.transport.conformance import (
    END,
    OK,
    POST,
    PROMPTLY,
    STREAM,
    at,
    chunk,
    keep_alive,
    on_every_transport,
    open_cancelled_at,
    read_all,
    sends,
    until,
)


@on_every_transport
async def test_slow_reader_stalls_the_sender(transport: AiohttpTransport) -> None:
    """While nobody reads, at most 256 KiB wait here and the sender is stopped; then all of it comes."""
    block = os.urandom(64 * 1024)
    blocks = 256
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        peers.append(peer)
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (blocks * len(block)))
        for _ in range(blocks):
            await peer.send(block)

    async with scripted_server(script, send_buffer=64 * 1024) as server:
        exchange = await transport.open(at(server), POST)
        sent = -1
        while sent != peers[0].sent:
            sent = peers[0].sent
            await asyncio.sleep(0.05)
        assert sent < 4 * 1024 * 1024  # what is in the kernel, and here
        [connection] = transport._alive
        assert connection.received <= 256 * 1024
        received = 0
        while piece := await exchange.events():
            assert len(piece) <= 256 * 1024
            received += len(piece)
        assert received == blocks * len(block)


@on_every_transport
async def test_slow_headers_can_be_given_up(transport: AiohttpTransport) -> None:
    """The caller's timeout ends the wait for a head that trickles; the server sees it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for byte in b"HTTP/1.1 200 OK\r\n":
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.01)

    async with scripted_server(script) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await transport.open(at(server), POST)
        await until(lambda: server.open == 0)
        assert transport.statistics().in_use == 0


@on_every_transport
async def test_cancel_before_headers(transport: AiohttpTransport) -> None:
    """Cancelling `open` while the engine thinks drops the connection at once."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.wait_closed()

    async with scripted_server(script) as server:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(transport.open(at(server), POST))
            await until(lambda: len(server.requests) == 1)
            task.cancel()
        await until(lambda: server.closes_seen == 1, PROMPTLY)


@on_every_transport
async def test_cancel_within_the_body(transport: AiohttpTransport) -> None:
    """`cancel` drops the connection at once, ends a waiting reader, and may be repeated."""
    async with scripted_server(sends(STREAM + chunk(b"first"), then=Peer.wait_closed)) as server:
        exchange = await transport.open(at(server), POST)
        assert await exchange.events() == b"first"

        async def read_on() -> None:
            with pytest.raises(ConnectionBroken):
                await exchange.events()

        async with asyncio.TaskGroup() as group:
            group.create_task(read_on())
            await asyncio.sleep(0)
            exchange.cancel()
            exchange.cancel()
        await until(lambda: server.closes_seen == 1, PROMPTLY)
        with pytest.raises(ConnectionBroken):
            await exchange.events()
        exchange.finish()
        assert transport.statistics().in_use == 0


@on_every_transport
async def test_cancel_drops_what_nobody_read(transport: AiohttpTransport) -> None:
    """After `cancel`, bytes that had arrived are not handed out."""
    async with scripted_server(sends(STREAM + chunk(b"first"), then=Peer.wait_closed)) as server:
        exchange = await transport.open(at(server), POST)
        exchange.cancel()
        with pytest.raises(ConnectionBroken):
            await exchange.events()
        await until(lambda: server.closes_seen == 1, PROMPTLY)


@on_every_transport
async def test_cancel_with_an_unsent_request(transport: AiohttpTransport) -> None:
    """A server that does not read cannot hold the connection of a cancelled request open."""
    leave = asyncio.Event()

    async def script(_: Peer) -> None:
        await leave.wait()

    async with scripted_server(script) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await transport.open(at(server), HttpRequest("POST", "/", {}, bytes(32 * 1024 * 1024)))
        await until(lambda: transport.statistics().in_use == 0 and not transport._alive, PROMPTLY)
        leave.set()


@on_every_transport
async def test_cancelled_read_loses_nothing(transport: AiohttpTransport) -> None:
    """A reader that timed out may read on."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        await go_on.wait()
        await peer.send(chunk(b"late") + END)

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await exchange.events()
        go_on.set()
        assert await read_all(exchange) == b"late"


@on_every_transport
async def test_thousand_cancels_leave_the_pool_whole(transport: AiohttpTransport) -> None:
    """Cancel at every suspension of `open`, and in bodies, fresh and reused; then all is as at the start."""
    rounds = 0

    async def moody(peer: Peer) -> None:
        nonlocal rounds
        while True:
            await peer.request()
            rounds += 1
            mood = rounds % 4
            if mood == 0:
                await peer.wait_closed()
                return
            if mood == 1:
                await peer.send(STREAM + chunk(b"begun"))
                await peer.wait_closed()
                return
            if mood == 2:
                await peer.send(STREAM)
                await asyncio.sleep(0)
            await peer.send((STREAM if mood == 3 else b"") + chunk(b"all") + END)

    big = HttpRequest("POST", "/", {}, bytes(300 * 1024))

    async def cancel_in_open(number: int) -> None:
        with contextlib.suppress(TimeoutError):  # the engine is silent, and no suspension is left
            async with asyncio.timeout(0.05):
                await open_cancelled_at(transport, at(server), big if number % 5 == 0 else POST, number % 7)

    async def cancel_in_body(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001 * (number % 5)):
                exchange = await transport.open(at(server), POST)
                try:
                    while await exchange.events():
                        pass
                finally:
                    exchange.cancel()

    async with scripted_server(moody) as server:
        for start in range(0, 1000, 50):
            async with asyncio.TaskGroup() as group:
                for number in range(start, start + 50):
                    group.create_task((cancel_in_body if number % 2 else cancel_in_open)(number // 2))
        assert transport.statistics().in_use == 0
    async with scripted_server(keep_alive) as server:
        for _ in range(100):
            assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert server.connections == 1
        assert transport.statistics().in_use == 0


@on_every_transport
async def test_cancel_at_each_suspension(transport: AiohttpTransport) -> None:
    """The sweep that the churn above relies on: each suspension once, until `open` gets through."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.wait_closed()

    async with scripted_server(script) as server:
        number = 0
        while await open_cancelled_at(transport, Endpoint(f"http://localhost:{server.port}"), POST, number):
            number += 1
            assert transport.statistics().in_use == 0
        assert number >= 3  # the name, the connection, the head
