"""Overload through real sockets: what requests lose, who does not, how it is told; and who goes elsewhere
instead of being refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.world import World, world

SLOW = {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}
ONE = {"limits": {"in_flight": 1}}
STEPS = [
    {"when": {"waiting": 1}, "max_tokens": 5, "dwell_s": 0.2},
    {"when": {"waiting": 2}, "n": 1, "class": "batch", "dwell_s": 0.2},
]


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64, **more}


async def until_waiting(here: World, count: int) -> None:
    async with asyncio.timeout(5):
        while here.gateway.runtime.queues["pool"].statistics().waiting < count:
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def a_line(here: World, count: int) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """One long stream on the only slot, `count` requests behind it; they are served when it is left."""
    async with here.sdk() as sdk, here.http() as http, asyncio.TaskGroup() as group:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        waiting = []
        for number in range(1, count + 1):
            headers = {"x-headgate-degrade": "no"}
            waiting.append(
                group.create_task(http.post("/v1/chat/completions", json=ask(max_tokens=9), headers=headers))
            )
            await until_waiting(here, number)
        try:
            yield waiting
        finally:
            await held.close()


def overloaded(**more: Any) -> list[dict[str, Any]]:
    return [{"name": "all", "pools": ["pool"], "overload": STEPS, **more}]


async def served(here: World, count: int, **more: Any) -> httpx.Response:
    """A request that came when `count` others waited."""
    headers = more.pop("headers", {})
    async with here.http() as http, asyncio.TaskGroup() as group:
        async with a_line(here, count):
            mine = group.create_task(http.post("/v1/chat/completions", json=ask(**more), headers=headers))
            await until_waiting(here, count + 1)
        return await mine


async def test_in_a_line_everybody_gets_a_little_less(tmp_path: Path) -> None:
    """The bound is the engine's too; header and metric say what was lost, and why."""
    async with world(tmp_path, {"pool": SLOW}, pools={"pool": ONE}, rules=overloaded()) as here:
        answer = await served(here, 1)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        said = answer.headers["x-headgate-degraded"]
        assert said.startswith('max_tokens=5, by="rule all step 1", queue_wait_ms=')
        assert said.endswith("waiting=1")
        assert answer.headers["x-headgate-max-tokens"] == "5"
        assert answer.headers["x-headgate-max-tokens-bound-by"] == "overload"
        async with here.admin() as admin:
            metrics = (await admin.get("/metrics")).text
        assert 'headgate_degraded_requests_total{of="rule all",step="1"} 1.0' in metrics
        assert 'headgate_overload_step{class="standard",of="rule all",pool="pool"}' in metrics


