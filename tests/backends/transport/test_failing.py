"""Connections that fail: before anything was sent, within the head, within the body."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    Endpoint,
    HttpRequest,
)
from backends.transport import AiohttpTransport
from tests.backends.scripted_server import Peer, scripted_server
from tests.backends.transport.conformance import POST, STREAM, at, chunk, on_every_transport, sends, until


@on_every_transport
async def test_refused(transport: AiohttpTransport) -> None:
    """Nobody listens: ConnectFailed, which promises that nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed, match=str(port)):
        await transport.open(Endpoint(f"http://127.0.0.1:{port}"), POST)


@on_every_transport
@pytest.mark.parametrize("url", ["http://", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://2130706433"])
async def test_impossible_address(transport: AiohttpTransport, url: str) -> None:
    """An address that cannot be connected to is ConnectFailed, not a programming error."""
    with pytest.raises(ConnectFailed):
        await transport.open(Endpoint(url), POST)


@on_every_transport(connect_timeout=0.1)
async def test_tcp_that_does_not_answer(transport: AiohttpTransport) -> None:
    """The connect timeout covers TCP: a listener whose queue is full lets SYNs wait."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        with pytest.raises(ConnectFailed):
            await transport.open(Endpoint(f"http://127.0.0.1:{address[1]}"), POST)


@on_every_transport(connect_timeout=0.1)
async def test_tls_that_does_not_answer(transport: AiohttpTransport) -> None:
    """The connect timeout covers TLS, and the server sees the connection go."""
    async with scripted_server(Peer.wait_closed) as server:
        with pytest.raises(ConnectFailed):
            await transport.open(at(server, "https"), POST)
        await until(lambda: server.closes_seen == 1)


@on_every_transport
@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("how", [Peer.reset, Peer.close])
async def test_ended_before_headers(
    transport: AiohttpTransport, how: Callable[[Peer], None], method: str
) -> None:
    """A fresh connection that ends before the head is ConnectionBroken; the request is not sent again."""
    async with scripted_server(sends(then=how)) as server:
        with pytest.raises(ConnectionBroken):
            await transport.open(at(server), HttpRequest(method, "/"))
        assert len(server.requests) == 1


@on_every_transport
@pytest.mark.parametrize("how", [Peer.reset, Peer.close])
async def test_ended_within_headers(transport: AiohttpTransport, how: Callable[[Peer], None]) -> None:
    """Half a head is no answer."""
    async with scripted_server(sends(b"HTTP/1.1 200 OK\r\ncontent-le", then=how)) as server:
        with pytest.raises(ConnectionBroken):
            await transport.open(at(server), POST)


BROKEN_BODIES = {
    "content-length": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nfirst",
    "between chunks": STREAM + chunk(b"first"),
    "within a chunk": STREAM + b"ff\r\nfirst",
    "before the last line": STREAM + chunk(b"first") + b"0\r\n",
}


@on_every_transport
@pytest.mark.parametrize("sent", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
@pytest.mark.parametrize("how", [Peer.reset, Peer.close])
async def test_truncated_body(transport: AiohttpTransport, how: Callable[[Peer], None], sent: bytes) -> None:
    """What came is handed out, then the break is raised, as often as one asks; never a clean end."""
    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await read.wait()
        how(peer)

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        assert await exchange.events() == b"first"
        read.set()
        for _ in range(3):
            with pytest.raises(ConnectionBroken):
                await exchange.events()
        exchange.cancel()
        assert transport.statistics().in_use == 0


@on_every_transport
async def test_reset_is_not_the_end_of_a_body_until_close(transport: AiohttpTransport) -> None:
    """A body that lasts until the connection closes ends well with a FIN only."""
    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nfirst")
        await read.wait()
        peer.reset()

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        assert await exchange.events() == b"first"
        read.set()
        with pytest.raises(ConnectionBroken):
            await exchange.events()


@on_every_transport
async def test_what_arrived_before_the_break_comes_first(transport: AiohttpTransport) -> None:
    """A reader that comes late still gets what arrived in time."""
    async with scripted_server(sends(STREAM + chunk(b"first"), chunk(b" second"))) as server:
        exchange = await transport.open(at(server), POST)
        await until(lambda: transport.statistics().in_use == 0)
        assert await exchange.events() == b"first second"
        with pytest.raises(ConnectionBroken):
            await exchange.events()
