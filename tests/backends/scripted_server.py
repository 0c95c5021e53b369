"""A raw TCP (or TLS) server that does what a script says: the other side of every transport test.

Each connection runs the next script of the list, the last one for all that follow. A script is an async
function of a `Peer`; it reads requests, sends bytes, good or bad, and ends the connection in its own way.
When a script returns, the connection is closed. Nothing here knows HTTP but `Peer.request`.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

Script = Callable[["Peer"], Awaitable[None]]

PATIENCE = 5.0
"""Seconds until a script that waits for its client fails the test."""


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """The server's end of one connection."""

    def __init__(
        self, server: "ScriptedServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.sent = 0
        """Bytes that were handed to the kernel."""
        self._server = server
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=0)  # so that `send` returns when the kernel has it all

    async def request(self) -> Request:
        """Read one request with its body. Raises EOFError if the client closes instead."""
        async with asyncio.timeout(PATIENCE):
            try:
                head = await self._reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                raise EOFError("the client closed") from None
            line, *fields = head.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = line.split(" ")
        request = Request(method, target, headers, body)
        self._server.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        """Send and wait until the kernel has taken it all. Raises ConnectionError once the client left."""
        if self._writer.is_closing():  # uvloop would raise RuntimeError
            raise ConnectionResetError("the client is gone")
        self._writer.write(data)
        await self._writer.drain()
        self.sent += len(data)

    async def wait_closed(self) -> None:
        """Wait until the client ends the connection, in whatever way."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while await self._reader.read(65536):
                    pass
        self._server.closes_seen += 1

    def reset(self) -> None:
        """End with a TCP reset."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """End with a FIN."""
        self._writer.close()


class ScriptedServer:
    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.connections = 0
        self.open = 0
        self.closes_seen = 0
        """Connections that a script saw the client end (`Peer.wait_closed`)."""
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.port = 0
        self._scripts = scripts
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self.open += 1
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await script(Peer(self, reader, writer))
        except (EOFError, ConnectionError):
            pass  # the client went away, which is what many tests are about
        except asyncio.CancelledError:
            pass  # the test is over
        except BaseException as error:
            self.errors.append(error)
        finally:
            self._tasks.discard(task)
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError, asyncio.CancelledError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def scripted_server(
    *scripts: Script, tls: ssl.SSLContext | None = None, send_buffer: int | None = None
) -> AsyncIterator[ScriptedServer]:
    """Serve on a free loopback port. Afterwards, errors of the scripts fail the test.

    `send_buffer`: bytes the kernel buffers per connection, for tests that watch a sender stall.
    """
    state = ScriptedServer(scripts)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # connections inherit it
    state.port = listener.getsockname()[1]
    server = await asyncio.start_server(state._serve, sock=listener, ssl=tls)
    try:
        yield state
    finally:
        server.close()
        for task in list(state._tasks):
            if task is not None:
                task.cancel()
        async with asyncio.timeout(PATIENCE):
            while state.open or state._tasks:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)
    if state.errors:
        raise state.errors[0]
