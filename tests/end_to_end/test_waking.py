"""Pools that sleep, through real sockets: vLLM's and Triton's own ways, commands, HTTP, a cluster's API.

The simulated vLLM dies of a request that it gets while it sleeps, as the real one may.
"""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from aiohttp import web

from tests.end_to_end.world import World, world

WARM = {"state": "warm", "wake": "engine"}
VLLM = {"kind": "vllm", "asleep": True, "wake_s": 0.3}


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, **more}


async def answered(here: World, **more: Any) -> Any:
    async with here.sdk() as sdk:
        return await sdk.chat.completions.with_raw_response.create(**ask(**more))


async def activation(here: World, pool: str) -> dict[str, Any]:
    async with here.admin() as admin:
        rows = (await admin.get("/admin/pools")).raise_for_status().json()["pools"]
    return next(row["activation"] for row in rows if row["pool"] == pool)


async def state(here: World, pool: str = "pool") -> str:
    return str((await activation(here, pool))["state"])


async def until(here: World, wanted: str, pool: str = "pool", seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while await state(here, pool) != wanted:
            await asyncio.sleep(0.01)


def nap(here: World, replica: str = "pool-1") -> Any:
    return here.engines[replica].dialect.nap  # type: ignore[attr-defined]  # of vllm and triton


async def metric(here: World, line: str) -> float:
    async with here.admin() as admin:
        text = (await admin.get("/metrics")).text
    return float(next(each for each in text.splitlines() if each.startswith(line + " ")).rsplit(" ", 1)[1])


@pytest.mark.parametrize("kind", ["vllm", "triton"])
async def test_one_wake_for_twenty_requests(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {**VLLM, "kind": kind}}, pools={"pool": WARM}) as here:
        assert await state(here) == "asleep"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered(here, stream=False)) for _ in range(20)]
        raws = [task.result() for task in tasks]
        assert all(raw.parse().choices[0].message.content for raw in raws)
        assert nap(here).wakes == 1
        held = [float(raw.headers["x-headgate-wake-ms"]) for raw in raws]
        assert min(held) > 100
        assert all(
            float(raw.headers["x-headgate-queue-ms"]) >= each for raw, each in zip(raws, held, strict=True)
        )
        told = await activation(here, "pool")
        assert told["state"] == "awake"
        assert 0.3 <= told["wake_seconds"] < 3
        assert await metric(here, 'headgate_wakes_total{outcome="done",pool="pool"}') == 1
        assert await metric(here, 'headgate_pool_state{pool="pool",state="awake"}') == 1
        assert await metric(here, 'headgate_wake_seconds_count{pool="pool"}') == 1
        assert "x-headgate-wake-ms" not in (await answered(here)).headers


async def test_a_request_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    """Its deadline, `queue.max_wait_s` and `wake_timeout_s`, whichever is first; the wake itself goes on."""
    engine = {**VLLM, "wake_s": 3.0}
    pool = {**WARM, "queue": {"max_wait_s": 0.3}}
    async with world(tmp_path, {"pool": engine}, pools={"pool": pool}) as here, here.sdk() as sdk:
        for headers, least in (({"x-headgate-timeout-ms": "100"}, 0.1), ({}, 0.3)):
            asked = time.monotonic()
            with pytest.raises(openai.InternalServerError) as error:
                await sdk.chat.completions.create(**ask(), extra_headers=headers)
            assert error.value.status_code == 503
            assert int(error.value.response.headers["retry-after"]) >= 1
            assert "was not awake" in str(error.value)
            assert least <= time.monotonic() - asked < least + 1
        await until(here, "awake")
        assert nap(here).wakes == 1
        await answered(here)


async def test_fall_back_at_once_and_wake_meanwhile(tmp_path: Path) -> None:
    engines = {"pool": {**VLLM, "wake_s": 3.0}, "other": {"kind": "trtllm"}}
    pool = {**WARM, "while_waking": "fallback"}
    async with world(tmp_path, engines, pools={"pool": pool}) as here:
        asked = time.monotonic()
        raw = await answered(here)
        assert raw.headers["x-headgate-pool"] == "other"
        assert time.monotonic() - asked < 2
        assert raw.headers["x-headgate-attempts"] == "1"
        assert await state(here) == "waking"
        await until(here, "awake")
        assert (await answered(here)).headers["x-headgate-pool"] == "pool"


