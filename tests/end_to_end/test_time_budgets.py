"""Time budgets: an answer ends when its time is over, with what there is, and that is no error."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.world import World, world

ENGINES = ["trtllm", "triton", "tgi", "vllm"]
PATH = "/v1/chat/completions"
SLOW = {"mean_tokens": 4000.0, "speed": 1.0}
"""About 170 tokens a second, and no end of its own in the time of a test."""


def ask(stream: bool, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me everything about canals."}]
    return {"model": "m", "messages": messages, "max_tokens": 4000, "stream": stream, **fields}


async def send(here: World, stream: bool, headers: dict[str, str], **fields: Any) -> httpx.Response:
    async with here.http() as http, asyncio.timeout(10):
        return await http.post(PATH, json=ask(stream, **fields), headers=headers)


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    *events, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_whole_answer_ends_when_its_time_is_over(kind: str, tmp_path: Path) -> None:
    """The header says why; the engine is told to stop; what was made is charged."""
    limits = [{"tokens": 100_000, "per": "day", "each": "tenant"}]
    async with world(tmp_path, {"pool": {"kind": kind, **SLOW}}, limits=limits) as here:
        answer = await send(here, False, {"x-headgate-stop-after-ms": "250"})
        body = answer.json()
        assert (answer.status_code, body["choices"][0]["finish_reason"]) == (200, "length")
        assert answer.headers["x-headgate-cut-by"] == "stop-after"
        made = body["usage"]["completion_tokens"]
        assert body["choices"][0]["message"]["content"]
        assert 0 < made < 200
        await here.wait_at_rest()
        assert here.engine().statistics().engine.output_tokens < 400
        (used,) = [row.used for row in (await here.limits()).values() if row.used]
        assert used == body["usage"]["total_tokens"]


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_stream_ends_when_its_time_is_over(kind: str, tmp_path: Path) -> None:
    """The last chunk says why; usage is told; `[DONE]` is the end."""
    async with world(tmp_path, {"pool": {"kind": kind, **SLOW}}) as here:
        answer = await send(
            here, True, {"x-headgate-stop-after-ms": "250"}, stream_options={"include_usage": True}
        )
        *texts, last, usage = chunks_of(answer)
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["headgate"] == {"cut_by": "stop-after"}
        assert not any("headgate" in chunk for chunk in texts)
        assert 0 < usage["usage"]["completion_tokens"] < 200


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_pool_bounds_its_generations(stream: bool, tmp_path: Path) -> None:
    pools = {"pool": {"max_generation_ms": 200}}
    async with world(tmp_path, {"pool": {"kind": "trtllm", **SLOW}}, pools=pools) as here:
        answer = await send(here, stream, {})
        if stream:
            assert chunks_of(answer)[-1]["headgate"] == {"cut_by": "max-generation"}
        else:
            assert answer.headers["x-headgate-cut-by"] == "max-generation"
        # The sooner of the two counts.
        answer = await send(here, False, {"x-headgate-stop-after-ms": "60"})
        assert answer.headers["x-headgate-cut-by"] == "stop-after"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_engine_that_falls_silent_is_not_waited_for(stream: bool, tmp_path: Path) -> None:
    """Three tokens, then nothing: the budget ends it, long before the idle time of a minute."""
    engines = {"pool": {"kind": "trtllm", **SLOW, "faults": ["silent_after=3"]}}
    async with world(tmp_path, engines) as here:
        answer = await send(here, stream, {"x-headgate-stop-after-ms": "300"})
        assert answer.status_code == 200
        if stream:
            assert chunks_of(answer)[-1]["choices"][0]["finish_reason"] == "length"
        else:
            assert answer.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["trtllm", "tgi"])
async def test_nothing_is_what_there_is_before_the_first_token(
    kind: str, stream: bool, tmp_path: Path
) -> None:
    """An engine has the request and has said nothing: an empty answer, and no fault of the engine."""
    engines = {"pool": {"kind": kind, **SLOW, "faults": ["slow_first=30"]}}
    async with world(tmp_path, engines) as here:
        answer = await send(here, stream, {"x-headgate-stop-after-ms": "150"})
        assert (answer.status_code, answer.headers["x-headgate-cut-by"]) == (200, "stop-after")
        if stream:
            (chunk,) = [chunk for chunk in chunks_of(answer) if chunk["choices"][0]["finish_reason"]]
            assert chunk["choices"][0]["finish_reason"] == "length"
        else:
            body = answer.json()
            assert body["choices"][0]["message"]["content"] == ""
            assert body["usage"]["completion_tokens"] == 0
        await here.wait_at_rest()
        ((_, ledger),) = here.gateway.runtime.ledgers()
        assert not ledger.cooling()


async def test_a_request_whose_time_ends_in_the_queue_was_never_begun(tmp_path: Path) -> None:
    """There is nothing to return, and another gateway may still answer it: 504, and no engine saw it."""
    engines = {"pool": {"kind": "trtllm", **SLOW}}
    async with world(tmp_path, engines, pools={"pool": {"limits": {"in_flight": 1}}}) as here:
        async with here.http() as http, http.stream("POST", PATH, json=ask(True)) as first:
            assert first.status_code == 200
            answer = await send(here, False, {"x-headgate-stop-after-ms": "100"})
            assert answer.status_code in (503, 504)
            assert here.engine().statistics().requests == 1


async def test_an_answer_in_time_is_left_alone(tmp_path: Path) -> None:
    pools = {"pool": {"max_generation_ms": 60_000}}
    async with world(tmp_path, {"pool": {"kind": "trtllm", "mean_tokens": 9.0}}, pools=pools) as here:
        answer = await send(here, False, {"x-headgate-stop-after-ms": "50000"})
        assert "x-headgate-cut-by" not in answer.headers
        assert answer.json()["choices"][0]["finish_reason"] == "stop"


async def test_what_is_not_asked_to_stream_is_not_cut(tmp_path: Path) -> None:
    """`upstream_stream: client`: nothing of a whole answer is seen before its end, so it comes whole."""
    pools = {"pool": {"upstream_stream": "client", "max_generation_ms": 5}}
    async with world(tmp_path, {"pool": {"kind": "trtllm", "mean_tokens": 30.0}}, pools=pools) as here:
        answer = await send(here, False, {})
        assert (answer.status_code, "x-headgate-cut-by" in answer.headers) == (200, False)
        assert answer.json()["usage"]["completion_tokens"] > 3


@pytest.mark.parametrize("value", ["0", "-5", "1e3", "soon", "999999999"])
async def test_a_budget_that_is_none_is_refused(value: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        answer = await send(here, False, {"x-headgate-stop-after-ms": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-headgate-stop-after-ms")
