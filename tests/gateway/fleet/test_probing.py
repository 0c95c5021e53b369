"""Probing over real HTTP: what an answer, a silence or a closed port does to a replica."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from backends.contract import Endpoint
from backends.registry import REGISTRY
from gateway.config.snapshot import Replica
from gateway.fleet import probing
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.probing import Prober
from tests.gateway.builders import Clock, NoEngine


class HealthServer:
    """Answers every request with `status`; with None it says nothing at all."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.heads: list[str] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                if self.status is None:
                    await reader.read()
                    return
                writer.write(f"HTTP/1.1 {self.status} X\r\ncontent-length: 2\r\n\r\n{{}}".encode())
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
        self.prober = Prober([(self.ledger, self.endpoint, self._dispatch)])

    def _dispatch(self) -> None:
        self.dispatched += 1

    async def probe(self) -> bool | None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await self.prober.probe(client, self.ledger, self.endpoint, self._dispatch)
        return self.ledger.ready


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
    prober = Prober([(stage.ledger, stage.endpoint, stage._dispatch) for stage in stages])
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(prober.run())
        while min(stage.dispatched for stage in stages) < 3:
            await asyncio.sleep(0.001)
        running.cancel()
    assert all(stage.ledger.ready for stage in stages)


@pytest.mark.parametrize("kind", REGISTRY.kinds())
@pytest.mark.parametrize("status", [200, 204, 400, 500, 999])
@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[]", b"null", b'{"ready": "yes"}', b"<html>"])
def test_no_health_answer_makes_an_adapter_raise(kind, status, body):
    """One that raised would end the probing of all replicas."""
    health = REGISTRY.adapter(kind, {}).read_health(status, body)
    assert isinstance(health.ready, bool)
    if status >= 400:
        assert not health.ready
