"""Relaying: raw bytes, several prompts, slow readers, shutdown in the middle of a stream."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.world import KEY, world


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, **more}


def document(*texts: str, **more: Any) -> bytes:
    """A whole answer of OpenAI's dialect with these choices."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    return json.dumps({"choices": choices, **more}).encode()


@contextlib.asynccontextmanager
async def one_answer(body: bytes) -> AsyncIterator[str]:
    """An engine that gives this answer to everything."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"
        )
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def direct(url: str, body: dict[str, Any]) -> str:
    """What the engine itself answers."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        return (await http.post("/v1/chat/completions", json=body)).text


def texts(stream: str) -> list[str]:
    """The content of each chunk of an SSE answer."""
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]


async def test_raw_leaves_the_engines_bytes_untouched(tmp_path: Path) -> None:
    """`relay: raw`: names are equal, the shapes canonical; only the unasked usage chunk is taken out."""
    pools = {"pool": {"relay": "raw"}}
    async with world(tmp_path, {"pool": {"kind": "openai"}}, pools=pools) as here, here.http() as http:
        with_usage = ask(stream=True, stream_options={"include_usage": True})
        ours = (await http.post("/v1/chat/completions", json=with_usage)).text
        theirs = await direct(here.engine().url, with_usage)
        assert texts(ours) == texts(theirs)
        first = json.loads(ours.splitlines()[0][6:])
        assert first.keys() == json.loads(theirs.splitlines()[0][6:]).keys()
        assert ours.count('"usage":{') == theirs.count('"usage":{') == 1
        hidden = (await http.post("/v1/chat/completions", json=ask(stream=True))).text
        assert '"usage":{' not in hidden
        assert texts(hidden) == texts(theirs)
        assert hidden.endswith("data: [DONE]\n\n")
        async with here.admin() as admin:
            assert (await admin.get("/admin/pools")).json()["pools"][0]["relay"] == "raw"


async def test_raw_breaks_as_honestly_as_the_others(tmp_path: Path) -> None:
    pools = {"pool": {"relay": "raw"}}
    async with world(tmp_path, {"pool": {"kind": "openai"}}, pools=pools) as here, here.sdk() as sdk:
        here.engine().arm("die_after=3")
        with pytest.raises(openai.APIError):
            async for _ in await sdk.chat.completions.create(**ask(), stream=True):
                pass


async def test_raw_falls_back_to_rendering_where_there_are_no_events(tmp_path: Path) -> None:
    """An engine that answers a request to stream with one JSON body still gets its answer through."""
    document = {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}
        ]
    }
    async with one_answer(json.dumps(document).encode()) as url:
        pools = {"pool": {"relay": "raw"}}
        async with world(
            tmp_path, {"pool": {"kind": "openai", "url": url, "served": "m"}}, pools=pools
        ) as here:
            async with here.http() as http:
                answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert texts(answer.text) == ["", "whole"]
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 10**18, "completion_tokens": 10**18}, {"completion_tokens": "oops"}, {}]
)
async def test_an_absurd_usage_is_not_charged(usage: Any, tmp_path: Path) -> None:
    """What no engine can have computed is not what a tenant pays; untold is counted, not zero."""
    tenants = {"tenant": {"limits": [{"tokens": 100_000, "per": "minute"}]}}
    async with one_answer(document("x" * 12, usage=usage)) as url:
        engines = {"pool": {"kind": "openai", "url": url, "served": "m"}}
        async with world(tmp_path, engines, tenants=tenants) as here, here.http() as http:
            answer = (await http.post("/v1/chat/completions", json=ask())).json()
            assert answer["usage"]["completion_tokens"] == 3
            assert 0 < answer["usage"]["prompt_tokens"] < 100
            (limit,) = (await here.limits()).values()
            assert limit.free > 99_000


