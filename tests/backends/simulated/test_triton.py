"""Triton's generate extension over the classic TensorRT-LLM tensors."""

import asyncio
import itertools

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import get, post, until

ENSEMBLE = "/v2/models/ensemble/generate"
BLS = "/v2/models/tensorrt_llm_bls/generate"
BODY = {"text_input": "How deep is the canal?", "max_tokens": 4, "exclude_input_in_output": True}


@pytest.fixture
async def engine(tokenizer):
    async with serve("triton", "h200", speed=50, tokenizer=tokenizer, max_input_tokens=500) as server:
        yield server


async def test_stream(engine):
    """Sorted keys, one delta an event, the id echoed, the end of the body as the only end."""
    answer = await post(engine.url, ENSEMBLE + "_stream", {**BODY, "stream": True, "id": "r-1"})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    keys = [
        "id",
        "model_name",
        "model_version",
        "sequence_end",
        "sequence_id",
        "sequence_start",
        "text_output",
    ]
    assert [list(event) for event in answer.events] == [keys] * 4
    assert {event["id"] for event in answer.events} == {"r-1"}
    whole = await post(engine.url, ENSEMBLE, BODY)
    assert whole.json["text_output"] == "".join(event["text_output"] for event in answer.events)
    assert "id" not in whole.json


async def test_bls_shapes_and_counts(engine):
    body = {
        **BODY, "stream": True, "return_num_input_tokens": True, "return_num_output_tokens": True,
        "return_log_probs": True,
    }  # fmt: skip
    answer = await post(engine.url, BLS + "_stream", body)
    assert [event["num_output_tokens"] for event in answer.events] == [1, 2, 3, 4]
    assert [event["num_input_tokens"] for event in answer.events] == [7] * 4
    assert answer.events[0]["output_log_probs"] == answer.events[0]["cum_log_probs"] < 0
    whole = (await post(engine.url, BLS, {**body, "stream": False})).json
    assert list(whole) == sorted(whole)
    assert (len(whole["output_log_probs"]), whole["num_output_tokens"]) == (4, 4)


async def test_cumulative_text(tokenizer):
    """`accumulate_tokens`: the whole text in each event; an incomplete character shows as U+FFFD."""
    async with serve(
        "triton", "h200", speed=50, tokenizer=tokenizer, text_mode="cumulative", fragments=0.4
    ) as engine:
        body = {**BODY, "max_tokens": 60, "stream": True}
        texts = [event["text_output"] for event in (await post(engine.url, BLS + "_stream", body)).events]
        assert len(texts) == 60
        assert any(text.endswith("\ufffd") for text in texts)
        for before, after in itertools.pairwise(texts):
            assert after.startswith(before.rstrip("\ufffd"))
        deltas = [
            event["text_output"] for event in (await post(engine.url, ENSEMBLE + "_stream", body)).events
        ]
        assert "\ufffd" in "".join(deltas)  # each token is decoded alone: the ensemble's own trap


async def test_the_stop_word_stays_and_the_end_of_turn_is_empty(engine):
    full = (await post(engine.url, ENSEMBLE, {**BODY, "max_tokens": 30})).json["text_output"]
    stop = full[20:25]
    stopped = (await post(engine.url, ENSEMBLE, {**BODY, "max_tokens": 30, "stop_words": stop})).json[
        "text_output"
    ]
    assert stop in stopped
    assert full.startswith(stopped)
    answer = await post(engine.url, ENSEMBLE + "_stream", {**BODY, "max_tokens": 600, "stream": True})
    assert answer.events[-1]["text_output"] == ""
    assert len(answer.events) < 600


async def test_the_prompt_is_echoed_by_default(engine):
    body = {"text_input": "How deep", "parameters": {"max_tokens": 2}}
    answer = await post(engine.url, ENSEMBLE, body)
    assert answer.json["text_output"].startswith("How deep ")


UNPARSED = "Unable to parse 'data': attempt to access JSON "
SIGNED = UNPARSED + "non-signed-integer as signed-integer"
INVALID = "has invalid type. It should be either 'int', 'bool', or 'string'."
MISSING = (
    "[request id: <id_unknown>] expected number of inputs between 2 and 25 but got 1 inputs for model "
    "'ensemble'. Got input(s) ['text_input'], but missing required input(s) ['max_tokens']. Please provide "
    "all required input(s)."
)


@pytest.mark.parametrize("route", [ENSEMBLE, ENSEMBLE + "_stream"])
@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"max_tokens": 2.0}, 500, SIGNED),
        ({"max_tokens": "ten"}, 500, SIGNED),
        ({"max_tokens": True}, 500, SIGNED),
        ({"temperature": None}, 500, UNPARSED + "non-number as double"),
        ({"stream": 1}, 500, UNPARSED + "non-boolean as boolean"),
        ({"seed": -1}, 500, UNPARSED + "non-unsigned-integer as unsigned-integer"),
        ({"text_input": 5}, 500, "Unable to parse JSON bytes array: attempt to access JSON non-string"),
        ({"user": None}, 400, "parameter 'user' " + INVALID),
        ({"no_such_list": ["x"]}, 400, "parameter 'no_such_list' " + INVALID),
        ({"text_input": "water " * 600}, 400, "exceeds maximum input length (500)"),
        ({"id": 5}, 500, "Unable to parse 'id': attempt to access JSON non-string as string"),
    ],
)  # fmt: skip
async def test_typed_tensors(engine, route, change, status, message):
    """A client's mistake is a 500 as often as a 400."""
    answer = await post(engine.url, route, {**BODY, **change})
    assert answer.status == status
    assert message in answer.json["error"]


