"""Native streams as documents: whole, and cut after any of their events."""

import bisect
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.api.folding import Frame, MessageFold, ResponseFold, fold_of

FRAME = Frame("id-1", 5, "public")
SPOKEN: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def data(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": begun},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


CITATION = {
    "type": "char_location", "cited_text": "c", "document_index": 0, "document_title": None,
    "start_char_index": 0, "end_char_index": 1, "file_id": None,
}  # fmt: skip
MESSAGE: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "m", "type": "message", "role": "assistant", "model": "public", "content": [], "odd": [1],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0},
        },
    },
    *block(
        0, {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "hm "}, {"type": "thinking_delta", "thinking": "so"},
        {"type": "signature_delta", "signature": "s1"},
    ),
    {"type": "ping"},
    *block(
        1, {"type": "text", "text": "", "citations": None},
        {"type": "text_delta", "text": "Wat"}, {"type": "citations_delta", "citation": CITATION},
        {"type": "text_delta", "text": "er 水"},
    ),
    *block(
        2, {"type": "tool_use", "id": "t", "name": "open", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"gate": [1, '},
        {"type": "input_json_delta", "partial_json": "2]}"},
    ),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"input_tokens": 9, "output_tokens": 7, "cache_read_input_tokens": None},
    },
    {"type": "message_stop"},
]  # fmt: skip


