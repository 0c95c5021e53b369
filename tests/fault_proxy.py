"""A TCP proxy that harms what passes through it, and counts what it did.

Set the faults on it at any time; they hold for what passes from then on. Each has a counter, so that a test
can prove that its fault took effect:

    latency      seconds that every piece is held back, each way    `delayed`
    bandwidth    bytes per second, each way                         `delayed`
    black_hole   bytes are taken and never passed on                `swallowed`
    slicer       pieces of so many bytes, each by itself            `pieces`
    cut_after    replies are passed on for so many bytes more, then the connection is reset   `cuts`
    tamper       what makes of a reply another one                  `tampered`
    refuse()     nobody listens until `listen()`                    the caller's ConnectionRefusedError
    reset()      RST on every connection that there is              `resets`
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

PIECE = 65_536


class FaultProxy:
    """`async with FaultProxy(port) as proxy: ... proxy.port`."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.latency = 0.0
        self.bandwidth: float | None = None
        self.black_hole = False
        self.slicer: int | None = None
        self.cut_after: int | None = None
        self.tamper: Callable[[bytes], bytes] | None = None
        self.connections = self.delayed = self.swallowed = self.pieces = self.cuts = self.resets = 0
        self.tampered = 0
        self.up = self.down = 0
        """Bytes passed on to the server, and back."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Nobody listens any more; connections that there are go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    def reset(self) -> None:
        """End all connections with RST."""
        for writer in list(self._writers):
            self._abort(writer)
            self.resets += 1

    def _abort(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        self._writers.discard(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        mine = asyncio.current_task()
        assert mine is not None
        self._tasks.add(mine)
        other = None
        self._writers.add(writer)
        try:
            far_reader, other = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(other)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, other, back=False))
                both.create_task(self._pass(far_reader, writer, back=True))
        except* (OSError, EOFError, asyncio.CancelledError):
            pass  # one side is gone: so is the other
        finally:
            for each in (writer, other):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()
            self._tasks.discard(mine)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        """Pieces are held back side by side: latency is that of a long line, not of a narrow one."""
        loop = asyncio.get_running_loop()
        line: deque[tuple[float, bytes]] = deque()
        more = asyncio.Event()

        async def deliver() -> None:
            while True:
                while not line:
                    more.clear()
                    await more.wait()
                due, piece = line.popleft()
                if due > loop.time():
                    self.delayed += 1
                    await asyncio.sleep(due - loop.time())
                if self.bandwidth:
                    self.delayed += 1
                    await asyncio.sleep(len(piece) / self.bandwidth)
                await self._write(writer, piece, back)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(deliver())
            while data := await reader.read(PIECE):
                if self.black_hole:
                    self.swallowed += len(data)
                    continue
                size = self.slicer or len(data)
                for at in range(0, len(data), size):
                    line.append((loop.time() + self.latency, data[at : at + size]))
                    more.set()
            raise EOFError

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes, back: bool) -> None:
        if self.black_hole:
            self.swallowed += len(piece)
            return
        if back and self.tamper is not None:
            given, piece = piece, self.tamper(piece)
            self.tampered += piece != given
        if back and self.cut_after is not None and len(piece) >= self.cut_after:
            piece = piece[: self.cut_after]
            self.cut_after = None
            self.cuts += 1
            writer.write(piece)
            self.down += len(piece)
            if piece:
                await writer.drain()
            self._abort(writer)
            raise EOFError
        if back and self.cut_after is not None:
            self.cut_after -= len(piece)
        writer.write(piece)
        self.pieces += 1
        if back:
            self.down += len(piece)
        else:
            self.up += len(piece)
        await writer.drain()
        if self.slicer:
            await asyncio.sleep(0)
