"""Triton's generate extension over the llmapi backend's tensors."""

import asyncio
import itertools

import pytest

from backends.simulated.server import serve
from tests.backends.simulated.exchanges import get, post, until

PATH = "/v2/models/tensorrt_llm/generate"
BODY = {
    "text_input": "How deep is the canal?",
    "sampling_param_max_tokens": 6,
    "sampling_param_exclude_input_from_output": True,
}


@pytest.fixture
async def engine(tokenizer):
    async with serve("triton", "h200", speed=50, tokenizer=tokenizer, vocabulary="llmapi") as server:
        yield server


async def test_streams_are_cumulative(engine):
    """Each event holds all; reasons are strings, `None` too."""
    body = {**BODY, "streaming": True, "return_finish_reason": True, "return_stop_reason": True, "id": "r"}
    events = (await post(engine.url, PATH + "_stream", body)).events
    keys = ["finish_reason", "id", "model_name", "model_version", "stop_reason", "text_output"]
    assert [list(event) for event in events] == [keys] * 6
    assert all(
        after["text_output"].startswith(before["text_output"]) for before, after in itertools.pairwise(events)
    )
    assert [event["finish_reason"] for event in events] == ["None"] * 5 + ["length"]
    assert {event["stop_reason"] for event in events} == {"None"}
    whole = (await post(engine.url, PATH, BODY)).json
    assert whole["text_output"] == events[-1]["text_output"]


async def test_the_prompt_is_echoed_by_default(engine):
    answer = await post(
        engine.url, PATH, {"text_input": "How deep", "sampling_param_return_perf_metrics": True}
    )
    assert answer.json["text_output"].startswith("How deep ")
    assert answer.json["kv_cache_reused_block"] == "0"  # a string


async def test_stop_strings_are_cut(engine):
    full = (await post(engine.url, PATH, {**BODY, "sampling_param_max_tokens": 30})).json["text_output"]
    body = {**BODY, "sampling_param_max_tokens": 30, "sampling_param_stop": [full[20:26]]}
    answer = (
        await post(engine.url, PATH, {**body, "return_finish_reason": True, "return_stop_reason": True})
    ).json
    assert answer["text_output"] == full[: full.index(full[20:26])]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", full[20:26])


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"text_input": None}, 500, "non-string as string"),
        ({"streaming": 1}, 500, "non-boolean as boolean"),
        ({"sampling_param_max_tokens": 0}, 400, "Error generating request"),
        ({"stop": ["x"]}, 500, "non-boolean as boolean"),
    ],
)
async def test_typed_tensors(engine, change, status, words):
    """`stop` is a flag: OpenAI's stop strings there are the wrong type."""
    answer = await post(engine.url, PATH, {**BODY, **change})
    assert answer.status == status
    assert words in answer.json["error"]


async def test_classic_names_are_ignored_silently(engine):
    answer = await post(
        engine.url, PATH, {**BODY, "max_tokens": 1, "temperature": 0.5, "return_finish_reason": True}
    )
    assert answer.json["finish_reason"] == "length"
    assert (await post(engine.url, "/v2/models/ensemble/generate", BODY)).status == 404


async def test_cancel_by_id(tokenizer):
    """A request of the same id that says stop: it gets an error, the stream one more event and its end."""
    async with serve(
        "triton", "h200", speed=1, tokenizer=tokenizer, vocabulary="llmapi", mean_tokens=5000, spread=0
    ) as engine:
        body = {**BODY, "sampling_param_max_tokens": 4000, "return_finish_reason": True}
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(
                post(engine.url, PATH + "_stream", {**body, "streaming": True, "id": "a"})
            )
            whole = group.create_task(post(engine.url, PATH, {**body, "id": "b"}))
            await until(lambda: engine.statistics().engine.output_tokens > 6)
            nameless = await post(engine.url, PATH, {"text_input": "", "stop": True})
            assert (nameless.status, "request id must be provided" in nameless.json["error"]) == (400, True)
            assert engine.statistics().running == 2
            for name in ("a", "b"):
                answer = await post(engine.url, PATH, {"id": name, "text_input": "", "stop": True})
                assert (answer.status, answer.json) == (400, {"error": "Request cancelled by client"})
        *_, last = stream.result().events
        assert last["finish_reason"] == "cancelled"
        assert whole.result().json["error"].startswith("generate expects model to produce exactly 1 response")
        assert engine.statistics().engine.cancelled == 2


@pytest.mark.parametrize(
    ("vocabulary", "path", "body"),
    [
        ("llmapi", PATH, {**BODY, "streaming": True}),
        ("classic", "/v2/models/ensemble/generate", {"text_input": "x", "max_tokens": 4, "stream": True}),
    ],
)
async def test_no_stream_where_the_model_is_not_decoupled(tokenizer, vocabulary, path, body):
    async with serve("triton", "h200", tokenizer=tokenizer, vocabulary=vocabulary, decoupled=False) as engine:
        answer = await post(engine.url, path + "_stream", body)
        assert answer.status == 400
        assert "Streaming is only supported in decoupled mode." in answer.json["error"]
        model = path.split("/")[3]
        config = (await get(engine.url, f"/v2/models/{model}/config")).json
        assert config["model_transaction_policy"] == {"decoupled": False}


async def test_the_other_routes(engine):
    metadata = (await get(engine.url, "/v2/models/tensorrt_llm")).json
    assert metadata["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": [-1]}
    assert "sampling_param_max_tokens" in [tensor["name"] for tensor in metadata["inputs"]]
    config = (await get(engine.url, "/v2/models/tensorrt_llm/config")).json
    assert (config["max_batch_size"], config["model_transaction_policy"]) == (0, {"decoupled": True})
    index = await post(engine.url, "/v2/repository/index", None, raw=b"")
    assert index.json == [{"name": "tensorrt_llm", "version": "1", "state": "READY"}]
    assert (await get(engine.url, "/v2/models/tensorrt_llm/stats")).json["model_stats"][0][
        "inference_count"
    ] == 0
    metrics = (await get(engine.url, "/metrics")).text
    assert "nv_trt_llm" not in metrics
    assert 'nv_inference_request_success{model="tensorrt_llm",version="1"} 0' in metrics
