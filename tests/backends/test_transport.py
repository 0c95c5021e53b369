"""The conformance suite of `contract.Transport`: what any implementation must do on a hostile wire.

`TRANSPORTS` lists the implementations; each test runs for each of them, on both event loops, against a
scripted server (`scripted_server.py`), and must leave neither task nor file nor connection behind. The tests
of one implementation's own parts are at the end.
"""

import asyncio
import contextlib
import functools
import inspect
import os
import shutil
import socket
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    Endpoint,
    Exchange,
    HttpRequest,
    ResponseInvalid,
    TransportError,
)
from backends.transport import _MEANING, AiohttpTransport, LastGoodResolver, TransportStatistics, translate
from tests.backends.loops import on_both_loops
from tests.backends.scripted_server import Peer, Script, ScriptedServer, scripted_server
from tests.conftest import not_run

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


# ------------------------------------------------------------------------------------- plain exchanges


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


# ------------------------------------------------------------------------------------------ keep-alive


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


# ----------------------------------------------------------------------------- connections that fail


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


# ------------------------------------------------------------------------------ answers that are wrong


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


# ----------------------------------------------------------------------------------- memory and time


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


# ------------------------------------------------------------------------------------------ cancelling


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


# ------------------------------------------------------------------------------------------ finishing


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


# --------------------------------------------------------------------------------------------- closing


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


# ------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, a certificate for 127.0.0.1 under it, and an unrelated CA."""
    if shutil.which("openssl") is None:
        not_run("no openssl command to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
                "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=engine")
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
    )
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", "server.pem")  # fmt: skip
    return folder


@contextlib.asynccontextmanager
async def tls_server(certificates: Path, *scripts: Script) -> AsyncIterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    async with scripted_server(*scripts, tls=context) as server:
        yield server


@on_every_transport
async def test_tls_with_own_ca(transport: AiohttpTransport, certificates: Path) -> None:
    """The endpoint's CA is trusted, connections are reused, and the certificates are read once."""
    async with tls_server(certificates, keep_alive) as server:
        endpoint = at(server, "https", ca_file=str(certificates / "ca.pem"))
        for _ in range(3):
            assert await read_all(await transport.open(endpoint, POST)) == b"ok"
        assert server.connections == 1


@on_every_transport
@pytest.mark.parametrize("ca", ["other.pem", "missing.pem", "server.key", None])
async def test_tls_with_wrong_ca(transport: AiohttpTransport, certificates: Path, ca: str | None) -> None:
    """Another CA, none, or a file that holds no certificate: ConnectFailed, and nothing was sent."""
    async with tls_server(certificates, keep_alive) as server:
        endpoint = at(server, "https", ca_file=None if ca is None else str(certificates / ca))
        with pytest.raises(ConnectFailed):
            await transport.open(endpoint, POST)
        assert server.requests == []


@on_every_transport
async def test_tls_with_wrong_name(transport: AiohttpTransport, certificates: Path) -> None:
    """The certificate must be for the host that was asked for."""
    async with tls_server(certificates, keep_alive) as server:
        endpoint = Endpoint(f"https://localhost:{server.port}", ca_file=str(certificates / "ca.pem"))
        with pytest.raises(ConnectFailed):
            await transport.open(endpoint, POST)


@on_every_transport
async def test_tls_aclose_waits_for_what_was_cancelled(
    transport: AiohttpTransport, certificates: Path
) -> None:
    """A connection dropped just before `aclose`, which takes TLS some turns, has left after it."""
    async with tls_server(certificates, sends(STREAM, then=Peer.wait_closed)) as server:
        exchange = await transport.open(at(server, "https", ca_file=str(certificates / "ca.pem")), POST)
        exchange.cancel()
        await transport.aclose()
        assert transport._alive == set()


@on_every_transport
async def test_tls_cancel_at_each_suspension(transport: AiohttpTransport, certificates: Path) -> None:
    """Cancelled within the reading of certificates and the handshake, nothing is left either."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"x"))
        await peer.wait_closed()

    async with tls_server(certificates, script) as server:
        endpoint = at(server, "https", ca_file=str(certificates / "ca.pem"))
        number = 0
        while await open_cancelled_at(transport, endpoint, POST, number):
            number += 1
            assert transport.statistics().in_use == 0
        assert number >= 3
        await until(lambda: server.open == 0)


# ------------------------------------------------------------------------- parts of this implementation


class ScriptedResolver(AbstractResolver):
    """Answers with what the list says: addresses, an error, or (None) silence."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        answer = self._answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def close(self) -> None:
        pass


