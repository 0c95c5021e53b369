"""The wire of Triton's OpenAI frontend."""

import aiohttp
import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, get, post

PATH = "/v1/chat/completions"
BODY = {"model": "headgate-mini", "messages": CHAT, "max_tokens": 4}


@pytest.fixture
async def engine(tokenizer):
    async with serve("triton-openai", "h200", speed=50, tokenizer=tokenizer, max_input_tokens=100) as server:
        yield server


async def test_chat(engine):
    """`stop` is its only reason; no usage; `cmpl-` ids."""
    whole = (await post(engine.url, PATH, BODY)).json
    assert whole["id"].startswith("cmpl-")
    assert whole["usage"] is None
    assert whole["choices"][0]["finish_reason"] == "stop"
    answer = await post(engine.url, PATH, {**BODY, "stream": True, "stream_options": {"include_usage": True}})
    first, *content, done = answer.events
    assert first["choices"][0]["delta"] == {"content": "", "role": "assistant", "function_call": None}
    assert [event["choices"][0]["finish_reason"] for event in content] == [None, None, None, "stop"]
    text = "".join(event["choices"][0]["delta"]["content"] for event in content)
    assert text == whole["choices"][0]["message"]["content"]
    assert done == "[DONE]"


async def test_sixteen_tokens_unless_asked(engine, tokenizer):
    answer = await post(engine.url, PATH, {**BODY, "max_tokens": None, "ignore_eos": True, "stream": True})
    assert len(answer.events) == 1 + 16 + 1


async def test_stop_strings_stay(engine):
    full = (await post(engine.url, PATH, {**BODY, "max_tokens": 30})).json["choices"][0]["message"]["content"]
    stop = full[20:26]
    answer = await post(engine.url, PATH, {**BODY, "max_tokens": 30, "stop": stop})
    text = answer.json["choices"][0]["message"]["content"]
    assert stop in text
    assert full.startswith(text)


@pytest.mark.parametrize(
    ("path", "change", "status", "words"),
    [
        (PATH, {"n": 2}, 400, "Received n=2, but only single choice (n=1) is currently supported"),
        (PATH, {"model": "nope"}, 400, "Unknown model: nope"),
        (PATH, {"logit_bias": {"1": 2}}, 400, "logit bias"),
        (PATH, {"logprobs": True}, 400, "logprobs are currently available only for the vLLM backend"),
        (PATH, {"stream_options": {}}, 400, "`stream_options` can only be used"),
        (PATH, {"tools": [{"type": "function"}]}, 400, "--tool-call-parser"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "single string"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        (PATH, {"messages": [{"role": "user", "content": "water " * 200}]}, 500, "exceeds maximum input"),
    ],
)  # fmt: skip
async def test_errors_are_details(engine, path, change, status, words):
    answer = await post(engine.url, path, {**BODY, **change})
    assert (answer.status, list(answer.json)) == (status, ["detail"])
    assert words in answer.json["detail"]


async def test_malformed_bodies_are_a_list(engine):
    answer = await post(engine.url, PATH, {**BODY, "messages": "hi"})
    assert (answer.status, answer.json["detail"][0]["loc"]) == (422, ["body", "messages"])


async def test_what_the_backend_refuses_cuts_a_stream(engine):
    long = [{"role": "user", "content": "water " * 200}]
    answer = await post(engine.url, PATH, {**BODY, "messages": long, "stream": True})
    assert answer.status == 200
    assert isinstance(answer.error, aiohttp.ClientPayloadError)
    engine.arm("error_after=2*1")
    answer = await post(engine.url, PATH, {**BODY, "stream": True})
    assert isinstance(answer.error, aiohttp.ClientPayloadError)
    assert "[DONE]" not in answer.text


async def test_the_other_routes(engine):
    card = (await get(engine.url, "/v1/models")).json["data"][0]
    assert (card["owned_by"], "max_model_len" in card) == ("Triton Inference Server", False)
    assert (await get(engine.url, "/v1/models/headgate-mini")).json == card
    assert (await get(engine.url, "/v1/models/nope")).status == 404
    assert (await get(engine.url, "/health/ready")).status == 200
    assert (await get(engine.url, "/health")).status == 404
    assert "nv_inference_request_success{" in (await get(engine.url, "/metrics")).text