async def test_a_longer_line_takes_more(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": SLOW}, pools={"pool": ONE}, rules=overloaded()) as here:
        answer = await served(here, 2, n=3)
        assert len(answer.json()["choices"]) == 1
        said = answer.headers["x-headgate-degraded"]
        assert said.startswith('max_tokens=5, n=1, class=batch, by="rule all step 2", ')


@pytest.mark.parametrize("how", ["header", "key", "tenant"])
async def test_who_opted_out_waits_and_gets_it_whole(how: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": SLOW}, pools={"pool": ONE}, rules=overloaded()) as here:
        if how != "header":
            text = here.file.read_text()
            old, new = {
                "key": ("  - id: tenant-1\n", "  - id: tenant-1\n      degrade: false\n"),
                "tenant": ("  tenant:\n", "  tenant:\n    degrade: false\n"),
            }[how]
            assert text.count(old) == 1
            here.file.write_text(text.replace(old, new))
            assert (await here.gateway.reloader.reload("test")).ok
        answer = await served(here, 2, headers={"x-headgate-degrade": "no"} if how == "header" else {})
        assert answer.json()["usage"]["completion_tokens"] > 5
        assert "x-headgate-degraded" not in answer.headers


async def test_another_word_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        answer = await http.post(
            "/v1/chat/completions", json=ask(), headers={"x-headgate-degrade": "perhaps"}
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-headgate-degrade")


async def test_it_ends_after_the_dwell_and_what_was_cut_is_not_learned(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": SLOW}, pools={"pool": ONE}, rules=overloaded()) as here:
        await served(here, 1)
        learned = sum(row.answers for row in here.gateway.runtime.pipeline.lengths.rows() if row.prompt_from)
        assert learned == 1, "of the one that waited whole; neither of the degraded nor of the one that left"
        await asyncio.sleep(0.25)
        async with here.http() as http:
            for _ in range(2):
                answer = await http.post("/v1/chat/completions", json=ask(max_tokens=9))
        assert "x-headgate-degraded" not in answer.headers
        (row,) = here.gateway.runtime.pipeline.brownout.rows()
        assert row.active == 0


async def test_explain_and_the_queues_tell_what_is_on(tmp_path: Path) -> None:
    async with (
        world(tmp_path, {"pool": SLOW}, pools={"pool": ONE}, rules=overloaded()) as here,
        here.admin() as admin,
    ):
        body = {"tenant": "tenant", "request": ask()}
        calm = (await admin.post("/admin/routes/explain", json=body)).json()
        assert calm["degraded"] is None
        assert [step["on"] for step in calm["overload"][0]["steps"]] == [False, False]
        assert calm["overload"][0]["steps"][1]["takes"] == {"n": 1, "class": "batch"}
        async with a_line(here, 1):
            told = (await admin.post("/admin/routes/explain", json=body)).json()
            assert told["degraded"].startswith("max_tokens=5")
            assert told["chain"][0]["max_tokens"] == 5
            assert [step["on"] for step in told["overload"][0]["steps"]] == [True, False]
            (queue,) = (await admin.get("/admin/queues")).json()["queues"]
            assert [(row["of"], row["active"]) for row in queue["overload"]] == [("rule all", 1)]


async def test_another_model_answers_and_says_so(tmp_path: Path) -> None:
    engines = {"pool": SLOW, "minor": {"kind": "tgi"}}
    steps = [{"when": {"waiting": 1}, "model": "small", "pools": ["minor"]}]
    async with world(
        tmp_path,
        engines,
        models={"m": {}, "small": {}},
        pools={"pool": ONE, "minor": {"serves": {"small": "m"}}},
        rules=[
            {"name": "big", "when": {"model": "m"}, "pools": ["pool"], "overload": steps},
            {"name": "rest", "pools": ["minor"]},
        ],
    ) as here:
        async with a_line(here, 1), here.http() as http:
            answer = await http.post("/v1/chat/completions", json=ask())
            assert answer.headers["x-headgate-pool"] == "minor"
            assert answer.headers["x-headgate-model"] == answer.json()["model"] == "small"
            assert answer.headers["x-headgate-degraded"].startswith('model="small", by="rule big step 1"')


def shed_after(milliseconds: int, **scheduler: Any) -> dict[str, Any]:
    return {**ONE, "scheduler": {"kind": "lanes", "budget_ms": milliseconds, **scheduler}}


async def test_who_would_be_shed_goes_to_the_next_pool(tmp_path: Path) -> None:
    """Its budget is over when the first pool gives it up; the next one has a budget of its own for it, and
    room. Without that it would refuse it unseen."""
    engines = {"pool": SLOW, "spare": {"kind": "tgi"}}
    pools = {"pool": shed_after(200), "spare": shed_after(200)}
    rule = {"name": "all", "pools": ["pool", "spare"], "on": ["overloaded"], "after_ms": 5000}
    async with (
        world(tmp_path, engines, pools=pools, rules=[rule]) as here,
        a_line(here, 0),
        here.http() as http,
    ):
        answer = await http.post("/v1/chat/completions", json=ask(service_tier="priority"))
        assert (answer.status_code, answer.headers["x-headgate-pool"]) == (200, "spare")
        assert 150 < float(answer.headers["x-headgate-queue-ms"]) < 4000


async def test_without_the_word_it_is_refused(tmp_path: Path) -> None:
    engines = {"pool": SLOW, "spare": {"kind": "tgi"}}
    rule = {"name": "all", "pools": ["pool", "spare"]}
    async with (
        world(tmp_path, engines, pools={"pool": shed_after(200)}, rules=[rule]) as here,
        a_line(here, 0),
        here.http() as http,
    ):
        answer = await http.post("/v1/chat/completions", json=ask(service_tier="priority"))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "server_is_overloaded"


async def test_or_it_waits_as_batch(tmp_path: Path) -> None:
    """`overdue: demote`: nobody is refused; it is answered when there is room at last."""
    async with world(tmp_path, {"pool": SLOW}, pools={"pool": shed_after(100, overdue="demote")}) as here:
        async with here.http() as http, asyncio.TaskGroup() as group:
            async with a_line(here, 0):
                late = group.create_task(
                    http.post("/v1/chat/completions", json=ask(service_tier="priority", max_tokens=9))
                )
                await until_waiting(here, 1)
                async with asyncio.timeout(5):
                    while here.gateway.runtime.queues["pool"].line(1)[0].priority_class != "batch":
                        await asyncio.sleep(0.01)
            assert (await late).status_code == 200
