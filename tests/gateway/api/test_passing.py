"""The gateway's own events in native streams: where an answer is cut, and where it breaks."""

import json
import tracemalloc
from typing import Any

import pytest

from backends.contract import Delta, Done
from gateway.api.errors import anthropic_error
from gateway.api.folding import Frame, named_event
from gateway.api.passing import PassingDocument, PassingStream, UnstreamedDocument, stream_failure
from gateway.errors import BadRequest, BudgetExceeded, EngineFailed, NotAdmin, Unavailable

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
FRAME = Frame("id-1", 5, "public")
CUT = [Delta(finish_reason="length"), Done()]


def data(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]


def stream(dialect: Any, *, may_be_cut: bool = True) -> PassingStream:
    return PassingStream(dialect, FRAME, may_be_cut=may_be_cut)


def test_bytes_of_all_events_leave_in_order():
    passing = stream("messages")
    assert passing.deltas([Delta(text="a", raw=b"1"), Delta(raw=b"2"), Done(raw=b"3")]) == b"123"
    assert passing.usage(USAGE) == b"", "the engine has told it itself"
    assert passing.done == b""


def test_a_cut_message_ends_with_its_open_block():
    passing = stream("messages")
    piece = named_event({"type": "content_block_delta", "index": 2, "delta": {"text": "x"}})
    assert passing.deltas([Delta(text="x", raw=piece)]) == piece
    passing.deltas([Delta(raw=named_event({"type": "ping"}))])
    assert passing.deltas(CUT) == b""
    stop, delta, end = data(passing.usage(USAGE))
    assert stop == {"type": "content_block_stop", "index": 2}
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"] == {"input_tokens": 7, "output_tokens": 2}
    assert end == {"type": "message_stop"}


def test_a_block_that_is_closed_is_not_closed_again():
    passing = stream("messages")
    start = named_event({"type": "message_start", "message": {"id": "m"}})
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    stop = named_event({"type": "content_block_stop", "index": 0})
    passing.deltas([Delta(raw=start + named_event(block) + stop), *CUT])
    assert [event["type"] for event in data(passing.usage(USAGE))] == ["message_delta", "message_stop"]


def test_an_answer_that_was_cut_before_it_began_has_its_beginning():
    message, response = stream("messages"), stream("responses")
    message.deltas(CUT)
    response.deltas(CUT)
    events = data(message.usage(USAGE))
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]
    assert (events[0]["message"]["model"], events[0]["message"]["usage"]["input_tokens"]) == ("public", 7)
    events = data(response.usage(USAGE))
    assert [event["type"] for event in events] == ["response.created", "response.incomplete"]
    assert [event["sequence_number"] for event in events] == [0, 1]
    assert events[1]["response"]["output"] == []


def test_a_cut_response_holds_what_there_is():
    passing = stream("responses")
    created = named_event(
        {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "odd": 1}}
    )
    pieces = [
        named_event(
            {"type": "response.output_text.delta", "sequence_number": n, "item_id": "i", "delta": "ab"}
        )
        for n in (1, 2)
    ]
    passing.deltas([Delta(text="ab", raw=created + pieces[0]), Delta(text="ab", raw=pieces[1]), *CUT])
    *closing, ended = data(passing.usage({**USAGE, "prompt_tokens_details": {"cached_tokens": 4}}))
    assert [event["type"].removeprefix("response.") for event in closing] == [
        "output_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in closing] == [3, 4, 5]
    assert (ended["type"], ended["sequence_number"]) == ("response.incomplete", 6)
    response = ended["response"]
    assert (response["id"], response["odd"], response["status"]) == ("r", 1, "incomplete")
    assert response["output"][0]["id"] == "i"
    assert response["output"][0]["content"][0]["text"] == "abab"
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 0}
    assert response["usage"]["total_tokens"] == 9


def test_odd_bytes_do_not_keep_a_stream_from_ending():
    passing = stream("responses")
    passing.deltas([Delta(text="x", raw=b"data: {broken\n\ndata: [1]\n\n"), *CUT])
    assert [event["type"] for event in data(passing.usage(USAGE))] == [
        "response.created",
        "response.incomplete",
    ]


@pytest.mark.parametrize("may_be_cut", [True, False])
def test_the_next_number_is_known_whether_the_stream_is_folded_or_not(may_be_cut: bool):
    """Also where the latest events bear none."""
    passing = stream("responses", may_be_cut=may_be_cut)
    assert passing.next_sequence() == 0
    piece = {"type": "response.output_text.delta", "delta": '"sequence_number": 9'}
    for number in (0, 1):
        passing.deltas([Delta(text="x", raw=named_event({**piece, "sequence_number": number}))])
    passing.deltas([Delta(text="x", raw=named_event(piece))])
    assert passing.next_sequence() == passing.next_sequence() == 2


def test_what_nothing_can_cut_is_not_kept():
    """A stream of hours must not be held in memory for an end that cannot come."""
    passing = stream("responses", may_be_cut=False)
    piece = named_event({"type": "response.output_text.delta", "sequence_number": 0, "delta": "x" * 1000})
    tracemalloc.start()
    try:
        for _ in range(1000):
            passing.deltas([Delta(text="x", raw=piece + b"")])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


def test_a_document_is_what_the_engine_wrote():
    document = PassingDocument()
    document.add([Delta(raw=b'{"a": 1.0}'), Done()])
    assert document.body(USAGE) == b'{"a": 1.0}'


def test_a_document_that_was_asked_for_as_a_stream():
    """What its engine ended is what the engine said; what was cut says so."""
    response = {"id": "r", "status": "completed", "output": [], "odd": 1.5}
    ended = named_event({"type": "response.completed", "sequence_number": 1, "response": response})
    document = UnstreamedDocument("responses", FRAME)
    document.add([Delta(text="x", raw=b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n')])
    document.add([Done(raw=ended)])
    assert json.loads(document.body(USAGE)) == response
    at_once = UnstreamedDocument("messages", FRAME)
    at_once.add([Delta(raw=b'{"content": [1.0]}')])
    at_once.add([Done(raw=b"")])
    assert at_once.body(USAGE) == b'{"content": [1.0]}', "of an engine that knows no streams"
    cut = UnstreamedDocument("messages", FRAME)
    cut.add(CUT)
    assert json.loads(cut.body(USAGE))["stop_reason"] == "max_tokens"


def test_failures_are_events_of_the_dialect():
    (told,) = data(stream_failure("messages", EngineFailed("It broke.")))
    assert told["error"] == {
        "type": "api_error",
        "message": "It broke.",
        "details": {"error_code": "upstream_error", "param": None},
    }
    (told,) = data(stream_failure("responses", EngineFailed("It broke."), 4))
    assert told == {
        "type": "error", "sequence_number": 4, "code": "upstream_error", "message": "It broke.", "param": None
    }  # fmt: skip


def test_anthropics_types():
    types = {
        anthropic_error(error)["error"]["type"]
        for error in (
            BadRequest("x"), NotAdmin("x"), Unavailable("x", reason="overloaded"), BudgetExceeded("x"),
        )
    }  # fmt: skip
    assert types == {"invalid_request_error", "permission_error", "overloaded_error", "rate_limit_error"}
    named = anthropic_error(BadRequest("x", param="messages[0].role"))["error"]
    assert named["details"] == {"error_code": None, "param": "messages[0].role"}
    assert anthropic_error(BadRequest("x"), "id-1") == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "x"},
        "request_id": "id-1",
    }
