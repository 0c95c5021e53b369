"""Tensors that nobody wants cost no more than their bytes."""

import time
import tracemalloc

import pytest

from backends.contract import Delta, Done, Failure, Usage
from backends.triton.wire import TritonDecoder
from tests.benchmarks.tensors import answer, decode, logits

TEN_MB = logits(10_000_000)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["context_logits", "generation_logits", "cum_log_probs"])
def test_ten_megabytes_of_logits_are_passed_over(name: str, stream: bool) -> None:
    """At most three and a half times its bytes are held at once (an object for each number would be as much
    again), and a quarter of a second of CPU is ten times what it takes."""
    body = answer(TEN_MB, stream=stream, name=name)
    before = time.process_time()
    events = decode(body)
    assert time.process_time() - before < 0.25
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "hi there"
    assert Usage(prompt_tokens=3, completion_tokens=2) in events
    del events
    tracemalloc.start()
    try:
        decode(body)
        assert tracemalloc.get_traced_memory()[1] < 3.5 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("odd", [b"NaN", b"-Infinity", b"Infinity"])
def test_numbers_that_are_no_json_do_not_cost_more(odd: bytes, stream: bool) -> None:
    """Logits of masked tokens: the tensor goes, the text stays."""
    tensor = TEN_MB[:1_000_000] + b"," + odd + TEN_MB[1_000_000 - 1 :].partition(b",")[1] + b"0]"
    body = answer(tensor, stream=stream)
    tracemalloc.start()
    try:
        events = decode(body)
        assert tracemalloc.get_traced_memory()[1] < 4.5 * len(body)
    finally:
        tracemalloc.stop()
    assert any(isinstance(event, Delta) and event.text for event in events)
    assert isinstance(events[-1], Done)


def test_invalid_text_beside_a_tensor() -> None:
    body = answer(TEN_MB[:200_000] + b"1]", stream=False).replace(b"hi there", b"hi \xff there \\u0041")
    (delta, *_) = decode(body)
    assert isinstance(delta, Delta)
    assert delta.text == "hi \ufffd there A"


def test_a_list_of_numbers_in_the_text_is_text() -> None:
    numbers = "[" + "1, " * 2000 + "2]"
    said = f'the key \\": {numbers} and \\"x\\": {numbers}'
    body = answer(b"[]", stream=False).replace(b"hi there", said.encode() + b"\xff")
    (delta, *_) = decode(body)
    assert isinstance(delta, Delta)
    assert delta.text == said.replace("\\", "") + "\ufffd"


def test_the_length_of_log_probs_still_tells_how_many_tokens_there_were() -> None:
    """Where no count is told: by its commas, on both routes."""
    flat = b'{"text_output":"a b c","output_log_probs":[0.0, -1.5,\n0.0]}'
    listed = (
        b'{"outputs":[{"name":"text_output","data":["a b c"]},{"name":"context_logits","data":[1,2]},'
        b'{"name":"output_log_probs","data":[0.0,-1.5,0.0]}]}'
    )
    for body in (flat, listed):
        for most, reason in ((3, "length"), (4, "stop")):
            decoder = TritonDecoder(stops=(), max_tokens=most, text_mode="delta")
            decoder.head(200, {})
            events = [*decoder.feed(body), *decoder.end()]
            assert isinstance(events[0], Delta)
            assert (events[0].text, events[0].finish_reason) == ("a b c", reason)


@pytest.mark.parametrize("tensor", [b"null", b"[]", b"{}", b"7", b'"text"'])
def test_log_probs_of_another_shape_tell_nothing(tensor: bytes) -> None:
    events = decode(b'{"text_output":"a","output_log_probs":%b}' % tensor)
    assert isinstance(events[0], Delta)


@pytest.mark.parametrize(
    "body", [b"[1, 2]", b'"text"', b"7", b"{", b'{"outputs": 7}', b'{"outputs": [{"a": 1}]}']
)
def test_what_is_no_answer_is_a_failure(body: bytes) -> None:
    decoder = TritonDecoder(stops=(), max_tokens=3, text_mode="delta")
    decoder.head(200, {})
    assert isinstance([*decoder.feed(body), *decoder.end()][-1], Failure)
