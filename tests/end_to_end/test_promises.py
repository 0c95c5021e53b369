"""Promises, lines and shares as an operator sees them: metrics and the admin API."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.world import world


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, **more}


async def scraped(admin: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await admin.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset(given.items())


async def test_what_was_promised_is_held_against_what_came(tmp_path: Path) -> None:
    """To the class of each request; refusals for want of capacity have missed, bad requests do not count."""
    pools = {
        "pool": {
            "slo": {"ttft_p95_ms": 60_000},
            "limits": {"in_flight": 1, "total": 16_000},
            "queue": {"max_wait_s": 0.1},
            "scheduler": {"classes": {"batch": {"slo": {"ttft_p95_ms": 0.001, "queue_ms": 60_000}}}},
        }
    }
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
    async with world(tmp_path, engines, pools=pools) as here, here.http() as http, here.admin() as admin:
        for more in ({}, {"service_tier": "flex"}, {"temperature": -5}):
            await http.post("/v1/chat/completions", json=ask(stream=True, **more))
        async with http.stream("POST", "/v1/chat/completions", json=ask(stream=True, max_tokens=4000)):
            refused = await http.post("/v1/chat/completions", json=ask(stream=True))
            assert refused.status_code == 503
        async with asyncio.timeout(5):
            while len(here.gateway.book):
                await asyncio.sleep(0.01)
        (pool,) = (await admin.get("/admin/pools")).json()["pools"]
        found = await scraped(admin)
    assert pool["slo"] == {"ttft_p95_ms": 60_000, "tpot_p99_ms": None, "queue_ms": None}
    assert pool["class_slos"]["batch"]["queue_ms"] == 60_000
    attained = {(row["class"], row["objective"]): row for row in pool["attained"]}
    # The stream that was left had its first token in time; the refused one never had one.
    assert (attained["standard", "ttft"]["requests"], attained["standard", "ttft"]["share"]) == (3, 0.6667)
    assert attained["batch", "ttft"]["share"] == 0.0
    assert attained["batch", "queue"]["share"] == 1.0
    assert ("standard", "queue") not in attained
    batch = {"pool": "pool", "class": "batch"}
    assert found["headgate_slo_attainment", labels(**batch, objective="all")] == 0.0
    assert found["headgate_slo_requests_total", labels(**batch, objective="queue", met="true")] == 1.0
    assert found["headgate_queue_wait_seconds_count", labels(**batch)] == 1.0
    assert found["headgate_queued_requests", labels(**batch, lane="small")] == 0.0


async def test_who_waits_shows_in_the_metrics(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
    pools = {"pool": {"limits": {"in_flight": 1}}}
    async with world(tmp_path, engines, pools=pools) as here, here.http() as http, here.admin() as admin:
        body = ask(stream=True, max_tokens=4000)
        async with http.stream("POST", "/v1/chat/completions", json=body), asyncio.TaskGroup() as group:
            patience = {"x-headgate-timeout-ms": "1200"}
            waiting = http.post("/v1/chat/completions", json=ask(service_tier="flex"), headers=patience)
            late = group.create_task(waiting)
            async with asyncio.timeout(5):
                while not here.gateway.runtime.queues["pool"].statistics().waiting:
                    await asyncio.sleep(0.01)
            found = await scraped(admin)
        assert late.result().status_code in (503, 504)
    waits = {"pool": "pool", "class": "batch"}
    assert found["headgate_queued_requests", labels(**waits, lane="small")] == 1.0
    assert (
        found["headgate_queued_requests", labels(pool="pool", **{"class": "standard"}, lane="small")] == 0.0
    )
    assert found["headgate_queue_expected_wait_seconds", labels(**waits)] > 0.0


async def test_engines_in_the_wrong_pool_are_a_warning(tmp_path: Path) -> None:
    """Once there were enough requests to tell."""
    engines = {"busy": {"kind": "tgi"}, "idle": {"kind": "vllm", "replicas": 3}}
    rules = [
        {"name": "all", "when": {"stream": False}, "pools": ["busy"]},
        {"name": "streams", "pools": ["idle"]},
    ]
    async with world(tmp_path, engines, rules=rules) as here, here.http() as http, here.admin() as admin:

        async def some(count: int) -> dict[str, Any]:
            answers = await asyncio.gather(
                *(http.post("/v1/chat/completions", json=ask(max_tokens=1)) for _ in range(count))
            )
            assert {answer.status_code for answer in answers} == {200}
            return (await admin.get("/admin/pools")).json()

        first = await some(20)
        assert first["warnings"] == []
        busy, idle = first["pools"]
        assert busy["share"]["work"] == 1.0
        assert 0.1 < busy["share"]["capacity"] < 0.5
        assert idle["share"]["work"] == 0.0
        told = await some(90)
        assert any(warning.startswith("pool busy has 100% of the work") for warning in told["warnings"])
        found = await scraped(admin)
        assert found["headgate_pool_work_share", labels(pool="busy")] == 1.0