async def test_refuse_says_when_to_come_back(tmp_path: Path) -> None:
    """From the time that wakes have taken; no other pool is asked, though there is one."""
    engines = {"pool": {**VLLM, "wake_s": 1.7}, "other": {"kind": "trtllm"}}
    pool = {**WARM, "while_waking": "refuse"}
    async with (
        world(tmp_path, engines, pools={"pool": pool}) as here,
        here.sdk() as sdk,
        here.admin() as admin,
    ):
        retry = []
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as error:
                await sdk.chat.completions.create(**ask())
            assert error.value.status_code == 503
            retry.append(float(error.value.response.headers["retry-after-ms"]))
            await until(here, "awake")
            (await admin.post("/admin/pools/pool/cool")).raise_for_status()
            await until(here, "asleep")
        assert retry[0] == 10_000, "nothing is known yet"
        assert 1700 <= retry[1] < 3000
        assert here.engines["other-1"].statistics().requests == 0


async def test_an_idle_pool_is_put_to_sleep_and_wakes_again(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "vllm", "sleeps": True, "mean_tokens": 4000.0, "speed": 1.0}}
    pool = {**WARM, "idle_after_s": 1.0}
    async with world(tmp_path, engines, pools={"pool": pool}) as here, here.sdk() as sdk:
        await until(here, "awake")  # it was: nobody had to wake it
        assert nap(here).wakes == 0
        stream = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        await asyncio.sleep(1.5)
        assert await state(here) == "awake", "a request is in flight"
        async with here.admin() as admin:
            refused = await admin.post("/admin/pools/pool/cool")
            assert refused.status_code == 409
        await stream.close()
        await until(here, "asleep")
        assert nap(here).asleep
        await answered(here)
        assert (nap(here).wakes, nap(here).sleeps) == (1, 1)
        assert not here.engines["pool-1"].dialect.dead  # type: ignore[attr-defined]


async def test_asked_while_it_falls_asleep(tmp_path: Path) -> None:
    """It is woken again as soon as it sleeps; the engine never gets a request that it would die of."""
    engines = {"pool": {"kind": "vllm", "sleeps": True}}
    async with world(tmp_path, engines, pools={"pool": {**WARM, "idle_after_s": 0.05}}) as here:
        for pause in (0.0, 0.05, 0.06, 0.07, 0.055, 0.065, 0.08, 0.03, 0.0):
            await asyncio.sleep(pause)
            await answered(here)
        assert nap(here).sleeps >= 1
        assert not here.engines["pool-1"].dialect.dead  # type: ignore[attr-defined]


async def test_nobody_elses_work_is_cut_off(tmp_path: Path) -> None:
    """Another gateway uses the engine: it is not put to sleep."""
    engines = {"pool": {"kind": "vllm", "sleeps": True, "mean_tokens": 4000.0, "speed": 1.0}}
    async with (
        world(tmp_path, engines, pools={"pool": {**WARM, "idle_after_s": 1.0}}) as here,
        httpx.AsyncClient(base_url=here.engine().url, trust_env=False, timeout=20) as elsewhere,
    ):
        await answered(here)
        body = ask(max_tokens=4000, stream=True)
        async with elsewhere.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            async with asyncio.timeout(10):
                while (await activation(here, "pool"))["problem"] is None:
                    await asyncio.sleep(0.01)
            assert nap(here).sleeps == 0
            assert await state(here) == "awake"
        await until(here, "asleep", seconds=10)
        assert nap(here).sleeps == 1


