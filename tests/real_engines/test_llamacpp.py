"""The official OpenAI SDK through the gateway to a real llama.cpp server.

The model is random, so what it says means nothing; but the server counts, cuts, stops, constrains and cancels
for real, and at temperature 0 it says the same thing twice.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from backends.llamacpp.adapter import LlamacppAdapter, LlamacppOptions
from gateway.app import discovery_of, engine_at
from gateway.examining.calibrating import Calibrator, Load, shapes_of
from tests.conftest import not_run
from tests.end_to_end.world import world
from tests.real_engines.asking import STREAM, ask, told, until
from tests.real_engines.llamacpp_server import CONTEXT, MODEL, SLOTS, LlamaServer, program, running


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    if program() is None:
        not_run("real llama.cpp: no llama-server (set HEADGATE_LLAMA_SERVER)", required=False)
    with running(tmp_path_factory.mktemp("llama")) as server:
        yield server


def pool(llama: LlamaServer) -> dict[str, Any]:
    return {"kind": "llamacpp", "url": llama.url, "served": MODEL}


# ------------------------------------------------------------------------------------------ what it is


async def test_it_is_recognised_with_its_limits(llama: LlamaServer) -> None:
    """The context of a slot, not that of the model nor that of all slots together."""
    discovery = discovery_of([llama.url])
    await discovery.look()
    (found,) = discovery.found
    limits = found.identified.limits
    assert (found.identified.kind, dict(found.identified.models)) == ("llamacpp", {MODEL: MODEL})
    assert (limits.context_tokens, limits.in_flight) == (CONTEXT, SLOTS)


@pytest.mark.parametrize("metrics", [False, True])
async def test_its_load_is_read(llama: LlamaServer, metrics: bool) -> None:
    adapter = LlamacppAdapter(LlamacppOptions(metrics=metrics))
    question = adapter.load_request()
    assert question is not None
    async with httpx.AsyncClient(base_url=llama.url, trust_env=False) as http:
        answer = await http.request(question.method, question.path)
    load = adapter.read_load(answer.status_code, answer.content)
    assert load is not None
    assert (load.running, load.waiting) == (0, 0 if metrics else None)


async def test_it_can_be_calibrated(llama: LlamaServer) -> None:
    """A few shapes, once each: first tokens and steps are seen."""
    load = Load(prompt_tokens=96, sequences=SLOTS, seconds=20, rounds=1)
    async with engine_at(llama.url, "llamacpp", {}, {}) as engine:
        calibrator = Calibrator(engine, MODEL, load, clock=time.perf_counter, cpu_clock=time.process_time)
        measured = await calibrator.measure(shapes_of(load, CONTEXT, None, SLOTS))
    assert {sample.kind for sample in measured.samples} == {"prefill", "decode"}


# ------------------------------------------------------------------------------------------ answers


async def test_whole_and_streamed_say_the_same(llama: LlamaServer, tmp_path: Path) -> None:
    """Text, reason and the engine's own counts; our count of the prompt is the engine's."""
    async with world(tmp_path, {"pool": pool(llama)}) as here:
        whole, reasons, usage, headers = await told(here, **ask())
        assert (whole, reasons) == (await told(here, **ask(stream=True)))[:2]
        assert reasons == ["length"]
        assert usage.completion_tokens == 12
        assert headers["x-headgate-prompt-tokens"] == str(usage.prompt_tokens)


async def test_a_connection_that_was_closed_after_a_stream_costs_nothing(
    llama: LlamaServer, tmp_path: Path
) -> None:
    """llama.cpp announces keep-alive and closes after each stream: no request may meet the closed one."""
    async with world(tmp_path, {"pool": pool(llama)}) as here:
        for number in range(30):
            *_, headers = await told(here, **ask(f"number {number}", max_tokens=2, stream=number % 3 != 0))
            assert headers["x-headgate-attempts"] == "1"


@STREAM
async def test_choices_are_counted_all(llama: LlamaServer, tmp_path: Path, stream: bool) -> None:
    """Asked for two at once, llama.cpp counts the tokens of one."""
    async with world(tmp_path, {"pool": pool(llama)}) as here:
        texts, _, usage, _ = await told(here, **ask(n=2, temperature=1, stream=stream))
    assert len(texts) == 2
    assert usage.completion_tokens == 24


async def test_prompts_are_counted_all(llama: LlamaServer, tmp_path: Path) -> None:
    """Of a list of prompts, llama.cpp counts the first."""
    prompts = ["River", "The gate is open, and the water comes"]
    async with world(tmp_path, {"pool": pool(llama)}) as here, here.sdk() as sdk:
        given: dict[str, Any] = {"model": "m", "max_tokens": 3, "temperature": 0}
        alone = [await sdk.completions.create(prompt=prompt, **given) for prompt in prompts]
        both = await sdk.completions.create(prompt=prompts, **given)
    assert [choice.text for choice in both.choices] == [each.choices[0].text for each in alone]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone if each.usage)
    assert both.usage.completion_tokens == 6


@STREAM
async def test_a_stop_string_ends_it(llama: LlamaServer, tmp_path: Path, stream: bool) -> None:
    async with world(tmp_path, {"pool": pool(llama)}) as here:
        (full,), *_ = await told(here, **ask(stream=stream))
        (cut,), reasons, *_ = await told(here, **ask(stream=stream, stop=[full[4:7]]))
    assert (cut, reasons) == (full[: full.index(full[4:7])], ["stop"])


async def test_a_schema_is_followed(llama: LlamaServer, tmp_path: Path) -> None:
    """Even by a model that knows nothing: its grammar leaves no choice."""
    flag = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}
    form = {"type": "json_schema", "json_schema": {"name": "gate", "schema": flag}}
    async with world(tmp_path, {"pool": pool(llama)}) as here:
        (text,), reasons, *_ = await told(here, **ask(max_tokens=200, response_format=form))
    assert reasons == ["stop"]
    assert isinstance(json.loads(text)["open"], bool)


async def test_log_probabilities_of_both_routes(llama: LlamaServer, tmp_path: Path) -> None:
    """llama.cpp sends the chat's form on the completions route too: clients get OpenAI's older one there."""
    async with world(tmp_path, {"pool": pool(llama)}) as here, here.sdk() as sdk:
        chat = await sdk.chat.completions.create(**ask(logprobs=True, top_logprobs=2, max_tokens=2))
        assert chat.choices[0].logprobs is not None
        assert [len(each.top_logprobs) for each in chat.choices[0].logprobs.content or ()] == [2, 2]
        for stream in (False, True):
            asked: dict[str, Any] = {"model": "m", "prompt": "The gate", "max_tokens": 3}
            asked |= {"temperature": 0, "logprobs": 2}
            if stream:
                chunks = [chunk async for chunk in await sdk.completions.create(**asked, stream=True)]
            else:
                chunks = [await sdk.completions.create(**asked)]
            parts = [
                choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs is not None
            ]
            told_of = sum(len(part.tokens or ()) for part in parts)
            # A streamed token that ends within a character is told with the next one, without its own.
            assert 1 <= told_of <= 3 if stream else told_of == 3
            assert all(value <= 0 for part in parts for value in part.token_logprobs or ())
            assert all(len(each) == 2 for part in parts for each in part.top_logprobs or ())


# ------------------------------------------------------------------------------------------- errors


@STREAM
async def test_too_long_for_the_engine(llama: LlamaServer, tmp_path: Path, stream: bool) -> None:
    """Its own words, with the status that OpenAI's clients know."""
    async with world(tmp_path, {"pool": pool(llama)}) as here, here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.chat.completions.create(**ask("gate " * (CONTEXT + 500), stream=stream))
    assert refused.value.code == "context_length_exceeded"