@on_both_loops
async def test_resolver_keeps_the_last_good_answer() -> None:
    """A name service that fails or hangs does not lose an engine that was found before."""
    found, moved = [{"host": "127.0.0.1"}], [{"host": "127.0.0.2"}]
    resolver = LastGoodResolver(
        ScriptedResolver(OSError("down"), found, OSError("down"), None, moved, OSError("down"), None), 0.02
    )
    with pytest.raises(OSError, match="down"):
        await resolver.resolve("engine", 80)
    assert [await resolver.resolve("engine", 80) for _ in range(5)] == [found, found, found, moved, moved]
    with pytest.raises(OSError, match="another not resolved within"):
        await resolver.resolve("another", 80)


@on_both_loops
@pytest.mark.parametrize("answer", [OSError("no such name"), None])
async def test_unresolvable_name(answer: OSError | None) -> None:
    """A name that is unknown, or that nobody looks up in time, is ConnectFailed."""
    transport = AiohttpTransport(connect_timeout=0.05, resolver=ScriptedResolver(answer))
    with pytest.raises(ConnectFailed):
        await transport.open(Endpoint("http://engine.invalid"), POST)
    await transport.aclose()


EXPECTED_MEANING = {
    "ClientConnectionError": ConnectionBroken,
    "ClientConnectionResetError": ConnectionBroken,
    "ClientConnectorCertificateError": ConnectFailed,
    "ClientConnectorDNSError": ConnectFailed,
    "ClientConnectorError": ConnectFailed,
    "ClientConnectorSSLError": ConnectFailed,
    "ClientHttpProxyError": ResponseInvalid,
    "ClientOSError": ConnectionBroken,
    "ClientPayloadError": ConnectionBroken,
    "ClientProxyConnectionError": ConnectFailed,
    "ClientResponseError": ResponseInvalid,
    "ClientSSLError": ConnectFailed,
    "ConnectionTimeoutError": ConnectFailed,
    "ContentTypeError": ResponseInvalid,
    "InvalidURL": ConnectFailed,
    "InvalidUrlClientError": ConnectFailed,
    "InvalidUrlRedirectClientError": ResponseInvalid,
    "NonHttpUrlClientError": ConnectFailed,
    "NonHttpUrlRedirectClientError": ResponseInvalid,
    "RedirectClientError": ResponseInvalid,
    "ServerConnectionError": ConnectionBroken,
    "ServerDisconnectedError": ConnectionBroken,
    "ServerFingerprintMismatch": ConnectFailed,
    "ServerTimeoutError": ConnectionBroken,
    "SocketTimeoutError": ConnectionBroken,
    "TooManyRedirects": ResponseInvalid,
    "UnixClientConnectorError": ConnectFailed,
    "UploadAbortedError": ConnectionBroken,
    "WSServerHandshakeError": ResponseInvalid,
}


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_map_of_errors_is_complete() -> None:
    """Every error class of aiohttp has a meaning; a new one in a new version fails here until it has."""
    kinds = {kind for kind in subclasses(aiohttp.ClientError) if kind.__module__.startswith("aiohttp.")}
    meanings = {
        kind.__name__: next(_MEANING[ancestor] for ancestor in kind.__mro__ if ancestor in _MEANING)
        for kind in kinds - {aiohttp.ClientError}
    }
    assert meanings == EXPECTED_MEANING


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (HttpProcessingError(message="bad\nline"), ResponseInvalid),
        (aiohttp.EofStream(), ConnectionBroken),
        (ssl.SSLError("decryption failed"), ConnectionBroken),
        (TimeoutError(), ConnectionBroken),
        (ConnectionResetError(104, "reset"), ConnectionBroken),
        (RuntimeError("unheard of"), ConnectionBroken),
    ],
)
def test_translation(error: Exception, meaning: type[TransportError]) -> None:
    """System errors are mapped as well; the text is one line and never empty, the cause is kept."""
    translated = translate(error)
    assert type(translated) is meaning
    assert translated.__cause__ is error
    assert str(translated)
    assert "\n" not in str(translated)
