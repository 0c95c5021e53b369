"""TGI's Messages API: the traps of its schema."""

import json
from typing import Any

import pytest

from backends.contract import Answer, GenerateRequest
from backends.tgi.adapter import TgiAdapter, TgiOptions

ADAPTER = TgiAdapter(TgiOptions(api="messages"))
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def _request(stop: tuple[str, ...] = (), n: int = 1, **parameters: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="tgi", stream=False, messages=[], max_tokens=5, stop=stop, n=n,
        parameters=parameters,
    )  # fmt: skip


def _sent(**parameters: Any) -> dict[str, Any]:
    request = _request(**parameters)
    assert ADAPTER.unsupported(request) is None
    sent = json.loads(ADAPTER.encode(request).body)
    return {key: value for key, value in sent.items() if key not in ("model", "messages", "max_tokens")}


def test_it_takes_messages() -> None:
    assert (ADAPTER.applies_template, ADAPTER.relay) == (True, "patched")
    assert ADAPTER.encode(_request()).path == "/v1/chat/completions"


def test_what_would_distort_or_fail_is_not_sent() -> None:
    """presence_penalty 0 would be a repetition penalty of 2; top_p 1 and a text format a 422."""
    neutral = {"presence_penalty": 0, "top_p": 1, "logit_bias": {}, "response_format": {"type": "text"}}
    assert _sent(**neutral, tools=[], tool_choice="auto", user="u", metadata={}) == {}


def test_what_is_translated() -> None:
    sent = _sent(
        top_p=0.5,
        seed=-1,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    )
    assert sent == {
        "top_p": 0.5, "seed": 2**64 - 1, "response_format": {"type": "json", "value": SCHEMA},
    }  # fmt: skip
    assert _sent(top_p=0, temperature=0.7) == {"temperature": 0}
    assert _sent(repetition_penalty=1.1) == {"presence_penalty": -0.9}, "what it adds 2 to"


def test_stop_is_a_list() -> None:
    """A plain string is a 422."""
    assert json.loads(ADAPTER.encode(_request(stop=("x",))).body)["stop"] == ["x"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"top_logprobs": 6}, "top_logprobs"),
        ({"stop": ("a", "b", "c", "d", "e")}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "response_format": {"type": "regex", "value": "a"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    refusal = ADAPTER.unsupported(_request(**fields))
    assert refusal is not None
    assert refusal.param == param


def test_completions_have_no_chat_fields() -> None:
    """And a repetition penalty of their own, under its name."""
    given = {"tools": [], "repetition_penalty": 1.1}
    request = GenerateRequest(
        request_id="r", model="lora-1", stream=False, prompt="hi", parameters={**given, "tools": [TOOL]}
    )
    refusal = ADAPTER.unsupported(request)
    assert refusal is not None
    assert refusal.param == "tools"
    request = GenerateRequest(request_id="r", model="lora-1", stream=False, prompt="hi", parameters=given)
    assert json.loads(ADAPTER.encode(request).body) == {
        "model": "lora-1", "prompt": "hi", "repetition_penalty": 1.1,
    }  # fmt: skip


def test_limits_are_told_by_info() -> None:
    info = {
        "model_id": "org/m", "max_input_tokens": 1024, "max_total_tokens": 2048,
        "max_concurrent_requests": 128, "max_stop_sequences": 4, "version": "3.3.7",
    }  # fmt: skip
    told = ADAPTER.read_metadata({"/info": Answer(200, json.dumps(info).encode())})
    limits = told.limits
    assert (limits.prompt_tokens, limits.context_tokens, limits.in_flight, limits.stop_sequences) == (
        1024, 2048, 128, 4,
    )  # fmt: skip
    assert (told.models, told.version) == (("org/m",), "3.3.7")


def test_load() -> None:
    """Gauges are absent until they are first set."""
    body = b"""tgi_queue_size 3\ntgi_batch_current_max_tokens 100\ntgi_batch_max_total_tokens 400
tgi_request_failure{err="overloaded"} 2\ntgi_request_failure{err="generation"} 1\n"""
    load = ADAPTER.read_load(200, body)
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage, load.failures_total) == (None, 3, 0.25, 3)


def test_token_counts() -> None:
    assert ADAPTER.read_token_count(200, b'[{"id":1},{"id":2}]') == 2
    assert ADAPTER.read_token_count(200, b'{"tokenize_response":[{"id":1}],"templated_text":"x"}') == 1
    assert ADAPTER.read_token_count(422, b'{"error":"x"}') is None
    assert ADAPTER.read_token_count(200, b"{}") is None
