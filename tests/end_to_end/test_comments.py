"""Streams that say how they stand while nothing comes: in line, at an engine, in the midst of an answer."""

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.world import World, world

SLOW = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
ONE = {"pool": {"limits": {"in_flight": 1}}}
ALOUD = [{"name": "aloud", "pools": ["pool"], "queue_comments_ms": 500}]
QUEUED = re.compile(r": headgate queue position=(\d+) expected_wait_ms=(\d+)")


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, **more}


@contextlib.asynccontextmanager
async def occupied(here: World, seconds: float) -> AsyncIterator[None]:
    """Somebody has the only place, for so long."""
    async with here.sdk() as sdk:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)

        async def hold() -> None:
            await asyncio.sleep(seconds)
            await held.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(hold())
            yield


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(":")]


async def test_who_waits_is_told_his_place(tmp_path: Path) -> None:
    """And what the status line could not say yet, before the first event."""
    async with world(tmp_path, SLOW, pools=ONE, rules=ALOUD) as here, here.http() as http:
        async with occupied(here, 1.3):
            asked = time.monotonic()
            async with http.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as answer:
                assert 0.4 < time.monotonic() - asked < 1.2, "the status came with the first comment"
                assert answer.status_code == 200
                early = answer.headers
                text = (await answer.aread()).decode()
    assert early["x-headgate-rule"] == "aloud"
    assert int(early["x-headgate-prompt-tokens"]) > 1
    assert not {"x-headgate-pool", "x-headgate-replica", "x-headgate-queue-ms"} & early.keys()
    first, *_ = said = comments(text)
    assert (found := QUEUED.fullmatch(first)) is not None
    assert int(found[1]) == 1
    late = dict(line[2:].split(": ", 1) for line in said if line.startswith(": x-"))
    assert late.items() >= {"x-headgate-pool": "pool", "x-headgate-replica": "pool-1"}.items()
    assert 1000 < float(late["x-headgate-queue-ms"]) < 5000
    assert text.index(": x-headgate-pool") < text.index("data: {")
    assert text.endswith("data: [DONE]\n\n")
    assert 2 <= sum(QUEUED.fullmatch(line) is not None for line in said) <= 3


async def test_the_official_sdk_does_not_notice(tmp_path: Path) -> None:
    async with world(tmp_path, SLOW, pools=ONE, rules=ALOUD) as here, here.sdk() as sdk:
        async with occupied(here, 0.9):
            chunks = [chunk async for chunk in await sdk.chat.completions.create(**ask(), stream=True)]
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 8
        assert chunks[-1].choices[0].finish_reason is not None


async def test_who_need_not_wait_keeps_status_and_headers(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, rules=ALOUD) as here, here.http() as http:
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert answer.headers["x-headgate-replica"] == "pool-1"
        assert not comments(answer.text)
        whole = await http.post("/v1/chat/completions", json=ask())
        assert whole.json()["usage"]["completion_tokens"] == 8


async def test_without_the_rules_word_nothing_is_said_and_the_status_stays_honest(tmp_path: Path) -> None:
    timeout = {"x-headgate-timeout-ms": "800"}
    async with world(tmp_path, SLOW, pools=ONE) as here, here.http() as http:
        async with occupied(here, 1.0):
            answer = await http.post("/v1/chat/completions", json=ask(stream=True), headers=timeout)
        assert answer.status_code in (503, 504)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_holds_in_a_stream_that_has_begun(stream: bool, tmp_path: Path) -> None:
    """It ends with an error event and [DONE]; what is not streamed has its status."""
    limits = {"tenant": {"limits": [{"requests": 100, "per": "calendar_day"}]}}
    timeout = {"x-headgate-timeout-ms": "800"}
    async with world(tmp_path, SLOW, pools=ONE, rules=ALOUD, tenants=limits) as here, here.http() as http:
        async with occupied(here, 1.5):
            before = {name: row.used for name, row in (await here.limits()).items()}
            answer = await http.post("/v1/chat/completions", json=ask(stream=stream), headers=timeout)
            assert {name: row.used for name, row in (await here.limits()).items()} == before, "nothing paid"
        if not stream:
            assert answer.status_code in (503, 504)
            return
        assert answer.status_code == 200
        *_, error, done = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert done == "data: [DONE]"
        assert json.loads(error[6:])["error"]["code"] in ("server_is_overloaded", "upstream_timeout")
        assert ": x-headgate-pool: pool" in answer.text
        assert "failed" in here.gateway.book.outcomes


async def test_the_sdk_raises_what_fails_after_a_comment(tmp_path: Path) -> None:
    pools = {"pool": {"limits": {"in_flight": 1}, "queue": {"max_wait_s": 1}}}
    async with world(tmp_path, SLOW, pools=pools, rules=ALOUD) as here, here.sdk() as sdk:
        async with occupied(here, 1.6):
            with pytest.raises(openai.APIError, match="became free"):
                async for _ in await sdk.chat.completions.create(**ask(), stream=True):
                    pass


