"""Bodies of native doors: what is counted of them, and what must not reach an engine."""

import contextlib
import json
import sys
import time
from typing import Any

import pytest

from backends.mapping import NEVER
from gateway.api.doors import NOT_FOR_CLIENTS
from gateway.api.reading import TEMPLATE_FIELDS, read_call
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


@pytest.mark.parametrize("given", ["text", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_embeddings_take_openais_four_forms(given: Any):
    call = read("embeddings", input=given)
    assert call.request.prompt == given
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
        {"role": "assistant", "content": "f\nx"},
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
            {"type": "input_image", "image_url": "https://x"}]}]}, "input[0].image_url"),
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
    [("n_predict", -1), ("lora_path", "/etc"), ("lora", [{"id": 1}]), ("input_ids", [1]), ("rid", "r"),
     ("n", 8), ("bootstrap_host", "10.0.0.1"), ("kv_transfer_params", {}), ("custom_logit_processor", "x")],
)  # fmt: skip
def test_what_reaches_past_the_gateway_is_refused(dialect: Dialect, field: str, value: Any):
    """llama.cpp's `n_predict` would lift the bound that the gateway put into the body."""
    error = refused(dialect, **BODIES[dialect], **{field: value})
    assert error.param == field
    assert read(dialect, **BODIES[dialect], **{field: None}).dialect == dialect


def test_one_answer_is_what_there_is():
    assert read("responses", **BODIES["responses"], n=1).request.n == 1


def test_what_no_chat_may_ask_no_other_door_may():
    """Else a client would go round by the door that looks at less."""
    assert NEVER.keys() <= NOT_FOR_CLIENTS.keys() | TEMPLATE_FIELDS


def test_a_clients_salt_keeps_its_prompts_apart_at_all_doors():
    call = read("messages", **BODIES["messages"], cache_salt="mine")
    assert call.request.parameters["cache_salt"] == "mine"
    for dialect, body in BODIES.items():
        assert refused(dialect, **body, cache_salt=["mine"]).param == "cache_salt"
