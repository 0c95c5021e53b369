"""TGI's native wire."""

import asyncio

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import get, post, until

INPUTS = "How deep is the canal?"


@pytest.fixture
async def engine(tokenizer):
    async with serve(
        "tgi", "h200", speed=50, tokenizer=tokenizer, max_total_tokens=600, max_input_tokens=500
    ) as server:
        yield server


def body(**parameters):
    return {"inputs": INPUTS, "parameters": parameters}


async def test_generate_stream(engine):
    """Numbered from 1; the last event alone has the whole text and, when asked, the details; no [DONE]."""
    answer = await post(engine.url, "/generate_stream", body(max_new_tokens=3, details=True))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert [event["index"] for event in answer.events] == [1, 2, 3]
    assert [list(event) for event in answer.events] == [["index", "token", "generated_text", "details"]] * 3
    assert set(answer.events[0]["token"]) == {"id", "text", "logprob", "special"}
    assert [event["generated_text"] for event in answer.events[:2]] == [None, None]
    text = "".join(event["token"]["text"] for event in answer.events)
    assert answer.events[2]["generated_text"] == text
    assert answer.events[2]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 7,
    }
    without = await post(engine.url, "/generate_stream", body(max_new_tokens=3))
    assert without.events[-1]["details"] is None


async def test_the_end_of_turn_is_a_special_token(engine):
    """Flagged, counted, and no part of the text."""
    answer = await post(engine.url, "/generate_stream", body(max_new_tokens=500, details=True))
    *_, before, last = answer.events
    assert (last["token"]["text"], last["token"]["special"]) == ("<|eot_id|>", True)
    assert not before["token"]["special"]
    assert last["details"]["finish_reason"] == "eos_token"
    assert last["details"]["generated_tokens"] == len(answer.events)
    assert "<|eot_id|>" not in last["generated_text"]


async def test_generate(engine):
    plain = await post(engine.url, "/generate", body(max_new_tokens=4))
    assert list(plain.json) == ["generated_text"]
    assert (plain.headers["x-prompt-tokens"], plain.headers["x-generated-tokens"]) == ("7", "4")
    detailed = await post(
        engine.url, "/generate", body(max_new_tokens=4, details=True, return_full_text=True)
    )
    assert detailed.json["generated_text"] == INPUTS + plain.json["generated_text"]
    details = detailed.json["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["prefill"]) == ("length", 4, [])
    assert "".join(token["text"] for token in details["tokens"]) == plain.json["generated_text"]


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
async def test_the_stop_sequence_stays(engine, route):
    full = (await post(engine.url, "/generate", body(max_new_tokens=30))).json["generated_text"]
    stop = full[20:25]
    answer = await post(engine.url, route, body(max_new_tokens=30, stop=[stop], details=True))
    result = answer.events[-1] if route.endswith("stream") else answer.json
    assert result["details"]["finish_reason"] == "stop_sequence"
    assert stop in result["generated_text"]
    assert full.startswith(result["generated_text"])


VALIDATION = [
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
    (
        {"max_new_tokens": 595},
        ("`inputs` tokens + `max_new_tokens` must be <= 600. Given: 7 `inputs` tokens and 595 "
        "`max_new_tokens`"),
    ),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "message"), VALIDATION)
async def test_validation(engine, parameters, message):
    """422 where nothing is streamed; the same body as an event in a 200 where it is."""
    expected = {"error": f"Input validation error: {message}", "error_type": "validation"}
    answer = await post(engine.url, "/generate", body(**parameters))
    assert (answer.status, answer.json) == (422, expected)
    stream = await post(engine.url, "/generate_stream", body(**parameters))
    assert (stream.status, stream.events) == (200, [expected])


