"""Bodies of native doors: what is counted of them, and what must not reach an engine."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.doors import OUTPUT_BOUNDS
from gateway.api.reading import read_call
from gateway.call import Call, Dialect
from gateway.config.snapshot import MediaTokens
from gateway.errors import BadRequest, UnsupportedByEngine
from tests.gateway.builders import a_model, a_snapshot

SNAPSHOT = a_snapshot(models=[a_model("m"), a_model("seeing", media_tokens=MediaTokens(image=100))])
HI = [{"role": "user", "content": "hi"}]
COUNTED = sys.gettrace() is not None


def read(dialect: Dialect, **body: Any) -> Call:
    return read_call(
        {"model": "m", **body},
        dialect=dialect,
        call_id="id-1",
        snapshot=SNAPSHOT,
        tenant=SNAPSHOT.tenants["acme"],
        key_id=None,
        received=1.0,
    )


def refused(dialect: Dialect, **body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as refusal:
        read(dialect, **body)
    return refusal.value


# ---------------------------------------------------------------------------------------- lists of texts


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_embeddings_take_openais_four_forms(value: Any):
    call = read("embeddings", input=value)
    assert call.request.prompt == value
    assert call.request.native is not None
    assert (call.asked_max_tokens, call.as_chat, call.stream) == (0, False, False)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "api_base": "http://evil"}, "api_base"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         "messages[0].content[0].image_url"),
    ],
)  # fmt: skip
def test_embeddings_refused(body: dict[str, Any], param: str):
    assert refused("embeddings", **body).param == param


def test_a_query_counts_with_each_document():
    call = read("rerank", query="q", documents=["a", {"text": "b"}, {"title": "t", "text": "c"}])
    assert call.request.prompt == ["q a", "q b", "q t c"]
    assert call.as_chat


def test_a_long_query_is_not_multiplied():
    """A body of a few megabytes must not become gigabytes."""
    assert refused("rerank", query="q" * 1_000_000, documents=["a"] * 2048).param == "documents"


@pytest.mark.parametrize(
    ("body", "pairs"),
    [
        ({"text_1": "a", "text_2": ["b", "c"]}, ["a b", "a c"]),
        ({"text_1": ["a", "b"], "text_2": ["c", "d"]}, ["a c", "b d"]),
        ({"queries": "a", "documents": ["b"]}, ["a b"]),
        ({"data_1": "a", "data_2": "b"}, ["a b"]),
        ({"query": "a", "items": ["b", "c"], "label_token_ids": [1]}, ["a b", "a c"]),
    ],
)
def test_pairs_are_counted_by_any_engines_names(body: dict[str, Any], pairs: list[str]):
    assert read("score", **body).request.prompt == pairs


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        ("rerank", {"query": "a"}, "documents"),
        ("rerank", {"query": ["a", "b"], "documents": ["c"]}, "query"),
        ("rerank", {"query": "a", "documents": [1]}, "documents"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [{"image_url": "http://x"}]}, "documents[0].image_url"),
        ("score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("score", {}, "text_1"),
    ],
)
def test_lists_refused(dialect: Dialect, body: dict[str, Any], param: str):
    assert refused(dialect, **body).param == param


# ------------------------------------------------------------------------------------------ conversations


def test_a_response_is_counted_as_a_chat():
    call = read("responses", instructions="Be brief.", input="Hi", max_output_tokens=9, stream=True)
    assert call.request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert (call.asked_max_tokens, call.as_chat, call.stream) == (9, False, True)


def test_items_of_a_response_become_turns_that_alternate():
    """What is no message is all its texts; two calls in a row are one turn."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look it up."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
    ]
    tools = [{"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}}]
    call = read("responses", input=items, tools=tools)
    assert call.request.messages is not None
    assert [turn["role"] for turn in call.request.messages] == ["system", "user", "assistant", "user"]
    assert call.request.messages[2]["content"] == 'Look it up.\nc1\nlook\n{"at": 1}'
    assert call.request.parameters["tools"][0]["function"]["name"] == "look"
    assert call.as_chat


def test_a_message_is_counted_as_a_chat():
    call = read(
        "messages",
        max_tokens=5,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"file_id": "x"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "done"}]},
        ],
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    )
    assert call.request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": 't\nf\n{"file_id":"x"}'},
        {"role": "user", "content": "t\ndone"},
    ]
    assert call.asked_max_tokens == 5
    assert call.as_chat


def test_plain_conversations_are_counted_exactly():
    assert not read("messages", max_tokens=5, messages=HI, system="s").as_chat
    assert not read("responses", input=HI).as_chat
    assert read("messages", max_tokens=5, messages=HI, tools=[{"name": "f"}]).as_chat


