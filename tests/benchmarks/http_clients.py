"""What an upstream HTTP client costs the gateway: CPU per request and per streamed event.

    python -m tests.benchmarks.http_clients [--smoke]

A stub engine in a process of its own answers with prepared bytes: one JSON body, or a stream of 128 events.
The clients run one after another in this process, round after round, and only this process's CPU is
counted. Quote the ratios: absolute times are those of this machine at this moment.
"""

import argparse
import asyncio
import multiprocessing
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import httpx
import uvloop

from backends.contract import Endpoint, HttpRequest
from backends.transport import AiohttpTransport

EVENTS = 128
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 950 + b'"}]}'
EVENT = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"water "}}]}' + b" " * 120 + b"\n\n"
)

Client = Callable[[str, int], Awaitable[None]]
"""Sends one request to the path and reads its answer to the end, that many at a time."""


def stub(answers: Connection) -> None:
    """The engine: keeps connections alive, answers `/plain` with one body and `/stream` with chunks."""
    plain_body = b'{"choices":[]}' + b" " * 519
    plain = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
        plain_body
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                lines = request.lower().split(b"\r\n")
                length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                if b"/stream " in lines[0]:
                    writer.write(head)
                    for _ in range(EVENTS):
                        writer.write(chunk)
                        await asyncio.sleep(0)
                    writer.write(b"0\r\n\r\n")
                else:
                    writer.write(plain + plain_body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        answers.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(main())


async def measure(send: Callable[[str], Awaitable[int]], path: str, requests: int, concurrency: int) -> float:
    """CPU seconds of this process per request."""
    left = requests

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            assert await send(path) > 500

    before = resource.getrusage(resource.RUSAGE_SELF)
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / requests


async def compare(
    url: str, *, requests: int, streams: int, concurrency: int, rounds: int
) -> dict[str, list[float]]:
    """{"httpx plain": [seconds per request of each round], ...}"""
    transport = AiohttpTransport(connect_timeout=5)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False, timeout=30) as client:

        async def with_httpx(path: str) -> int:
            async with client.stream("POST", path, content=BODY) as answer:
                return sum([len(piece) async for piece in answer.aiter_raw()])

        async def with_transport(path: str) -> int:
            exchange = await transport.open(Endpoint(url), HttpRequest("POST", path, {}, BODY))
            size = 0
            while piece := await exchange.events():
                size += len(piece)
            return size

        results: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, send in (("httpx", with_httpx), ("transport", with_transport)):
                for path, count in (("/plain", requests), ("/stream", streams)):
                    await measure(send, path, min(count, 2 * concurrency), concurrency)
                    figure = await measure(send, path, count, concurrency)
                    results.setdefault(f"{name} {path[1:]}", []).append(figure)
    await transport.aclose()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="seconds, not figures")
    smoke = parser.parse_args().smoke
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    engine = context.Process(target=stub, args=(there,), daemon=True)
    engine.start()
    try:
        url = f"http://127.0.0.1:{here.recv()}"
        started = time.monotonic()
        sizes = (
            {"requests": 60, "streams": 8, "concurrency": 4, "rounds": 1}
            if smoke
            else {"requests": 3000, "streams": 300, "concurrency": 64, "rounds": 5}
        )
        results = uvloop.run(compare(url, **sizes))
    finally:
        engine.kill()
        engine.join()
    print(f"{sizes}, {time.monotonic() - started:.0f} s")
    print(f"{'':10} {'httpx':>12} {'transport':>12} {'ratio':>8}")
    for path, unit, divisor in (("plain", "request", 1), ("stream", "event", EVENTS)):
        ours, theirs = results[f"transport {path}"], results[f"httpx {path}"]
        ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
        a, b = (1e6 * statistics.median(side) / divisor for side in (theirs, ours))
        print(f"us/{unit:7} {a:12.1f} {b:12.1f} {ratio:7.1f}x")


if __name__ == "__main__":
    main()
