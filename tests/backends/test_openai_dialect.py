"""OpenAI's wire shapes: bodies, streams, whole answers, errors."""

import json
from typing import Any

import msgspec
import pytest

from backends.contract import Delta, Done, ErrorKind, Event, Failure, GenerateRequest, Usage
from backends.decoding import EngineWords
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request
from backends.openai_errors import OPENAI
from tests.backends.folding import decode_body, fold


def sse(*chunks: Any, done: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in chunks]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def chunk(delta: dict[str, Any], finish: Any = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def whole(message: dict[str, Any], finish: Any = "stop", **more: Any) -> bytes:
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}
    ).encode()


def events(body: bytes, choices: int = 1) -> list[Event]:
    return decode_body(OpenAiDecoder(choices), body)


def failure(body: bytes, choices: int = 1) -> Failure:
    last = events(body, choices)[-1]
    assert isinstance(last, Failure)
    return last


# ---------------------------------------------------------------------------------------------- requests


def test_a_chat_body_has_what_was_asked_and_no_more() -> None:
    """The smallest body, and the fullest."""
    messages = [{"role": "user", "content": "hi"}]
    bare = GenerateRequest(request_id="r", model="m", stream=False, messages=messages)
    sent = openai_request(bare, {})
    assert (sent.method, sent.path) == ("POST", "/v1/chat/completions")
    assert sent.headers == {"content-type": "application/json"}
    assert sent.body == b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    full = GenerateRequest(request_id="r", model="m", stream=True, messages=messages)
    parameters = {"top_p": 0.5, "max_tokens": 7, "n": 2, "stop": ["a", "b"]}
    assert json.loads(openai_request(full, parameters).body) == {
        "model": "m",
        "messages": messages,
        "top_p": 0.5,
        "max_tokens": 7,
        "n": 2,
        "stop": ["a", "b"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("prompt", ["x", ["x", "y"], [1, 2], [[1], [2, 3]]])
def test_a_completions_body_carries_every_form_of_prompt(prompt: Any) -> None:
    """Text, texts, token ids, lists of them."""
    request = GenerateRequest(request_id="r", model="m", stream=False, prompt=prompt)
    sent = openai_request(request, {})
    assert sent.path == "/v1/completions"
    assert json.loads(sent.body) == {"model": "m", "prompt": prompt}


@pytest.mark.parametrize(
    ("prompt", "n", "expected"),
    [("x", 1, 1), ("x", 3, 3), (["x", "y"], 2, 4), ([1, 2, 3], 2, 2), ([[1], [2]], 1, 2), ([], 1, 1)],
)
def test_choices_are_n_for_each_prompt(prompt: Any, n: int, expected: int) -> None:
    """Token ids are one prompt."""
    request = GenerateRequest(request_id="r", model="m", stream=False, prompt=prompt, n=n)
    assert choices_asked(request) == expected


# ----------------------------------------------------------------------------------------------- streams


def test_a_stream_becomes_deltas_usage_and_done_with_their_bytes() -> None:
    """Each event's bytes travel with the first thing decoded from it; a role alone, with the next."""
    role = chunk({"role": "assistant", "content": ""})
    first, second = chunk({"content": "Hel"}), chunk({"content": "lo"}, "length")
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    body = sse(role, first, second, {"choices": [], "usage": usage})
    assert events(body) == [
        Delta(text="Hel", tokens=1, raw=sse(role, first, done=False)),
        Delta(text="lo", tokens=1, finish_reason="length", raw=sse(second, done=False)),
        Usage(
            prompt_tokens=9,
            completion_tokens=2,
            cached_tokens=4,
            raw=sse({"choices": [], "usage": usage}, done=False),
        ),
        Done(raw=b"data: [DONE]\n\n"),
    ]


def test_raw_is_carried_once_by_each_event() -> None:
    """Two choices and usage in one event; and a piece after [DONE] is dropped."""
    both = {"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}], "usage": {"prompt_tokens": 1}}
    assert events(sse(both) + sse(both), 2) == [
        Delta(index=1, text="b", tokens=1, raw=sse(both, done=False)),
        Delta(index=0, text="a", tokens=1),
        Usage(prompt_tokens=1),
        Delta(index=0, finish_reason="stop"),
        Delta(index=1, finish_reason="stop"),
        Done(raw=b"data: [DONE]\n\n"),
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("repetition", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("", "stop"),
        (None, "stop"),
        (7, "stop"),
    ],
)
def test_finish_reasons_become_openais(word: Any, expected: str | None) -> None:
    """TGI's words; and where `[DONE]` comes without one, the answer has been stopped."""
    result = fold(events(sse(chunk({"content": "x"}, word))))
    assert result.complete
    assert result.choices[0].finish_reason == expected


@pytest.mark.parametrize(
    ("word", "kind"),
    [("timeout", ErrorKind.TIMEOUT), ("cancelled", ErrorKind.ENGINE), ("abort", ErrorKind.ENGINE)],
)
def test_an_engine_that_gave_up_is_a_failure(word: str, kind: ErrorKind) -> None:
    """The text that came with the bad word is still told; a whole answer is then no answer, and retryable."""
    streamed = fold(events(sse(chunk({"content": "x"}, word))))
    assert streamed.choices[0].text == "x"
    assert streamed.error is not None
    assert (streamed.error.kind, streamed.error.retryable) == (kind, False)
    error = failure(whole({"content": "x"}, word)).error
    assert (error.kind, error.retryable) == (kind, True)


def test_the_stream_may_end_without_its_marker_once_all_choices_have_finished() -> None:
    """Nothing of the answer is missing then; with a choice open, something may be."""
    body = sse(chunk({"content": "a"}, "stop"), done=False)
    assert fold(events(body)).complete
    assert not failure(body, choices=2).error.retryable
    assert failure(sse(chunk({"content": "a"}), done=False)).error.kind is ErrorKind.ENGINE


def test_line_ends_of_other_servers() -> None:
    """CRLF, and a last CR that only the end of the body decides."""
    body = sse(chunk({"content": "a"}, "stop"))
    assert fold(events(body.replace(b"\n", b"\r\n"))).complete
    assert events(body.replace(b"\n", b"\r"))[-1] == Done(raw=b"data: [DONE]\r\r")


def test_done_after_nothing_is_no_answer() -> None:
    """A role and an empty delta are not content."""
    assert failure(sse(chunk({"role": "assistant"}), chunk({"content": ""}))).error.retryable


def test_an_error_event_ends_the_stream_and_done_changes_nothing() -> None:
    """It is retryable only while nothing was delivered."""
    error = {"error": {"message": "busy", "code": 503}}
    assert failure(sse(error)).error.kind is ErrorKind.OVERLOADED
    assert failure(sse(error)).error.retryable
    result = fold(events(sse(chunk({"content": "a"}), error)))
    assert result.choices[0].text == "a"
    assert result.error is not None
    assert not result.error.retryable


def test_garbage_in_the_middle_is_a_failure() -> None:
    """So is invalid UTF-8 in a field that is not read: those bytes would be relayed."""
    good = sse(chunk({"content": "a"}), done=False)
    for garbage in (b"data: <html>\n\n", b'data: {"id":"\xff","choices":[]}\n\n', b"data: 5\n\n"):
        assert fold(events(good + garbage + b"data: [DONE]\n\n")).error is not None


@pytest.mark.parametrize("usage", ["oops", [], {}, {"prompt_tokens": "9"}, {"prompt_tokens": -1}, True, 1.5])
def test_bad_usage_costs_no_text(usage: Any) -> None:
    """It is untold, not zero."""
    result = fold(events(sse(chunk({"content": "a"}, "stop", usage=usage))))
    assert result.choices[0].text == "a"
    assert result.usage is None
    assert result.complete


def test_tool_calls_are_kept_and_end_as_tool_calls() -> None:
    """Nulls go, id, type and name are told once, and a stop (or no word at all) becomes tool_calls."""
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    again = {"id": "c1", "type": "function"}  # TGI
    second = {"index": 0, **again, "function": {"name": None, "arguments": "{}", "description": None}}
    pieces = [chunk({"tool_calls": [first]}), chunk({"tool_calls": [second]})]
    for end, last in ((chunk({}, "stop"), []), (None, [])):
        got = events(sse(*pieces, *([end] if end else []), *last))
        deltas = [event for event in got if isinstance(event, Delta)]
        assert [delta.tool_calls for delta in deltas] == [
            [first],
            [{"index": 0, "function": {"arguments": "{}"}}],
            None,
        ]
        assert deltas[-1].finish_reason == "tool_calls"
        assert fold(got).complete


def test_parallel_tool_calls_of_a_stream_are_told_apart_by_their_index() -> None:
    """Begun in one delta, their arguments in pieces by turns, for two choices at once."""

    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        name = {"name": f"f{index}"} if more else {}
        return {"index": index, **more, "function": {**name, "arguments": arguments}}

    begun = [call(index, "", id=f"c{index}", type="function") for index in range(2)]
    turns = [call(1, "{"), call(0, "{"), call(0, "}"), call(1, "}")]
    repeated = [{**turn, "id": f"c{turn['index']}"} for turn in turns]  # TGI
    pieces = [begun, *([each] for each in repeated)]
    body = sse(*(chunk({"tool_calls": piece}, index=at) for piece in pieces for at in range(2)))
    got = [event for event in events(body, 2) if isinstance(event, Delta) and event.tool_calls]
    expected = [begun, *([each] for each in turns)]
    assert [[delta.tool_calls for delta in got if delta.index == at] for at in range(2)] == [expected] * 2


def test_other_fields_of_the_delta_are_extra_unless_empty() -> None:
    """Reasoning text reaches the client; nulls and empty values of an engine's own fields do not."""
    delta: dict[str, Any] = {
        "role": "assistant",
        "reasoning_content": "hm",
        "refusal": None,
        "annotations": [],
        "name": "",
    }
    assert events(sse(chunk(delta)))[0] == Delta(
        extra={"reasoning_content": "hm"}, tokens=1, raw=sse(chunk(delta), done=False)
    )


def test_reasoning_has_one_name() -> None:
    """vLLM calls it `reasoning`."""
    first = events(sse(chunk({"reasoning": "hm"})))[0]
    assert isinstance(first, Delta)
    assert first.extra == {"reasoning_content": "hm"}


def test_tokens_behind_a_piece_are_counted_where_told() -> None:
    """An engine may put several tokens into one chunk."""
    choice = {"index": 0, "delta": {"content": "abc"}, "logprobs": {"content": [{}, {}, {}]}}
    first = events(sse({"choices": [choice]}))[0]
    assert isinstance(first, Delta)
    assert first.tokens == 3


def test_logprobs_of_a_chat_are_openais() -> None:
    """Without llama.cpp's `id`, with the `bytes` that TGI leaves out; what is no object is dropped."""
    other = {"id": 8, "token": "b", "logprob": -2.0, "bytes": [98]}
    entry = {"id": 7, "token": "a", "logprob": -1.0, "top_logprobs": [other, "odd"]}
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [entry, 5]}}
    first = events(sse({"choices": [choice]}))[0]
    assert isinstance(first, Delta)
    tops = [{"token": "b", "logprob": -2.0, "bytes": [98]}]
    told = {"token": "a", "logprob": -1.0, "bytes": None, "top_logprobs": tops}
    assert first.logprobs == {"content": [told], "refusal": None}


# ----------------------------------------------------------------------------------------- whole answers


def test_a_whole_answer_becomes_the_same_events() -> None:
    """One delta with all the text and its reason, usage, done; nothing raw."""
    body = whole({"role": "assistant", "content": "hi", "tool_calls": []}, usage={"completion_tokens": 5})
    assert events(body) == [
        Delta(text="hi", finish_reason="stop", tokens=5),
        Usage(completion_tokens=5),
        Done(),
    ]


def test_a_whole_tool_call_gets_an_index_and_text_arguments() -> None:
    """TGI leaves the index out; older engines send arguments as an object."""
    calls = [
        {
            "id": "0",
            "type": "function",
            "function": {"name": "f", "arguments": {"a": 1}, "description": None},
        },
        {"id": "1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    first = events(whole({"content": None, "tool_calls": calls}))[0]
    assert isinstance(first, Delta)
    assert first.finish_reason == "tool_calls"
    assert first.tool_calls is not None
    assert [call["index"] for call in first.tool_calls] == [0, 1]
    assert first.tool_calls[0]["function"] == {"name": "f", "arguments": '{"a":1}'}


def test_calls_of_a_whole_answer_are_told_apart_by_their_place() -> None:
    """Two that an engine both calls number 0, or by odd numbers, are two calls, each with its id and name."""
    calls = [
        {"index": index, "id": f"c{at}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for at, index in enumerate((0, 0, 7))
    ]
    first = events(whole({"content": None, "tool_calls": calls}))[0]
    assert isinstance(first, Delta)
    assert first.tool_calls == [{**call, "index": at} for at, call in enumerate(calls)]


def test_an_empty_text_with_a_reason_is_an_answer() -> None:
    """The model may have nothing to say; without a reason, nobody said anything."""
    assert fold(events(whole({"content": ""}))).complete
    assert failure(whole({"content": ""}, finish=None)).error.retryable
    assert failure(b'{"choices": []}').error.retryable


def test_an_error_body_in_a_200_is_an_error() -> None:
    """Flat and nested."""
    assert failure(b'{"object":"error","message":"m","code":404}').error.kind is ErrorKind.NOT_FOUND
    assert failure(b'{"error":{"message":"m","type":"rate_limit_error"}}').error.kind is ErrorKind.OVERLOADED
    assert failure(b'{"detail":"boom"}').error.kind is ErrorKind.ENGINE


def test_an_engine_that_ignores_stream_is_understood() -> None:
    """The content decides, not what was asked: JSON instead of events."""
    assert fold(events(b" \n" + whole({"content": "hi"}))).complete


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (400, EngineWords("bad"), ErrorKind.CLIENT),
        (422, EngineWords("bad"), ErrorKind.CLIENT),
        (400, EngineWords("x", "exceed_context_size_error"), ErrorKind.CONTEXT_LENGTH),
        (400, EngineWords("This model's maximum context length is 8"), ErrorKind.CONTEXT_LENGTH),
        (503, EngineWords("maximum context length"), ErrorKind.OVERLOADED),
        (None, EngineWords("x", "BadRequestError"), ErrorKind.CLIENT),
        (None, EngineWords("x", "", 400), ErrorKind.CLIENT),
        (None, EngineWords("x", "InternalServerError", 500), ErrorKind.ENGINE),
        (None, EngineWords("x"), ErrorKind.ENGINE),
    ],
)
def test_errors_are_classed(status: int | None, words: EngineWords, expected: ErrorKind) -> None:
    """By status, else by the code inside, else by the type."""
    assert OPENAI(status, words) is expected


def test_an_error_keeps_the_engines_words_status_and_param() -> None:
    """For logs, and for the envelope to the client."""
    body = msgspec.json.encode({"error": {"message": "no", "type": "x", "param": "top_k", "code": 400}})
    error = fold(decode_body(OpenAiDecoder(), body, 400)).error
    assert error is not None
    assert (error.message, error.status, error.param, error.retryable) == ("no", 400, "top_k", False)