async def test_a_wake_that_fails(tmp_path: Path) -> None:
    """Who waits goes on to the next pool, or gets 503 and when to come back; then nothing is tried for a
    while, but by hand."""
    engines = {"pool": {"kind": "triton", "asleep": True}, "other": {"kind": "trtllm"}}
    rules = [
        {"name": "alone", "when": {"stream": True}, "pools": ["pool"]},
        {"name": "all", "pools": ["pool", "other"]},
    ]
    triton = {**WARM, "options": {"text_mode": "delta"}}
    async with world(tmp_path, engines, pools={"pool": triton}, rules=rules) as here:
        nap(here).possible = False  # as one that was not started in explicit mode: it answers 503
        assert (await answered(here)).headers["x-headgate-pool"] == "other"
        told = await activation(here, "pool")
        assert told["state"] == "asleep"
        assert "answers 503 to POST /v2/repository/models/ensemble/load" in told["problem"]
        assert 0 < told["tries_again_in_s"] <= 2
        async with here.sdk() as sdk:
            with pytest.raises(openai.InternalServerError) as error:
                await sdk.chat.completions.create(**ask(stream=True))
        assert error.value.status_code == 503
        assert "could not be woken" in str(error.value)
        assert "repository" not in str(error.value), "the operator's business"
        assert await metric(here, 'headgate_wakes_total{outcome="failed",pool="pool"}') == 1
        nap(here).possible = True
        async with here.admin() as admin:
            assert (await admin.post("/admin/pools/pool/wake")).status_code == 202
        await until(here, "awake")
        assert (await answered(here)).headers["x-headgate-pool"] == "pool"


async def test_clients_that_go_while_they_are_held_leave_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {**VLLM, "wake_s": 0.6}}, pools={"pool": WARM}) as here:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered(here)) for _ in range(5)]
            async with asyncio.timeout(5):
                while (await activation(here, "pool"))["held"] < 5:
                    await asyncio.sleep(0.01)
            for task in tasks[1:]:
                task.cancel()
        async with asyncio.timeout(5):
            await until(here, "awake")
        assert tasks[0].result().headers["x-headgate-pool"] == "pool"
        await here.wait_at_rest()
        assert here.gateway.book.outcomes["cancelled"] == 4
        assert here.engine().statistics().requests == 1


async def test_a_reload_while_it_wakes(tmp_path: Path) -> None:
    """Those that wait are served, the wake is not repeated, and the new settings hold."""
    async with world(tmp_path, {"pool": {**VLLM, "wake_s": 0.6}}, pools={"pool": WARM}) as here:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(answered(here))
            await until(here, "waking")
            text = yaml.safe_load(here.file.read_text())
            text["pools"]["pool"]["idle_after_s"] = 0.4
            here.file.write_text(yaml.safe_dump(text))
            assert (await here.gateway.reloader.reload("test")).ok
            assert await state(here) == "waking"
            second = group.create_task(answered(here))
        assert {first.result().http_response.status_code, second.result().http_response.status_code} == {200}
        assert nap(here).wakes == 1
        await until(here, "asleep")


async def test_a_pool_that_may_not_sleep_any_more_is_in_service(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {**VLLM, "asleep": False}}, pools={"pool": {**WARM}}) as here:
        text = yaml.safe_load(here.file.read_text())
        for key in ("wake", "state"):
            del text["pools"]["pool"][key]
        here.file.write_text(yaml.safe_dump(text))
        assert (await here.gateway.reloader.reload("test")).ok
        await answered(here)


