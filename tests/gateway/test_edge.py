"""The edge over real sockets: upgrades, trailers and chunk extensions. Heads: `end_to_end/test_edges.py`."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway import edge
from gateway.api.asgi import Receive, Scope, Send, send_json
from tests.backends.loops import on_both_loops

BODY = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
"""A body that is a request to who has lost the framing."""
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
EARLY = CHUNKED.replace(b"/ ", b"/early ", 1)
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
UPGRADES = {
    "h2c": b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n",
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "twice": b"upgrade: TLS/1.0\r\nUPGRADE: h2c\r\nconnection: upgrade\r\n",
}


@dataclass
class Edge:
    """An EdgeProtocol listener whose application says what it was asked."""

    asked: list[dict[str, Any]]
    port: int = 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/early":
            await send_json(scope, send, 401, {})
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        else:
            return
        headers = [[name.decode(), value.decode()] for name, value in scope["headers"]]
        row = {"method": scope["method"], "path": scope["path"], "headers": headers, "body": body.decode()}
        self.asked.append(row)
        await send_json(scope, send, 200, row)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(10):
                yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def exchange(self, *writes: bytes) -> bytes:
        """What comes back until the edge closes; each write is a read of its own to the edge, or nearly."""
        async with self.connection() as (reader, writer):
            for write in writes:
                writer.write(write)
                await asyncio.sleep(0)
                await asyncio.sleep(0.0005 if len(writes) > 1 else 0)
            return await reader.read()

    async def flood(self, head: bytes, block: bytes, limit: int = 8 * 1024 * 1024) -> tuple[int, bytes]:
        """Send `head` and then `block` until the edge closes: bytes sent, and what came back."""
        sent, got = 0, b""
        async with self.connection() as (reader, writer):
            writer.write(head)
            with contextlib.suppress(ConnectionError):
                while sent < limit and not reader.at_eof() and not writer.is_closing():
                    writer.write(block)
                    sent += len(block)
                    await writer.drain()
                    await asyncio.sleep(0)
            with contextlib.suppress(ConnectionError):
                got = await reader.read()
        return sent, got


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Edge]:
    here = Edge([])
    config = uvicorn.Config(
        here.app,
        interface="asgi3",
        http=edge.EdgeProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=1,
    )
    state, loop = ServerState(), asyncio.get_running_loop()
    config.load()
    server = await loop.create_server(lambda: edge.EdgeProtocol(config, state, {}, loop), "127.0.0.1", 0)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        async with asyncio.timeout(5):
            await server.wait_closed()
            if state.tasks:
                await asyncio.wait(state.tasks)


def whole(sent: bytes) -> list[bytes]:
    return [sent]


def bytewise(sent: bytes) -> list[bytes]:
    """Byte by byte around the end of the first head."""
    end = sent.index(b"\r\n\r\n") + 4
    around = range(end - 6, end + 6)
    return [sent[: end - 6], *(sent[at : at + 1] for at in around), sent[end + 6 :]]


def halved(sent: bytes) -> list[bytes]:
    """The first head in one write, the rest in another: what smuggled a request."""
    end = sent.index(b"\r\n\r\n") + 4
    return [sent[:end], sent[end:]]


def framed(upgrade: bytes, *, chunked: bool) -> bytes:
    head = b"POST /asked?a=b HTTP/1.1\r\nHost: x\r\nx-empty:\r\nx-two:  a  \r\nx-two: b\r\n" + upgrade
    if chunked:
        return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    return head + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.mark.parametrize("split", [whole, halved, bytewise])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@on_both_loops
async def test_an_upgrade_is_ignored_and_the_body_is_the_body(
    upgrade: bytes, chunked: bool, split: Callable[[bytes], list[bytes]]
) -> None:
    """As the same request without it, but for the field; what follows on the connection is served too."""
    async with listening() as here:
        await here.exchange(framed(b"", chunked=chunked) + LAST)
        plain, last = here.asked
        here.asked.clear()
        got = await here.exchange(*split(framed(upgrade, chunked=chunked) + LAST))
        assert got.count(b"HTTP/1.1 200 OK") == 2
        upgraded, after = here.asked
        offered = [line.partition(b":")[0].decode().lower() for line in upgrade.split(b"\r\n")]
        kept = [field for field in upgraded["headers"] if field[0] not in offered]
        assert "upgrade" not in dict(upgraded["headers"])
        assert {**upgraded, "headers": kept} == plain
        assert (upgraded["body"], after) == (BODY.decode(), last)


@on_both_loops
async def test_pipelined_upgrades_are_each_answered_in_turn() -> None:
    one = framed(UPGRADES["h2c"], chunked=False)
    async with listening() as here:
        got = await here.exchange(LAST.replace(b"connection: close\r\n", b"") + one * 20 + LAST)
        assert got.count(b"HTTP/1.1 200 OK") == 22
        assert [row["path"] for row in here.asked] == ["/last", *["/asked"] * 20, "/last"]


@pytest.mark.parametrize("follows", [b"", BODY], ids=["alone", "followed"])
@on_both_loops
async def test_connect_is_refused_and_nothing_after_it_is_read(follows: bytes) -> None:
    async with listening() as here:
        for more in (b"", UPGRADES["h2c"]):
            got = await here.exchange(b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n" + more + b"\r\n" + follows)
            assert got.startswith(b"HTTP/1.1 400 ")
            assert got.count(b"HTTP/1.1 ") == 1
        assert here.asked == []


@on_both_loops
async def test_a_bad_head_with_an_upgrade_is_refused() -> None:
    async with listening() as here:
        head = framed(UPGRADES["h2c"] + b"content-length: 3\r\n", chunked=True)
        assert (await here.exchange(head)).startswith(b"HTTP/1.1 400 ")
        many = framed(UPGRADES["h2c"] + b"a: b\r\n" * 100, chunked=True)
        assert (await here.exchange(many)).startswith(b"HTTP/1.1 431 ")
        assert (await here.exchange(b"GET x HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert here.asked == []


FLOODS = {
    "trailers": (b"2\r\n{}\r\n0\r\n", b"a: b\r\n" * 10_000),
    "one trailer": (b"0\r\na: ", b"b" * 60_000),
    "extension": (b"5;", b"a" * 60_000),
    "extensions of small chunks": (b"", b"1;" + b"a" * 10_000 + b"\r\nx\r\n"),
    "empty lines after the request": (b"0\r\n\r\n", b"\r\n" * 30_000),
}


@pytest.mark.parametrize(("start", "block"), FLOODS.values(), ids=FLOODS)
@on_both_loops
async def test_a_request_without_end_is_cut(start: bytes, block: bytes) -> None:
    """Whether it is being read or has had its answer; then no second one is written."""
    async with listening() as here:
        for head in (CHUNKED, EARLY):
            sent, got = await here.flood(head + start, block)
            assert sent < 8 * 1024 * 1024, "the edge closes"
            assert got.count(b"HTTP/1.1 ") <= 1  # none where what was under way reset the connection
            if head == EARLY:
                assert got[:13] in (b"", b"HTTP/1.1 401 ")


@on_both_loops
async def test_trailers_are_dropped() -> None:
    """Neither this request's headers nor the next's; the bound answers with the envelope."""
    sent = CHUNKED + b"2;a=b\r\n{}\r\n0\r\nauthorization: Bearer k\r\nhost: y\r\n\r\n"
    async with listening() as here:
        got = await here.exchange(*bytewise(sent + LAST))
        assert got.count(b"HTTP/1.1 200 OK") == 2
        assert here.asked[0]["headers"] == [["host", "x"], ["transfer-encoding", "chunked"]]
        assert here.asked[1]["headers"] == [["host", "x"], ["connection", "close"]]


@on_both_loops
async def test_what_is_too_much_framing_gets_the_envelope() -> None:
    async with listening() as here, here.connection() as (reader, writer):
        writer.write(CHUNKED + b"2\r\n{}\r\n0\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"a: " + b"b" * edge.MAX_FRAMING)
        got = await reader.read()
        assert got.startswith(b"HTTP/1.1 400 ")
        assert "trailers" in json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert here.asked == []


@on_both_loops
async def test_a_body_in_chunks_of_one_byte_is_read() -> None:
    """Its framing is five times its content, and many times the bound."""
    size = 100_000
    async with listening() as here, here.connection() as (reader, writer):
        writer.write(CHUNKED)
        for _ in range(0, size, 1000):
            writer.write(b"1\r\nx\r\n" * 1000)
            await writer.drain()
        writer.write(b"0\r\n\r\n" + LAST)
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 2
        assert here.asked[0]["body"] == "x" * size


@on_both_loops
async def test_an_answered_request_that_drips_is_not_waited_for() -> None:
    """Only a new request keeps an idle connection, not any byte."""
    async with listening() as here, here.connection() as (reader, writer):
        writer.write(EARLY + b"2\r\n{}\r\n0\r\n")
        await reader.readuntil(b"{}")
        async with asyncio.timeout(8):
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"a")
                    await asyncio.sleep(0.01)
