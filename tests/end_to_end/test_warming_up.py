"""Warm-up through real sockets: what a replica gets before traffic, when, and what follows of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.world import World, world

WARM_UP = {"warm_up": {"prompts": ["Wake up.", "Again."], "max_tokens": 2}}


def ask(text: str = "Hello!", system: str | None = None, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"model": "m", "messages": messages, "max_tokens": 4, **more}


async def answered(here: World, *args: Any, **more: Any) -> Any:
    async with here.sdk() as sdk:
        return await sdk.chat.completions.with_raw_response.create(**ask(*args, **more))


def seen(here: World, replica: str = "pool-1") -> list[str]:
    """The last words of each chat that the engine got, in their order."""
    bodies = [each.body for each in here.engines[replica].statistics().recent]
    return [body["messages"][-1]["content"] if "messages" in body else str(body) for body in bodies]


async def holds(here: World) -> dict[str, str | None]:
    async with here.admin() as admin:
        rows = (await admin.get("/admin/replicas")).json()["replicas"]
    return {row["id"]: row["hold"] for row in rows}


async def test_warm_up_comes_before_traffic(tmp_path: Path) -> None:
    """A request that comes meanwhile waits in line, and is sent after the last warm-up request has ended."""
    engines = {"pool": {"kind": "trtllm", "speed": 1.0, "faults": ("slow_first=0.3*1",)}}
    async with world(tmp_path, engines, pools={"pool": WARM_UP}) as here:
        assert await holds(here) == {"pool-1": "warming"}
        raw = await answered(here, "Hello!", temperature=0.5)
        assert seen(here) == ["Wake up.", "Again.", "Hello!"]
        assert float(raw.headers["x-headgate-queue-ms"]) > 100
        first, *_ = here.engine().statistics().recent
        assert first.body["max_tokens"] == 2
        assert await holds(here) == {"pool-1": None}
        async with here.admin() as admin:
            metrics = (await admin.get("/metrics")).text
        assert 'headgate_warm_ups_total{outcome="done",pool="pool"} 1.0' in metrics
        assert 'headgate_replica_warming{pool="pool",replica="pool-1"} 0.0' in metrics


@pytest.mark.parametrize("kind", ["trtllm", "triton", "tgi", "vllm", "openai"])
async def test_every_engine_gets_it_in_its_own_words(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": kind}}, pools={"pool": WARM_UP}) as here:
        await answered(here)
        texts = seen(here)
        assert len(texts) == 3
        assert "Wake up." in texts[0]


async def test_no_traffic_is_held_up_for_ever(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "faults": ("hang*1",)}}
    pool = {"warm_up": {"prompts": ["x"], "timeout_s": 0.2}}
    async with world(tmp_path, engines, pools={"pool": pool}) as here:
        assert (await answered(here)).headers["x-headgate-pool"] == "pool"
        async with here.admin() as admin:
            assert (
                'headgate_warm_ups_total{outcome="timeout",pool="pool"} 1.0'
                in (await admin.get("/metrics")).text
            )


async def test_the_other_replicas_serve_meanwhile(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "replicas": 2}}
    async with world(tmp_path, engines, pools={"pool": {"warm_up": {"prompts": ["x"]}}}) as here:
        async with asyncio.timeout(5):
            while any((await holds(here)).values()):
                await asyncio.sleep(0.01)
        here.engines["pool-1"].arm("hang*1")
        text = yaml.safe_load(here.file.read_text())
        text["pools"]["pool"]["replicas"][0]["id"] = "other"  # a replica that appears
        here.file.write_text(yaml.safe_dump(text))
        assert (await here.gateway.reloader.reload("test")).ok
        assert await holds(here) == {"other": "warming", "pool-2": None}
        assert (await answered(here)).headers["x-headgate-replica"] == "pool-2"
        here.engines["pool-1"].abort_connections()


async def test_one_that_returns_is_warmed_up_with_what_is_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was unreachable, so its cache is gone: the system prompts seen most often come first."""
    monkeypatch.setattr("gateway.fleet.probing.INTERVAL", 0.05)
    pool = {"warm_up": {"common_prefixes": 1}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools={"pool": pool}, probe=True) as here:
        for _ in range(3):
            await answered(here, "Hello!", "You are a gatekeeper.")
        await answered(here, "Hello!", "Said once.")
        engine = here.engine()
        engine.refuse()
        async with asyncio.timeout(5):
            while (await holds(here)) is None or here.gateway.runtime.ready():
                await asyncio.sleep(0.01)
        before = len(seen(here))
        await engine.listen()
        async with asyncio.timeout(5):
            while not here.gateway.runtime.ready():
                await asyncio.sleep(0.01)
        await answered(here, "And now?")
        bodies = [each.body for each in engine.statistics().recent][before:]
        systems = [body["messages"][0]["content"] for body in bodies]
        assert systems == ["You are a gatekeeper.", "And now?"]


async def test_a_pool_that_wakes_is_warmed_up_first(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "vllm", "asleep": True, "wake_s": 0.1}}
    pool = {"state": "warm", "wake": "engine", **WARM_UP}
    async with world(tmp_path, engines, pools={"pool": pool}) as here:
        assert await holds(here) == {"pool-1": "asleep"}
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(answered(here, f"Hello {number}"))
        assert seen(here)[:2] == ["Wake up.", "Again."]
        assert len(seen(here)) == 7


async def test_nothing_is_remembered_unless_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools={"pool": WARM_UP}) as here:
        for _ in range(4):
            await answered(here, "Hello!", "A secret.")
        assert not any(map(len, here.gateway._prefixes.values()))
