"""vLLM's wire, where it differs from the canonical one."""

import asyncio

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, get, post, until

PATH = "/v1/chat/completions"
BODY = {"model": "headgate-mini", "messages": CHAT, "max_tokens": 4}


@pytest.fixture
async def engine(tokenizer):
    async with serve("vllm", "h200", speed=50, tokenizer=tokenizer, max_total_tokens=500) as server:
        yield server


async def test_unknown_models_are_told_the_names(engine):
    answer = await post(engine.url, PATH, {**BODY, "model": "nope"})
    assert answer.status == 404
    assert answer.json["error"] == {
        "message": "The model `nope` does not exist. Valid aliases: headgate-mini.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    assert (await post(engine.url, PATH, {**BODY, "model": None})).json["model"] == "headgate-mini"


@pytest.mark.parametrize(
    ("change", "headers", "words"),
    [
        ({"priority": 3}, {}, "Priority scheduling is not enabled"),
        ({"stream_options": {"include_usage": True}}, {}, "stream=True"),
        ({}, {"content-type": "text/plain"}, "Unsupported Media Type"),
    ],
)
async def test_refusals(engine, change, headers, words):
    answer = await post(engine.url, PATH, {**BODY, **change}, headers=headers)
    assert (answer.status, answer.json["error"]["code"]) == (400, 400)
    assert words in answer.json["error"]["message"]


async def test_what_was_removed_is_ignored(engine):
    """`guided_json` gives unconstrained text and no error."""
    assert (await post(engine.url, PATH, {**BODY, "guided_json": {"type": "object"}})).status == 200


async def test_the_request_s_id_is_in_the_answer_s(engine):
    answer = await post(engine.url, PATH, {**BODY, "request_id": "b"}, headers={"X-Request-Id": "a-1"})
    assert answer.json["id"] == "chatcmpl-a-1"
    answer = await post(engine.url, "/v1/completions", {"prompt": "x", "max_tokens": 1, "request_id": "b"})
    assert answer.json["id"] == "cmpl-b"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("vllm", "reasoning"),
        ("sglang", "reasoning_content"),
        ("llamacpp", "reasoning_content"),
        ("trtllm", "reasoning_content"),
    ],
)
async def test_reasoning_has_a_field_of_its_own(tokenizer, kind, key):
    """Streamed and not; both parts together are the whole answer."""
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer) as plain:
        whole = (await post(plain.url, PATH, {**BODY, "max_tokens": 12})).json["choices"][0]["message"]
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, reasoning_tokens=5) as engine:
        message = (await post(engine.url, PATH, {**BODY, "max_tokens": 12})).json["choices"][0]["message"]
        events = (await post(engine.url, PATH, {**BODY, "max_tokens": 12, "stream": True})).events[:-1]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert message[key]
    assert message[key] + message["content"] == whole["content"]
    assert "".join(delta.get(key) or "" for delta in deltas) == message[key]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, BODY),
        ("/v1/messages", {**BODY, "max_tokens": 4}),
        ("/v1/responses", {"model": BODY["model"], "input": "Hello"}),
        ("/v1/embeddings", {"model": BODY["model"], "input": "Hello"}),
        ("/v1/rerank", {"model": BODY["model"], "query": "a", "documents": ["b"]}),
        ("/score", {"model": BODY["model"], "text_1": "a", "text_2": "b"}),
    ],
)
async def test_what_is_asked_of_a_sleeping_engine_kills_it(tokenizer, path, body):
    """By whichever route: the answer is a 500, and so is its health from then on."""
    async with serve("vllm", "h200", tokenizer=tokenizer, asleep=True) as engine:
        answer = await post(engine.url, path, body)
        assert answer.status == 500
        assert "EngineCore" in answer.json["error"]["message"]
        assert (answer.json.get("type") == "error") is (path == "/v1/messages")
        await post(engine.url, "/wake_up", {})
        assert (await post(engine.url, path, body)).status == 500, "waking does not bring it back"
        assert engine.statistics().engine.output_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_aborted_requests_end_for_that_reason(tokenizer, stream):
    async with serve("vllm", "h200", speed=1, tokenizer=tokenizer, mean_tokens=5000, spread=0) as engine:
        async with asyncio.TaskGroup() as group:
            body = {**BODY, "max_tokens": 4000, "stream": stream, "request_id": "r"}
            answer = group.create_task(post(engine.url, PATH, body))
            await until(lambda: engine.statistics().engine.output_tokens > 3)
            await post(engine.url, "/abort_requests", {"request_ids": ["chatcmpl-other"]})
            assert engine.statistics().running == 1
            await post(engine.url, "/abort_requests", {"request_ids": ["chatcmpl-r"]})
        result = answer.result()
        last = result.events[-2] if stream else result.json
        assert last["choices"][0]["finish_reason"] == "abort"
        assert engine.statistics().engine.cancelled == 1


async def test_orca_headers_on_answers_that_are_not_streamed(engine):
    header = "endpoint-load-metrics"
    answer = await post(engine.url, PATH, BODY, headers={f"{header}-format": "json"})
    assert answer.headers[header].startswith('JSON {"named_metrics":{"kv_cache_usage_perc":')
    answer = await post(engine.url, PATH, BODY, headers={f"{header}-format": "text"})
    assert answer.headers[header].startswith("TEXT named_metrics.kv_cache_usage_perc=")
    assert header not in (await post(engine.url, PATH, BODY)).headers
    streamed = await post(engine.url, PATH, {**BODY, "stream": True}, headers={f"{header}-format": "json"})
    assert header not in streamed.headers


async def test_the_other_routes(engine, tokenizer):
    card = (await get(engine.url, "/v1/models")).json["data"][0]
    assert (card["owned_by"], card["max_model_len"], card["parent"]) == ("vllm", 500, None)
    assert (await get(engine.url, "/version")).json == {"version": "0.33.0"}
    assert (await get(engine.url, "/load")).json == {"server_load": 0}
    assert (await get(engine.url, "/health")).body == b""
    assert (await get(engine.url, "/ping")).status == 200
    text = (await post(engine.url, "/tokenize", {"prompt": "The gate"})).json
    assert (text["count"], text["max_model_len"], len(text["tokens"])) == (3, 500, 3)
    back = await post(engine.url, "/detokenize", {"tokens": text["tokens"]})
    assert back.json == {"prompt": "<|begin_of_text|>The gate"}
    chat = (await post(engine.url, "/tokenize", {"messages": CHAT})).json
    assert chat["count"] == len(tokenizer.encode(tokenizer.render(CHAT), add_special_tokens=False))
    assert (await post(engine.url, "/tokenize", {})).status == 400
    metrics = (await get(engine.url, "/metrics")).text
    assert 'vllm:num_requests_waiting{model_name="headgate-mini",engine="0"} 0' in metrics
    assert "gpu_cache_usage_perc" not in metrics
