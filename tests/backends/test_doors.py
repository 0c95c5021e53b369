"""Native doors: bodies passed on with another name and bound, answers passed on with the public name."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import (
    Delta,
    Done,
    Door,
    ErrorKind,
    Event,
    Failure,
    GenerateRequest,
    Lora,
    NativeRequest,
    Usage,
)
from backends.doors import ALL_DOORS, BOUNDS, NO_DOORS, NOT_FOR_CLIENTS, PATHS, NativeDoors
from backends.mapping import NEVER, NOTHING, How, Rule, Unfit
from backends.openai_errors import OPENAI
from backends.openai_parameters import COMMON
from backends.registry import REGISTRY
from tests.backends.folding import decode_body

DOORS = NativeDoors(ALL_DOORS, OPENAI)


def native(
    door: Door = "messages", body: bytes = b"{}", stream: bool = False, **more: Any
) -> GenerateRequest:
    return GenerateRequest(
        request_id="r-1",
        model="own",
        stream=stream,
        native=NativeRequest(door=door, body=body, model="public", headers=more.pop("headers", {})),
        **more,
    )


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


def read(
    body: bytes, door: Door = "messages", *, stream: bool = True, status: int = 200, cuts: Iterable[int] = ()
) -> list[Event]:
    decoder = DOORS.decoder(native(door, stream=stream))
    if not cuts:
        return decode_body(decoder, body, status=status)
    decoder.head(status, {})
    events, start = [], 0
    for cut in (*sorted(cuts), len(body)):
        events += decoder.feed(body[start:cut])
        start = cut
    return events + decoder.end()


def raw(events: Iterable[Event]) -> bytes:
    return b"".join(each.raw or b"" for each in events if not isinstance(each, Failure))


def failure(events: list[Event]) -> Any:
    assert isinstance(events[-1], Failure), events
    return events[-1].error


MESSAGE = [
    event(
        "message_start", message={"id": "x", "model": "own", "usage": {"input_tokens": 0, "output_tokens": 0}}
    ),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Wat"}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "er 水"}),
    event("content_block_stop", index=0),
    event(
        "message_delta",
        delta={"stop_reason": "end_turn"},
        usage={"input_tokens": 7, "output_tokens": 2, "cache_read_input_tokens": 3},
    ),
    event("message_stop"),
]
NUMBERED = {"sequence_number": 0}
RESPONSE = [
    event("response.created", response={"id": "r", "model": "own", "status": "in_progress"}, **NUMBERED),
    event("response.output_item.added", item={}, **NUMBERED),
    event("response.output_text.delta", delta="Wat", **NUMBERED),
    event("response.reasoning_text.delta", delta="er", **NUMBERED),
    event("response.output_text.done", text="Water", **NUMBERED),
    event(
        "response.completed",
        response={
            "model": "own",
            "status": "completed",
            "usage": {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}},
        },
        **NUMBERED,
    ),
]


# ---------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("body", [b"{}", b'{"stream":false}', b'{"stream":true}'])
def test_a_stream_is_asked_for_where_the_gateway_wants_one(body):
    """Also where the client wants the answer whole: it is cut, and told, by the gateway."""
    assert json.loads(DOORS.encode(native(body=body, stream=True)).body)["stream"] is True
    assert DOORS.encode(native(body=b'{"a":1}')).body == b'{"a":1,"model":"own"}'


@pytest.mark.parametrize(
    ("kind", "door", "asked"),
    [
        ("vllm", "score", {"model": "fr"}),
        ("openai", "embeddings", {"model": "fr"}),
        ("sglang", "messages", {"model": "own:fr"}),
        ("llamacpp", "responses", {"model": "own", "lora": [{"id": 3, "scale": 0.5}]}),
    ],
)
def test_an_adapter_is_asked_for_in_the_engines_form(kind, door, asked):
    doors = REGISTRY.adapter(kind, {}).doors
    assert door in doors.adapted
    lora = Lora(name="fr", id=3, scale=0.5)
    sent = json.loads(doors.encode(native(door, body=b'{"lora":"x","model":"y"}', lora=lora)).body)
    assert asked.items() <= sent.items()


def test_sglang_is_told_to_stop_what_it_knows_by_our_name_and_nothing_else():
    """A body that is passed on has no `rid`: closing the connection is all there is."""
    adapter = REGISTRY.adapter("sglang", {})
    assert adapter.cancel_request(native()) is None
    assert adapter.lingers(native()) == 2.0


def test_values_leave_byte_by_byte():
    """Numbers, escapes and the order of fields stay; the name and the bound do not."""
    body = (
        b'{ "model":"m" , "max_tokens": 999, "priority": 3,\n'
        b' "messages": [{"role":"user","content":"\\u00e9t \\/"}],'
        b' "odd":{"n":1.10, "big":123456789012345678901234567890, "e":1E5}, "model":"again" }'
    )
    sent = DOORS.encode(native(body=body, max_tokens=12, headers={"anthropic-version": "v"}))
    assert sent.body == (
        b'{"model":"own","max_tokens":12,"messages":[{"role":"user","content":"\\u00e9t \\/"}],'
        b'"odd":{"n":1.10, "big":123456789012345678901234567890, "e":1E5}}'
    )
    assert (sent.method, sent.path) == ("POST", "/v1/messages")
    assert sent.headers == {
        "content-type": "application/json", "x-request-id": "r-1", "anthropic-version": "v"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("door", "more", "fields"),
    [
        ("responses", {"max_tokens": 5}, {"max_output_tokens": 5, "store": False}),
        ("responses", {}, {"max_output_tokens": 9, "store": False}),
        ("embeddings", {"max_tokens": 0}, {"store": True}),
        ("messages", {"parameters": {"cache_salt": "s"}}, {"store": True, "cache_salt": "s"}),
    ],
)
def test_what_is_put_in(door: Door, more: dict[str, Any], fields: dict[str, Any]):
    body = json.dumps({"model": "m", "max_output_tokens": 9, "store": True}).encode()
    sent = json.loads(DOORS.encode(native(door, body, **more)).body)
    assert sent == {"model": "own", **fields}


@pytest.mark.parametrize("door", PATHS)
def test_what_is_not_for_clients_never_leaves(door: Door):
    """Not even with a value that asks for nothing: llama.cpp's `n_predict` of -1 wins over the bound, and so
    do the names of other doors' bounds."""
    body = json.dumps({"kept": 1, **dict.fromkeys(NOT_FOR_CLIENTS[door], -1)}).encode()
    sent = json.loads(DOORS.encode(native(door, body, max_tokens=5)).body)
    assert sent.pop("store", False) is False
    assert sent.pop(BOUNDS.get(door, ""), 5) == 5
    assert sent == {"kept": 1, "model": "own"}


