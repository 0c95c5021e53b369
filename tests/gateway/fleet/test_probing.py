"""Probing over real HTTP: what an answer, a silence or a closed port does to a replica."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from backends.contract import Answer, Endpoint
from backends.registry import REGISTRY
from gateway.config.snapshot import Replica
from gateway.fleet import probing
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.probing import Prober, Target
from tests.gateway.builders import Clock, NoEngine


class HealthServer:
    """Answers every request with `status` and `body`; with None it says nothing at all."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.body = b"{}"
        self.heads: list[str] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                if self.status is None:
                    await reader.read()
                    return
                head = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.body)}\r\n\r\n"
                writer.write(head.encode() + self.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["HealthServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.close()


@pytest.fixture
async def server():
    async with HealthServer().running() as server:
        yield server


class Stage:
    def __init__(self, url: str, kind: str = "trtllm") -> None:
        self.clock = Clock(100.0)
        replica = Replica(id="r1", url=url)
        self.ledger = ReplicaLedger(replica, NoEngine(REGISTRY.adapter(kind, {})), self.clock)
        self.endpoint = Endpoint(url, {"authorization": "Bearer upstream-key"})
        self.dispatched = 0
        self.learned = 0
        self.target = Target(self.ledger, self.endpoint, ("m",), self._dispatch, self._learn)
        self.prober = Prober([self.target])

    def _dispatch(self) -> None:
        self.dispatched += 1

    def _learn(self) -> None:
        self.learned += 1

    async def probe(self) -> bool | None:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert await self.prober.probe(client, self.target) is self.ledger.ready
        return self.ledger.ready

    async def ask_limits(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await self.prober.ask_limits(client, self.target)


@pytest.mark.parametrize("kind", REGISTRY.kinds())
async def test_a_well_replica_is_ready(server, kind):
    """Asked in its dialect's way, with the pool's own credentials; the queue is told."""
    stage = Stage(server.url, kind)
    assert await stage.probe() is True
    assert stage.dispatched == 1
    assert stage.ledger.last_error is None
    (head,) = server.heads
    question = stage.ledger.engine.adapter.health_request()
    assert head.startswith(f"{question.method} {question.path} ")
    assert "Bearer upstream-key" in head


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
async def test_any_other_answer_is_not_ready(server, status):
    stage = Stage(server.url)
    server.status = status
    assert await stage.probe() is False
    assert stage.ledger.cooling()
    assert stage.ledger.last_error == f"health answers {status}"
    assert stage.dispatched == 1  # those in line may have to make do with it


async def test_a_redirect_is_not_followed(server):
    """S6."""
    stage = Stage(server.url)
    server.status = 302
    assert await stage.probe() is False
    assert len(server.heads) == 1


async def test_a_closed_port_is_not_ready():
    async with HealthServer().running() as server:
        url = server.url
    stage = Stage(url)
    assert await stage.probe() is False
    assert stage.ledger.last_error is not None
    assert stage.ledger.last_error.startswith("health: ")


async def test_silence_is_not_ready(server, monkeypatch):
    """The engine is dead behind a port that is open."""
    monkeypatch.setattr(probing, "TIMEOUT", 0.05)
    server.status = None
    stage = Stage(server.url)
    assert await stage.probe() is False


async def test_back_again_it_is_tried_at_once(server):
    """Its cool-down ends, the line is served, the log says so once."""
    stage = Stage(server.url)
    server.status = 503
    await stage.probe()
    stage.ledger.avoid()
    server.status = 200
    assert await stage.probe() is True
    assert not stage.ledger.cooling()
    assert stage.dispatched == 2


async def test_a_healthy_answer_alone_does_not_excuse_failed_traffic(server):
    """An engine can be dead behind a healthy HTTP server: traffic alone ends the cool-down it began."""
    stage = Stage(server.url)
    await stage.probe()
    stage.ledger.avoid()
    await stage.probe()
    assert stage.ledger.cooling()


async def test_the_log_has_changes_only(server, caplog):
    stage = Stage(server.url)
    with caplog.at_level(logging.INFO, "headgate.probing"):
        for status in (200, 200, 503, 503, 200, 200):
            server.status = status
            await stage.probe()
    assert [record.getMessage() for record in caplog.records] == [
        "replica is not ready",
        "replica is ready again",
    ]


async def test_run_probes_every_replica_again_and_again_until_cancelled(server, monkeypatch):
    monkeypatch.setattr(probing, "INTERVAL", 0.001)
    stages = [Stage(server.url), Stage(server.url)]
    prober = Prober([stage.target for stage in stages])
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(prober.run())
        while min(stage.dispatched for stage in stages) < 3:
            await asyncio.sleep(0.001)
        running.cancel()
    assert all(stage.ledger.ready for stage in stages)


# -------------------------------------------------------------------------------------------- limits


def info(total: int | None) -> bytes:
    """TGI's answer about itself; None: one that tells no limits."""
    return json.dumps({"model_id": "m"} | ({} if total is None else {"max_total_tokens": total})).encode()


async def test_what_it_tells_is_kept_and_a_change_is_told_once(server):
    stage = Stage(server.url, "tgi")
    for body, learned in ((info(4096), 1), (info(4096), 1), (info(2048), 2)):
        server.body = body
        assert await stage.ask_limits()
        assert stage.learned == learned
    assert stage.ledger.told.context_tokens == 2048
    assert stage.ledger.statistics().told == stage.ledger.told


async def test_an_engine_that_can_not_be_asked_changes_nothing(server, monkeypatch):
    """Neither an error nor a silence is an answer; a good answer without limits is one."""
    monkeypatch.setattr(probing, "TIMEOUT", 0.1)
    stage = Stage(server.url, "tgi")
    server.body = info(4096)
    await stage.ask_limits()
    server.body = b"<html>"
    for status, answered in ((404, True), (503, False), (None, False)):
        server.status = status
        assert await stage.ask_limits() is answered
        assert (stage.ledger.told.context_tokens, stage.learned) == (4096, 1)
    server.status, server.body = 200, info(None)
    assert await stage.ask_limits()
    assert (stage.ledger.told.context_tokens, stage.learned) == (None, 2)


async def test_limits_are_asked_at_the_start_after_a_comeback_and_now_and_then(server, monkeypatch):
    monkeypatch.setattr(probing, "INTERVAL", 0.001)
    monkeypatch.setattr(probing, "ASK_EVERY", 3)
    stage = Stage(server.url, "tgi")

    def asked() -> str:
        """H for a probe, i for a question about limits."""
        return "".join("i" if " /info " in head else "H" for head in server.heads)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(stage.prober.run())
        while len(server.heads) < 8:
            await asyncio.sleep(0)
        server.status = 503
        while not (asked().endswith("HHH") and stage.ledger.ready is False):
            await asyncio.sleep(0)
        fallen = len(server.heads)
        server.status = 200
        while len(server.heads) < fallen + 6:
            await asyncio.sleep(0)
        running.cancel()
    assert asked().startswith("HiHHHHiH")
    assert "HiHHHHi"[:5] in asked()[fallen:]


@pytest.mark.parametrize("kind", REGISTRY.kinds())
@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"data": [1, {"id": 5}], "limits": {}}', b"<html>"])
def test_no_answer_about_limits_makes_an_adapter_raise(kind, body):
    adapter = REGISTRY.adapter(kind, {})
    answers = {question.path: Answer(200, body) for question in adapter.metadata_requests("m")}
    assert adapter.read_metadata(answers).limits.context_tokens is None


@pytest.mark.parametrize("kind", REGISTRY.kinds())
@pytest.mark.parametrize("status", [200, 204, 400, 500, 999])
@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[]", b"null", b'{"ready": "yes"}', b"<html>"])
def test_no_health_answer_makes_an_adapter_raise(kind, status, body):
    """One that raised would end the probing of all replicas."""
    health = REGISTRY.adapter(kind, {}).read_health(status, body)
    assert isinstance(health.ready, bool)
    if status >= 400:
        assert not health.ready