def part_of(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def numbered(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


RESPONDED = {
    "id": "r", "object": "response", "created_at": 1, "model": "public", "status": "in_progress",
    "error": None, "incomplete_details": None, "output": [], "parallel_tool_calls": True,
    "tool_choice": "auto", "tools": [], "odd": 1,
}  # fmt: skip
AT = {"item_id": "i1", "output_index": 1, "content_index": 0}
THOUGHT = {"id": "i0", "type": "reasoning", "summary": []}
SAID = {"id": "i1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
CALL = {
    "id": "i2", "type": "function_call", "call_id": "c", "name": "open", "arguments": "",
    "status": "in_progress",
}  # fmt: skip
EMPTY = {"type": "output_text", "text": "", "annotations": []}
WHOLE = {
    **RESPONDED,
    "status": "completed",
    "output": [
        {**THOUGHT, "content": [part_of("reasoning_text", text="hm so")]},
        {**SAID, "status": "completed", "content": [{**EMPTY, "text": "Water"}]},
        {**CALL, "status": "completed", "arguments": '{"a":1}'},
    ],
}
RESPONSE = numbered(
    [
        {"type": "response.created", "response": RESPONDED},
        {"type": "response.in_progress", "response": RESPONDED},
        {"type": "response.output_item.added", "output_index": 0, "item": THOUGHT},
        {"type": "response.reasoning_text.delta", **AT, "item_id": "i0", "output_index": 0, "delta": "hm "},
        {"type": "response.reasoning_text.delta", **AT, "item_id": "i0", "output_index": 0, "delta": "so"},
        {"type": "response.reasoning_text.done", **AT, "item_id": "i0", "output_index": 0, "text": "hm so"},
        {"type": "response.output_item.done", "output_index": 0, "item": WHOLE["output"][0]},
        {"type": "response.output_item.added", "output_index": 1, "item": SAID},
        {"type": "response.content_part.added", **AT, "part": EMPTY},
        {"type": "response.output_text.delta", **AT, "delta": "Wat", "logprobs": []},
        {"type": "response.output_text.delta", **AT, "delta": "er", "logprobs": []},
        {"type": "response.output_text.done", **AT, "text": "Water", "logprobs": []},
        {"type": "response.content_part.done", **AT, "part": {**EMPTY, "text": "Water"}},
        {"type": "response.output_item.done", "output_index": 1, "item": WHOLE["output"][1]},
        {"type": "response.output_item.added", "output_index": 2, "item": CALL},
        {
            "type": "response.function_call_arguments.delta",
            "item_id": "i2",
            "output_index": 2,
            "delta": '{"a":1}',
        },
        {"type": "response.output_item.done", "output_index": 2, "item": WHOLE["output"][2]},
        {"type": "response.completed", "response": WHOLE},
    ]
)


def folded(dialect: Any, events: list[dict[str, Any]]) -> MessageFold | ResponseFold:
    fold = fold_of(dialect, FRAME)
    for event in events:
        fold.note(b"data: %b\n\n" % json.dumps(event).encode())
    assert isinstance(fold, MessageFold | ResponseFold)
    return fold


# --------------------------------------------------------------------------------------------- messages


def test_a_whole_message_is_what_its_stream_said():
    message = json.loads(folded("messages", MESSAGE).document(USAGE, cut=False))
    thought, said, call = message["content"]
    assert thought == {"type": "thinking", "thinking": "hm so", "signature": "s1"}
    assert said == {"type": "text", "text": "Water 水", "citations": [CITATION]}
    assert call == {"type": "tool_use", "id": "t", "name": "open", "input": {"gate": [1, 2]}}
    assert (message["stop_reason"], message["odd"]) == ("tool_use", [1])
    assert message["usage"] == {"input_tokens": 9, "output_tokens": 7}, "the engine's own, later ones win"


def test_a_message_that_has_said_why_it_ends_is_not_told_otherwise():
    fold = folded("messages", MESSAGE[:-1])
    assert data(fold.ends(USAGE)) == [{"type": "message_stop"}]
    assert json.loads(fold.document(USAGE, cut=True))["stop_reason"] == "tool_use"


@pytest.mark.parametrize("after", range(len(MESSAGE) - 1))
def test_a_message_cut_after_any_event_is_one_to_the_sdk(after: int):
    """The SDK's own state machine reads the stream and its end; the whole document says the same."""
    seen = MESSAGE[:after]
    fold = folded("messages", seen)
    snapshot: Any = None
    blocks: dict[int, bool] = {}
    arguments: dict[int, bytes] = {}
    for event in [*seen, *data(fold.ends(USAGE))]:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = True
        elif event["type"] == "content_block_stop":
            assert blocks[event["index"]], "closed once"
            blocks[event["index"]] = False
        if event["type"] != "ping":
            typed: Any = SPOKEN.validate_python(event)
            snapshot = accumulate_event(event=typed, current_snapshot=snapshot, json_bufs=arguments)
    assert not any(blocks.values())
    assert (snapshot.stop_reason, snapshot.usage.output_tokens) == ("max_tokens", 4)
    assert snapshot.usage.input_tokens == 9
    document = Message.model_validate_json(fold.document(USAGE, cut=True))
    assert (document.stop_reason, document.usage.output_tokens) == ("max_tokens", 4)
    spoken = [each.model_dump() for each in snapshot.content if each.type != "tool_use"]
    assert [each.model_dump() for each in document.content if each.type != "tool_use"] == spoken
    calls = [each.input for each in document.content if each.type == "tool_use"]
    assert calls == ([{"gate": [1, 2]}] if after >= len(MESSAGE) - 2 else []), "whole, or not at all"


# -------------------------------------------------------------------------------------------- responses


def test_a_whole_response_is_the_last_event_of_its_stream():
    assert json.loads(folded("responses", RESPONSE).document(USAGE, cut=False)) == WHOLE


@pytest.mark.parametrize("after", range(len(RESPONSE)))
def test_a_response_cut_after_any_event_is_one_to_the_sdk(after: int):
    seen = RESPONSE[:after]
    fold = folded("responses", seen)
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    events = [*seen, *data(fold.ends(USAGE))]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    open_items = {event["output_index"] for event in seen if event["type"] == "response.output_item.added"}
    for event in events:
        if event["type"] == "response.output_item.done":
            open_items.discard(event["output_index"])
        state.handle_event(construct_type_unchecked(type_=ResponseStreamEvent, value=event))
    assert open_items <= {2}, "all are closed but a call that is not complete"
    ended = Response.model_validate(events[-1]["response"])
    assert (events[-1]["type"], ended.status) == ("response.incomplete", "incomplete")
    assert ended.incomplete_details is not None
    assert ended.incomplete_details.reason == "max_output_tokens"
    for told in ("response.output_text.done", "response.content_part.done"):
        assert [event["type"] for event in events].count(told) <= 1, "each end once"
    text = "".join(event["delta"] for event in seen if event["type"] == "response.output_text.delta")
    assert ended.output_text == text
    calls = [item.arguments for item in ended.output if item.type == "function_call"]
    assert calls == (['{"a":1}'] if after == len(RESPONSE) - 1 else []), "whole, or not at all"
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens, ended.usage.total_tokens) == (9, 4, 13)
    assert json.loads(fold.document(USAGE, cut=True))["output"] == events[-1]["response"]["output"]


def test_a_text_whose_end_was_told_has_only_the_end_of_its_part():
    """The text of its `done` counts: there may have been no delta."""
    fold = folded("responses", [{"type": "response.output_text.done", "item_id": "i", "text": "Water"}])
    part, item, ended = data(fold.ends(USAGE))
    assert (part["type"], part["part"]["text"]) == ("response.content_part.done", "Water")
    assert (
        item["item"]["content"] == ended["response"]["output"][0]["content"] == [{**EMPTY, "text": "Water"}]
    )


def test_what_comes_after_the_end_of_an_item_changes_nothing():
    late = {"type": "response.output_text.delta", "output_index": 1, "delta": "late"}
    fold = folded("responses", [*RESPONSE[:14], late])
    assert json.loads(fold.document(USAGE, cut=True))["output"][1] == WHOLE["output"][1]


def test_events_without_indices_belong_to_the_item_they_name():
    """llama.cpp's deltas name the item alone."""
    fold = folded(
        "responses",
        [
            {"type": "response.output_item.added", "item": THOUGHT},
            {"type": "response.output_item.added", "item": SAID},
            {"type": "response.reasoning_text.delta", "item_id": "i0", "delta": "hm"},
            {"type": "response.output_text.delta", "item_id": "i1", "delta": "Wat"},
            {"type": "response.output_text.delta", "delta": "er"},
        ],
    )
    thought, said = json.loads(fold.document(USAGE, cut=True))["output"]
    assert thought["content"][0]["text"] == "hm"
    assert said["content"][0]["text"] == "Water"


# --------------------------------------------------------------------------------------------- whatever


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KINDS = sorted({event["type"] for event in [*MESSAGE, *RESPONSE]})
FIELDS = ["index", "delta", "content_block", "message", "usage", "response", "item", "part", "output_index",
          "item_id", "content_index", "sequence_number"]  # fmt: skip


@given(
    st.sampled_from(["messages", "responses"]),
    st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional=dict.fromkeys(FIELDS, JSON)),
        max_size=8,
    ),
    st.binary(max_size=20),
)
def test_whatever_an_engine_sends_the_answer_can_be_ended(
    dialect: Any, events: list[dict[str, Any]], odd: bytes
):
    """An engine's nonsense must not keep the gateway from ending its client's stream."""
    fold = folded(dialect, events)
    fold.note(b"data: " + odd + b"\n\n")
    last = data(fold.ends(USAGE))[-1]
    assert last["type"] in ("message_stop", "response.incomplete")
    assert isinstance(json.loads(fold.document(USAGE, cut=True)), dict)


