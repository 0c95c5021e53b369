"""TGI's Messages API, trap by trap."""

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, post

CHAT_PATH = "/v1/chat/completions"
BODY = {"model": "tgi", "messages": CHAT, "max_tokens": 4}


@pytest.fixture
async def engine(tokenizer):
    async with serve("tgi", "h200", speed=50, tokenizer=tokenizer, max_total_tokens=600) as server:
        yield server


async def test_chat_stream(engine):
    """Empty ids, the role in every delta, usage null until it comes, [DONE]."""
    answer = await post(
        engine.url, CHAT_PATH, {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    )
    *content, usage, done = answer.events
    assert {event["id"] for event in answer.events[:-1]} == {""}
    assert {event["choices"][0]["delta"]["role"] for event in content} == {"assistant"}
    assert [event["choices"][0]["finish_reason"] for event in content] == [None, None, None, "length"]
    assert {event["usage"] for event in content} == {None}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    assert done == "[DONE]"


async def test_the_end_of_turn_and_the_stop_sequence(engine):
    ended = (await post(engine.url, CHAT_PATH, {**BODY, "max_tokens": 500, "stream": True})).events
    assert ended[-2]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": "stop",
    }
    full = (await post(engine.url, CHAT_PATH, {**BODY, "max_tokens": 30})).json
    text = full["choices"][0]["message"]["content"]
    stopped = await post(engine.url, CHAT_PATH, {**BODY, "max_tokens": 30, "stop": [text[20:25]]})
    choice = stopped.json["choices"][0]
    assert choice["finish_reason"] == "stop_sequence"
    assert text[20:25] in choice["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stop": "x"}, "stop: invalid type"),
        ({"max_completion_tokens": 3}, "duplicate field `max_tokens`"),
        ({"logit_bias": {"1": 2}}, "logit_bias: invalid type"),
        ({"response_format": {"type": "json_object"}}, "missing field `value`"),
        ({"response_format": {"type": "text"}}, "unknown variant"),
        ({"seed": -1}, "seed"),
    ],
)
async def test_wrong_shapes_are_plain_text(engine, change, words, stream):
    answer = await post(engine.url, CHAT_PATH, {**BODY, **change, "stream": stream})
    assert (answer.status, answer.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    assert words in answer.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"max_tokens": 5000}, "must be <= 600"),
        ({"top_logprobs": 6}, "`top_n_tokens`"),
        ({"presence_penalty": -2}, "`repetition_penalty` must be strictly positive"),
    ],
)
async def test_validation(engine, change, words):
    """Not streamed as on the native routes; streamed an event of another shape, always 422, then [DONE]."""
    answer = await post(engine.url, CHAT_PATH, {**BODY, **change})
    assert (answer.status, answer.json["error_type"]) == (422, "validation")
    stream = await post(engine.url, CHAT_PATH, {**BODY, **change, "stream": True})
    event, done = stream.events
    assert (stream.status, event["error"]["http_status_code"], done) == (200, 422, "[DONE]")
    assert words in event["error"]["message"]


async def test_greedy_is_allowed_here(engine):
    assert (await post(engine.url, CHAT_PATH, {**BODY, "temperature": 0.0})).status == 200


async def test_overload_is_told_by_its_words_alone(engine):
    engine.arm("overload*2")
    whole = await post(engine.url, CHAT_PATH, BODY)
    assert (whole.status, whole.json["error_type"]) == (429, "overloaded")
    stream = await post(engine.url, CHAT_PATH, {**BODY, "stream": True})
    assert stream.events[0] == {"error": {"message": "Model is overloaded", "http_status_code": 422}}


async def test_failures(engine):
    engine.arm("error_after=2*2")
    assert (await post(engine.url, CHAT_PATH, BODY)).status == 424
    stream = await post(engine.url, CHAT_PATH, {**BODY, "stream": True})
    assert (len(stream.events), stream.events[-1]) == (4, "[DONE]")
    assert stream.events[-2]["error"]["http_status_code"] == 422


async def test_tools_and_grammar_exclude_each_other(engine):
    """An empty list of tools counts; refused with its status also where a stream was asked for."""
    grammar = {"type": "json_object", "value": {}}
    body = {**BODY, "tools": [], "response_format": grammar, "stream": True}
    answer = await post(engine.url, CHAT_PATH, body)
    assert (answer.status, answer.json["error_type"]) == (422, "tool_error")


async def test_completions(engine):
    """Choices out of order; streams keep the engine's own word for the end and "" before it."""
    body = {"prompt": ["The gate", "Вода", "x"], "max_tokens": 3}
    whole = (await post(engine.url, "/v1/completions", body)).json
    assert [choice["index"] for choice in whole["choices"]] == [1, 0, 2]
    assert whole["usage"]["completion_tokens"] == 9
    stream = await post(engine.url, "/v1/completions", {"prompt": "x", "max_tokens": 500, "stream": True})
    reasons = [event["choices"][0]["finish_reason"] for event in stream.events[:-1]]
    assert (set(reasons[:-1]), reasons[-1]) == ({""}, "eos_token")
    assert (await post(engine.url, "/v1/completions", {**body, "prompt": ["x"] * 5})).status == 422
    assert (await post(engine.url, "/v1/completions", {**body, "suffix": "x"})).status == 422
    assert (await post(engine.url, "/v1/completions", {"prompt": [1, 2]})).status == 422


async def test_chat_tokenize(engine, tokenizer):
    answer = (await post(engine.url, "/chat_tokenize", {"messages": CHAT})).json
    assert answer["templated_text"] == tokenizer.render(CHAT)
    ids = tokenizer.encode(tokenizer.render(CHAT), add_special_tokens=False)
    assert [token["id"] for token in answer["tokenize_response"]] == ids
    assert (await post(engine.url, "/chat_tokenize", {"messages": "x"})).status == 422
    assert (await post(engine.url, "/chat_tokenize", {"messages": [{"content": "no role"}]})).status == 422