async def test_too_long_prompts(engine):
    answer = await post(
        engine.url, "/generate", {"inputs": "water " * 550, "parameters": {"max_new_tokens": 1}}
    )
    assert answer.status == 422
    assert "`inputs`" in answer.json["error"]
    assert (await post(engine.url, "/generate", {"inputs": ""})).json["error"].endswith("cannot be empty")
    cut = await post(
        engine.url,
        "/generate",
        {"inputs": "water " * 550, "parameters": {"truncate": 5, "max_new_tokens": 1}},
    )
    assert cut.headers["x-prompt-tokens"] == "5"


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"{}", {}, 422),
        (b'{"inputs": 1}', {}, 422),
        (b'{"inputs": "x", "parameters": {"seed": -1}}', {}, 422),
        (b'{"inputs": "x", "parameters": {"stop": "a"}}', {}, 422),
        (b'{"inputs": "x", "parameters": {"max_new_tokens": 1.5}}', {}, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
    ],
)
async def test_wrong_shapes_are_plain_text(engine, route, raw, headers, status):
    """Also for streams: axum answers before TGI sees anything."""
    answer = await post(engine.url, route, None, raw=raw, headers=headers)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/plain")


async def test_overload_at_once(tokenizer):
    """Beyond the limit: 429, or an event in a 200; the permit comes back."""
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    async with serve("tgi", "h200", speed=5, tokenizer=tokenizer, max_concurrent_requests=1) as engine:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(post(engine.url, "/generate", body(max_new_tokens=100)))
            await until(lambda: engine.statistics().running == 1)
            answer = await post(engine.url, "/generate", body())
            assert (answer.status, answer.json) == (429, overloaded)
            stream = await post(engine.url, "/generate_stream", body(top_p=1.0))
            assert (stream.status, stream.events) == (200, [overloaded])  # before the validation
        assert first.result().status == 200
        assert (await post(engine.url, "/generate", body(max_new_tokens=1))).status == 200


async def test_the_overload_fault(engine):
    engine.arm("overload*2")
    assert (await post(engine.url, "/generate", body())).status == 429
    stream = await post(engine.url, "/generate_stream", body())
    assert (stream.status, stream.events[0]["error_type"]) == (200, "overloaded")
    assert engine.statistics().faults[0]["fired"] == 2


async def test_failures_of_the_generation(engine):
    engine.arm("error_after=1*2")
    answer = await post(engine.url, "/generate", body(max_new_tokens=4))
    assert (answer.status, answer.json["error_type"]) == (424, "generation")
    stream = await post(engine.url, "/generate_stream", body(max_new_tokens=4))
    assert (stream.status, stream.error) == (200, None)
    assert stream.events[0]["index"] == 1
    assert stream.events[1]["error_type"] == "generation"
    assert len(stream.events) == 2


async def test_comments_fill_the_silence(tokenizer):
    async with serve("tgi", "h200", speed=0.05, tokenizer=tokenizer, keep_alive_s=0.02) as engine:
        answer = await post(engine.url, "/generate_stream", body(max_new_tokens=2))
        assert answer.text.startswith(":\n\n")
        assert len(answer.events) == 2


async def test_incomplete_characters_are_empty_tokens(tokenizer):
    async with serve("tgi", "h200", speed=50, tokenizer=tokenizer, fragments=0.4) as engine:
        answer = await post(engine.url, "/generate_stream", body(max_new_tokens=60))
        texts = [event["token"]["text"] for event in answer.events]
        assert "" in texts
        assert "\ufffd" not in "".join(texts)


async def test_the_other_routes(engine):
    info = (await get(engine.url, "/info")).json
    assert (info["max_input_tokens"], info["max_total_tokens"], info["max_concurrent_requests"]) == (
        500,
        600,
        128,
    )
    assert (await get(engine.url, "/health")).body == b""
    tokens = (await post(engine.url, "/tokenize", {"inputs": "The gate"})).json
    assert [token["text"] for token in tokens] == ["", "The", "gate"]
    assert (tokens[2]["start"], tokens[2]["stop"]) == (4, 8)
    assert "tgi_queue_size 0" in (await get(engine.url, "/metrics")).text
