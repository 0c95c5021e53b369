"""`headgate_abandoned_tokens_total`, by cause."""

import asyncio
from pathlib import Path

import pytest

from tests.end_to_end.test_cancellation import leave_after_headers, leave_when, until
from tests.end_to_end.test_time_budgets import SLOW, ask, send
from tests.end_to_end.world import World, world


def lost(here: World) -> dict[tuple[str, str], float]:
    (family,) = here.gateway.metrics.abandoned.collect()
    return {
        (sample.labels["kind"], sample.labels["cause"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


async def test_a_whole_answer_of_a_client_that_went(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "vllm", **SLOW}}) as here:
        async with here.http() as http:
            await leave_when(http, False, lambda: here.engine().statistics().engine.output_tokens > 20)
        await here.wait_at_rest()
        counted = lost(here)
        made = here.engine().statistics().engine
        assert counted["prompt", "client"] == made.prompt_tokens
        # Told from how long it took, which on a busy machine is more than what the engine had of it.
        assert 0.4 * made.output_tokens < counted["output", "client"] < 2.5 * made.output_tokens


async def test_a_stream_of_a_client_that_went_is_not_lost_but_for_its_end(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "vllm", **SLOW}}) as here:
        async with here.http() as http:
            await leave_after_headers(http)
        await here.wait_at_rest()
        assert ("prompt", "client") not in lost(here)
        assert lost(here).get(("output", "client"), 0) < 20


async def test_a_request_that_never_left_the_line_cost_nothing(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "vllm", **SLOW}}
    async with world(tmp_path, engines, pools={"pool": {"limits": {"in_flight": 1}}}) as here:
        queue = here.gateway.runtime.queues["pool"]
        async with here.http() as first, here.http() as second:
            async with first.stream("POST", "/v1/chat/completions", json=ask(True)):
                await leave_when(second, True, lambda: queue.statistics().waiting == 1)
                await until("the queue to empty", lambda: queue.statistics().waiting == 0)
                assert lost(here) == {}


async def test_a_budget_and_a_timeout_have_causes_of_their_own(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "triton", **SLOW}}
    async with world(tmp_path, engines) as here:
        await send(here, False, {"x-headgate-stop-after-ms": "100"})
        assert not {cause for _, cause in lost(here)} - {"cut"}
    engines = {"pool": {"kind": "vllm", **SLOW, "faults": ["slow_first=30"]}}
    async with world(tmp_path, engines) as here:
        answer = await send(here, True, {"x-headgate-timeout-ms": "100"})
        assert answer.status_code == 504
        assert lost(here)["prompt", "timeout"] > 0


async def test_a_whole_answer_that_broke_is_lost(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "vllm", **SLOW, "faults": ["die_after=30"]}}
    async with world(tmp_path, engines, pools={"pool": {"upstream_stream": "always"}}) as here:
        answer = await send(here, False, {})
        assert answer.status_code >= 500
        assert lost(here)["output", "failed"] == pytest.approx(30, abs=3)
        assert lost(here)["prompt", "failed"] > 0


async def test_a_good_answer_loses_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "tgi", "mean_tokens": 9.0}}) as here:
        for stream in (True, False):
            assert (await send(here, stream, {})).status_code == 200
        await asyncio.sleep(0)
        assert lost(here) == {}