async def test_more_choices_than_asked_for_are_an_engines_fault(tmp_path: Path) -> None:
    async with one_answer(document("x", "y", "z")) as url:
        engines = {"pool": {"kind": "openai", "url": url, "served": "m"}}
        async with world(tmp_path, engines) as here, here.http() as http:
            assert (await http.post("/v1/chat/completions", json=ask())).status_code == 502


async def test_several_prompts_and_choices(tmp_path: Path) -> None:
    """Index = prompt x n + choice; token ids are taken where the engine takes them."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.sdk() as sdk:
        raw = await sdk.completions.with_raw_response.create(
            model="m", prompt=["The water", "A gate"], n=2, max_tokens=6
        )
        answer = raw.parse()
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        assert int(raw.headers["x-headgate-prompt-tokens"]) > 2
        assert answer.usage.completion_tokens <= 24
        single = await sdk.completions.create(model="m", prompt="A gate", max_tokens=6)
        assert single.choices[0].text == answer.choices[2].text
        ids = await sdk.completions.with_raw_response.create(model="m", prompt=[10, 11, 12], max_tokens=3)
        assert ids.headers["x-headgate-prompt-tokens"] == "3"
    async with world(tmp_path, {"pool": {"kind": "tgi"}}) as here, here.sdk() as sdk:  # one call for each
        both = await sdk.completions.create(model="m", prompt=["The water", "A gate"], max_tokens=6)
        assert [choice.index for choice in both.choices] == [0, 1]


async def test_a_client_that_does_not_read_is_not_read_for_and_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F59: backpressure reaches upstream, and the stall has an end: the connection is cut, the slot free."""
    caplog.set_level("INFO", "headgate.request")
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 9000.0, "speed": 1000.0}}
    pools = {"pool": {"timeouts": {"send_s": 0.5}}}
    async with world(tmp_path, engines, pools=pools) as here:
        host, port = here.addresses.data.removeprefix("http://").split(":")
        body = json.dumps(ask(stream=True, max_tokens=4000, n=8)).encode()  # 6 MB, above any socket buffer
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, int(port)))
            await loop.sock_sendall(
                client,
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body),
            )
            async with asyncio.timeout(20):
                while not here.gateway.book.outcomes["cancelled"]:
                    await asyncio.sleep(0.01)
            await here.wait_at_rest()
            async with asyncio.timeout(5):
                got = b""
                while more := await loop.sock_recv(client, 65536):
                    got = (got + more)[-100:]
            assert b"[DONE]" not in got
        (row,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
        assert not [r for r in caplog.records if r.levelname == "ERROR" and not r.name.startswith("aiohttp")]
        assert 0 < row["completion_tokens"] < 8 * 4000, "the gateway stopped reading"
        assert (row["status"], row["error_code"]) == (499, "client_closed")


@pytest.mark.parametrize("stream", [True, False])
async def test_requests_that_outlive_the_drain_are_told(
    stream: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F44: a stream ends with an error event, a whole answer with 503; neither is cut, nothing is logged as
    a fault of ours."""
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 8000.0, "speed": 1.0}}
    async with world(tmp_path, engines, at_rest=False) as here:
        http = here.http()
        asked = asyncio.get_running_loop().create_task(
            http.post("/v1/chat/completions", json=ask(stream=stream, max_tokens=8000))
        )
        async with asyncio.timeout(5):
            while not here.engine().statistics().engine.output_tokens:
                await asyncio.sleep(0.01)
        here.gateway.drain()
        assert (await http.get("/readyz")).status_code == 503
        late = await http.post("/v1/chat/completions", json=ask())
        assert (late.status_code, late.json()["error"]["code"]) == (503, "server_is_overloaded")
        assert late.headers["retry-after"]
        book = here.gateway.book
    async with asyncio.timeout(5):
        answer = await asked
    await http.aclose()
    assert "shutting down" in answer.text
    if stream:
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert answer.status_code == 503
        assert answer.headers["x-headgate-pool"] == "pool"
    assert book.outcomes == {"failed": 2}
    assert not [r for r in caplog.records if r.levelname == "ERROR"], caplog.text