async def test_the_order_of_refusals(engine):
    assert (await post(engine.url, ENSEMBLE, {"text_input": "x"})).json == {"error": MISSING}
    unknown = await post(engine.url, "/v2/models/nope/generate", None, raw=b"{")
    assert (unknown.status, unknown.json) == (
        404,
        {"error": "Request for unknown model: 'nope' is not found"},
    )
    broken = await post(engine.url, ENSEMBLE, None, raw=b"{not json")
    assert broken.status == 500
    assert broken.json == {
        "error": "failed to parse the request JSON buffer: Missing a name for object member. at 1"
    }
    assert (await post(engine.url, ENSEMBLE, None, raw=b"")).status == 500
    assert (await post(engine.url, "/v2/models/tensorrt_llm/generate", BODY)).status == 400


async def test_unknown_scalars_and_integers_for_floats_are_taken(engine):
    answer = await post(
        engine.url, ENSEMBLE, {**BODY, "no_such_key": 3.5, "temperature": 1, "stop_words": []}
    )
    assert answer.status == 200


async def test_max_tokens_wraps(engine):
    """3000000000 is negative as INT32: a 200 without one event."""
    answer = await post(
        engine.url, ENSEMBLE + "_stream", {**BODY, "max_tokens": 3_000_000_000, "stream": True}
    )
    assert (answer.status, answer.body, answer.error) == (200, b"", None)


async def test_streams_and_the_wrong_route(engine):
    """generate with several responses is an error in a 200; generate_stream with one is one event."""
    answer = await post(engine.url, BLS, {**BODY, "stream": True})
    assert answer.status == 200
    assert answer.json["error"].startswith("generate expects model to produce exactly 1 response")
    single = await post(engine.url, BLS + "_stream", {**BODY, "stream": False})
    assert len(single.events) == 1


async def test_several_sequences_are_an_array(engine):
    answer = await post(
        engine.url, BLS, {**BODY, "num_return_sequences": 2, "return_num_output_tokens": True}
    )
    assert len(set(answer.json["text_output"])) == 2
    assert answer.json["num_output_tokens"] == [4, 4]


async def test_failures(engine):
    """First: 400 with an event in it. Later: an event in a 200 and a clean end. Not streamed: 400."""
    engine.arm("error_after=0*1")
    first = await post(engine.url, BLS + "_stream", {**BODY, "stream": True})
    assert (first.status, first.headers["content-type"]) == (400, "text/event-stream; charset=utf-8")
    assert first.events[0]["error"].startswith("Traceback")
    engine.arm("error_after=2*1")
    later = await post(engine.url, BLS + "_stream", {**BODY, "stream": True})
    assert (later.status, later.error, len(later.events)) == (200, None, 3)
    assert later.events[2]["error"].startswith("Traceback")
    engine.arm("error_after=2*1")
    whole = await post(engine.url, BLS, BODY)
    assert (whole.status, whole.headers["content-type"]) == (400, "application/json")
    assert [fault["fired"] for fault in engine.statistics().faults] == [1, 1, 1]


async def test_overload(engine, tokenizer):
    full = {"error": "[request id: <id_unknown>] Exceeds maximum queue size"}
    engine.arm("overload*1")
    answer = await post(engine.url, ENSEMBLE, BODY)
    assert (answer.status, answer.json) == (503, full)
    async with serve("triton", "h200", tokenizer=tokenizer, max_queue_size=0) as closed:
        answer = await post(closed.url, ENSEMBLE + "_stream", {**BODY, "stream": True})
        assert (answer.status, answer.json) == (503, full)


async def test_no_head_before_the_first_response(tokenizer):
    """The head waits for the queue and the prompt."""
    async with serve("triton", "h200", speed=50, tokenizer=tokenizer, faults=["slow_first=0.2*1"]) as engine:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(post(engine.url, ENSEMBLE + "_stream", {**BODY, "stream": True}))
            await until(lambda: engine.statistics().engine.output_tokens >= 1)
            await asyncio.sleep(0.05)
            assert all(exchange.response is None for exchange in engine.exchanges)
        assert answer.result().status == 200


async def test_the_other_routes(engine):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/ensemble/ready"):
        answer = await get(engine.url, path)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"", "text/plain")
    unknown = await get(engine.url, "/v2/models/nope/ready")
    assert (unknown.status, unknown.json) == (400, {"error": "Model version not ready"})
    assert unknown.headers["content-type"].startswith("text/plain")
    assert (await get(engine.url, "/v2")).json["name"] == "triton"
    metadata = (await get(engine.url, "/v2/models/tensorrt_llm_bls")).json
    assert [tensor["name"] for tensor in metadata["inputs"][:2]] == ["text_input", "max_tokens"]
    assert metadata["inputs"][1] == {"name": "max_tokens", "datatype": "INT32", "shape": [-1, 1]}
    ensemble = (await get(engine.url, "/v2/models/ensemble/config")).json["model_transaction_policy"]
    assert ensemble == {"decoupled": True}, "as soon as one of its steps is"
    decoupled = (await get(engine.url, "/v2/models/tensorrt_llm_bls/config")).json["model_transaction_policy"]
    assert decoupled == {"decoupled": True}
    index = await post(engine.url, "/v2/repository/index", None, raw=b"")
    assert {"name": "ensemble", "version": "1", "state": "READY"} in index.json
    for method, path in (("GET", "/v2/repository/index"), ("HEAD", "/v2/health/ready")):
        assert (await get(engine.url, path, method)).status == 405
    assert 'request_type="waiting"' in (await get(engine.url, "/metrics")).text
