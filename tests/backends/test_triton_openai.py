"""Triton's OpenAI frontend: what is refused, and what its errors mean."""

import json

import pytest

from backends.contract import ErrorKind, GenerateRequest
from backends.triton_openai.adapter import TritonOpenAiAdapter
from tests.backends.folding import decode_body, fold

ADAPTER = TritonOpenAiAdapter()


def _request(n: int = 1, stop: tuple[str, ...] = (), **parameters: object) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="m", stream=False, messages=[], n=n, stop=stop, parameters=parameters
    )


@pytest.mark.parametrize("field", ["logit_bias", "logprobs", "suffix", "response_format"])
def test_what_is_refused(field: str) -> None:
    refusal = ADAPTER.unsupported(_request(**{field: {"type": "json_object"}}))
    assert refusal is not None
    assert refusal.param == field
    assert ADAPTER.unsupported(_request()) is None


def test_a_choice_of_tools_is_refused_for_what_the_engine_lacks() -> None:
    """On a chat: it belongs there, and only a parser of tool calls is missing."""
    refusal = ADAPTER.unsupported(_request(tool_choice="required"))
    assert refusal is not None
    assert refusal.param == "tool_choice"
    assert "parses no tool calls" in refusal.message
    assert "--" not in refusal.message
    assert ADAPTER.unsupported(_request(tool_choice="auto")) is None


def test_a_bound_is_always_sent() -> None:
    """Its own default is 16 tokens."""
    assert json.loads(ADAPTER.encode(_request()).body)["max_tokens"] == 1024


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (400, "Received n=2, but only single choice (n=1) is currently supported", ErrorKind.UNSUPPORTED),
        (400, "Unknown model: nope", ErrorKind.NOT_FOUND),
        (500, "Prompt length (5056) exceeds maximum input length (2048)", ErrorKind.CONTEXT_LENGTH),
        (500, "[request id: 1] Exceeds maximum queue size", ErrorKind.OVERLOADED),
        (500, "something broke", ErrorKind.ENGINE),
        (422, "[{'loc': ['body', 'messages']}]", ErrorKind.CLIENT),
    ],
)
def test_errors(status: int, detail: str, kind: ErrorKind) -> None:
    body = json.dumps({"detail": detail}).encode()
    error = fold(decode_body(ADAPTER.decoder(_request()), body, status)).error
    assert error is not None
    assert error.kind is kind


def test_stop_strings_are_cut() -> None:
    body = json.dumps({"choices": [{"index": 0, "message": {"content": "a END b"}, "finish_reason": "stop"}]})
    result = fold(decode_body(ADAPTER.decoder(_request(stop=("END",))), body.encode()))
    assert result.choices[0].text == "a "


def test_not_ready_is_400() -> None:
    assert ADAPTER.health_request().path == "/health/ready"
    assert not ADAPTER.read_health(400, b"").ready
