"""Asking engines over real sockets: whatever they answer, the question ends and nothing raises."""

from dataclasses import replace

import pytest

from backends.contract import HttpRequest
from gateway.config.snapshot import Model, Pool, Replica, TokenizerSpec
from gateway.examining import inspecting
from gateway.examining.inspecting import (
    SAMPLES,
    ask,
    compare_tokenizer,
    counting_of,
    inspect_replica,
    is_well,
    load_tokenizers,
    try_streaming,
    upstream,
)
from gateway.fleet.fleet import endpoint_of
from tests.backends.scripted_server import Peer, Script, scripted_server
from tests.end_to_end.world import TOKENIZER
from tests.gateway.builders import a_pool, a_snapshot

QUESTION = HttpRequest("GET", "/health")


def answering(body: bytes, status: int = 200) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    return script


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.wait_closed()


async def cut(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")


def pool_at(port: int, engine: str = "vllm") -> Pool:
    pool = a_pool(engine=engine, serves={"llama": "m"})
    return replace(pool, replicas=(Replica("r1", f"http://127.0.0.1:{port}"),))


@pytest.mark.parametrize("script", [silent, cut, answering(b"x" * 2000)], ids=["silent", "cut", "huge"])
async def test_an_answer_that_is_none(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "TIMEOUT", 0.2)
    monkeypatch.setattr(inspecting, "MAX_ANSWER", 1000)
    async with scripted_server(script) as server:
        pool = pool_at(server.port)
        async with upstream(pool) as client:
            assert await ask(client, endpoint_of(pool, pool.replicas[0]), QUESTION) is None
            assert not await is_well(client, pool, pool.replicas[0])
            report = await inspect_replica(client, pool, pool.replicas[0])
            assert (report.ready, report.metadata) == (False, None)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"<html>", b"", b'{"count": -1, "tokens": 5}'])
@pytest.mark.parametrize("engine", ["trtllm", "triton", "tgi", "vllm", "sglang", "llamacpp", "openai"])
async def test_an_answer_without_sense_tells_nothing(
    engine: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No count, no stream, no limits: `cannot tell`, never a number that was not said."""
    monkeypatch.setattr(inspecting, "SAMPLES", dict(list(SAMPLES.items())[:2]))
    model = Model("llama", TokenizerSpec("huggingface", path=str(TOKENIZER)))
    snapshot = a_snapshot(models=[model])
    loaded = load_tokenizers(snapshot)
    async with scripted_server(answering(body)) as server, counting_of(loaded, snapshot) as counting:
        pool = pool_at(server.port, engine)
        async with upstream(pool) as client:
            report = await inspect_replica(client, pool, pool.replicas[0])
            assert report.metadata is not None
            assert report.metadata.limits.context_tokens is None
            found = await compare_tokenizer(client, pool, pool.replicas[0], model, counting)
            if body != b"[]":  # to TGI, an empty list of tokens
                assert {each.theirs for each in found} == {None}
            streaming = await try_streaming(client, pool, pool.replicas[0], model, counting)
            assert streaming.works is not True


def test_there_are_twenty_samples() -> None:
    assert len(SAMPLES) == 20
