"""Polling every kind of simulated engine for its load, over real sockets."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from backends.client import EngineClient
from backends.contract import Endpoint, GenerateRequest
from backends.registry import REGISTRY
from backends.simulated.server import serve
from backends.transport import AiohttpTransport
from gateway.asking import client_for
from gateway.config.snapshot import Replica
from gateway.fleet import load_polling
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.load_polling import poll, polling, with_port
from tests.gateway.builders import Clock

KINDS = {
    "vllm": {},
    "sglang": {},
    "tgi": {},
    "llamacpp": {},
    "triton": {},
    "trtllm": {"prometheus": True},
}
"""Engine kind -> the adapter's options; those that say how much they run."""


@asynccontextmanager
async def replica(kind, options, transport, **server):
    async with serve(kind, **server) as engine:
        if kind == "triton":  # whose simulation has its metrics on the one port that it listens on
            options = {**options, "metrics_port": int(engine.url.rpartition(":")[2])}
        adapter = REGISTRY.adapter(kind, options)
        client = EngineClient(adapter, transport, Endpoint(engine.url))
        yield engine, ReplicaLedger(Replica("r1", engine.url), client, Clock(5.0))


@pytest.fixture
async def transport():
    transport = AiohttpTransport()
    yield transport
    await transport.aclose()


def a_request(kind):
    text = kind in ("tgi", "triton")
    return GenerateRequest(
        request_id="r1",
        model={"tgi": "tgi", "triton": "ensemble"}.get(kind, "headgate-mini"),
        stream=True,
        messages=[{"role": "user", "content": "Hello"}],
        rendered="Hello" if text else None,
        max_tokens=400,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_running_request_is_seen(kind, transport):
    """Asked twice while a stranger's request runs, the engine's answer tells of one that is not ours."""
    async with replica(kind, KINDS[kind], transport, speed=0.5) as (engine, ledger):
        generation = await ledger.engine.generate(a_request(kind))
        await generation.events()
        where = with_port(Endpoint(engine.url), ledger.engine.adapter.load_port)
        async with client_for(where) as client:
            for _ in range(2):
                assert await poll(client, ledger, where)
        generation.cancel()
    statistics = ledger.statistics()
    assert statistics.load.running == 1
    assert statistics.load_age == 0
    assert statistics.foreign == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_an_engine_that_is_gone_tells_nothing(kind, transport):
    async with replica(kind, KINDS[kind], transport) as (engine, ledger):
        where = with_port(Endpoint(engine.url), ledger.engine.adapter.load_port)
    async with client_for(where) as client:
        assert not await poll(client, ledger, where)
    assert ledger.statistics().load_age is None


async def test_it_asks_again_and_less_often_where_nothing_is_told(transport, monkeypatch):
    """A llama.cpp without slots and metrics answers 501."""
    asleep = asyncio.sleep
    pauses = []
    polled = []

    async def sleep(seconds):
        if seconds < load_polling.INTERVAL:
            await asleep(seconds)  # somebody else's
            return
        pauses.append(seconds)
        if len(pauses) == 6:
            raise asyncio.CancelledError

    monkeypatch.setattr(load_polling.asyncio, "sleep", sleep)
    async with replica("llamacpp", {"metrics": True}, transport, metrics=False) as (engine, ledger):
        with pytest.raises(asyncio.CancelledError):
            await polling(ledger, Endpoint(engine.url), lambda: polled.append(1))
    assert pauses == [10, 20, 40, 60, 60, 60]
    assert not polled


async def test_an_engine_that_cannot_be_asked_is_left_alone(transport):
    async with replica("openai", {}, transport) as (engine, ledger):
        async with asyncio.timeout(2):
            await polling(ledger, Endpoint(engine.url), lambda: None)


def test_another_port_of_the_same_host():
    one = Endpoint("https://gpu1.example:8000/base", {"authorization": "x"}, "ca.pem")
    assert with_port(one, 8002) == Endpoint("https://gpu1.example:8002", {"authorization": "x"}, "ca.pem")
    assert with_port(Endpoint("http://[::1]:8000"), 8002).base_url == "http://[::1]:8002"
    assert with_port(one, None) is one
