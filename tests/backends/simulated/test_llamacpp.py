"""llama.cpp's wire."""

import asyncio

import pytest

from backends.simulated.engine import profile
from backends.simulated.server import serve
from tests.backends.simulated.exchanges import CHAT, get, post, until

PATH = "/v1/chat/completions"
BODY = {"messages": CHAT, "max_tokens": 4}


@pytest.fixture
async def engine(tokenizer):
    async with serve("llamacpp", "h200", speed=50, tokenizer=tokenizer, max_total_tokens=100) as server:
        yield server


async def test_chat_stream(engine):
    """Its own order of keys, content null in the opening, an empty last delta, timings at the end."""
    answer = await post(engine.url, PATH, {**BODY, "stream": True, "stream_options": {"include_usage": True}})
    first, *content, last, usage, done = answer.events
    order = ["choices", "created", "id", "model", "system_fingerprint", "object"]
    assert [list(event) for event in (first, *content, last)] == [order] * 6
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert last["choices"] == [{"finish_reason": "length", "index": 0, "delta": {}}]
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["timings"]["predicted_n"] == 4
    assert done == "[DONE]"
    assert {event["id"] for event in answer.events[:-1]} == {first["id"]}


async def test_names_are_not_echoed_and_ids_are_alike(engine):
    chat = (await post(engine.url, PATH, {**BODY, "model": "whatever"})).json
    text = (await post(engine.url, "/v1/completions", {"prompt": "x", "max_tokens": 2})).json
    assert (chat["model"], text["model"]) == ("headgate-mini", "headgate-mini")
    assert chat["id"].startswith("chatcmpl-")
    assert text["id"].startswith("chatcmpl-")
    assert next(iter(chat)) == "choices"


@pytest.mark.parametrize(
    ("bounds", "tokens"),
    [
        ({"n_predict": 2, "max_completion_tokens": 3, "max_tokens": 4}, 2),
        ({"max_completion_tokens": 3, "max_tokens": 4}, 3),
        ({"max_tokens": 10**6, "ignore_eos": True}, None),
        ({"max_tokens": -1, "ignore_eos": True}, None),
    ],
)
async def test_bounds_on_the_output(engine, bounds, tokens):
    """Aliases in their order; what the context does not hold is cut without a word."""
    usage = (await post(engine.url, PATH, {"messages": CHAT, **bounds})).json["usage"]
    if tokens is None:
        assert usage["total_tokens"] == 100
    else:
        assert usage["completion_tokens"] == tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_the_context_is_told_in_the_error(engine, stream):
    long = [{"role": "user", "content": "water " * 200}]
    answer = await post(engine.url, PATH, {"messages": long, "stream": stream})
    error = answer.json["error"]
    assert (answer.status, error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", 100)
    assert error["n_prompt_tokens"] > 200


async def test_other_refusals(engine):
    broken = await post(engine.url, PATH, None, raw=b"{")
    assert (broken.status, broken.json["error"]["type"]) == (500, "server_error")
    wrong = await post(engine.url, PATH, {**BODY, "temperature": "hot"})
    assert (wrong.status, wrong.json["error"]["type"]) == (400, "invalid_request_error")
    many = await post(engine.url, PATH, {**BODY, "n": 1000})
    assert "n_parallel" in many.json["error"]["message"]


async def test_first_errors_keep_their_status_and_later_ones_end_without_done(engine):
    engine.arm("error_after=0*1")
    first = await post(engine.url, PATH, {**BODY, "stream": True})
    assert (first.status, first.json["error"]["code"]) == (500, 500)
    engine.arm("error_after=2*1")
    later = await post(engine.url, PATH, {**BODY, "stream": True})
    assert (later.status, later.error, later.events[-1]["error"]["type"]) == (200, None, "server_error")


async def test_everything_waits_for_the_model(tokenizer):
    async with serve("llamacpp", "h200", speed=50, tokenizer=tokenizer, loading_s=0.15) as engine:
        for answer in (
            await get(engine.url, "/health"),
            await get(engine.url, "/v1/models"),
            await post(engine.url, PATH, BODY),
        ):
            assert (answer.status, answer.json["error"]["message"]) == (503, "Loading model")
        await asyncio.sleep(0.15)
        assert (await get(engine.url, "/health")).json == {"status": "ok"}
        assert (await post(engine.url, PATH, BODY)).status == 200


async def test_slots(tokenizer):
    """Busy ones are told apart; a probe may ask whether one is free."""
    small = profile("h200", max_sequences=2)
    async with serve("llamacpp", small, speed=1, tokenizer=tokenizer) as engine:
        assert len((await get(engine.url, "/slots?fail_on_no_slot=1")).json) == 2
        output = engine.live.output()
        for _ in range(2):
            engine.live.say(output, [1, 2, 3], 5000, ignore_eos=True)
        await until(lambda: engine.statistics().running == 2)
        assert [slot["is_processing"] for slot in (await get(engine.url, "/slots")).json] == [True, True]
        full = await get(engine.url, "/slots?fail_on_no_slot=1")
        assert (full.status, full.json["error"]["type"]) == (503, "unavailable_error")


async def test_the_other_routes(engine, tokenizer):
    card = (await get(engine.url, "/v1/models")).json["data"][0]
    assert (card["owned_by"], card["meta"]["n_ctx_train"]) == ("llamacpp", 131072)
    props = (await get(engine.url, "/props")).json
    assert props["default_generation_settings"]["n_ctx"] == 100
    assert props["total_slots"] == 256
    plain = (await post(engine.url, "/tokenize", {"content": "The gate"})).json["tokens"]
    assert (await post(engine.url, "/detokenize", {"tokens": plain})).json == {"content": "The gate"}
    pieces = (await post(engine.url, "/tokenize", {"content": "The gate", "with_pieces": True})).json[
        "tokens"
    ]
    assert [piece["piece"] for piece in pieces] == ["The", " gate"]
    prompt = (await post(engine.url, "/apply-template", {"messages": CHAT})).json["prompt"]
    assert prompt == tokenizer.render(CHAT)
    counted = (await post(engine.url, "/v1/chat/completions/input_tokens", {"messages": CHAT})).json
    assert counted == {"input_tokens": len(tokenizer.encode(prompt, add_special_tokens=False))}
    assert "llamacpp:requests_deferred 0" in (await get(engine.url, "/metrics")).text
    async with serve("llamacpp", "h200", tokenizer=tokenizer, metrics=False) as bare:
        answer = await get(bare.url, "/metrics")
        assert (answer.status, answer.json["error"]["type"]) == (501, "not_supported_error")
