"""The last bytes after the last event, and the end of the transport."""

import asyncio

import pytest

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    TransportError,
)
from backends.transport import AiohttpTransport, TransportStatistics
from tests.backends.loops import on_both_loops
from tests.backends.scripted_server import Peer, ScriptedServer, scripted_server
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
    open_abreast,
    read_all,
    sends,
    until,
)


@on_every_transport
async def test_finish_keeps_the_connection_if_the_end_comes(transport: AiohttpTransport) -> None:
    """The end of the body arrives after its reader lost interest: the connection is reused."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"data: [DONE]\n\n"))
        await go_on.wait()
        await peer.send(END)
        await keep_alive(peer)

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        assert await exchange.events() == b"data: [DONE]\n\n"
        exchange.finish()
        exchange.finish()
        assert transport.statistics().draining == 1
        go_on.set()
        await until(lambda: transport.statistics().idle == 1)
        assert transport.statistics().draining == 0
        assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert server.connections == 1


@on_every_transport(drain_timeout=0.05)
@pytest.mark.parametrize("more", [b"", chunk(b"and on") * 100_000], ids=["silence", "more and more"])
async def test_finish_drops_the_connection_if_not(transport: AiohttpTransport, more: bytes) -> None:
    """An end that does not come soon is not waited for."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"data: [DONE]\n\n"))
        if more:
            await peer.send(more)
        await peer.wait_closed()

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        await exchange.events()
        exchange.finish()
        await until(lambda: server.open == 0)
        left = transport.statistics()
        assert (left.in_use, left.idle, left.draining) == (0, 0, 0)


@on_every_transport
async def test_finish_then_cancel(transport: AiohttpTransport) -> None:
    """`cancel` after `finish` drops the connection at once."""
    async with scripted_server(sends(STREAM + chunk(b"x"), then=Peer.wait_closed)) as server:
        exchange = await transport.open(at(server), POST)
        await exchange.events()
        exchange.finish()
        exchange.cancel()
        assert transport.statistics().draining == 0
        await until(lambda: server.closes_seen == 1, PROMPTLY)


@on_every_transport
async def test_aclose_ends_everything(transport: AiohttpTransport) -> None:
    """Idle, reading, draining and cancelled connections are gone after `aclose`; readers learn it."""
    stream = sends(STREAM + chunk(b"x"), then=Peer.wait_closed)
    async with scripted_server(stream, stream, stream, keep_alive) as server:
        reading, draining, cancelled = await open_abreast(transport, at(server), 3)
        await read_all(await transport.open(at(server), POST))
        assert await reading.events() == await draining.events() == b"x"
        draining.finish()
        cancelled.cancel()
        await transport.aclose()
        assert transport._alive == set()
        assert transport.statistics() == TransportStatistics(0, 0, 0, answered=4, retried=0)
        with pytest.raises(ConnectionBroken):
            await reading.events()
        with pytest.raises(ConnectFailed):
            await transport.open(at(server), POST)
        await transport.aclose()
        await until(lambda: server.open == 0)


@on_every_transport
async def test_aclose_while_opening(transport: AiohttpTransport) -> None:
    """An `open` under way ends with a TransportError; a reused connection is not a reason to try again."""
    requested = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        requested.set()
        await peer.wait_closed()

    async def opening(server: ScriptedServer) -> None:
        with pytest.raises(TransportError):
            await transport.open(at(server), POST)

    async with scripted_server(script) as server:
        await read_all(await transport.open(at(server), POST))
        async with asyncio.TaskGroup() as group:
            group.create_task(opening(server))
            await requested.wait()
            await transport.aclose()
        assert server.connections == 1


@on_both_loops
async def test_unused_transport_closes() -> None:
    """A transport that never opened anything needs no loop and closes."""
    await AiohttpTransport().aclose()
