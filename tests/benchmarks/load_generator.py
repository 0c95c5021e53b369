"""A load generator as cheap as Python allows: a closed loop on keep-alive connections, no HTTP library.

Every body is distinct (a cache anywhere would flatter whoever has it), valid JSON, and of real words, so
that a tokenizer has its real work. Answers are checked: status 200, whole body, all events of a stream.
"""

import asyncio
import random
import re
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from tests.benchmarks.measuring import pin
from tests.benchmarks.stub_engine import EVENTS, PACED, PACED_EVENTS

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent."""

    name: str
    size: int
    """Bytes of a request body."""
    concurrency: int
    stream: bool = False
    paced: bool = False

    @property
    def events(self) -> int:
        """Content events that each answer must have."""
        return 0 if not self.stream else PACED_EVENTS if self.paced else EVENTS


@dataclass(frozen=True, slots=True)
class Job:
    port: int
    key: str
    case: Case
    requests: int
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    requests: int
    events: int
    wrong: list[str]
    wall: float
    latencies: list[float]
    """Seconds, sorted."""
    first: list[float]
    """Seconds to the first bytes of the body of a stream, sorted."""


class Bodies:
    """Distinct JSON bodies of one size."""

    def __init__(self, case: Case, seed: int) -> None:
        rng = random.Random(seed)
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(4000)]
        common = ["the", "water", "of", "and", "a", "gate", "to", "in", "canal", "river", "which", "holds"]
        self._text = " ".join(rng.choice(common if rng.random() < 0.6 else words) for _ in range(20_000))
        self._start = b'{"model":"m","max_tokens":%d,' % (case.events or 64)
        self._start += b'"stream":true,' if case.stream else b""
        self._start += b'"messages":[{"role":"user","content":"' + (PACED + b" " if case.paced else b"")
        self._end = b'"}]}'
        self._room = case.size - len(self._start) - len(self._end) - 9
        self._rng = rng
        self._made = 0

    def next(self) -> bytes:
        self._made += 1
        at = self._rng.randrange(len(self._text) - self._room)
        text = f"{self._made:08x} {self._text[at : at + self._room]}".encode()
        return self._start + text + self._end


class Client(asyncio.Protocol):
    """One connection: sends, reads to the end, sends again."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self.idle = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self) -> None:
        body = self._run.take()
        self.idle = body is None
        if body is None:
            self._transport.close()
            return
        self._head = b""
        self._need = -1
        self._events = 0
        self._tail = b""
        self._first = 0.0
        self._sent = time.perf_counter()
        self._transport.write(self._run.head % len(body) + body)

    def data_received(self, data: bytes) -> None:
        if self._need == -1:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end == -1:
                return
            if not self._head.startswith(b"HTTP/1.1 200 "):
                self._run.fail(self._head[:300].decode("latin-1"))
                self._transport.abort()
                return
            length = _LENGTH.search(self._head, 0, end + 2)
            self._need = int(length[1]) if length else 0
            self._chunked = length is None
            data = self._head[end + 4 :]
        if self._chunked:
            if data and not self._first:
                self._first = time.perf_counter()
            joined = self._tail + data
            self._events += joined.count(b"\n\n") - self._tail.count(b"\n\n")
            self._tail = joined[-5:]
            if self._tail == b"0\r\n\r\n":
                self._done()
        else:
            self._need -= len(data)
            if self._need <= 0:
                self._done()

    def _done(self) -> None:
        self._run.finished(self._sent, self._first, self._events)
        self.send()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.idle:
            self._run.fail(f"connection lost: {exc}")
        self._run.left(self)


class Run:
    """One job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._bodies = Bodies(job.case, job.seed)
        self._left = job.requests
        self._wrong: list[str] = []
        self._latencies: list[float] = []
        self._first: list[float] = []
        self._events = 0
        self._clients = 0
        self.head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer %s\r\n"
            b"content-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\n" % job.key.encode()
        ) + b"content-length: %d\r\n\r\n"

    async def result(self) -> Result:
        loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._clients = self._job.case.concurrency
        # All connect before anybody sends. Else the first ones keep the subject busy, the last ones wait for
        # theirs to be accepted, and p99 tells of that and of nothing else.
        clients = [
            (await loop.create_connection(lambda: Client(self), "127.0.0.1", self._job.port))[1]
            for _ in range(self._clients)
        ]
        await asyncio.sleep(0.02)  # for the subject to accept them
        started = time.perf_counter()
        self._end = started + self._job.seconds
        for client in clients:
            client.send()
        async with asyncio.timeout(self._job.seconds + 30):
            await self._over.wait()
        return Result(
            len(self._latencies),
            self._events,
            self._wrong,
            time.perf_counter() - started,
            sorted(self._latencies),
            sorted(self._first),
        )

    def take(self) -> bytes | None:
        """The next body; None when count or time is used up."""
        if self._left == 0 or time.perf_counter() > self._end:
            return None
        self._left -= 1
        return self._bodies.next()

    def finished(self, sent: float, first: float, events: int) -> None:
        if events < self._job.case.events:
            self.fail(f"{events} events")
        self._latencies.append(time.perf_counter() - sent)
        self._events += self._job.case.events
        if first:
            self._first.append(first - sent)

    def fail(self, what: str) -> None:
        if len(self._wrong) < 5:
            self._wrong.append(what)

    def left(self, client: Client) -> None:
        self._clients -= 1
        if self._clients == 0:
            self._over.set()


def generate(jobs: Connection, cpu: int | None) -> None:
    """Runs jobs until it is told None."""
    pin(cpu)
    while (job := jobs.recv()) is not None:
        jobs.send(uvloop.run(Run(job).result()))