def _passes(rule: Rule, name: str, value: Any) -> bool:
    try:
        rule.convert(name, value)
    except Unfit:
        return False
    return True


MAY_ASK_FOR_NOTHING: tuple[Any, ...] = (*NOTHING, True, 1, -1, 1.0)
ASK_FOR_SOMETHING: tuple[Any, ...] = (2, "x", ["x"], {"x": 1})


def test_what_is_not_for_clients_is_what_chats_refuse():
    """What no engine of those whose bodies are passed on takes in a chat, unless engines merely lack it; and
    what asks for nothing there is let through here."""
    tables = [
        table
        for kind in REGISTRY.kinds()
        if (adapter := REGISTRY.adapter(kind, {})).doors is not NO_DOORS
        for table in (adapter.tables.chat, adapter.tables.completions)  # type: ignore[attr-defined]  # all have
    ]
    rules: dict[str, list[Rule]] = {}
    for table in tables:
        for name, rule in table.rules.items():
            rules.setdefault(name, []).append(rule)
    lacked = COMMON.keys() - NEVER.keys()
    never = {
        name: found
        for name, found in rules.items()
        if name not in lacked and all(rule.how is How.REFUSED for rule in found)
    }
    assert {"n_predict", "n_probs", "cache_prompt", "verbose", "custom_params", "lora_path"} <= never.keys()
    for door, here in NOT_FOR_CLIENTS.items():
        assert never.keys() <= here.keys()
        for name, found in never.items():
            for value in MAY_ASK_FOR_NOTHING:
                if all(_passes(rule, name, value) for rule in found):
                    assert _passes(here[name], name, value), (door, name, value)
            for value in ASK_FOR_SOMETHING:
                assert not _passes(here[name], name, value), (door, name, value)


@pytest.mark.parametrize("kind", REGISTRY.kinds())
def test_each_kind_says_what_it_serves(kind: str):
    doors = REGISTRY.adapter(kind, {}).doors
    assert {"chat", "completions"} <= doors.served <= doors.possible
    if doors is NO_DOORS:
        with pytest.raises(ValueError):
            doors.encode(native())
        with pytest.raises(ValueError):
            doors.decoder(native())
        return
    for door in doors.served - {"chat", "completions"}:
        path = doors.encode(native(door)).path
        assert path.endswith(PATHS[door].removeprefix("/v1"))


