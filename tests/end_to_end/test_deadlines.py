"""How long a client waits, as its headers say: in line, and at an engine that does not begin."""

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.world import world

SLOW = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
ONE = {"pool": {"limits": {"in_flight": 1}}}


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, **more}


@pytest.mark.parametrize("header", [{"x-headgate-timeout-ms": "250"}, {"x-stainless-read-timeout": "0.25"}])
async def test_nobody_stands_in_line_for_longer_than_he_waits(header: dict[str, str], tmp_path: Path) -> None:
    async with world(tmp_path, SLOW, pools=ONE) as here, here.sdk() as sdk:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        asked = time.monotonic()
        with pytest.raises(openai.InternalServerError) as error:
            await sdk.chat.completions.create(**ask(), extra_headers=header)
        assert error.value.status_code in (503, 504)
        assert time.monotonic() - asked < 5, "the pool's own max_wait_s is 60"
        assert here.engines["pool-1"].statistics().requests == 1, "the engine never heard of it"
        await held.close()


async def test_an_sdk_that_waits_for_ten_minutes_does_not_switch_shedding_off(tmp_path: Path) -> None:
    """It always says so; the budget of the class is earlier. A class that is not shed waits on."""
    pool = {"pool": {**ONE["pool"], "scheduler": {"budget_ms": 400}}}
    async with world(tmp_path, SLOW, pools=pool) as here, here.sdk(timeout=600) as sdk:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        patient = asyncio.get_running_loop().create_task(
            sdk.chat.completions.create(**ask(service_tier="default"))
        )
        asked = time.monotonic()
        with pytest.raises(openai.InternalServerError, match="in time") as error:
            await sdk.chat.completions.create(**ask(service_tier="priority"))
        assert error.value.response.request.headers["x-stainless-read-timeout"] == "600"
        assert (error.value.status_code, error.value.code) == (503, "server_is_overloaded")
        assert time.monotonic() - asked < 5
        assert not patient.done()
        await held.close()
        assert (await patient).choices[0].message.content


async def test_the_line_can_be_looked_at(tmp_path: Path) -> None:
    async with world(tmp_path, SLOW, pools=ONE) as here, here.sdk() as sdk, here.admin() as admin:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        async with asyncio.TaskGroup() as group:
            headers = {"x-headgate-timeout-ms": "1500"}
            late = [
                group.create_task(raised(sdk.chat.completions.create(**ask(), extra_headers=headers)))
                for _ in range(2)
            ]
            line: list[dict[str, Any]] = []
            async with asyncio.timeout(10):
                while len(line) < 2:
                    (queue,) = (await admin.get("/admin/queues")).json()["queues"]
                    line = queue["line"]
            live = {row["request_id"]: row for row in (await admin.get("/admin/requests")).json()["requests"]}
        assert [row["position"] for row in line] == [1, 2]
        assert all(row["waited"] >= 0 and row["expected_wait"] >= 0 for row in line)
        assert {row["request_id"] for row in line} <= live.keys()
        assert all(task.result() in (503, 504) for task in late)
        await held.close()


async def raised(asking: Any) -> int:
    with pytest.raises(openai.InternalServerError) as error:
        await asking
    return error.value.status_code


async def test_an_engine_is_not_blamed_for_a_clients_haste(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "faults": ["slow_first=30"]}}
    async with world(tmp_path, engines) as here, here.sdk() as sdk:
        with pytest.raises(openai.InternalServerError) as error:
            await sdk.chat.completions.create(**ask(), extra_headers={"x-headgate-timeout-ms": "200"})
        assert error.value.status_code == 504
        ((_, ledger),) = here.gateway.runtime.ledgers()
        assert not ledger.cooling()
        assert ledger.last_error is None


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "99999999999", ""])
async def test_a_time_that_makes_no_sense_is_refused(value: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        answer = await http.post("/v1/chat/completions", json=ask(), headers={"x-headgate-timeout-ms": value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "x-headgate-timeout-ms"


@pytest.mark.parametrize("value", ["NOT_GIVEN", "nan", "inf", "-1", "0", "600"])
async def test_what_an_sdk_says_of_itself_never_refuses(value: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        headers = {"x-stainless-read-timeout": value}
        answer = await http.post("/v1/chat/completions", json=ask(), headers=headers)
        assert answer.status_code == 200
