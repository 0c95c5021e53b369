"""How answers end: what is whole is told as whole, and what was cut is never told as whole.

Engines' answers are recorded, and given again up to every place: behind each event and within it, with the
body ended as HTTP ends it (a process that thinks it is done) and with the connection dropped (one that died).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from backends.contract import Endpoint, GenerateRequest
from backends.registry import REGISTRY
from backends.simulated.server import serve
from backends.transport import AiohttpTransport
from tests.backends.conformance.conftest import Fleet, settings
from tests.backends.conformance.engines import ENGINES, Ends, Engine
from tests.backends.conformance.observing import Refused, Seen, observe
from tests.end_to_end.world import tokenizer, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

every_engine = pytest.mark.parametrize("name", ENGINES)
both_ways = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])

TEXT = "ab c"
MESSAGES = [{"role": "user", "content": "Hi"}]


# ------------------------------------------------------------------------------------------- the recorder


async def recorded(row: Engine, *, stream: bool) -> bytes:
    """The body that the engine sends when it says `TEXT`."""
    adapter = REGISTRY.adapter(row.kind, row.options)
    request = GenerateRequest(
        request_id="recorded",
        model=row.served,
        stream=stream,
        messages=MESSAGES,
        rendered=tokenizer().render(MESSAGES).removeprefix("<|begin_of_text|>"),
        max_tokens=50,
    )
    transport = AiohttpTransport()
    options = {"tokenizer": tokenizer(), "model": row.served, "says": TEXT, "spells": True, **row.server}
    async with serve(row.kind, "h200", speed=1000.0, **options) as engine:
        exchange = await transport.open(Endpoint(engine.url), adapter.encode(request))
        body = b""
        async with asyncio.timeout(10):
            while data := await exchange.events():
                body += data
    await transport.aclose()
    assert exchange.status == 200
    return body


class Player:
    """A server that gives every request the same bytes."""

    def __init__(self) -> None:
        self.body = b""
        self.streamed = True
        self.ends = True
        """Whether it ends the body, rather than only the connection."""
        self.url = ""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next(
                (line[15:] for line in head.split(b"\r\n") if line[:15] == b"content-length:"), b"0"
            )
            await reader.readexactly(int(length))
            kind = b"text/event-stream" if self.streamed else b"application/json"
            framed = b"%x\r\n%b\r\n" % (len(self.body), self.body) if self.body else b""
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n"
                b"transfer-encoding: chunked\r\n\r\n%b" % (kind, framed + b"0\r\n\r\n" * self.ends)
            )
            await writer.drain()
        writer.close()


@dataclass(frozen=True)
class Players:
    """Recorded engines behind one gateway."""

    by_engine: Mapping[str, Player]
    http: httpx.AsyncClient

    async def play(self, name: str, body: bytes, *, stream: bool, ends: bool) -> Seen | Refused:
        """What a client sees where the engine sends `body`."""
        player = self.by_engine[name]
        player.body, player.streamed, player.ends = body, stream, ends
        asked: dict[str, Any] = {"model": name, "messages": MESSAGES, "max_tokens": 50}
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        return await observe(self.http, asked)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def players(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Players]:
    async with contextlib.AsyncExitStack() as stack:
        by_engine, engines = {}, {}
        for name, row in ENGINES.items():
            player = by_engine[name] = Player()
            server = await stack.enter_async_context(await asyncio.start_server(player, "127.0.0.1", 0))
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            engines[name] = {"kind": row.kind, "served": row.served, "url": url}
        here = await stack.enter_async_context(
            world(tmp_path_factory.mktemp("players"), engines, **settings(ENGINES))
        )
        yield Players(by_engine, await stack.enter_async_context(here.http()))


# ------------------------------------------------------------------------------------------------- the ends


def cuts(body: bytes) -> Iterator[tuple[list[Any], int]]:
    """Places in a stream, each with the events that are whole before it: within each event and behind it."""
    seen: list[Any] = []
    at = 0
    yield [], 0
    for event in body.split(b"\n\n")[:-1]:
        yield list(seen), at + len(event) // 2
        at += len(event) + 2
        data = event.strip().removeprefix(b"data: ")
        seen.append("[DONE]" if data == b"[DONE]" else json.loads(data))
        yield list(seen), at


def ended_well(row: Engine, events: list[Any], *, inside: bool, ends: bool) -> bool:
    """Whether an answer of these events is whole, as docs/engines.md says."""
    told = [event for event in events if isinstance(event, dict)]
    reasons = {choice.get("finish_reason") for event in told for choice in event.get("choices", ())}
    match row.ends:
        case Ends.MARKER:
            return "[DONE]" in events or (ends and any(reasons))
        case Ends.GENERATED_TEXT:
            return any(event.get("generated_text") is not None for event in told)
        case Ends.BODY:
            return ends and not inside and bool(events)
        case Ends.REASON:
            return ends and not inside and any(event["finish_reason"] != "None" for event in told)


def was_cut(seen: Seen | Refused, text: str = TEXT) -> bool:
    """An error to the client, behind a beginning of the text at most."""
    if isinstance(seen, Refused):
        return seen.status >= 500
    return seen.error is not None and all(text.startswith(each.text) for each in seen.choices.values())


@every_engine
@pytest.mark.parametrize("ends", [True, False], ids=["body ends", "connection drops"])
async def test_a_stream_up_to_every_place(players: Players, name: str, ends: bool) -> None:
    row = ENGINES[name]
    body = await recorded(row, stream=True)
    places = list(cuts(body))
    whole = 0
    for events, at in places:
        seen = await players.play(name, body[:at], stream=True, ends=ends)
        inside = at > 0 and not body[:at].endswith(b"\n\n")
        if ended_well(row, events, inside=inside, ends=ends):
            whole += 1
            assert isinstance(seen, Seen), (seen, body[:at])
            assert seen.error is None, body[:at]
            assert seen.only.text == TEXT or row.ends is Ends.BODY
        else:
            assert was_cut(seen), (seen, body[:at])
    assert whole < len(places) - 1
    assert whole >= (1 if ends else row.ends in (Ends.MARKER, Ends.GENERATED_TEXT))


@every_engine
async def test_a_whole_answer_up_to_every_place(players: Players, name: str) -> None:
    body = await recorded(ENGINES[name], stream=False)
    for at in (0, 1, len(body) // 2, len(body) - 1):
        for ends in (True, False):
            assert was_cut(await players.play(name, body[:at], stream=False, ends=ends)), body[:at]
    assert was_cut(await players.play(name, body, stream=False, ends=False))
    seen = await players.play(name, body, stream=False, ends=True)
    assert isinstance(seen, Seen)
    assert seen.only.text == TEXT


GAVE_UP = {
    Ends.MARKER: ("abort", "error", "cancelled", "timeout"),
    Ends.REASON: ("cancelled", "timeout"),
}


@both_ways
@pytest.mark.parametrize(
    ("name", "word"),
    [(name, word) for name, row in ENGINES.items() for word in GAVE_UP.get(row.ends, ())],
)
async def test_an_engine_that_says_that_it_gave_up(
    players: Players, name: str, word: str, stream: bool
) -> None:
    """Its reason to end is no end."""
    body = await recorded(ENGINES[name], stream=stream)
    given_up = body.replace(b'"finish_reason":"stop"', b'"finish_reason":"%b"' % word.encode())
    assert given_up != body
    assert was_cut(await players.play(name, given_up, stream=stream, ends=True))


@every_engine
@both_ways
async def test_an_engine_that_fails(fleet: Fleet, name: str, stream: bool) -> None:
    """In its own way, after any number of events: an error event, an error body, a cut."""
    fleet.recite(name, TEXT, spelled=True)
    for after in range(3):
        fleet.arm(name, f"error_after={after}")
        seen = await fleet.ask(name, stream=stream)
        fleet.clear(name)
        assert was_cut(seen), (after, seen)
        assert isinstance(seen, Seen) == (stream and after > 0), (after, seen)
