"""Triton's classic vocabulary: typed tensors out, text in three manners back."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import Delta, Done, ErrorKind, Event, GenerateRequest, Usage
from backends.decoding import EngineWords
from backends.text_engines import EVENTS_AFTER_STOP
from backends.triton import wire
from backends.triton.adapter import TritonAdapter, TritonOptions
from tests.backends.asking import served
from tests.backends.folding import Result, decode_body, fold

ADAPTER = TritonAdapter()
GUIDED = TritonAdapter(TritonOptions(guided_decoding=True))
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def ask(parameters: dict[str, Any] | None = None, **fields: Any) -> GenerateRequest:
    given = {"request_id": "r-1", "model": "ensemble", "stream": False, "prompt": "hi", "max_tokens": 8}
    return GenerateRequest(**{**given, "parameters": parameters or {}, **fields})


def tensors(request: GenerateRequest, adapter: TritonAdapter = ADAPTER) -> dict[str, Any]:
    body = json.loads(adapter.encode(request).body)
    assert isinstance(body, dict)
    return body


# ---------------------------------------------------------------------------------------------- requests


def test_the_smallest_body() -> None:
    """max_tokens and the counts always; top_p since the engine is greedy without it."""
    sent = ADAPTER.encode(ask())
    assert (sent.method, sent.path) == ("POST", "/v2/models/ensemble/generate")
    assert json.loads(sent.body) == {
        "id": "r-1",
        "text_input": "hi",
        "max_tokens": 8,
        "stream": False,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "top_p": 1.0,
    }


def test_a_full_body_is_cast_to_the_tensors_types() -> None:
    """What changes no answer is dropped."""
    parameters = {
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 40.0,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 0,
        "seed": -1,
        "bad_words": "no",
        "user": "someone",
        "metadata": {"a": 1},
        "min_p": None,
        "length_penalty": 1.0,
        "min_tokens": 99,
    }
    sent = ADAPTER.encode(ask(parameters, stream=True, rendered="<user>hi", stop=("END", ""), model="a/b c"))
    assert sent.path == "/v2/models/a%2Fb%20c/generate_stream"
    assert json.loads(sent.body) == {
        "id": "r-1",
        "text_input": "<user>hi",
        "max_tokens": 8,
        "stream": True,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 0,
        "seed": 2**64 - 1,
        "bad_words": ["no"],
        "min_tokens": 8,
        "stop_words": ["END"],
    }


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"temperature": 0.0, "top_k": 50}, {"top_p": 0}])
def test_greedy_is_a_top_k_of_one(parameters: dict[str, Any]) -> None:
    """A temperature of 0 is refused by some versions."""
    sent = tensors(ask(parameters))
    assert sent["top_k"] == 1
    assert "temperature" not in sent
    assert "top_p" not in sent


def test_max_tokens_is_always_sent_and_in_range() -> None:
    """It is a required INT32 that Triton does not check: three thousand million would wrap."""
    assert tensors(ask(max_tokens=None))["max_tokens"] == wire.DEFAULT_MAX_TOKENS
    assert tensors(ask(max_tokens=3_000_000_000))["max_tokens"] == 2**31 - 1


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_k": -2}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"repetition_penalty": 1e39}, "repetition_penalty"),
        ({"bad_words": [1]}, "bad_words"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
    ],
)
def test_values_without_a_tensor_are_refused(parameters: dict[str, Any], param: str) -> None:
    """Rather than a 500, a wrapped number, or output that is not constrained."""
    refusal = ADAPTER.unsupported(ask(parameters))
    assert refusal is not None
    assert refusal.param == param


def test_guided_decoding_where_the_models_have_it() -> None:
    """Else the tensors would be ignored in silence."""
    schema = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
    assert GUIDED.unsupported(ask(schema)) is None
    sent = tensors(ask(schema), GUIDED)
    assert sent["guided_decoding_guide_type"] == "json_schema"
    assert json.loads(sent["guided_decoding_guide"]) == SCHEMA
    anything = {"response_format": {"type": "json_object"}}
    assert tensors(ask(anything), GUIDED)["guided_decoding_guide_type"] == "json"
    assert ADAPTER.unsupported(ask(anything)) is not None
    refusal = GUIDED.unsupported(ask({"response_format": {"type": "grammar"}}))
    assert refusal is not None


PARAMETERS = ADAPTER.tables.chat.rules.keys() - {"messages", "prompt", "max_tokens", "n", "stop"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from([*PARAMETERS]) | st.text(max_size=5)
TYPES = {
    "id": str,
    "text_input": str,
    "max_tokens": int,
    "min_tokens": int,
    "top_k": int,
    "seed": int,
    "stream": bool,
    "exclude_input_in_output": bool,
    "return_num_input_tokens": bool,
    "return_num_output_tokens": bool,
    "guided_decoding_guide_type": str,
    "guided_decoding_guide": str,
    "stop_words": list,
    "bad_words": list,
}
FP32 = {
    "temperature",
    "top_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
}


@settings(deadline=None)
@given(parameters=st.dictionaries(NAMES, JSON), stop=st.lists(st.text(max_size=3)).map(tuple))
def test_any_parameters_give_tensors_of_the_right_types(
    parameters: dict[str, Any], stop: tuple[str, ...]
) -> None:
    """No null, no object, no list but of texts, no unknown key: each of them is a 400 or a 500."""
    request = ask(parameters, stop=stop)
    for adapter in (ADAPTER, GUIDED):
        passed = served(adapter, request)
        assert passed is not None
        for name, value in tensors(passed, adapter).items():
            if name in FP32:
                assert type(value) in (int, float)
                continue
            assert type(value) is TYPES[name]
            if type(value) is int:
                assert 0 <= value < (2**64 if name == "seed" else 2**31)
            if type(value) is list:
                assert value
                assert all(type(text) is str and text for text in value)


# ----------------------------------------------------------------------------------------------- answers


def event(text: Any = None, **more: Any) -> bytes:
    output = {"model_name": "m", **({} if text is None else {"text_output": text}), **more}
    return b"data: " + json.dumps(output, ensure_ascii=False).encode() + b"\n\n"


def stream(
    *pieces: Any, mode: wire.TextMode = "delta", stops: tuple[str, ...] = (), end: bytes = b""
) -> Result:
    body = b"".join(piece if isinstance(piece, bytes) else event(piece) for piece in pieces) + end
    decoder = wire.TritonDecoder(stops=stops, max_tokens=None, text_mode=mode)
    return fold(decode_body(decoder, body))


@pytest.mark.parametrize(
    ("mode", "pieces", "expected"),
    [
        ("delta", ["a", "aa", "", " b"], "aaa b"),
        ("cumulative", ["a", "a b", "a b", "a b c", ""], "a b c"),
        ("cumulative", ["a \ufffd", "a \ufffd\ufffd", "a 漢", "a 漢字"], "a 漢字"),
        ("cumulative", ["a \ufffd"], "a \ufffd"),
        ("cumulative", ["ab ", "ab", "ab c"], "ab c"),
        ("cumulative", ["don '", "don't"], "don ''t"),  # what was shown stays, nothing is lost
        ("auto", ["Hello", " big", " world"], "Hello big world"),
        ("auto", ["Hello", "Hello big", "Hello big world"], "Hello big world"),
        ("auto", ["I", "I am", "I am a"], "I am a"),
        ("auto", ["\n", "\n\n", "Foo"], "\n\n\nFoo"),
        ("auto", ["a", "aa", "b"], "aaab"),
        ("auto", ["a", "aa", "aab"], "aab"),
        ("auto", ["ha", "ha", "!"], "haha!"),
        ("auto", ["Yes", "Yes", "Yes sir"], "Yes sir"),
        ("auto", ["ha", "ha", ""], "haha"),
        ("auto", ["Yes", "Yes"], "Yes"),  # one token, and the end of the turn
        ("auto", ["I", "I am"], "I am"),
        ("auto", ["\ufffd", "漢", "漢字", "漢字x"], "漢字x"),
        ("auto", ["one", ""], "one"),
        ("auto", [""], ""),
    ],
)
def test_text_is_read_in_its_mode(mode: wire.TextMode, pieces: list[str], expected: str) -> None:
    """Deltas, all text so far, or whichever the events turn out to be."""
    result = stream(*pieces, mode=mode)
    assert result.choices[0].text == expected
    assert result.complete


def test_auto_gives_out_at_once_what_is_right_either_way() -> None:
    """Only the doubtful piece waits."""
    decoder = wire.TritonDecoder(stops=(), max_tokens=None, text_mode="auto")
    decoder.head(200, {})

    def texts(data: bytes) -> list[str]:
        return [event.text for event in decoder.feed(data) if isinstance(event, Delta)]

    assert texts(event("ha")) == ["ha"]
    assert texts(event("ha")) == []
    assert texts(event("!")) == ["ha!"]
    assert texts(event("?")) == ["?"]


words = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6)


@settings(deadline=None)
@given(pieces=words)
def test_cumulative_text_is_read_whole(pieces: list[str]) -> None:
    """Growing by pieces, in the mode that says so."""
    so_far = ["".join(pieces[: count + 1]) for count in range(len(pieces))]
    assert stream(*so_far, mode="cumulative").choices[0].text == so_far[-1]


@settings(deadline=None)
@given(pieces=st.lists(st.sampled_from([" one", " two", " three"]), min_size=2, max_size=8).filter(
    lambda pieces: pieces[0] != pieces[1]
))  # fmt: skip
def test_auto_reads_both_manners(pieces: list[str]) -> None:
    """Words that do not begin like each other are told apart by the second event."""
    text = "".join(pieces)
    so_far = ["".join(pieces[: count + 1]) for count in range(len(pieces))]
    assert stream(*pieces, mode="auto").choices[0].text == text
    assert stream(*so_far, mode="auto").choices[0].text == text


def test_events_of_a_stream() -> None:
    """Deltas with a token each, usage as last told, and a derived reason."""
    body = event("a", num_output_tokens=1, num_input_tokens=7) + event(" b", num_output_tokens=2)
    decoder = wire.TritonDecoder(stops=(), max_tokens=2, text_mode="delta")
    assert decode_body(decoder, body) == [
        Delta(text="a", tokens=1),
        Delta(text=" b", tokens=1),
        Delta(finish_reason="length"),
        Usage(prompt_tokens=7, completion_tokens=2),
        Done(),
    ]


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        (["a", " b"], 2),
        (["a", " b", ""], 2),  # the event of the end
        (["a", "", "漢", ""], 3),  # half a character is a token too
        (["a", "", ""], 2),  # cut within one
        ([""], 0),
    ],
)
def test_an_event_with_text_is_a_token_where_no_count_is_told(pieces: list[str], tokens: int) -> None:
    """And so is one without, unless it is the last."""
    decoder = wire.TritonDecoder(stops=(), max_tokens=None, text_mode="delta")
    told = decode_body(decoder, b"".join(map(event, pieces)))
    assert sum(each.tokens for each in told if isinstance(each, Delta)) == tokens


@pytest.mark.parametrize(
    ("told", "expected"),
    [([1, 2, 3], 3), ([1, 1, 1], 3), ([2, 1, 2], 5), ([None, None, 4], 4), (["1", None, None], None)],
)
def test_counts_by_event_or_in_total(told: list[Any], expected: int | None) -> None:
    """A total is never below the number of events."""
    result = stream(*(event("x", num_output_tokens=count) for count in told))
    assert (result.usage or {}).get("completion_tokens") == expected


def test_a_stop_string_cuts_and_the_engines_counts_are_still_read() -> None:
    """A few events more, then the answer ends, so that the connection can be dropped."""
    pieces = [
        event(" E", num_output_tokens=1),
        event("ND", num_output_tokens=2),
        event("x", num_output_tokens=3),
    ]
    result = stream("a", *pieces, stops=("END",))
    assert result.choices[0].text == "a "
    assert result.choices[0].finish_reason == "stop"
    assert result.usage is not None
    assert result.usage["completion_tokens"] == 3
    decoder = wire.TritonDecoder(stops=("END",), max_tokens=None, text_mode="delta")
    decoder.head(200, {})
    events: list[Event] = decoder.feed(event("END"))
    assert events == [Delta(finish_reason="stop", tokens=1)]
    for _ in range(EVENTS_AFTER_STOP - 1):
        assert decoder.feed(event("more")) == []
    assert decoder.feed(event("more")) == [Done()]


def test_an_error_after_the_stop_string_costs_nothing() -> None:
    """The client's answer was whole."""
    assert stream("a END", b'data: {"error":"boom"}\n\n', stops=("END",)).complete


