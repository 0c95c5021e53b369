"""vLLM: what is forwarded, refused, and read."""

import json

import pytest

from backends.contract import Answer, ErrorKind, Failure, GenerateRequest
from backends.vllm.adapter import VllmAdapter
from gateway.engine_errors import gateway_error_for

ADAPTER = VllmAdapter()
METRICS = b"""
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 3.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:prefix_cache_queries_total{engine="0"} 200.0
vllm:prefix_cache_hits_total{engine="0"} 50.0
vllm:request_success_total{engine="0",finished_reason="stop"} 7.0
vllm:request_success_total{engine="0",finished_reason="length"} 2.0
vllm:request_success_total{engine="0",finished_reason="abort"} 5.0
vllm:request_success_total{engine="0",finished_reason="error"} 1.0
"""


def _request(**parameters: object) -> GenerateRequest:
    return GenerateRequest(
        request_id="r-1", model="m", stream=True, messages=[], max_tokens=5, parameters=parameters
    )


def test_what_is_forwarded() -> None:
    """What the table does not know may be new in vLLM; our id goes into its logs."""
    sent = ADAPTER.encode(_request(top_k=3, user="mine", min_p=0.1, brand_new=[1]))
    assert sent.headers["x-request-id"] == "r-1"
    assert json.loads(sent.body) == {
        "model": "m", "messages": [], "max_tokens": 5, "top_k": 3, "min_p": 0.1, "stream": True,
        "brand_new": [1],
        "stream_options": {"include_usage": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    "field", ["guided_regex", "guided_choice", "chat_template", "kv_transfer_params", "request_id"]
)
def test_what_is_refused(field: str) -> None:
    """A constraint that would be ignored in silence is worse than a refusal."""
    refusal = ADAPTER.unsupported(_request(**{field: "x"}))
    assert refusal is not None
    assert refusal.param == field
    assert ADAPTER.unsupported(_request(**{field: None})) is None


@pytest.mark.parametrize(
    "message",
    [
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        'tool_choice="required" requires --tool-call-parser to be set',
        'tool_choice=function "f" requires --tool-call-parser to be set',
    ],
)
def test_tools_that_it_was_not_started_for_are_unsupported(message: str) -> None:
    """The next pool may have them; and flags are not for clients."""
    decoder = ADAPTER.decoder(_request())
    decoder.head(400, {"content-type": "application/json"})
    decoder.feed(json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode())
    (failure,) = decoder.end()
    assert isinstance(failure, Failure)
    assert (failure.error.kind, failure.error.param) == (ErrorKind.UNSUPPORTED, "tools")
    shown = gateway_error_for(failure.error, "chat")
    assert (shown.status, shown.param) == (400, "tools")
    assert "--" not in shown.message


def test_a_dead_engine_core_is_not_live() -> None:
    assert ADAPTER.health_request().path == "/health"
    assert not ADAPTER.read_health(503, b"").live


def test_load_over_data_parallel_engines() -> None:
    """Counts are summed, shares averaged; aborted requests are neither successes nor failures."""
    load = ADAPTER.read_load(200, METRICS)
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage, load.prefix_hit_ratio) == (5, 1, 0.375, 0.25)
    assert (load.requests_total, load.failures_total) == (9, 1)


def test_the_old_name_of_the_kv_gauge() -> None:
    load = ADAPTER.read_load(200, b"vllm:gpu_cache_usage_perc 0.5\n")
    assert load is not None
    assert (load.kv_usage, load.running, load.requests_total) == (0.5, None, None)


def test_no_load() -> None:
    """Refused, or no metrics: none is not idle."""
    assert ADAPTER.read_load(404, METRICS) is None
    assert ADAPTER.read_load(200, b"<html>") is None


def test_metadata() -> None:
    """The smallest served context counts; adapters are models."""
    cards = [
        {"id": "m", "max_model_len": 4096},
        {"id": "lora", "parent": "m", "max_model_len": 4096},
        {"x": 1},
    ]
    told = ADAPTER.read_metadata(
        {
            "/v1/models": Answer(200, json.dumps({"data": cards}).encode()),
            "/version": Answer(200, b'{"version":"0.33.0"}'),
        }
    )
    assert (told.models, told.limits.context_tokens, told.version) == (("m", "lora"), 4096, "0.33.0")
    assert [question.path for question in ADAPTER.metadata_requests()] == ["/v1/models", "/version"]


def test_token_counts() -> None:
    text = ADAPTER.tokenize_request("m", text="hi")
    assert text is not None
    assert json.loads(text.body) == {"model": "m", "prompt": "hi", "add_special_tokens": True}
    chat = ADAPTER.tokenize_request("m", messages=[{"role": "user", "content": "hi"}])
    assert chat is not None
    assert json.loads(chat.body)["add_generation_prompt"] is True
    assert ADAPTER.read_token_count(200, b'{"count":3,"max_model_len":9,"tokens":[1,2,3]}') == 3
    assert ADAPTER.read_token_count(404, b'{"count":3}') is None
    assert ADAPTER.read_token_count(200, b"[]") is None
