"""SGLang's wire."""

import asyncio

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, get, post, until

PATH = "/v1/chat/completions"
BODY = {"model": "anything", "messages": CHAT, "max_tokens": 4}
FLAT = {"object", "message", "type", "param", "code"}


@pytest.fixture
async def engine(tokenizer):
    async with serve("sglang", "h200", speed=50, tokenizer=tokenizer, max_total_tokens=100) as server:
        yield server


async def test_chat_stream(engine):
    """Nulls stay; the end of the choice is a chunk of its own, without content."""
    answer = await post(
        engine.url, PATH, {**BODY, "rid": "r-1", "stream": True, "stream_options": {"include_usage": True}}
    )
    first, *content, last, usage, done = answer.events
    assert first["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": None,
        "tool_calls": None,
    }
    assert len(content) == 4
    assert {event["choices"][0]["finish_reason"] for event in content} == {None}
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["delta"]["content"]) == ("length", None)
    assert usage["usage"]["completion_tokens"] == 4
    assert done == "[DONE]"
    assert {event["id"] for event in answer.events[:-1]} == {"r-1"}
    assert {event["model"] for event in answer.events[:-1]} == {"anything"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "Messages cannot be empty."),
        ({"max_tokens": 99}, "maximum context length of 100 tokens"),
        ({"messages": [{"role": "user", "content": "water " * 200}]}, "longer than the model's context"),
        ({"temperature": "hot"}, "temperature"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_are_flat_and_keep_their_status(engine, change, words, stream):
    answer = await post(engine.url, PATH, {**BODY, **change, "stream": stream})
    assert (answer.status, answer.json.keys(), answer.json["code"]) == (400, FLAT, 400)
    assert words in answer.json["message"]


async def test_a_full_queue_is_an_event_in_a_stream(tokenizer):
    async with serve("sglang", "h200", tokenizer=tokenizer, max_queue_size=0) as engine:
        whole = await post(engine.url, PATH, BODY)
        assert (whole.status, whole.json["code"]) == (503, 503)
        stream = await post(engine.url, PATH, {**BODY, "stream": True})
        assert (stream.status, stream.events) == (200, [{"error": whole.json}, "[DONE]"])


async def test_failures_in_the_middle(engine):
    engine.arm("error_after=2*1")
    answer = await post(engine.url, PATH, {**BODY, "stream": True})
    assert (answer.events[-2]["error"].keys(), answer.events[-1]) == (FLAT, "[DONE]")


async def test_abort_by_rid(tokenizer):
    async with serve("sglang", "h200", speed=1, tokenizer=tokenizer, mean_tokens=5000, spread=0) as engine:
        async with asyncio.TaskGroup() as group:
            body = {**BODY, "max_tokens": 4000, "rid": "mine"}
            streamed = group.create_task(post(engine.url, PATH, {**body, "stream": True}))
            whole = group.create_task(post(engine.url, PATH, {**body, "rid": "other"}))
            await until(lambda: engine.statistics().running == 2)
            await post(engine.url, "/abort_request", {"rid": "mine"})
            await until(lambda: engine.statistics().running == 1)
            await post(engine.url, "/abort_request", {"abort_all": True})
        assert streamed.result().events[-2]["error"]["code"] == 503
        assert (whole.result().status, whole.result().json["type"]) == (503, "503")


async def test_health_generates(tokenizer):
    """A token for each probe, and a second of waiting (here a twentieth); 503 until it has started."""
    async with serve("sglang", "h200", speed=20, tokenizer=tokenizer, loading_s=0.1) as engine:
        assert (await get(engine.url, "/health")).status == 503
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert (await get(engine.url, "/health")).status == 200
        assert asyncio.get_running_loop().time() - began >= 0.05
        assert engine.statistics().engine.output_tokens == 1
        assert engine.statistics().requests == 0  # a probe is no request of a client's


async def test_the_other_routes(engine, tokenizer):
    card = (await get(engine.url, "/v1/models")).json["data"][0]
    assert (card["owned_by"], card["max_model_len"], card["root"]) == ("sglang", 100, "headgate-mini")
    for path in ("/model_info", "/get_model_info"):
        assert (await get(engine.url, path)).json["is_generation"] is True
    for path in ("/server_info", "/get_server_info"):
        assert (await get(engine.url, path)).json["version"] == "0.5.10.post1"
    text = (await post(engine.url, "/v1/tokenize", {"prompt": "The gate"})).json
    assert (text["count"], text["max_model_len"]) == (3, 100)
    assert (await post(engine.url, "/detokenize", {"tokens": text["tokens"]})).json == {"text": "The gate"}
    assert (await get(engine.url, "/v1/loads")).json["aggregate"]["total_reqs"] == 0
    assert (await get(engine.url, "/get_load")).json[0]["num_waiting_reqs"] == 0
    assert "sglang:num_queue_reqs{" in (await get(engine.url, "/metrics")).text
    async with serve("sglang", "h200", tokenizer=tokenizer, metrics=False) as bare:
        assert (await get(bare.url, "/metrics")).status == 404