async def test_a_hot_pool_is_woken_at_the_start(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": VLLM}, pools={"pool": {"wake": "engine"}}) as here:
        await until(here, "awake")
        assert nap(here).wakes == 1
        await answered(here)


async def test_one_that_somebody_else_puts_to_sleep_is_woken_by_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.activation.sleeping.LOOK", 0.05)
    pool = {**WARM, "idle_after_s": 1.0}
    async with world(tmp_path, {"pool": {"kind": "vllm", "sleeps": True}}, pools={"pool": pool}) as here:
        await until(here, "awake")
        await answered(here)
        async with httpx.AsyncClient(base_url=here.engine().url, trust_env=False) as elsewhere:
            await elsewhere.post("/sleep?level=1")
            await until(here, "asleep")
            await answered(here)
            assert not here.engines["pool-1"].dialect.dead  # type: ignore[attr-defined]
            await until(here, "asleep")
            await elsewhere.post("/wake_up")
            wakes = nap(here).wakes
            await until(here, "awake")
            assert nap(here).wakes == wakes


async def test_a_replica_that_does_not_wake_gets_nothing(tmp_path: Path) -> None:
    """One of two is enough; the other is on hold, not even a last resort."""
    pool = {**WARM, "wake_timeout_s": 0.5}
    async with world(tmp_path, {"pool": {**VLLM, "replicas": 2}}, pools={"pool": pool}) as here:
        here.engines["pool-2"].dialect.nap.possible = False  # type: ignore[attr-defined]
        nap(here, "pool-2")._wake_s = 60.0
        raws = [await answered(here) for _ in range(4)]
        assert {raw.headers["x-headgate-replica"] for raw in raws} == {"pool-1"}
        async with here.admin() as admin:
            rows = (await admin.get("/admin/replicas")).json()["replicas"]
        assert {row["id"]: row["hold"] for row in rows} == {"pool-1": None, "pool-2": "asleep"}


async def test_explain_shows_the_state(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": VLLM}, pools={"pool": WARM}) as here, here.admin() as admin:
        asked = {"tenant": "tenant", "request": ask()}
        told = (await admin.post("/admin/routes/explain", json=asked)).json()["chain"][0]
        assert told["activation"]["state"] == "asleep"
        assert told["activation"]["while_waking"] == "hold"
        assert told["candidates"][0]["why"] == "asleep"
        assert nap(here).wakes == 0, "explaining wakes nobody"
        ready = await admin.get("/readyz")
        assert ready.status_code == 200, "whoever asks will be served"


async def test_by_hand(tmp_path: Path) -> None:
    engines = {"pool": VLLM, "other": {"kind": "trtllm"}}
    async with world(tmp_path, engines, pools={"pool": WARM}) as here, here.admin() as admin:
        assert (await admin.post("/admin/pools/pool/wake")).json()["state"] == "waking"
        await until(here, "awake")
        assert (await admin.post("/admin/pools/pool/wake")).status_code == 200
        assert (await admin.post("/admin/pools/pool/cool")).json()["state"] == "cooling"
        await until(here, "asleep")
        assert (await admin.post("/admin/pools/other/wake")).status_code == 409
        assert (await admin.post("/admin/pools/none/wake")).status_code == 404
        actions = [row["action"] for row in (await admin.get("/admin/audit")).json()["audit"]]
        assert actions[:3] == ["pools.cool", "pools.wake", "pools.wake"]


async def test_what_a_wake_takes_outlives_a_restart(tmp_path: Path) -> None:
    for times in (1, 0):
        async with world(tmp_path, {"pool": VLLM}, pools={"pool": WARM}, durable=True) as here:
            for _ in range(times):
                await answered(here)
            told = await activation(here, "pool")
            assert 0.3 <= told["wake_seconds"] < 3
            assert told["state"] == ("awake" if times else "asleep")


@asynccontextmanager
async def manager(actions: dict[str, Any]):
    """Somebody who starts and stops engines when asked over HTTP; its URL."""

    async def handle(request: web.Request) -> web.Response:
        await actions[request.path]()
        return web.Response(text=json.dumps({}))

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_cold_pool_is_not_there_until_it_is_asked_for(tmp_path: Path) -> None:
    """Its engine does not even listen: somebody else starts and stops it, told over HTTP."""
    engine: Any = None

    async def start() -> None:
        await engine.listen()

    async def stop() -> None:
        engine.refuse()

    async with manager({"/start": start, "/stop": stop}) as url:
        wake = {
            "kind": "http",
            "wake": [{"url": url, "path": "/start"}],
            "cool": [{"url": url, "path": "/stop"}],
        }
        pool = {"state": "cold", "wake": wake, "idle_after_s": 0.4}
        engines = {"pool": {"kind": "tgi", "faults": ("refuse=0",)}}
        async with world(tmp_path, engines, pools={"pool": pool}) as here:
            engine = here.engine()
            assert await state(here) == "asleep"
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answered(here)) for _ in range(4)]
            assert {task.result().headers["x-headgate-attempts"] for task in tasks} == {"1"}
            await until(here, "asleep")
            assert not engine.statistics().listening
            await answered(here)