def test_an_error_event_in_the_middle() -> None:
    """What was held back is told, since the answer had begun."""
    result = stream("a", " EN", b'data: {"error":"boom"}\n\n', stops=("END",))
    assert result.choices[0].text == "a EN"
    assert result.choices[0].finish_reason is None
    assert result.error is not None
    assert (result.error.kind, result.error.retryable) == (ErrorKind.ENGINE, False)


def test_a_body_that_ends_inside_an_event_is_cut() -> None:
    """The clean end of the body is the only end marker there is."""
    result = stream("a", end=b'data: {"text_output":')
    assert result.error is not None
    assert result.error.kind is ErrorKind.ENGINE
    assert stream(event()).error is not None


def test_bytes_that_are_no_text() -> None:
    """A model's invalid UTF-8 and NaN pass straight through Triton."""
    result = stream(b'data: {"text_output":"a\xff","cum_log_probs":NaN}\n\n')
    assert result.choices[0].text == "a\ufffd"
    assert result.complete


def whole(max_tokens: int | None = None, stops: tuple[str, ...] = (), **output: Any) -> Result:
    decoder = wire.TritonDecoder(stops=stops, max_tokens=max_tokens, text_mode="auto")
    return fold(decode_body(decoder, json.dumps(output).encode()))


def test_a_whole_answer() -> None:
    """Cut, with the reason from the stop string, the count, or the log probabilities."""
    result = whole(
        text_output="a END b", stops=("END",), max_tokens=2, num_output_tokens=2, num_input_tokens=3
    )
    assert (result.choices[0].text, result.choices[0].finish_reason) == ("a ", "stop")
    assert result.usage == {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": None}
    assert whole(text_output="a b", max_tokens=2, num_output_tokens=2).choices[0].finish_reason == "length"
    assert (
        whole(text_output="a b", max_tokens=2, output_log_probs=[0, 0]).choices[0].finish_reason == "length"
    )
    assert whole(text_output="a", max_tokens=2).choices[0].finish_reason == "stop"
    several = whole(text_output=["a", "b"], num_output_tokens=[1, 1])
    assert [several.choices[index].text for index in (0, 1)] == ["a", "b"]
    assert whole(text_output=["a"]).choices[0].text == "a"
    assert whole(text_output=7).error is not None
    assert whole(text_output=[]).error is not None


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (503, "[request id: <id_unknown>] Exceeds maximum queue size", ErrorKind.OVERLOADED),
        (None, "Traceback (most recent call last): Exceeds maximum queue size", ErrorKind.OVERLOADED),
        (503, "Request timeout expired", ErrorKind.OVERLOADED),
        (403, "This API is restricted, expecting header 'X'", ErrorKind.AUTH),
        (200, "Prompt length (5056) exceeds maximum input length (2048)", ErrorKind.CONTEXT_LENGTH),
        (
            400,
            "Traceback: Prompt length (5056) exceeds maximum input length (2048)",
            ErrorKind.CONTEXT_LENGTH,
        ),
        (400, "Traceback: Unable to parse 'data'", ErrorKind.ENGINE),
        (400, "[request id: <id_unknown>] input 'text_input' batch size does not match", ErrorKind.CLIENT),
        (404, "Request for unknown model: 'm' has no available versions", ErrorKind.NOT_FOUND),
        (405, "Method Not Allowed", ErrorKind.CLIENT),
        (
            None,
            "generate expects model to produce exactly 1 response, use generate stream",
            ErrorKind.ENGINE,
        ),
        (500, "something", ErrorKind.ENGINE),
        (None, "something", ErrorKind.ENGINE),
    ],
)
def test_errors_are_classed_by_their_text(status: int | None, text: str, expected: ErrorKind) -> None:
    """Statuses lie: a bad request is a 500, a broken model a 400."""
    assert ADAPTER.errors(status, EngineWords(text)) is expected


def test_a_traceback_is_not_trusted_to_be_short() -> None:
    """BLS models send the whole of it."""
    result = stream(b'data: {"error":"Traceback: ' + b"x" * 100_000 + b'"}\n\n')
    assert result.error is not None
    assert len(result.error.message) <= 2000


def test_health() -> None:
    """Loading models is alive."""
    assert ADAPTER.health_request().path == "/v2/health/ready"
    health = ADAPTER.read_health(400, b"")
    assert (health.ready, health.live) == (False, True)
