"""Answers that are wrong: heads, chunks and trailers, without end or sense."""

import asyncio
import socket
import traceback

import pytest

from backends.contract import (
    Endpoint,
    HttpRequest,
    ResponseInvalid,
    TransportError,
)
from backends.transport import AiohttpTransport
from tests.backends.scripted_server import Peer, scripted_server
from tests.backends.transport.conformance import (
    END,
    POST,
    STREAM,
    at,
    chunk,
    on_every_transport,
    read_all,
    sends,
    until,
)

INVALID_HEADS = {
    "garbage": b"\x00\x01\x02 hello\r\n\r\n",
    "html": b"<html><body>502 Bad Gateway</body></html>\r\n\r\n",
    "tls": bytes.fromhex("15030300020228"),
    "http/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80\x00\x04\x00\x01\x00\x00",
    "status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n" + END,
    "chunks and length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + END,
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "length +2": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
    "huge length": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 0\r\n\r\n",
    "one long header": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 20_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "one long name": b"HTTP/1.1 200 OK\r\n" + b"x" * 20_000 + b": 1\r\ncontent-length: 0\r\n\r\n",
    "long reason": b"HTTP/1.1 200 " + b"a" * 20_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "70 KiB": b"HTTP/1.1 200 OK\r\n" + (b"x: " + b"a" * 7_000 + b"\r\n") * 10 + b"content-length: 0\r\n\r\n",
    "10,000 headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(10_000)) + b"\r\n",
    "gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
    "br": b"HTTP/1.1 200 OK\r\nContent-Encoding: BR\r\ncontent-length: 1\r\n\r\n\x06",
    "unknown coding": b"HTTP/1.1 200 OK\r\ncontent-encoding: identity, x\r\ncontent-length: 0\r\n\r\n",
    "switched protocols": b"HTTP/1.1 101 Up\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
}  # fmt: skip


@on_every_transport
@pytest.mark.parametrize("head", INVALID_HEADS.values(), ids=INVALID_HEADS.keys())
async def test_invalid_head(transport: AiohttpTransport, head: bytes) -> None:
    """No head that we do not understand, or that two parties could understand differently, is accepted."""
    async with scripted_server(sends(head, then=Peer.wait_closed)) as server:
        with pytest.raises(ResponseInvalid):
            await transport.open(at(server), POST)
        await until(lambda: transport.statistics().in_use == 0)
        assert len(server.requests) == 1


@on_every_transport
@pytest.mark.parametrize("flood", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 P\r\nx: y\r\n\r\n"])
async def test_endless_interim_answers(transport: AiohttpTransport, flood: bytes) -> None:
    """A flood of 1xx ends in ResponseInvalid, not in a wait or a full memory."""

    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(flood * 100)

    async with scripted_server(script) as server:
        with pytest.raises(ResponseInvalid):
            await transport.open(at(server), POST)


@on_every_transport
async def test_endless_header(transport: AiohttpTransport) -> None:
    """A head without end, in small headers, is refused."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await peer.send(b"x: y\r\n" * 100)

    async with scripted_server(script) as server:
        with pytest.raises(ResponseInvalid):
            await transport.open(at(server), POST)


INVALID_BODIES = {
    "size is no number": b"xyz\r\n",
    "chunk without CRLF": b"3\r\nabcdef\r\n",
    "negative size": b"-1\r\n",
    "huge size": b"fffffffffffffffff\r\n",
}


@on_every_transport
@pytest.mark.parametrize("rest", INVALID_BODIES.values(), ids=INVALID_BODIES.keys())
async def test_invalid_chunks(transport: AiohttpTransport, rest: bytes) -> None:
    """Malformed chunks are raised at once, not waited on, and the connection is dropped."""
    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"first"))
        await read.wait()
        await peer.send(rest)
        await peer.wait_closed()

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        assert await exchange.events() == b"first"
        read.set()
        with pytest.raises(ResponseInvalid):
            async with asyncio.timeout(2):
                while await exchange.events():
                    pass
        await until(lambda: server.closes_seen == 1)


@on_every_transport
async def test_invalid_chunks_while_sending(transport: AiohttpTransport) -> None:
    """Malformed chunks are raised at once, though the request was not read to its end."""
    read, leave = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.send(STREAM + chunk(b"first"))
        await read.wait()
        await peer.send(b"xyz\r\n")
        await leave.wait()

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), HttpRequest("POST", "/", {}, bytes(32 * 1024 * 1024)))
        assert await exchange.events() == b"first"
        read.set()
        with pytest.raises(ResponseInvalid):
            async with asyncio.timeout(2):
                await exchange.events()
        leave.set()


@on_every_transport
async def test_endless_trailers(transport: AiohttpTransport) -> None:
    """Trailers without end are refused."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"first") + b"0\r\n")
        while True:
            await peer.send(b"x: y\r\n" * 1000)

    async with scripted_server(script) as server:
        with pytest.raises(ResponseInvalid):
            async with asyncio.timeout(2):
                await read_all(await transport.open(at(server), POST))


@on_every_transport
async def test_no_credentials_in_errors(transport: AiohttpTransport) -> None:
    """Neither the text nor the traceback of an error holds the endpoint's headers or the body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    canary = "CANARY-7f3a"
    async with scripted_server(sends(b"garbage\r\n\r\n"), sends(then=Peer.close)) as server:
        for port in (server.port, server.port, closed_port):
            endpoint = Endpoint(f"http://127.0.0.1:{port}", {"authorization": f"Bearer {canary}"})
            request = HttpRequest("POST", "/", {}, canary.encode())
            with pytest.raises(TransportError) as caught:
                await transport.open(endpoint, request)
            text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert canary not in text + repr(caught.value.__cause__)
            assert canary not in repr(endpoint)