async def test_the_next_pool_answers_all_the_same(tmp_path: Path) -> None:
    """A hop after a comment; limits and books come back (the world looks)."""
    engines = {**SLOW, "other": {"kind": "tgi"}}
    rules = [
        {**ALOUD[0], "pools": ["pool", "other"], "on": ["overloaded"], "after_ms": 800},
    ]
    async with world(tmp_path, engines, pools=ONE, rules=rules) as here, here.http() as http:
        async with occupied(here, 1.5):
            answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert QUEUED.match(comments(answer.text)[0])
        assert ": x-headgate-pool: other" in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")


async def test_a_client_that_leaves_the_line_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path, SLOW, pools=ONE, rules=ALOUD) as here, here.http() as http:
        async with occupied(here, 1.2):
            async with http.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as answer:
                assert QUEUED.match(await anext(answer.aiter_lines()))
            async with asyncio.timeout(1):
                while here.gateway.runtime.queues["pool"].statistics().waiting:
                    await asyncio.sleep(0.01)
            assert here.engines["pool-1"].statistics().requests == 1


async def test_an_engine_that_does_not_begin(tmp_path: Path) -> None:
    """Where the rule allows it, the stream is kept alive before the first token, too."""
    engines = {"pool": {"kind": "trtllm", "faults": ["slow_first=1.3"]}}
    pools = {"pool": {"timeouts": {"keepalive_s": 0.4}}}
    async with world(tmp_path, engines, pools=pools, rules=ALOUD) as here, here.http() as http:
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert comments(answer.text)[0] == ": headgate keep-alive"
        assert ": x-headgate-replica: pool-1" in answer.text
    async with world(tmp_path, engines, pools=pools) as here, here.http() as http:
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert not comments(answer.text), "nobody asked for a status before the first token"


async def test_silence_in_a_stream_is_bridged(tmp_path: Path) -> None:
    """Until `idle_s` ends it; with 0, nothing is said."""
    for keepalive, least in ((0.15, 4), (0, 0)):
        pools = {"pool": {"timeouts": {"keepalive_s": keepalive, "idle_s": 0.9}}}
        async with world(tmp_path, {"pool": {"kind": "vllm"}}, pools=pools) as here, here.http() as http:
            here.engine().arm("silent_after=3*1")
            answer = await http.post("/v1/chat/completions", json=ask(stream=True))
            assert least <= answer.text.count(": headgate keep-alive\n\n") <= 6
            assert "upstream_timeout" in answer.text
            assert answer.text.endswith("data: [DONE]\n\n")


@contextlib.asynccontextmanager
async def halting(pieces: list[bytes], seconds: float) -> AsyncIterator[str]:
    """An engine that stops for so long between any two of these pieces of its answer."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(seconds)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("relay", ["raw", "patched"])
async def test_no_comment_falls_into_the_midst_of_an_event(relay: str, tmp_path: Path) -> None:
    """The engine halts in the middle of events, for longer than the stream may be silent."""

    def event(**choice: Any) -> bytes:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return b"data: " + json.dumps({**chunk, "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"

    events = [
        event(delta={"role": "assistant", "content": ""}, finish_reason=None),
        *(event(delta={"content": f"word{i} "}, finish_reason=None) for i in range(3)),
        event(delta={}, finish_reason="stop"),
        b"data: [DONE]\n\n",
    ]
    stream = b"".join(events)
    cuts = [0, len(events[0]), *range(len(events[0]) + 60, len(stream) - 40, 90), len(stream)]
    pieces = [stream[i:j] for i, j in itertools.pairwise(cuts)]
    async with halting(pieces, 0.12) as url:
        engines = {"pool": {"kind": "openai", "url": url, "served": "m"}}
        pools = {"pool": {"relay": relay, "timeouts": {"keepalive_s": 0.05}}}
        async with world(tmp_path, engines, pools=pools) as here, here.http() as http:
            answer = await http.post("/v1/chat/completions", json=ask(stream=True))
    assert answer.text.count(": headgate keep-alive\n\n") >= 4
    ours = answer.content.replace(b": headgate keep-alive\n\n", b"")
    assert b": " not in ours.replace(b'": ', b"").replace(b"data: ", b"")
    if relay == "raw":
        assert ours == stream, "byte for byte"
    else:
        chunks = [json.loads(line[6:]) for line in ours.splitlines() if line.startswith(b"data: {")]
        said = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert said[1:4] == ["word0 ", "word1 ", "word2 "]


async def test_the_drain_ends_a_stream_that_waits(tmp_path: Path) -> None:
    async with world(tmp_path, SLOW, pools=ONE, rules=ALOUD) as here, here.http() as http, here.sdk() as sdk:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        async with http.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as answer:
            lines = answer.aiter_lines()
            assert QUEUED.match(await anext(lines))
            here.gateway.drain()
            here.gateway.cut()
            rest = "\n".join([line async for line in lines])
        assert "shutting down" in rest
        assert rest.rstrip().endswith("data: [DONE]")
        with contextlib.suppress(openai.APIError, httpx.HTTPError):
            await held.close()
