"""Engine events -> OpenAI's JSON: one shape, whatever the engine and however its answer was cut."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Delta, Done, Event, Usage
from gateway.api.rendering import DONE, StreamRenderer, WholeRenderer, event_of, usage_of

USAGE = usage_of(10, 5, None)


def chunks_of(data: bytes) -> list[dict[str, Any]]:
    """The JSON of each SSE event; fails on anything that is not exactly `data: ...` and a blank line."""
    events = data.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def streamed(
    events: list[Event], dialect="chat", include_usage: bool = False, batch: int = 1
) -> list[dict[str, Any]]:
    renderer = StreamRenderer(dialect, "id-1", 1700000000, "llama", include_usage)
    data = b"".join(renderer.deltas(events[i : i + batch]) for i in range(0, len(events), batch))
    return chunks_of(data + renderer.usage(USAGE))


def whole(events: list[Event], dialect="chat") -> dict[str, Any]:
    renderer = WholeRenderer(dialect, "id-1", 1700000000, "llama")
    for event in events:
        renderer.add([event])
    return json.loads(renderer.body(USAGE))


HELLO: list[Event] = [Delta(text="Hel"), Delta(text="lo", finish_reason="stop"), Done()]


def test_a_streamed_chat_answer():
    head = {"id": "chatcmpl-id-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "llama"}
    assert streamed(HELLO) == [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hel"}, None),
            ({"content": "lo"}, "stop"),
        )
    ]


def test_a_streamed_completion():
    """No role, no delta: text."""
    chunks = streamed(HELLO, "completions")
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo"]
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {("cmpl-id-1", "text_completion")}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_whole_chat_answer():
    assert whole(HELLO) == {
        "id": "chatcmpl-id-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "llama",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def test_a_whole_completion():
    body = whole(HELLO, "completions")
    assert (body["id"], body["object"]) == ("cmpl-id-1", "text_completion")
    assert body["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]


def test_text_is_never_changed():
    """Separators of other worlds, control tokens and quotes pass; SSE breaks at nothing inside the JSON."""
    text = 'a\u2028b\u2029c\u0085d\r\ne\n\nf"\\ <|im_end|> \x00 \U0001f600'
    events: list[Event] = [Delta(text=text, finish_reason="stop")]
    assert streamed(events)[1]["choices"][0]["delta"]["content"] == text
    assert whole(events)["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_role_comes_once_per_choice_and_first(batch):
    events: list[Event] = [Delta(index=i, text=f"{i}{piece}") for piece in "abc" for i in (1, 0, 2)]
    chunks = streamed(events, batch=batch)
    seen: dict[int, list[bool]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        seen.setdefault(choice["index"], []).append("role" in choice["delta"])
    assert seen == {i: [True, False, False, False] for i in (0, 1, 2)}


def test_usage_is_null_on_every_chunk_and_told_after_the_last_choice():
    """OpenAI: with include_usage every chunk has the field, and an extra one has no choices."""
    *chunks, last = streamed(HELLO, include_usage=True)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert last["id"] == chunks[0]["id"]


def test_usage_is_absent_for_those_who_did_not_ask():
    assert all("usage" not in chunk for chunk in streamed(HELLO))


def test_cached_tokens_are_told_where_known_and_zero_is_known():
    assert usage_of(1, 2, 0)["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "prompt_tokens_details" not in usage_of(1, 2, None)


def test_events_that_are_no_deltas_render_to_nothing():
    assert streamed([Usage(prompt_tokens=3), Done()]) == []


def test_choices_are_sorted_whatever_came_first():
    body = whole([Delta(index=2, text="c"), Delta(index=0, text="a"), Delta(index=1, text="b")])
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [(0, "a"), (1, "b"), (2, "c")]


def test_each_choice_keeps_its_own_finish_reason():
    body = whole([Delta(index=0, finish_reason="length"), Delta(index=1, finish_reason="stop")])
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]


def test_reasoning_is_streamed_and_put_together():
    events: list[Event] = [
        Delta(extra={"reasoning_content": "I "}),
        Delta(extra={"reasoning_content": "think"}),
        Delta(text="42", finish_reason="stop"),
    ]
    assert [chunk["choices"][0]["delta"] for chunk in streamed(events)[1:]] == [
        {"reasoning_content": "I "},
        {"reasoning_content": "think"},
        {"content": "42"},
    ]
    assert whole(events)["choices"][0]["message"]["reasoning_content"] == "I think"


def test_logprobs_are_passed_and_put_together():
    """Chat: lists in an object. Completions: four lists side by side."""
    chat: list[Event] = [Delta(text=c, logprobs={"content": [{"token": c}], "refusal": None}) for c in "ab"]
    assert streamed(chat)[1]["choices"][0]["logprobs"] == {"content": [{"token": "a"}], "refusal": None}
    assert whole(chat)["choices"][0]["logprobs"]["content"] == [{"token": "a"}, {"token": "b"}]
    text: list[Event] = [
        Delta(text=c, logprobs={"tokens": [c], "text_offset": [i]}) for i, c in enumerate("ab")
    ]
    joined = whole(text, "completions")["choices"][0]["logprobs"]
    assert joined == {"tokens": ["a", "b"], "text_offset": [0, 1]}


def test_putting_together_does_not_touch_the_events():
    """They may be rendered again, or be relayed elsewhere."""
    pieces: list[Event] = [Delta(logprobs={"content": [1]}), Delta(logprobs={"content": [2]})]
    whole(pieces)
    whole(pieces)
    assert pieces == [Delta(logprobs={"content": [1]}), Delta(logprobs={"content": [2]})]


def test_parallel_tool_calls():
    def head(index: int, id_: str, name: str) -> dict[str, Any]:
        return {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": ""}}

    def tail(index: int, arguments: str) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": arguments}}

    events: list[Event] = [
        Delta(tool_calls=[head(0, "a", "f")]),
        Delta(tool_calls=[head(1, "b", "g")]),
        Delta(tool_calls=[tail(1, '{"y":'), tail(0, "{}")]),
        Delta(tool_calls=[tail(1, "2}")]),
        Delta(finish_reason="tool_calls"),
    ]
    choice = whole(events)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"type": "function", "function": {"arguments": "{}", "name": "f"}, "id": "a"},
        {"type": "function", "function": {"arguments": '{"y":2}', "name": "g"}, "id": "b"},
    ]
    assert streamed(events)[1]["choices"][0]["delta"]["tool_calls"] == events[0].tool_calls


def test_text_beside_tool_calls_is_kept():
    events: list[Event] = [
        Delta(text="I look", tool_calls=[{"index": 0, "id": "a", "function": {"name": "f"}}])
    ]
    assert whole(events)["choices"][0]["message"]["content"] == "I look"


def test_the_last_chunk_of_a_choice_says_what_cut_it():
    renderer = StreamRenderer("completions", "1", 0, "m", False)
    renderer.cut_by = "stop-after"
    chunks = renderer.deltas([Delta(text="a"), Delta(finish_reason="length")]).split(b"\n\n")
    assert b"headgate" not in chunks[0]
    assert b'"headgate":{"cut_by":"stop-after"}' in chunks[1]


def test_an_event_of_sse():
    assert event_of({"a": "\n\n"}) == b'data: {"a":"\\n\\n"}\n\n'
    assert DONE == b"data: [DONE]\n\n"


# ------------------------------------------------------------------------------------------ properties


def cut(text: str, places: list[int]) -> list[str]:
    marks = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(marks)] or [text]


@given(
    st.lists(st.text(max_size=30), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=3, max_size=3),
    st.sampled_from(["chat", "completions"]),
)
def test_text_is_the_same_for_every_split_streamed_or_whole(texts, places, dialect):
    """M1, for several choices at once."""
    events: list[Event] = []
    for i, text in enumerate(texts):
        events += [Delta(index=i, text=piece) for piece in cut(text, places[i]) if piece]
        events.append(Delta(index=i, finish_reason="stop"))
    body = whole(events, dialect)
    assert [c["message"]["content"] if dialect == "chat" else c["text"] for c in body["choices"]] == texts
    joined = dict.fromkeys(range(len(texts)), "")
    for chunk in streamed(events, dialect):
        (choice,) = chunk["choices"]
        joined[choice["index"]] += choice["delta"].get("content", "") if dialect == "chat" else choice["text"]
    assert list(joined.values()) == texts


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=8), st.text(max_size=30)), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=3, max_size=3),
    st.randoms(),
    st.booleans(),
)
def test_tool_calls_are_the_same_for_every_split_and_interleaving(calls, places, random, at_once):
    """Arguments cut anywhere, calls interleaved, one piece an event or all in one."""
    rows = []
    for i, (name, arguments) in enumerate(calls):
        head = {
            "index": i,
            "id": f"call-{i}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        tail = [{"index": i, "function": {"arguments": piece}} for piece in cut(arguments, places[i])]
        rows.append([head, *tail])
    pieces = []
    while rows:
        row = random.choice(rows)
        pieces.append(row.pop(0))
        rows = [each for each in rows if each]
    events: list[Event] = (
        [Delta(tool_calls=pieces)] if at_once else [Delta(tool_calls=[piece]) for piece in pieces]
    )
    assert whole(events)["choices"][0]["message"]["tool_calls"] == [
        {"id": f"call-{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
