"""SGLang: what is forwarded, refused, and read."""

import json
from typing import Any

import pytest

from backends.contract import Answer, ErrorKind, GenerateRequest
from backends.sglang.adapter import SglangAdapter
from tests.backends.folding import decode_body, fold

ADAPTER = SglangAdapter()


def _request(**parameters: object) -> GenerateRequest:
    return GenerateRequest(
        request_id="r-1", model="m", stream=True, messages=[], max_tokens=5, parameters=parameters
    )


def test_what_is_forwarded() -> None:
    """Our id is its `rid`; a client's is refused."""
    sent = json.loads(ADAPTER.encode(_request(top_k=0, regex="a*")).body)
    assert sent["rid"] == "r-1"
    assert sent["regex"] == "a*"
    assert sent["top_k"] == -1


@pytest.mark.parametrize(
    "field",
    [
        "rid",
        "lora_path",
        "custom_logit_processor",
        "bootstrap_host",
        "session_params",
        "return_hidden_states",
    ],
)
def test_what_is_refused(field: str) -> None:
    refusal = ADAPTER.unsupported(_request(**{field: "x"}))
    assert refusal is not None
    assert refusal.param == field


def test_health_generates_nothing() -> None:
    """Its /health makes a token, behind the load."""
    assert ADAPTER.health_request().path == "/v1/models"


def test_overload_in_a_stream_with_status_200() -> None:
    error = {"object": "error", "message": "The request queue is full.", "type": "503", "code": 503}
    body = b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n"
    failure = fold(decode_body(ADAPTER.decoder(_request()), body)).error
    assert failure is not None
    assert (failure.kind, failure.retryable) == (ErrorKind.OVERLOADED, True)


def test_loads_of_all_ranks() -> None:
    ranks = [
        {
            "dp_rank": 0,
            "num_running_reqs": 2,
            "num_waiting_reqs": 1,
            "token_usage": 0.5,
            "cache_hit_rate": 0.0,
        },
        {"dp_rank": 1, "num_running_reqs": 3, "num_waiting_reqs": 0, "token_usage": 0.25},
    ]
    load = ADAPTER.read_load(200, json.dumps({"version": "0.5", "loads": ranks}).encode())
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage, load.prefix_hit_ratio) == (5, 1, 0.375, 0.0)


def test_half_a_sum_is_untold() -> None:
    load = ADAPTER.read_load(200, b'{"loads":[{"num_running_reqs":2},{}]}')
    assert load is not None
    assert load.running is None
    assert ADAPTER.read_load(200, b'{"loads":[]}') is None


def test_load_from_metrics() -> None:
    load = ADAPTER.read_load(
        200, b"sglang:num_running_reqs 2\nsglang:num_queue_reqs 1\nsglang:token_usage 1.01\n"
    )
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage) == (2, 1, 1.0)


def test_metadata() -> None:
    """Only what is named is read of /server_info, which holds secrets."""
    server = {
        "api_key": "CANARY",
        "context_length": 4096,
        "max_running_requests": 8,
        "max_queued_requests": 2,
    }
    told = ADAPTER.read_metadata(
        {
            "/v1/models": Answer(200, b'{"data":[{"id":"m","max_model_len":8192}]}'),
            "/server_info": Answer(200, json.dumps({**server, "version": "0.5.10"}).encode()),
        }
    )
    assert (told.limits.context_tokens, told.limits.in_flight, told.version) == (4096, 10, "0.5.10")
    assert "CANARY" not in repr(told)


def test_token_counts_of_text_alone() -> None:
    assert ADAPTER.tokenize_request("m", messages=[]) is None
    assert ADAPTER.tokenize_request("m", text="hi") is not None
    assert ADAPTER.read_token_count(200, b'{"tokens":[1,2],"count":2,"max_model_len":-1}') == 2


def test_it_is_told_to_stop_by_its_rid_before_its_connection_closes() -> None:
    """Where the id is its own: of several prompts or choices SGLang makes ids that nobody else knows."""
    adapter = SglangAdapter()
    assert adapter.cancels_first

    def told(**fields: Any) -> Any:
        given = {"request_id": "r7", "model": "m", "stream": True, "prompt": "x", **fields}
        return adapter.cancel_request(GenerateRequest(**given))

    request = told()
    assert (request.method, request.path) == ("POST", "/abort_request")
    assert json.loads(request.body) == {"rid": "r7", "abort_all": False}
    for several in ({"prompt": ["a", "b"]}, {"n": 2}):
        assert told(**several) is None
    assert adapter.lingers(GenerateRequest(request_id="r", model="m", stream=True, prompt="x")) == 0
    assert adapter.lingers(GenerateRequest(request_id="r", model="m", stream=True, prompt="x", n=2)) == 2