def test_pictures_cost_what_is_configured_or_are_refused():
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    message = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    data = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]}]
    for dialect, body in (
        ("messages", {"messages": message, "max_tokens": 1}),
        ("responses", {"input": data}),
    ):
        with pytest.raises(UnsupportedByEngine):
            read(dialect, **body)  # type: ignore[arg-type]
        call = read(dialect, **{**body, "model": "seeing"})  # type: ignore[arg-type]
        assert call.as_chat
        assert call.request.messages is not None
        assert call.request.messages[0]["content"][0]["type"] in ("image_url", "input_image")


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        ("messages", {}, "messages"),
        ("messages", {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ("messages", {"messages": ["x"]}, "messages[0]"),
        ("messages", {"messages": HI, "max_tokens": 0}, "max_tokens"),
        ("messages", {"messages": HI, "temperature": 9}, "temperature"),
        ("messages", {"messages": HI, "chat_template": "x"}, "chat_template"),
        ("responses", {"input": "x", "chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}]}]},
         "messages[0].content[0].source"),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]}]},
         "messages[0].content[0].content[0].source"),
        ("messages", {"messages": HI, "tools": [{"type": "mcp", "server_url": "http://x"}]}, "tools[0]"),
        ("responses", {}, "input"),
        ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
         "input[0].content[0].image_url"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
         "input[0].content[0]"),
        ("responses", {"input": [{"type": "function_call_output", "output": [
            {"type": "input_image", "image_url": "https://x"}]}]}, "input[0].output[0].image_url"),
        ("responses", {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ("responses", {"input": "x", "background": True}, "background"),
        ("responses", {"input": "x", "conversation": {"id": "c"}}, "conversation"),
        ("responses", {"input": "x", "instructions": 1}, "instructions"),
    ],
)  # fmt: skip
def test_conversations_refused(dialect: Dialect, body: dict[str, Any], param: str):
    assert refused(dialect, **body).param == param


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 75_000}]}),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "input": {}}] * 75_000}]},
        ),
        ("responses", {"input": [{"type": "other", "x": [{}] * 75_000}]}),
        ("responses", {"input": [{"type": "other"}] * 75_000}),
        ("responses", {"input": [{"type": "x", "output": [{"type": "y"}] * 9_000}] * 20}),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "a": {}}] * 9_999}]},
        ),
        ("embeddings", {"input": ["x"] * 200_000}),
    ],
)
def test_hostile_bodies_hold_the_loop_briefly(dialect: Dialect, body: dict[str, Any]):
    """As many little things as a body may have: told, or refused, within 0.15 s of CPU; four times that where
    every line is counted for coverage."""
    started = time.process_time()
    with contextlib.suppress(BadRequest):
        read(dialect, **body)
    assert time.process_time() - started < (0.6 if COUNTED else 0.15)


def test_defaults_of_the_model_are_not_for_them():
    """What is not in the body is not put in."""
    snapshot = a_snapshot(models=[a_model("m", defaults={"max_tokens": 3, "n": 2})])
    call = read_call(
        {"model": "m", "messages": HI},
        dialect="messages",
        call_id="x",
        snapshot=snapshot,
        tenant=snapshot.tenants["acme"],
        key_id=None,
        received=0.0,
    )
    assert call.asked_max_tokens is None
    assert json.dumps(dict(call.request.parameters)) == "{}"


BODIES: dict[Dialect, dict[str, Any]] = {
    "embeddings": {"input": "x"},
    "responses": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}]},
    "rerank": {"query": "x", "documents": ["y"]},
    "score": {"text_1": "x", "text_2": "y"},
}


@pytest.mark.parametrize("dialect", BODIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [("n_predict", 9), ("n_probs", 3), ("id_slot", 3), ("verbose", True), ("lora_path", "/etc"),
     ("lora", [{"id": 1}]), ("input_ids", [1]), ("rid", "r"),
     ("n", 8), ("bootstrap_host", "10.0.0.1"), ("kv_transfer_params", {"a": 1}),
     ("custom_logit_processor", "x")],
)  # fmt: skip
def test_what_reaches_past_the_gateway_is_refused(dialect: Dialect, field: str, value: Any):
    """llama.cpp's `n_predict` would lift the bound that the gateway put into the body."""
    error = refused(dialect, **BODIES[dialect], **{field: value})
    assert error.param == field
    assert read(dialect, **BODIES[dialect], **{field: None}).dialect == dialect


def test_one_answer_is_what_there_is():
    assert read("responses", **BODIES["responses"], n=1).request.n == 1


@pytest.mark.parametrize("dialect", BODIES)
def test_a_dumped_body_of_defaults_is_taken(dialect: Dialect):
    """Clients that dump a model of all parameters send values that ask for nothing; chats let them pass."""
    defaults = {
        "use_beam_search": False, "early_stopping": False, "length_penalty": 1.0, "n_predict": -1, "n": 1,
        "return_hidden_states": False, "verbose": False, "best_of": 1, "cache_prompt": True, "lora_path": "",
    }  # fmt: skip
    assert read(dialect, **BODIES[dialect], **defaults).dialect == dialect