def ways(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        yield from ((key, *more) for more in ways(inner))


@st.composite
def nearly(draw: st.DrawFn, stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A real stream up to some event, with a few values replaced and a few events lost or told twice."""
    events = deepcopy(stream[: draw(st.integers(1, len(stream)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(events) - 1))
        *way, last = draw(st.sampled_from(list(ways(events[at])) or [("type",)]))
        holder: Any = events[at]
        for key in way:
            holder = holder[key]
        holder[last] = draw(JSON)
    for at in draw(st.lists(st.integers(0, len(events) - 1), max_size=2)):
        events[at : at + 1] = draw(st.sampled_from([[], [events[at]] * 2])) if at < len(events) else []
    return events


@pytest.mark.parametrize(("dialect", "stream"), [("messages", MESSAGE), ("responses", RESPONSE)])
@given(st.data())
def test_a_real_stream_with_odd_values_can_be_ended(dialect: Any, stream: Any, draws: st.DataObject):
    """And what the gateway says of itself is of the dialect's types, whatever the engine said."""
    fold = folded(dialect, draws.draw(nearly(stream)))
    whole = json.loads(fold.document(USAGE, cut=False))
    assert isinstance(whole, dict)
    first = fold.sequence
    told = data(fold.ends(USAGE))
    document = json.loads(fold.document(USAGE, cut=True))
    if dialect == "messages":
        assert told[-1] == {"type": "message_stop"}
        assert all(type(event["index"]) is int for event in told if event["type"] == "content_block_stop")
        assert isinstance(document["stop_reason"], str)
        assert isinstance(document["usage"], dict)
        assert all(isinstance(block, dict) for block in document["content"])
    else:
        assert [event["sequence_number"] for event in told] == list(range(first, first + len(told)))
        assert (told[-1]["type"], document["status"]) == ("response.incomplete", "incomplete")
        assert all(isinstance(item, dict) for item in document["output"])


@pytest.mark.parametrize(
    "odd",
    [{"usage": 5}, {"usage": [1]}, {"stop_reason": 5, "usage": None}],
)
def test_a_message_with_an_odd_frame_is_passed_over(odd: dict[str, Any]):
    start = {**MESSAGE[0], "message": {**MESSAGE[0]["message"], **odd}}
    fold = folded("messages", [start, *MESSAGE[1:-1]])
    usage = {"input_tokens": 9, "output_tokens": 7}
    assert json.loads(fold.document(USAGE, cut=False))["usage"] == usage
    assert data(folded("messages", [start]).ends(USAGE))[0]["delta"]["stop_reason"] == "max_tokens"


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def is_readable(data: bytes) -> bool:
    """Which depends on the Python: its recursion limit, or the C stack's."""
    try:
        msgspec.json.decode(data)
    except RecursionError:
        return False
    return True


@pytest.mark.parametrize(
    ("dialect", "events"),
    [
        (
            "messages",
            b"""data: {"type": "content_block_start", "content_block": {"type": "tool_use", "input": {}}}
data: {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "%b"}}
data: {"type": "content_block_stop"}\n\n""",
        ),
        ("responses", b'data: {"type": "response.content_part.added", "part": {"odd": %b}}\n\n'),
    ],
)  # fmt: skip
def test_what_can_be_read_can_be_written(dialect: Any, events: bytes):
    """At every depth: also where the reader's bound is met by what is written around a value."""
    kept = set()
    deepest = bisect.bisect_left(range(100_000), True, key=lambda depth: not is_readable(nested(depth)))
    for depth in range(deepest - 100, deepest + 1):
        deep = nested(depth)
        fold = fold_of(dialect, FRAME)
        fold.note(events % deep)
        kept.add(deep in fold.ends(USAGE) + fold.document(USAGE, cut=True))
    assert kept == {True, False}


@pytest.mark.parametrize("odd", [5, "abc", {"a": 1}, True])
def test_citations_that_are_no_list_are_passed_over(odd: Any):
    said = {"type": "text", "text": odd, "citations": odd}
    events = block(0, said, {"type": "citations_delta", "citation": CITATION}, {"text": "x"})
    (told,) = json.loads(folded("messages", events).document(USAGE, cut=True))["content"]
    assert told["citations"] == [CITATION]
    assert told["text"].endswith("x")
