"""Triton's llmapi vocabulary: its tensors, its text, its reasons, its cancel."""

import json
from typing import Any

import pytest

from backends.contract import ErrorKind, GenerateRequest
from backends.triton.adapter import TritonAdapter, TritonOptions
from tests.backends.folding import decode_body, fold

ADAPTER = TritonAdapter(TritonOptions(vocabulary="llmapi"))


def _request(stop: tuple[str, ...] = (), **parameters: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r-1", model="tensorrt_llm", stream=True, prompt="hi", max_tokens=7, stop=stop,
        parameters=parameters,
    )  # fmt: skip


def _stream(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def test_the_tensors() -> None:
    """No classic name among them: an unknown one is ignored in silence."""
    sent = ADAPTER.encode(_request(("x",), temperature=0.5, seed=-1, min_p=0))
    assert sent.path == "/v2/models/tensorrt_llm/generate_stream"
    assert json.loads(sent.body) == {
        "id": "r-1",
        "text_input": "hi",
        "streaming": True,
        "return_finish_reason": True,
        "return_stop_reason": True,
        "sampling_param_max_tokens": 7,
        "sampling_param_exclude_input_from_output": True,
        "sampling_param_temperature": 0.5,
        "sampling_param_top_p": 1.0,
        "sampling_param_seed": 2**64 - 1,
        "sampling_param_stop": ["x"],
    }


def test_greedy() -> None:
    sent = json.loads(ADAPTER.encode(_request(temperature=0)).body)
    assert sent["sampling_param_top_k"] == 1
    assert "sampling_param_temperature" not in sent


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"logprobs": True}, "logprobs"),
        ({"min_p": 0.1}, "min_p"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], param: str) -> None:
    refusal = ADAPTER.unsupported(_request(**parameters))
    assert refusal is not None
    assert refusal.param == param


def test_what_asks_for_nothing_is_fine() -> None:
    assert ADAPTER.unsupported(_request(repetition_penalty=1.0, bad_words=[], min_tokens=0)) is None


def test_cumulative_text_and_the_reason_told() -> None:
    """Each event holds all text so far; "None" is no reason yet."""
    body = _stream(
        {"text_output": "a", "finish_reason": "None"},
        {"text_output": "aa", "finish_reason": "None"},
        {"text_output": "aab", "finish_reason": "length"},
    )
    choice = fold(decode_body(ADAPTER.decoder(_request()), body)).choices[0]
    assert (choice.text, choice.finish_reason) == ("aab", "length")


def test_a_stop_string_wins_over_the_reason_told() -> None:
    body = _stream({"text_output": "ab"}, {"text_output": "abxc", "finish_reason": "length"})
    choice = fold(decode_body(ADAPTER.decoder(_request(("x",))), body)).choices[0]
    assert (choice.text, choice.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize(("word", "kind"), [("timeout", ErrorKind.TIMEOUT), ("cancelled", ErrorKind.ENGINE)])
def test_bad_reasons_are_failures(word: str, kind: ErrorKind) -> None:
    body = _stream({"text_output": "a"}, {"text_output": "ab", "finish_reason": word})
    result = fold(decode_body(ADAPTER.decoder(_request()), body))
    assert result.error is not None
    assert (result.error.kind, result.error.retryable, result.complete) == (kind, False, False)


def test_cancel_by_id() -> None:
    """The same JSON id; the header that the documentation shows does nothing."""
    stop = ADAPTER.cancel_request(_request())
    assert stop is not None
    assert stop.path == "/v2/models/tensorrt_llm/generate"
    assert json.loads(stop.body) == {"id": "r-1", "text_input": "", "stop": True}
    assert TritonAdapter().cancel_request(_request()) is None


@pytest.mark.parametrize("last", ["ab", "abxy"])
def test_the_beginning_of_a_stop_string_is_not_left_in_the_text(last: str) -> None:
    """The engine cuts the stop string off, after events that had its first tokens: whether or not the last
    one takes them back."""
    events = _stream(
        {"text_output": "abxy", "finish_reason": "None", "stop_reason": "None"},
        {"text_output": last, "finish_reason": "stop", "stop_reason": "xyz"},
    )
    result = fold(decode_body(ADAPTER.decoder(_request(("other", "xyz"))), events))
    assert (result.choices[0].text, result.choices[0].finish_reason) == ("ab", "stop")


def test_a_text_that_only_ends_like_a_stop_string_stays() -> None:
    events = _stream({"text_output": "abxy", "finish_reason": "stop", "stop_reason": "None"})
    result = fold(decode_body(ADAPTER.decoder(_request(("xyz",))), events))
    assert result.choices[0].text == "abxy"
