"""A stub engine as cheap as Python allows: prepared bytes, no coroutine per request.

It speaks enough of OpenAI's dialect to stand behind a gateway: any GET is a healthy, empty answer; a POST
with `"stream":true` is a stream of EVENTS chunks, each an HTTP chunk and a write of its own; any other POST
is one fixed body. A prompt that holds `PACED` gets its events one per PACE seconds instead of one per turn
of the loop.
"""

import asyncio
import re
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from tests.benchmarks.measuring import pin

EVENTS = 128
PACED_EVENTS = 50
PACE = 0.020
PACED = b"pace-20ms"

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STREAM = re.compile(rb'"stream" *: *true')


def _chunk(payload: bytes) -> bytes:
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _content(text: str, finish: str = "null") -> bytes:
    return (
        b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
        b'"created":1750000000,"model":"m","choices":[{"index":0,"delta":{"content":"%s"},'
        b'"logprobs":null,"finish_reason":%s}],"usage":null}' % (text.encode(), finish.encode())
    )


_JSON = b"content-type: application/json\r\n"
_BODY = (
    b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1750000000,'
    b'"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"completion_tokens":40}}' % (b"water " * 40)
)
PLAIN = b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (_JSON, len(_BODY), _BODY)
_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
HEALTHY = b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (_JSON, len(_MODELS), _MODELS)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = _chunk(_content("water "))
END = (
    _chunk(_content("", '"stop"'))
    + _chunk(
        b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
        b'"created":1750000000,"model":"m","choices":[],'
        b'"usage":{"completion_tokens":128}}'
    )
    + _chunk(b"[DONE]")
    + b"0\r\n\r\n"
)


class Stub(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = b""
        self._closed = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        self._closed = True

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head == -1:
            return
        length = _LENGTH.search(self._buffer, 0, head + 2)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return
        request, self._buffer = self._buffer[:end], self._buffer[end:]
        if request.startswith(b"GET "):
            self._transport.write(HEALTHY)
        elif _STREAM.search(request, head):
            self._transport.write(HEAD)
            if PACED in request:
                self._loop.call_later(PACE, self._pace, PACED_EVENTS)
            else:
                self._loop.call_soon(self._step, EVENTS)
        else:
            self._transport.write(PLAIN)

    def _step(self, left: int) -> None:
        if self._closed:
            return
        if left == 0:
            self._transport.write(END)
            return
        self._transport.write(EVENT)
        self._loop.call_soon(self._step, left - 1)

    def _pace(self, left: int) -> None:
        if self._closed:
            return
        if left == 0:
            self._transport.write(END)
            return
        self._transport.write(EVENT)
        self._loop.call_later(PACE, self._pace, left - 1)


def serve(answers: Connection, cpu: int | None) -> None:
    """Runs until it is killed; sends its port first."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Stub(loop), "127.0.0.1", 0, backlog=1024)
        answers.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    pin(cpu)
    uvloop.run(main())
