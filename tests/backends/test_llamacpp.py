"""llama.cpp: what is forwarded, refused, and read."""

import json

import pytest

from backends.contract import Answer, GenerateRequest
from backends.llamacpp.adapter import LlamacppAdapter, LlamacppOptions

ADAPTER = LlamacppAdapter()


def _request(**parameters: object) -> GenerateRequest:
    return GenerateRequest(
        request_id="r-1", model="m", stream=True, messages=[], max_tokens=5, parameters=parameters
    )


def test_the_bound_cannot_be_lifted() -> None:
    """`n_predict` would win over max_tokens."""
    sent = json.loads(ADAPTER.encode(_request(n_predict=-1, repetition_penalty=1.1, id_slot=0)).body)
    assert sent["max_tokens"] == 5
    assert sent["repeat_penalty"] == 1.1
    assert not sent.keys() & {"n_predict", "id_slot", "repetition_penalty"}
    assert "temperature" not in sent


def test_neutral_sampling_fills_in_openais_defaults() -> None:
    adapter = LlamacppAdapter(LlamacppOptions(neutral_sampling=True))
    sent = json.loads(adapter.encode(_request(temperature=0.2, top_p=None)).body)
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["min_p"]) == (0.2, 1.0, 0, 0.0)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"tools": [{}], "logprobs": True}, "logprobs"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"lora": [{"id": 0, "scale": 1}]}, "lora"),
    ],
)
def test_what_is_refused(parameters: dict[str, object], param: str) -> None:
    refusal = ADAPTER.unsupported(_request(**parameters))
    assert refusal is not None
    assert refusal.param == param


def test_load_from_slots() -> None:
    """They tell what runs; what waits is untold."""
    load = ADAPTER.read_load(200, b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]')
    assert load is not None
    assert (load.running, load.waiting) == (1, None)
    assert ADAPTER.read_load(200, b'[{"id":0}]') is None
    assert ADAPTER.read_load(501, b'{"error":{"code":501}}') is None


def test_load_from_metrics() -> None:
    adapter = LlamacppAdapter(LlamacppOptions(metrics=True))
    question = adapter.load_request()
    assert question is not None
    assert question.path == "/metrics"
    load = adapter.read_load(200, b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n")
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage) == (2, 1, None)


def test_the_served_context_is_told_by_props() -> None:
    props = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "build_info": "b1-0c1e570"}
    told = ADAPTER.read_metadata({"/props": Answer(200, json.dumps(props).encode())})
    assert (told.limits.context_tokens, told.limits.in_flight, told.version) == (4096, 4, "b1-0c1e570")


def test_token_counts() -> None:
    chat = ADAPTER.tokenize_request("m", messages=[])
    assert chat is not None
    assert chat.path == "/v1/chat/completions/input_tokens"
    assert ADAPTER.read_token_count(200, b'{"input_tokens":7}') == 7
    assert ADAPTER.read_token_count(200, b'{"tokens":[1,2]}') == 2
