"""Prompt lists and several choices: the same answer from every engine, whatever it takes in one call."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.test_cancellation import until
from tests.end_to_end.world import World, tokenizer, world

ENGINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        kind: ({"kind": kind}, {})
        for kind in ("trtllm", "triton", "triton-openai", "tgi", "vllm", "sglang", "llamacpp", "openai")
    },
    "tgi messages": ({"kind": "tgi"}, {"options": {"api": "messages"}}),
    "triton llmapi": (
        {"kind": "triton", "served": "tensorrt_llm", "vocabulary": "llmapi"},
        {"options": {"vocabulary": "llmapi"}},
    ),
}
"""An engine, and what its pool says besides."""
CALLS = {"trtllm": 1, "vllm": 1, "sglang": 1, "openai": 1, "tgi messages": 2}
"""Calls for six prompts; six where nothing is said."""
TEXT_ONLY = {"triton", "triton llmapi", "triton-openai", "tgi", "tgi messages"}
PATH = "/v1/completions"
PROMPTS = ["A canal is", "The gate at the head", "Water", "Шлюз", "One more", "And the last"]
every_engine = pytest.mark.parametrize("name", ENGINES)
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def one_engine(name: str, tmp_path: Path, **fields: Any) -> Any:
    engine, pool = ENGINES[name]
    return world(tmp_path, {"pool": {**engine, "speed": 50.0, **fields}}, pools={"pool": pool})


async def ask(here: World, stream: bool, path: str = PATH, **fields: Any) -> httpx.Response:
    body = {"model": "m", "max_tokens": 12, "stream": stream, **fields}
    if stream:
        body["stream_options"] = {"include_usage": True}
    async with here.http() as http, asyncio.timeout(15):
        return await http.post(path, json=body)


def put_together(answer: httpx.Response, stream: bool) -> tuple[dict[int, str], dict[int, str], Any]:
    """(texts, finish reasons) by index, and usage."""
    assert answer.status_code == 200, answer.text
    if not stream:
        choices, usage = answer.json()["choices"], answer.json()["usage"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
    else:
        *events, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert len({chunk["id"] for chunk in chunks}) == 1
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        (usage,) = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for choice in choices:
        piece = choice.get("text") or choice.get("message", choice.get("delta", {})).get("content") or ""
        texts[choice["index"]] = texts.get(choice["index"], "") + piece
        if choice["finish_reason"]:
            assert choice["index"] not in reasons
            reasons[choice["index"]] = choice["finish_reason"]
    return texts, reasons, usage


@both
@every_engine
async def test_a_list_of_prompts_is_answered_in_its_order(name: str, stream: bool, tmp_path: Path) -> None:
    """Each prompt as if it had come alone; one request, one slot, one charge."""
    async with one_engine(name, tmp_path) as here:
        alone = [put_together(await ask(here, False, prompt=prompt), False) for prompt in PROMPTS]
        before = here.engine().statistics().requests
        texts, reasons, usage = put_together(await ask(here, stream, prompt=PROMPTS), stream)
        assert texts == {i: each[0][0] for i, each in enumerate(alone)}
        assert set(reasons) == set(range(6))
        assert usage["prompt_tokens"] == sum(each[2]["prompt_tokens"] for each in alone)
        if name not in ("triton-openai", "triton llmapi"):  # which tell none, and are counted
            assert usage["completion_tokens"] == sum(each[2]["completion_tokens"] for each in alone)
        assert here.engine().statistics().requests - before == CALLS.get(name, 6)
        ((_, ledger),) = here.gateway.runtime.ledgers()
        assert ledger.requests_total == 7


@both
@pytest.mark.parametrize("name", [name for name in ENGINES if name not in TEXT_ONLY])
async def test_lists_of_token_ids(name: str, stream: bool, tmp_path: Path) -> None:
    ids = [tokenizer().encode(prompt, add_special_tokens=True) for prompt in PROMPTS[:3]]
    async with one_engine(name, tmp_path) as here:
        as_text, _, _ = put_together(await ask(here, stream, prompt=PROMPTS[:3]), stream)
        as_ids, _, _ = put_together(await ask(here, stream, prompt=ids), stream)
        assert as_ids == as_text


@pytest.mark.parametrize("name", sorted(TEXT_ONLY))
async def test_who_takes_text_alone_refuses_token_ids(name: str, tmp_path: Path) -> None:
    async with one_engine(name, tmp_path) as here:
        for prompt in ([1, 2, 3], [[1, 2], [3]]):
            answer = await ask(here, False, prompt=prompt)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert here.engine().statistics().requests == 0


@both
@every_engine
async def test_several_choices_of_several_prompts(name: str, stream: bool, tmp_path: Path) -> None:
    """index = prompt x n + i, everywhere; a prompt counts once however often it was sent."""
    async with one_engine(name, tmp_path) as here:
        alone = [put_together(await ask(here, False, prompt=prompt), False) for prompt in PROMPTS[:2]]
        texts, reasons, usage = put_together(await ask(here, stream, prompt=PROMPTS[:2], n=3), stream)
        assert set(texts) == set(reasons) == set(range(6))
        assert all(texts.values())
        assert usage["prompt_tokens"] == sum(each[2]["prompt_tokens"] for each in alone)
        # The first choice of each prompt is what it would have been alone.
        assert (texts[0], texts[3]) == (alone[0][0][0], alone[1][0][0])


@both
@every_engine
async def test_several_choices_of_a_chat(name: str, stream: bool, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Name a canal."}]
    async with one_engine(name, tmp_path) as here:
        answer = await ask(here, stream, "/v1/chat/completions", messages=messages, n=3)
        texts, reasons, _ = put_together(answer, stream)
        assert set(texts) == set(reasons) == {0, 1, 2}


@both
async def test_a_list_is_charged_once(stream: bool, tmp_path: Path) -> None:
    limits = [{"requests": 10, "per": "day"}, {"tokens": 10_000, "per": "day"}]
    engines = {"pool": {"kind": "tgi", "speed": 50.0}}
    async with world(tmp_path, engines, limits=limits) as here:
        _, _, usage = put_together(await ask(here, stream, prompt=PROMPTS, n=2), stream)
        await here.wait_at_rest()
        used = sorted(row.used for row in (await here.limits()).values())
        assert used == [1, usage["total_tokens"]]


async def test_no_more_calls_at_a_time_than_the_pool_allows(tmp_path: Path) -> None:
    """A replica of two gets two of the six at once, not four."""
    engines = {"pool": {"kind": "tgi", "speed": 3.0}}
    async with world(tmp_path, engines, pools={"pool": {"limits": {"in_flight": 2}}}) as here:
        asking = asyncio.get_running_loop().create_task(ask(here, False, prompt=PROMPTS))
        most = 0
        while not asking.done():
            statistics = here.engine().statistics()
            most = max(most, statistics.running + statistics.waiting)
            await asyncio.sleep(0.001)
        assert asking.result().status_code == 200
        assert most == 2


@both
async def test_what_fails_before_the_first_byte_is_sent_elsewhere(stream: bool, tmp_path: Path) -> None:
    """One of six calls is refused: the other replica gets all six, and the client sees one good answer."""
    engines = {"pool": {"kind": "tgi", "speed": 20.0, "replicas": 2}}
    for fault in ("overload*1", "error_after=0*1", "close*1"):
        async with world(tmp_path, engines) as here:
            here.engines["pool-1"].arm(fault)
            attempts = []
            for _ in range(2):  # the second one goes to the other replica first
                answer = await ask(here, stream, prompt=PROMPTS[:3])
                texts, _, _ = put_together(answer, stream)
                assert set(texts) == {0, 1, 2}
                attempts.append(answer.headers["x-headgate-attempts"])
            assert "2" in attempts


async def test_what_fails_later_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "tgi", "speed": 5.0, "mean_tokens": 400.0}}
    async with world(tmp_path, engines) as here:
        here.engine().arm("die_after=5*1")
        answer = await ask(here, True, prompt=PROMPTS[:3], max_tokens=100)
        assert answer.status_code == 200
        assert '"error"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        await here.wait_at_rest()
        assert here.engine().statistics().engine.output_tokens < 300


@pytest.mark.parametrize("name", ["tgi", "triton", "triton llmapi", "llamacpp", "vllm"])
@both
async def test_a_client_that_leaves_stops_all_of_it(name: str, stream: bool, tmp_path: Path) -> None:
    """Those under way, and those that had not begun: nothing more is sent."""
    async with one_engine(name, tmp_path, speed=1.0, mean_tokens=4000.0) as here:
        task = asyncio.get_running_loop().create_task(ask(here, stream, prompt=PROMPTS, max_tokens=2000))
        await until("tokens", lambda: here.engine().statistics().engine.output_tokens > 8)
        task.cancel()
        await asyncio.wait([task])
        await here.wait_at_rest(5)
        statistics = here.engine().statistics()
        assert statistics.engine.output_tokens < 2000
        assert len(statistics.closes) == min(4, CALLS.get(name, 6))


async def test_time_budgets_cut_every_choice(tmp_path: Path) -> None:
    async with one_engine("tgi", tmp_path, speed=1.0, mean_tokens=4000.0) as here:
        async with here.http() as http:
            body = {"model": "m", "max_tokens": 2000, "prompt": PROMPTS}
            answer = await http.post(PATH, json=body, headers={"x-headgate-stop-after-ms": "200"})
        choices = answer.json()["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["length"] * 6
        assert all(choice["text"] for choice in choices[:4])
        assert not any(choice["text"] for choice in choices[4:])  # whose turn had not come