async def test_what_it_would_ignore_is_refused(llama: LlamaServer, tmp_path: Path) -> None:
    """llama.cpp answers 200 to `echo` and `suffix`, and does nothing of the kind."""
    async with world(tmp_path, {"pool": pool(llama)}) as here, here.sdk() as sdk:
        for field, value in (("echo", True), ("suffix", "end")):
            asked: dict[str, Any] = {"model": "m", "prompt": "Hello", "max_tokens": 2, field: value}
            with pytest.raises(openai.BadRequestError) as refused:
                await sdk.completions.create(**asked)
            assert refused.value.param == field


# ---------------------------------------------------------------------------------------- cancellation


@STREAM
async def test_the_slot_is_free_soon_after_the_client_left(
    llama: LlamaServer, tmp_path: Path, stream: bool
) -> None:
    """A stream at its next token. Of a whole answer it learns after a second in which it had no result for
    anybody: every question about its slots puts that off, so nobody asks meanwhile."""
    asked = ask("leave", max_tokens=3500, stream=stream, temperature=1, ignore_eos=True)
    async with world(tmp_path, {"pool": pool(llama)}) as here:
        async with here.http() as http, asyncio.TaskGroup() as group:
            client = group.create_task(http.post("/v1/chat/completions", json=asked))
            await until("a slot to work", lambda: llama.busy() == 1)
            client.cancel()
        await here.wait_at_rest()
        assert here.gateway.book.outcomes == {"cancelled": 1}
        if not stream:
            await asyncio.sleep(1.5)
        await until("the slot to be free", lambda: llama.busy() == 0, seconds=1)
