"""trtllm-serve's wire, byte for byte where it is odd."""

import asyncio
import json

import aiohttp
import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, get, post

PATH = "/v1/chat/completions"
LONG = [{"role": "user", "content": "water " * 3000}]
BODY = {"model": "anything", "messages": CHAT, "max_tokens": 4}


@pytest.fixture
async def engine(tokenizer):
    async with serve(
        "trtllm", "h200", speed=50, tokenizer=tokenizer, idle_metrics_s=0.01, max_input_tokens=2000,
        max_total_tokens=2100,
    ) as server:  # fmt: skip
        yield server


async def test_chat_stream(engine):
    """Role alone with a space before the blank line; null keys absent; text and reason together; [DONE]."""
    answer = await post(engine.url, PATH, {**BODY, "stream": True, "stream_options": {}})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = answer.text.split("\n\n")
    assert blocks[0].endswith('"choices":[{"index":0,"delta":{"role":"assistant"}}]} ')
    assert not any(block.endswith(" ") for block in blocks[1:])
    *content, usage, done = answer.events[1:]
    assert [set(event["choices"][0]) for event in content[:-1]] == [{"index", "delta"}] * 3
    assert content[-1]["choices"][0]["finish_reason"] == "length"
    assert content[-1]["choices"][0]["delta"]["content"]
    assert all(event["choices"][0]["delta"]["reasoning_content"] == "" for event in content)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert done == "[DONE]"
    assert len({event["id"] for event in answer.events[:-1]}) == 1


async def test_no_usage_unless_asked(engine):
    answer = await post(engine.url, PATH, {**BODY, "stream": True})
    assert not any("usage" in event for event in answer.events[:-1])


async def test_chat_whole(engine):
    """All keys, nulls included; the model's name is echoed unchecked."""
    answer = await post(engine.url, PATH, BODY)
    body = answer.json
    assert body["model"] == "anything"
    assert body["prompt_token_ids"] is None
    choice = body["choices"][0]
    assert choice["message"]["tool_calls"] == []
    assert (choice["message"]["reasoning_content"], choice["message"]["reasoning"]) == ("", None)
    assert (choice["logprobs"], choice["stop_reason"], choice["finish_reason"]) == (None, None, "length")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


async def test_stream_and_whole_say_the_same(engine):
    streamed = await post(engine.url, PATH, {**BODY, "max_tokens": 300, "stream": True})
    whole = await post(engine.url, PATH, {**BODY, "max_tokens": 300})
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in streamed.events[:-1])
    assert text == whole.json["choices"][0]["message"]["content"]
    assert whole.json["choices"][0]["finish_reason"] == "stop"
    assert "<|eot_id|>" not in text


@pytest.mark.parametrize(
    ("change", "error_type", "location"),
    [
        ({"metadata": {}}, "extra_forbidden", "('body', 'metadata')"),
        ({"service_tier": "auto"}, "extra_forbidden", "('body', 'service_tier')"),
        ({"max_completion_tokens": 3}, "extra_forbidden", "('body', 'max_tokens')"),
        ({"max_tokens": "many"}, "int_parsing", "('body', 'max_completion_tokens')"),
        ({"messages": None}, "list_type", "('body', 'messages')"),
    ],
)
async def test_validation_is_a_string_in_error(engine, change, error_type, location):
    answer = await post(engine.url, PATH, {**BODY, **change})
    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert error_type in answer.json["error"]
    assert answer.json["error"].startswith("[{'type': ")
    if error_type != "int_parsing":
        assert location in answer.json["error"]


async def test_broken_json_is_the_same_kind_of_400(engine):
    answer = await post(engine.url, PATH, None, raw=b"{")
    assert (answer.status, "json_invalid" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (PATH, {"logit_bias": {"999999": 1}}, "Token ID 999999 out of vocabulary range [0, 4096)"),
        (PATH, {"top_logprobs": 3}, "logprobs must be set"),
        (PATH, {"top_k": -1}, "top_k"),
        (PATH, {"stream_options": {}}, "stream"),
        (PATH, {"messages": LONG}, "query length (0) should not exceed max_num_tokens (2000)"),
        (PATH, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
    ],
)  # fmt: skip
async def test_what_a_handler_raises_is_a_flat_400(engine, path, change, words):
    answer = await post(engine.url, path, {**BODY, **change})
    assert answer.status == 400
    assert set(answer.json) == {"object", "message", "type", "param", "code"}
    assert (answer.json["object"], answer.json["type"], answer.json["code"]) == (
        "error",
        "BadRequestError",
        400,
    )
    assert words in answer.json["message"]


async def test_too_large_max_tokens_is_lowered_silently(engine):
    answer = await post(engine.url, PATH, {**BODY, "max_tokens": 10**6, "ignore_eos": True})
    assert answer.json["usage"]["total_tokens"] == 2100


