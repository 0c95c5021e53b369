"""Plain exchanges: what is sent arrives, what is answered comes as it is."""

import asyncio
import os

from backends.contract import (
    Endpoint,
    HttpRequest,
)
from backends.transport import AiohttpTransport
from tests.backends.scripted_server import Peer, scripted_server
from tests.backends.transport.conformance import (
    END,
    OK,
    POST,
    STREAM,
    at,
    chunk,
    keep_alive,
    on_every_transport,
    read_all,
    sends,
)


@on_every_transport
async def test_request_arrives_as_given(transport: AiohttpTransport) -> None:
    """Method, path, headers and body arrive; the endpoint's headers win; identity is asked for."""
    async with scripted_server(keep_alive) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}/base/", {"Authorization": "Bearer engine"})
        request = HttpRequest("POST", "/v1/x?y=1", {"authorization": "no", "X-Id": "7"}, b"\x00body")
        assert await read_all(await transport.open(endpoint, request)) == b"ok"
        [seen] = server.requests
    assert (seen.method, seen.target, seen.body) == ("POST", "/base/v1/x?y=1", b"\x00body")
    assert seen.headers["authorization"] == "Bearer engine"
    assert seen.headers["x-id"] == "7"
    assert seen.headers["accept-encoding"] == "identity"
    assert "cookie" not in seen.headers


@on_every_transport
async def test_large_request_body(transport: AiohttpTransport) -> None:
    """A body of several MiB arrives whole, with its length and type."""
    body = os.urandom(3 * 1024 * 1024)
    async with scripted_server(keep_alive) as server:
        request = HttpRequest("POST", "/", {"content-type": "application/json"}, body)
        assert await read_all(await transport.open(at(server), request)) == b"ok"
        [seen] = server.requests
    assert seen.body == body
    assert seen.headers["content-type"] == "application/json"
    assert "transfer-encoding" not in seen.headers


@on_every_transport
async def test_status_and_headers(transport: AiohttpTransport) -> None:
    """Names are in lower case, repeated fields are joined, any byte is let through."""
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nX-A: 1\r\nx-a: 2\r\nX-Odd: \xff\xc3\r\n"
    async with scripted_server(sends(head + b"Content-Length: 0\r\n\r\n")) as server:
        exchange = await transport.open(at(server), POST)
        assert exchange.status == 503
        assert exchange.headers["retry-after"] == "7"
        assert exchange.headers["x-a"] == "1, 2"
        assert exchange.headers["x-odd"] == "\xff\xc3"
        assert await read_all(exchange) == b""


@on_every_transport
async def test_body_bytes_as_they_arrive(transport: AiohttpTransport) -> None:
    """A piece is handed out without waiting for the next one, and the end repeats."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"data: 1\n"))
        await go_on.wait()
        await peer.send(chunk(b"\ndata: \xe2\x80") + END)

    async with scripted_server(script) as server:
        exchange = await transport.open(at(server), POST)
        assert await exchange.events() == b"data: 1\n"
        go_on.set()
        assert await exchange.events() == b"\ndata: \xe2\x80"
        assert [await exchange.events() for _ in range(7)] == [b""] * 7


@on_every_transport
async def test_one_byte_chunks(transport: AiohttpTransport) -> None:
    """Chunks of one byte come through whole and in order."""
    body = bytes(range(256)) * 20
    async with scripted_server(sends(STREAM, b"".join(chunk(bytes([b])) for b in body), END)) as server:
        assert await read_all(await transport.open(at(server), POST)) == body


@on_every_transport
async def test_body_until_close(transport: AiohttpTransport) -> None:
    """A body without a length ends with the connection."""
    async with scripted_server(sends(b"HTTP/1.0 200 OK\r\n\r\n", b"until", b" close")) as server:
        assert await read_all(await transport.open(at(server), POST)) == b"until close"


@on_every_transport
async def test_answers_without_body(transport: AiohttpTransport) -> None:
    """204 and an empty body end at once and keep the connection."""
    async with scripted_server(
        sends(b"HTTP/1.1 204 No Content\r\n\r\n", then=lambda peer: keep_alive(peer))
    ) as server:
        exchange = await transport.open(at(server), POST)
        assert (exchange.status, await exchange.events()) == (204, b"")
        assert await read_all(await transport.open(at(server), POST)) == b"ok"
        assert server.connections == 1


@on_every_transport
async def test_interim_answers_are_skipped(transport: AiohttpTransport) -> None:
    """100 and 103 before the answer are not the answer."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with scripted_server(sends(interim + OK), sends(interim, OK)) as server:
        for _ in range(2):
            exchange = await transport.open(at(server), POST)
            assert (exchange.status, await read_all(exchange)) == (200, b"ok")


@on_every_transport
async def test_redirect_is_not_followed(transport: AiohttpTransport) -> None:
    """A redirect is an answer like any other."""
    head = b"HTTP/1.1 307 Go\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
    async with scripted_server(sends(head)) as server:
        exchange = await transport.open(at(server), POST)
        assert exchange.status == 307
        assert await exchange.events() == b""
        assert len(server.requests) == 1