@pytest.mark.parametrize("dialect", BODIES)
def test_no_other_name_of_the_bound_is_taken(dialect: Dialect):
    """llama.cpp reads `n_predict`, `max_completion_tokens` and `max_tokens` before the door's own."""
    names = {"n_predict", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens"}
    for name in names - set(OUTPUT_BOUNDS.get(dialect, ())):
        assert refused(dialect, **BODIES[dialect], **{name: 100_000}).param == name


# ------------------------------------------------------------------------------------- what goes uncounted

LONG = "water " * 50
PIXEL = "data:image/png;base64,AA"
INNER = "http://169.254.169.254/"


def texts(call: Call) -> str:
    """All that is counted as text."""
    request = call.request
    if request.messages is None:
        return str(request.prompt)
    contents = (message["content"] for message in request.messages)
    return "\n".join(
        each if isinstance(each, str) else "\n".join(part.get("text", "") for part in each)
        for each in contents
    )


def holding(dialect: Dialect, part: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [part]}
    return {"input": [message]} if dialect == "responses" else {"messages": [message]}


CONVERSATIONS: tuple[Dialect, ...] = ("responses", "messages", "embeddings")
TYPES: tuple[Any, ...] = (
    "text", "input_text", "output_text", "refusal", "reasoning_text", "thinking", "image", "document",
    "input_image", "input_file", "input_audio", "image_url", "audio_url", "video_url", "file", "tool_use",
    "tool_result", "search_result", "unheard_of", "", 7, [], None,
)  # fmt: skip
REFERENCES: tuple[dict[str, Any], ...] = (
    {"image_url": INNER}, {"image_url": {"url": "file:///etc/passwd"}}, {"image_url": [INNER]},
    {"video_url": {"url": INNER}}, {"audio_url": INNER}, {"file_url": INNER}, {"file_id": "f"},
    {"input_audio": {"data": INNER}}, {"file_data": INNER}, {"file": {"file_data": INNER}},
    {"source": {"type": "url", "url": INNER}},
    {"content": [{"type": "image_url", "image_url": INNER, "text": ""}]},
)  # fmt: skip


@pytest.mark.parametrize("dialect", CONVERSATIONS)
@pytest.mark.parametrize("text", ["", "x", None])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_text_beside_it_hides_nothing(dialect: Dialect, kind: Any, text: str | None):
    """Whatever a part calls itself: no reference passes, and what other fields hold is counted."""
    for reference in REFERENCES:
        error = refused(
            dialect, **holding(dialect, {"type": kind, "text": text, **reference}), model="seeing"
        )
        assert error.param is not None
    for field in ("content", "input", "output", "title", "reasoning", "name"):
        for value in (LONG, [{"type": "text", "text": LONG}], {"id": LONG}):
            with contextlib.suppress(BadRequest):
                call = read(dialect, **holding(dialect, {"type": kind, "text": text, field: value}))
                assert LONG in texts(call), (field, value)


def test_a_picture_holds_no_text_and_a_text_no_picture_for_free():
    """As in chats; the cost of media and its refusal cannot be talked away."""
    for dialect in CONVERSATIONS:
        part = {"type": "image_url", "image_url": {"url": PIXEL}}
        refused(dialect, **holding(dialect, {**part, "text": ""}), model="seeing")
        for without_a_cost in (
            part,
            {"image_url": {"url": PIXEL}},
            {"type": "image_embeds", "image_embeds": "AA"},
        ):
            with pytest.raises(UnsupportedByEngine):
                read(dialect, **holding(dialect, without_a_cost))
    output = [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": PIXEL}]}]
    with pytest.raises(UnsupportedByEngine):
        read("responses", input=output)
    assert read("responses", input=output, model="seeing").as_chat


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call_output", "content": "", "output": LONG},
        {"type": "function_call_output", "content": [], "output": [{"type": "input_text", "text": LONG}]},
        {"type": "function_call_output", "output": {"id": LONG}},
        {"type": "function_call", "content": "x", "arguments": LONG},
        {"type": "custom_tool_call", "input": LONG, "content": ""},
        {"type": "message", "role": "user", "content": "", "output": LONG},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": LONG}}]},
        {"role": "user", "content": [{"type": "tool_use", "id": LONG, "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_use", "name": "f", "input": {"type": LONG}}]},
        {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": LONG}}]},
        {"role": "user", "content": [
            {"type": "document",
             "source": {"type": "content", "content": [{"type": "text", "text": LONG}]}}]},
    ],
)  # fmt: skip
def test_content_beside_it_hides_nothing(item: dict[str, Any]):
    call = read("responses", input=[item])
    assert LONG in texts(call)
    assert call.as_chat
    for reference in REFERENCES[:5]:
        refused("responses", input=[{**item, **reference}])
        refused("responses", input=[{**item, "output": [reference]}])


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        ("embeddings", {"input": "x", "messages": HI}, "messages"),
        ("embeddings", {"input": "x", "messages": []}, "messages"),
        ("embeddings", {"messages": []}, "messages"),
        ("responses", {"input": "x", "messages": HI}, "messages"),
        ("responses", {"input": "x", "prompt": {"id": "pmpt_1"}}, "prompt"),
        ("messages", {"messages": HI, "input": "x"}, "input"),
        ("rerank", {"query": "x", "documents": ["y"], "texts": [LONG]}, "texts"),
        ("score", {"text_1": "x", "text_2": "y", "queries": "x", "documents": "y"}, "queries"),
        ("score", {"data_1": "x", "data_2": "y", "query": "x", "items": ["y"]}, "query"),
        ("score", {"text_1": "x", "documents": "y"}, "documents"),
    ],
)
def test_a_body_has_one_form(dialect: Dialect, body: dict[str, Any], param: str):
    """Engines parse a union of forms, each in its own order."""
    assert refused(dialect, **body).param == param


