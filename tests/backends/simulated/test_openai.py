"""The canonical OpenAI dialect."""

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, get, post

PATH = "/v1/chat/completions"
BODY = {"model": "headgate-mini", "messages": CHAT, "max_tokens": 4}


@pytest.fixture
async def engine(tokenizer):
    async with serve("openai", "h200", speed=50, tokenizer=tokenizer, max_total_tokens=100) as server:
        yield server


async def test_chat_stream(engine):
    answer = await post(engine.url, PATH, {**BODY, "stream": True, "stream_options": {"include_usage": True}})
    first, *content, usage, done = answer.events
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert [event["choices"][0]["finish_reason"] for event in content] == [None, None, None, "length"]
    assert usage["usage"]["completion_tokens"] == 4
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({"max_tokens": 50, "simulated_tokens": 7}, 7),
        ({"max_tokens": 5, "simulated_tokens": 7}, 5),
        ({"max_tokens": None, "simulated_tokens": 3}, 3),
    ],
)
async def test_a_replay_says_how_long_the_answer_is(tokenizer, change, tokens):
    """So many tokens, at most `max_tokens`; an end of turn does not come before."""
    async with serve("openai", "h200", speed=50, tokenizer=tokenizer, mean_tokens=1.0) as engine:
        answer = await post(engine.url, PATH, {**BODY, **change})
    assert answer.json["usage"]["completion_tokens"] == tokens
    assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_unknown_keys_are_ignored_and_unknown_models_are_not(engine):
    assert (await post(engine.url, PATH, {**BODY, "metadata": {"a": "b"}})).status == 200
    answer = await post(engine.url, PATH, {**BODY, "model": "nope"})
    assert answer.status == 404
    assert answer.json["error"] == {
        "message": "The model `nope` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": 99}, "maximum context length is 100 tokens"),
        ({"messages": []}, "messages"),
        ({"model": None}, "model"),
        ({"temperature": 3}, "temperature"),
        ({"stream_options": {}}, "stream=True"),
    ],
)
async def test_refusals_are_nested(engine, change, words):
    answer = await post(engine.url, PATH, {**BODY, **change})
    assert (answer.status, answer.json["error"]["code"]) == (400, 400)
    assert words in answer.json["error"]["message"]


async def test_errors_of_a_stream_are_an_event_and_done(engine):
    engine.arm("error_after=2*1")
    answer = await post(engine.url, PATH, {**BODY, "stream": True})
    assert answer.error is None
    assert answer.events[-2]["error"]["code"] == 500
    assert answer.events[-1] == "[DONE]"
    engine.arm("error_after=2*1")
    assert (await post(engine.url, PATH, BODY)).status == 500


async def test_overload(engine, tokenizer):
    engine.arm("overload*1")
    answer = await post(engine.url, PATH, BODY)
    assert (answer.status, answer.json["error"]["code"]) == (503, 503)
    assert engine.statistics().faults[0]["fired"] == 1
    async with serve("openai", "h200", tokenizer=tokenizer, max_queue_size=0) as full:
        assert (await post(full.url, PATH, BODY)).status == 503


async def test_max_completion_tokens_wins(engine):
    answer = await post(engine.url, PATH, {**BODY, "max_completion_tokens": 2})
    assert answer.json["usage"]["completion_tokens"] == 2


async def test_the_other_routes(engine):
    models = (await get(engine.url, "/v1/models")).json
    assert models["data"][0]["max_model_len"] == 100
    assert (await get(engine.url, "/health")).status == 200
