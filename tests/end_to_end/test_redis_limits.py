"""Limits in a real Redis, from the outside: shared by gateways, visible when it is away, back when it is."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.world import World, world
from tests.fault_proxy import FaultProxy
from tests.gateway.limits.redis_bench import until
from tests.redis_server import RedisServer

ENGINES = {"pool": {"kind": "openai"}}
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def at(url: str, namespace: str, mode: str = "direct", **limits: Any) -> dict[str, Any]:
    return {"redis_url": url, "limits": {"namespace": namespace, "mode": mode, "timeout_ms": 1000, **limits}}


async def statuses(here: World, number: int) -> list[int]:
    async with here.http() as http:
        return [(await http.post("/v1/chat/completions", json=BODY)).status_code for _ in range(number)]


async def metric(here: World, name: str) -> float:
    async with here.http() as http:
        text = (await http.get("/metrics")).text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).rpartition(" ")[2])


@pytest.mark.parametrize("mode", ["direct", "leased"])
async def test_gateways_share_a_limit(
    tmp_path: Path, redis_server: RedisServer, namespace: str, mode: str
) -> None:
    """Ten requests a day in all, over two gateways; concurrency is given back, by one that ends too."""
    limits = [{"requests": 10, "per": "day"}, {"concurrent": 4}]
    given: dict[str, Any] = {"limits": limits, "server": at(redis_server.url, namespace, mode)}
    async with world(tmp_path, ENGINES, **given) as here:
        assert await asyncio.gather(*(statuses(here, 2) for _ in range(3))) == [[200, 200]] * 3
        await here.wait_at_rest()
        assert await metric(here, "headgate_limit_store_up") == 1
        assert await metric(here, "headgate_limit_store_seconds_count") > 0
        assert redis_server.client.zcard(f"{{{namespace}}}:processes") == 1
    async with world(tmp_path, ENGINES, **given) as here:
        answers = await asyncio.gather(*(statuses(here, 2) for _ in range(4)))
        assert sorted(status for answer in answers for status in answer) == [200] * 4 + [429] * 4
        await here.wait_at_rest()
        rows = await here.limits()
        assert [row.used for row in rows.values()] == [10, 0], rows
    assert redis_server.client.zcard(f"{{{namespace}}}:processes") == 0, "they said goodbye"
    assert redis_server.client.zcard(f"{{{namespace}}}:live") == 0


async def test_started_without_redis(tmp_path: Path, redis_server: RedisServer, namespace: str) -> None:
    """It starts and serves by each limit's policy, says so, and keeps limits in Redis once that is there."""
    limits = [
        {"requests": 3, "per": "day", "name": "daily"},
        {"tokens": 100_000, "per": "minute", "store_down": "open"},
    ]
    async with FaultProxy(redis_server.port) as proxy:
        await proxy.refuse()
        async with world(tmp_path, ENGINES, limits=limits, server=at(proxy.url, namespace)) as here:
            await until(lambda: here.gateway.kept.degraded)
            assert await statuses(here, 4) == [200, 200, 200, 429]
            async with here.http() as http:
                ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()) == (200, {"status": "ready", "limits": "degraded"})
            assert await metric(here, "headgate_limit_store_up") == 0
            assert await metric(here, "headgate_limit_store_breaker_opened_total") == 1
            assert await metric(here, 'headgate_limit_store_down_total{policy="local"}') == 4
            await proxy.listen()
            await until(lambda: not here.gateway.kept.degraded)
            assert proxy.connections == 1
            assert await statuses(here, 4) == [200, 200, 200, 429]
            async with here.http() as http:
                assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_closed_limits_answer_503(tmp_path: Path, redis_server: RedisServer, namespace: str) -> None:
    limits = [{"requests": 3, "per": "day", "store_down": "closed"}]
    async with FaultProxy(redis_server.port) as proxy:
        async with world(tmp_path, ENGINES, limits=limits, server=at(proxy.url, namespace)) as here:
            assert await statuses(here, 1) == [200]
            await proxy.refuse()
            proxy.reset()
            await until(lambda: here.gateway.kept.degraded)
            async with here.http() as http:
                answer = await http.post("/v1/chat/completions", json=BODY)
            assert answer.status_code == 503
            assert float(answer.headers["retry-after"]) > 0
            assert "cannot be checked" in answer.json()["error"]["message"]
            await proxy.listen()
            await until(lambda: not here.gateway.kept.degraded)
            assert await statuses(here, 3) == [200, 200, 429]


async def test_a_reload_keeps_the_store_there_is(
    tmp_path: Path, redis_server: RedisServer, namespace: str
) -> None:
    """What is reserved must be settled where it was: another address needs a restart, and says so without
    it."""
    async with world(
        tmp_path, ENGINES, limits=[{"requests": 9, "per": "day"}], server=at(redis_server.url, namespace)
    ) as here:
        assert await statuses(here, 2) == [200, 200]
        written = yaml.safe_load(here.file.read_text())
        written["server"].update(at("redis://:hunter2@127.0.0.1:1", namespace, settle_tokens=7))
        here.file.write_text(yaml.safe_dump(written))
        result = await here.gateway.reloader.reload("test")
        assert result.ok
        told = [warning for warning in result.warnings if "redis_url" in warning]
        assert len(told) == 1
        assert "restart" in told[0]
        assert "hunter2" not in str(result)
        server = here.gateway.runtime.snapshot.server
        assert (server.limits.redis_url, server.limits.settle_tokens) == (redis_server.url, 7)
        assert await statuses(here, 1) == [200]
        assert [row.used for row in (await here.limits()).values()] == [3]