async def test_completions(engine):
    """Several prompts and n: interleaved, index = prompt * n + i, nulls kept."""
    body = {"model": "m", "prompt": ["The gate", "Вода"], "n": 2, "max_tokens": 3, "stream": True}
    answer = await post(engine.url, "/v1/completions", body)
    indices = [event["choices"][0]["index"] for event in answer.events[:-1]]
    assert indices == [0, 1, 2, 3] * 3
    assert answer.events[0]["choices"][0]["finish_reason"] is None
    assert answer.events[0]["usage"] is None
    whole = await post(engine.url, "/v1/completions", {**body, "stream": False})
    texts = [choice["text"] for choice in whole.json["choices"]]
    streamed = ["", "", "", ""]
    for event in answer.events[:-1]:
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == streamed
    assert len(set(texts)) == 4
    assert whole.json["usage"]["completion_tokens"] == 12
    assert (await post(engine.url, "/v1/completions", {**body, "suffix": "x"})).status == 400
    ids = await post(engine.url, "/v1/completions", {"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 1})
    assert len(ids.json["choices"]) == 2
    echo = await post(
        engine.url, "/v1/completions", {"model": "m", "prompt": "The gate", "max_tokens": 1, "echo": True}
    )
    assert echo.json["choices"][0]["text"].startswith("The gate")


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_are_trimmed(engine, stream):
    """Never shown, not even their first letters; kept only on request."""
    full = (await post(engine.url, PATH, {**BODY, "max_tokens": 30})).json["choices"][0]["message"]["content"]
    stop = full[20:26]
    answer = await post(engine.url, PATH, {**BODY, "max_tokens": 30, "stop": stop, "stream": stream})
    if stream:
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in answer.events[:-1])
        last = answer.events[-2]["choices"][0]
    else:
        last = answer.json["choices"][0]
        text = last["message"]["content"]
    assert text == full[: full.index(stop)]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)
    kept = await post(
        engine.url, PATH, {**BODY, "max_tokens": 30, "stop": [stop], "include_stop_str_in_output": True}
    )
    assert stop in kept.json["choices"][0]["message"]["content"]


async def test_empty_chunks_where_a_character_is_incomplete(tokenizer):
    """Tokens that are parts of characters give chunks without content, and no U+FFFD."""
    async with serve("trtllm", "h200", speed=50, tokenizer=tokenizer, fragments=0.4) as engine:
        answer = await post(engine.url, PATH, {**BODY, "max_tokens": 60, "stream": True})
        contents = [event["choices"][0]["delta"]["content"] for event in answer.events[1:-1]]
    assert len(contents) == 60
    assert "" in contents[:-1]
    assert "\ufffd" not in "".join(contents)


async def test_logprobs(engine):
    answer = await post(engine.url, PATH, {**BODY, "logprobs": True})
    entries = answer.json["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == answer.json["choices"][0]["message"]["content"]
    assert all(entry["logprob"] < 0 for entry in entries)


async def test_several_tokens_in_one_event(tokenizer):
    async with serve("trtllm", "h200", speed=50, tokenizer=tokenizer, stream_interval=4) as engine:
        answer = await post(engine.url, PATH, {**BODY, "max_tokens": 10, "stream": True})
        assert len(answer.events) == 1 + 4 + 1  # role; tokens 1, 2-4, 5-8, 9-10; [DONE]


async def test_a_failure_in_the_middle_cuts_the_body(engine):
    """No event, no [DONE], no last chunk; before the first token just the same, with a 200."""
    for events in (0, 2):
        engine.arm(f"error_after={events}*1")
        answer = await post(engine.url, PATH, {**BODY, "stream": True})
        assert answer.status == 200
        assert isinstance(answer.error, aiohttp.ClientPayloadError)
        assert "[DONE]" not in answer.text
        assert "error" not in answer.text
    engine.arm("error_after=1*1")
    whole = await post(engine.url, PATH, BODY)
    assert (whole.status, whole.json["object"]) == (400, "error")
    assert [fault["fired"] for fault in engine.statistics().faults] == [1, 1, 1]


async def test_headers_go_out_before_the_first_token(tokenizer):
    async with serve("trtllm", "h200", speed=50, tokenizer=tokenizer, faults=["slow_first=5"]) as engine:
        body = {**BODY, "stream": True}
        async with (
            asyncio.timeout(2),
            aiohttp.ClientSession() as session,
            session.post(engine.url + PATH, json=body) as response,
        ):
            assert response.status == 200


async def test_metrics_drain(engine):
    """One object an iteration; the second reader gets nothing, after a wait."""
    await post(engine.url, PATH, BODY)
    first = (await get(engine.url, "/metrics")).json
    assert [entry["iter"] for entry in first] == [1, 2, 3, 4]
    assert first[0]["inflightBatchingStats"]["numCtxTokens"] > 0
    assert first[0]["kvCacheStats"]["usedNumBlocks"] == 1
    assert (await get(engine.url, "/metrics")).json == []


async def test_the_other_routes(engine):
    assert (await get(engine.url, "/health")).body == b""
    assert (await get(engine.url, "/version")).json == {"version": "1.2.1"}
    models = (await get(engine.url, "/v1/models")).json
    assert models["data"][0]["owned_by"] == "tensorrt_llm"
    assert "max_model_len" not in models["data"][0]
    assert (await get(engine.url, "/health_generate")).status == 200
    assert engine.statistics().engine.output_tokens == 1
    tokens = (await post(engine.url, "/_internal/tokenize", {"prompt": "The gate"})).json
    assert (tokens["count"], len(tokens["tokens"])) == (3, 3)
    assert (await post(engine.url, "/_internal/tokenize", {"messages": CHAT})).status == 400
    assert (
        'trtllm_num_requests_waiting{model_name="undefined"'
        in (await get(engine.url, "/prometheus/metrics")).text
    )
    assert json.loads((await get(engine.url, "/_simulated/statistics")).body)["kind"] == "trtllm"