# ----------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("door", "events", "usage"),
    [
        ("messages", MESSAGE, Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=3)),
        ("responses", RESPONSE, Usage(prompt_tokens=9, completion_tokens=2, cached_tokens=4)),
    ],
)
def test_a_stream_is_passed_on_with_the_public_name(door: Door, events: list[bytes], usage: Usage):
    told = read(b"".join(events), door)
    assert json_events(raw(told)) == json_events(b"".join(events).replace(b'"own"', b'"public"'))
    deltas = [each for each in told if isinstance(each, Delta)]
    assert deltas[0].tokens == 1, "what comes before the first piece travels with it"
    assert sum(each.tokens for each in deltas) == 2
    assert "".join(each.text for each in deltas).startswith("Water")
    assert [each for each in told if isinstance(each, Usage)] == [usage]
    assert isinstance(told[-1], Done)


def json_events(stream: bytes) -> list[tuple[bytes, Any]]:
    """Event names and data."""
    blocks = stream.strip().split(b"\n\n")
    return [(block.split(b"\n")[0], json.loads(block.split(b"\ndata: ")[1])) for block in blocks]


@given(st.sets(st.integers(1, len(b"".join(MESSAGE)) - 1), max_size=8))
def test_a_stream_may_be_cut_anywhere(cuts: set[int]):
    body = b"".join(MESSAGE)
    assert raw(read(body, cuts=cuts)) == raw(read(body))


def test_an_equal_name_costs_nothing():
    """Where the engine has the public name, its bytes are not touched at all."""
    body = b"".join(MESSAGE).replace(b'"own"', b'"public"')
    assert raw(read(body)) == body


def test_data_over_several_lines_is_renamed_too():
    odd = b'event: message_start\r\ndata: {"type": "message_start",\r\n'
    odd += b'data: "message": {"model": "own"}}\r\n\r\n'
    told = raw(read(odd + b"".join(MESSAGE[3:])))
    assert told.startswith(b'event: message_start\ndata: {"type":')
    assert b'"own"' not in told


@pytest.mark.parametrize(
    ("door", "events", "kind"),
    [
        ("messages", MESSAGE[:-1], ErrorKind.ENGINE),
        ("messages", [*MESSAGE[:-2], MESSAGE[-1]], ErrorKind.ENGINE),
        ("messages", [*MESSAGE[:4], b"data: [DONE]\n\n"], ErrorKind.ENGINE),
        ("messages", [*MESSAGE[:4], b"data: {broken\n\n"], ErrorKind.ENGINE),
        (
            "messages",
            [*MESSAGE[:4], event("error", error={"type": "overloaded_error", "message": "busy"})],
            ErrorKind.OVERLOADED,
        ),
        (
            "messages",
            [event("error", error={"type": "not_found_error", "message": "no"})],
            ErrorKind.NOT_FOUND,
        ),
        ("responses", RESPONSE[:-1], ErrorKind.ENGINE),
        (
            "responses",
            [*RESPONSE[:3], event("error", code="server_error", message="oh", param=None)],
            ErrorKind.ENGINE,
        ),
        (
            "responses",
            [
                *RESPONSE[:3],
                event("response.failed", response={"error": {"code": "server_error", "message": "oh"}}),
            ],
            ErrorKind.ENGINE,
        ),
        (
            "responses",
            [event("error", code="rate_limit_exceeded", message="busy", param=None)],
            ErrorKind.OVERLOADED,
        ),
        ("responses", [*RESPONSE[:3], b'data: {"error": {"message": "oh"}}\n\n'], ErrorKind.ENGINE),
    ],
)
def test_a_stream_that_ends_otherwise_has_failed(door: Door, events: list[bytes], kind: ErrorKind):
    told = read(b"".join(events), door)
    error = failure(told)
    assert error.kind is kind
    assert error.retryable is not any(isinstance(each, Delta) for each in told)
    assert not any(isinstance(each, Done) for each in told)


def test_what_follows_the_end_is_dropped():
    assert raw(read(b"".join(MESSAGE) + b"data: [DONE]\n\n")) == raw(read(b"".join(MESSAGE)))


def test_an_answer_without_a_piece_is_an_answer():
    told = read(b"".join(MESSAGE[:3] + MESSAGE[5:]))
    assert isinstance(told[-1], Done)
    assert raw(told).count(b"event: ") == 6