def test_what_is_repeated_or_rendered_counts():
    """Variables of the template, once; SGLang's `instruct` with each document."""
    for dialect in CONVERSATIONS:
        body = {"messages": HI} if dialect == "embeddings" else BODIES[dialect]
        call = read(
            dialect, **body, chat_template_kwargs={"rules": LONG, "more": [{"id": LONG}], "on": False}
        )
        assert texts(call).count(LONG) == 2
        assert call.as_chat
    call = read("rerank", query="q", documents=["a", "b"], instruct="Find.", chat_template_kwargs={"x": "y"})
    assert call.request.prompt == ["q a Find. y", "q b Find. y"]
    assert refused("rerank", query="q", documents=["a"] * 2048, instruct="q" * 9000).param == "documents"


def test_all_of_a_tool_counts():
    for tool in (
        {"type": "function", "name": "f", "function": {"description": LONG}},
        {"name": "f", "input_schema": {}, "parameters": {"description": LONG}},
        {"name": "f", "parameters": LONG},
        {"name": "f", "format": {"type": "grammar", "definition": LONG}},
    ):
        assert LONG in json.dumps(read("responses", input="x", tools=[tool]).request.parameters["tools"])


NAMES = st.sampled_from(
    ["type", "text", "content", "output", "input", "arguments", "summary", "name", "source", "data", "title",
     "image_url", "url", "file_data", "input_audio", "tool_calls"]
)  # fmt: skip
WORDS = st.sampled_from([
    "alpha", "beta", "", "text", "input_text", "image", "input_image", "tool_use", "tool_result", "document",
    "base64", "url", "content", "function_call", "function_call_output", PIXEL, INNER, "file:///x",
])  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    WORDS | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


def _walk(value: Any, name: str = "", exempt: bool = False) -> Iterator[tuple[str, str, bool]]:
    """(field, text, whether it is an argument of a tool) of all texts but types and media."""
    if isinstance(value, str):
        yield name, value, exempt
    elif isinstance(value, list):
        for each in value:
            yield from _walk(each, name, exempt)
    elif isinstance(value, dict):
        for field, inner in value.items():
            arguments = field == "input" and value.get("type") == "tool_use"
            yield from _walk(inner, field, exempt or arguments)


@given(items=st.lists(st.dictionaries(NAMES, VALUES, max_size=5), min_size=1, max_size=3))
def test_all_that_is_taken_is_counted_and_nothing_is_fetched(items: list[dict[str, Any]]):
    """Of any body that is taken: each text but types and media is counted as often as it is there, and no
    field of media names something to be fetched."""
    try:
        call = read("responses", input=items, model="seeing")
    except BadRequest:
        return
    counted = texts(call)
    found = list(_walk(items))
    for word in ("alpha", "beta"):
        fields = ("type", "image_url", "url", "file_data", "input_audio", "data", "source")
        there = sum(text == word for name, text, _ in found if name not in fields)
        assert counted.count(word) >= there
    for name, text, argument in found:
        if name in ("image_url", "file_data", "input_audio") and not argument:
            assert not text.startswith(("http:", "file:")), name


def test_a_clients_salt_keeps_its_prompts_apart_at_all_doors():
    call = read("messages", **BODIES["messages"], cache_salt="mine")
    assert call.request.parameters["cache_salt"] == "mine"
    for dialect, body in BODIES.items():
        assert refused(dialect, **body, cache_salt=["mine"]).param == "cache_salt"
