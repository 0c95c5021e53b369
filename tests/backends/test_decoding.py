"""What all decoders share: reading by content, bounds, error shapes, statuses."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import Decoder, ErrorKind, GenerateRequest
from backends.decoding import (
    MAX_ERROR_BYTES,
    EngineWords,
    engine_words,
    lenient_json,
)
from backends.registry import REGISTRY
from tests.backends.folding import Result, decode, decode_body, fold

REQUEST = GenerateRequest(
    request_id="r1", model="m", stream=True, prompt="x", rendered="x", max_tokens=8, stop=("END",)
)


def decoder(kind: str) -> Decoder:
    return REGISTRY.adapter(kind, {}).decoder(REQUEST)


def read(kind: str, body: bytes, status: int = 200) -> Result:
    return fold(decode_body(decoder(kind), body, status))


kinds = pytest.mark.parametrize("kind", REGISTRY.kinds())


@kinds
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n \n",
        b": keep-alive\n\n",
        b"data:\n\n",
        b"<html><body>502 Bad Gateway</body></html>",
        b"default backend - 404",
        bytes(range(256)),
        b'{"choices": [{"index": 0, "text": "cut',
        b'{"text_output": "cut',
        b"[]",
        b"{}",
        b"null",
        b"42",
        b"data: <html>\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [5]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: [DONE]\n\n",
        b"\xff\xfe\x00",
    ],
)
def test_no_answer_is_the_engines_fault(kind: str, body: bytes) -> None:
    """Garbage and silence in a 200 are failures that another replica may make good."""
    result = read(kind, body)
    assert result.choices == {}
    assert result.error is not None
    assert result.error.kind is ErrorKind.ENGINE
    assert result.error.retryable


@kinds
@settings(deadline=None)
@given(
    body=st.binary(max_size=60) | st.text(max_size=40).map(str.encode),
    status=st.sampled_from([200, 400, 500]),
)
def test_any_bytes_end_in_one_terminal_event(kind: str, body: bytes, status: int) -> None:
    """Nothing crashes a decoder, and nothing leaves an answer open."""
    result = read(kind, body, status)
    assert result.complete is (result.error is None)


@kinds
def test_an_endless_event_is_a_failure(kind: str) -> None:
    """An event over the cap ends the answer before the body does."""
    sut = decoder(kind)
    sut.head(200, {})
    mib = 65 if kind == "triton" else 9  # whose events may hold tensors
    events = [event for _ in range(mib) for event in sut.feed(b"data: " + b"x" * 1024 * 1024)]
    assert fold(events).error is not None
    assert sut.feed(b"more") == []


@kinds
def test_an_endless_error_body_is_bounded(kind: str) -> None:
    """It is classed by its beginning, and its message is short."""
    sut = decoder(kind)
    sut.head(500, {})
    events = [event for _ in range(MAX_ERROR_BYTES // 1000 + 2) for event in sut.feed(b"x" * 1000)]
    error = fold(events).error
    assert error is not None
    assert error.kind is ErrorKind.ENGINE
    assert len(error.message) <= 2000


@kinds
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, ErrorKind.ENGINE),
        (401, ErrorKind.AUTH),
        (403, ErrorKind.AUTH),
        (404, ErrorKind.NOT_FOUND),
        (408, ErrorKind.TIMEOUT),
        (413, ErrorKind.CLIENT),
        (429, ErrorKind.OVERLOADED),
        (500, ErrorKind.ENGINE),
        (501, ErrorKind.UNSUPPORTED),
        (502, ErrorKind.ENGINE),
        (503, ErrorKind.OVERLOADED),
        (504, ErrorKind.TIMEOUT),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>oops</html>", b'{"unknown": "shape"}'])
def test_a_bare_status_has_a_meaning(kind: str, status: int, expected: ErrorKind, body: bytes) -> None:
    """Also where a proxy before the engine wrote the body."""
    error = read(kind, body, status).error
    assert error is not None
    assert (error.kind, error.status) == (expected, status)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_seconds(value: str, expected: float | None) -> None:
    """A date would need a clock."""
    error = fold(decode(decoder("openai"), 503, {"retry-after": value}, [b""])).error
    assert error is not None
    assert error.retry_after == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"error": {"message": "m", "type": "t", "param": "p", "code": 404}},
            EngineWords("m", "t", 404, "p"),
        ),
        ({"error": {"message": "m", "type": "t", "code": "503"}}, EngineWords("m", "t", 503)),
        (
            {"error": {"message": "m", "type": None, "code": "model_not_found"}},
            EngineWords("m", "", None, None, "model_not_found"),
        ),
        (
            {"error": {"message": "m", "type": "invalid_request_error", "code": "invalid_value"}},
            EngineWords("m", "invalid_request_error", None, None, "invalid_value"),
        ),
        ({"error": {"message": "m", "http_status_code": 422}}, EngineWords("m", "", 422)),
        ({"error": "text", "error_type": "overloaded"}, EngineWords("text", "overloaded")),
        ({"object": "error", "message": "m", "type": "t", "code": 400}, EngineWords("m", "t", 400)),
        ({"detail": "text"}, EngineWords("text")),
        ({"detail": [{"msg": "x"}]}, EngineWords("[{'msg': 'x'}]")),
        ({"error": None, "choices": []}, None),
        ({"choices": [], "detail": "no error"}, None),
        ([], None),
        ("error", None),
    ],
)
def test_errors_are_found_in_every_shape(value: object, expected: EngineWords | None) -> None:
    """Nested, flat, a string, FastAPI's."""
    assert engine_words(value) == expected


def test_lenient_json_takes_what_triton_writes() -> None:
    """Bytes that are no UTF-8, NaN and half a surrogate pair."""
    value = lenient_json(b'{"a": "x\xffy", "b": NaN, "c": -Infinity}')
    assert value["a"] == "x\ufffdy"
    assert math.isnan(value["b"])
    assert value["c"] == -math.inf
    assert lenient_json(rb'{"a": "\ud83d"}') == {"a": "\ufffd"}
    assert lenient_json(rb'{"a": "\ud83d\ude00", "b": NaN}')["a"] == "😀"
    for broken in (b"{", b"[" * 100_000):
        with pytest.raises(ValueError, match=r".+"):
            lenient_json(broken)