@pytest.mark.parametrize("body", [b"{}", b'{"stream": false}', b'{"stream": true }'])
def test_a_document_in_place_of_a_stream(body: bytes):
    """It is an answer where only the gateway wanted a stream, and none where the client did."""
    request = native(body=body, stream=True)
    told = decode_body(DOORS.decoder(request), b'{"model": "own", "content": []}')
    if b"true" in body:
        assert failure(told).kind is ErrorKind.ENGINE
    else:
        assert json.loads(raw(told)) == {"model": "public", "content": []}
        assert isinstance(told[-1], Done)
    assert failure(decode_body(DOORS.decoder(request), b'{"odd": []}')).kind is ErrorKind.ENGINE
    busy = b'{"error": {"message": "x", "type": "overloaded_error"}}'
    assert failure(decode_body(DOORS.decoder(request), busy)).kind is ErrorKind.OVERLOADED


def test_a_stream_in_place_of_a_document_has_failed():
    assert failure(read(MESSAGE[0], stream=False)).kind is ErrorKind.ENGINE


# --------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("door", "document", "usage"),
    [
        ("embeddings", {"model": "own", "data": [], "usage": {"prompt_tokens": 3}}, (3, 0)),
        ("rerank", {"model": "own", "results": [], "usage": {"total_tokens": 4}}, (4, 0)),
        ("score", {"model": "own", "scores": [], "usage": {"prompt_tokens": 5}}, (5, 0)),
        (
            "messages",
            {"model": "own", "content": [], "usage": {"input_tokens": 3, "output_tokens": 4}},
            (3, 4),
        ),
        (
            "responses",
            {"model": "own", "object": "response", "status": "incomplete", "output": [],
             "usage": {"input_tokens": 3, "output_tokens": 4}},
            (3, 4),
        ),
    ],
)  # fmt: skip
def test_a_document_is_passed_on_with_the_public_name(door: Door, document: Any, usage: tuple[int, int]):
    told = read(json.dumps(document).encode(), door, stream=False)
    assert json.loads(raw(told)) == {**document, "model": "public"}
    (figures,) = [each for each in told if isinstance(each, Usage)]
    assert (figures.prompt_tokens, figures.completion_tokens) == usage
    assert isinstance(told[-1], Done)


def test_a_bare_list_is_a_reranking():
    told = read(b'[ {"score": 0.50, "index": 0} ]', "rerank", stream=False)
    assert raw(told) == b'[ {"score": 0.50, "index": 0} ]'
    assert failure(read(b"[]", "embeddings", stream=False)).kind is ErrorKind.ENGINE


@pytest.mark.parametrize(
    ("door", "document"),
    [
        ("embeddings", b'{"model": "own"}'),
        ("embeddings", b'{"object": "error", "message": "no", "code": 500}'),
        ("messages", b'{"type": "error", "error": {"type": "api_error", "message": "no"}}'),
        ("responses", b'{"object": "response", "status": "failed", "output": []}'),
        ("responses", b'{"object": "response", "status": "in_progress", "output": []}'),
        ("rerank", b"\xff\xfe"),
        ("score", b'{"data": [1, 2'),
        ("embeddings", b'{"data": ["\xff"]}'),
    ],
)
def test_a_bad_document_has_failed(door: Door, document: bytes):
    assert failure(read(document, door, stream=False)).kind is ErrorKind.ENGINE


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"detail": "Not Found"}', ErrorKind.NO_ROUTE),
        (404, b'{"error": {"code": 404, "message": "File Not Found"}}', ErrorKind.NO_ROUTE),
        (405, b'{"detail": "Method Not Allowed"}', ErrorKind.NO_ROUTE),
        (404, b'{"error": {"message": "The model `x` does not exist."}}', ErrorKind.NOT_FOUND),
        (501, b'{"error": {"message": "This server does not support embeddings."}}', ErrorKind.UNSUPPORTED),
        (503, b'{"type": "error", "error": {"type": "x", "message": "busy"}}', ErrorKind.OVERLOADED),
        (400, b'{"type": "error", "error": {"type": "x", "message": "maximum context length is 4"}}',
         ErrorKind.CONTEXT_LENGTH),
    ],
)  # fmt: skip
def test_refusals(status: int, body: bytes, kind: ErrorKind):
    error = failure(read(body, "embeddings", stream=False, status=status))
    assert error.kind is kind
    if kind is ErrorKind.NO_ROUTE:
        assert error.message == "no route /v1/embeddings"
