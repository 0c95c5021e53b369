"""Structured output and tools through the official SDK, on each engine: `parse`, streams, tools."""

import json
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from tests.end_to_end.world import World, world

OPENAI_KINDS = ["trtllm", "tgi messages", "vllm", "sglang", "llamacpp", "openai"]
"""Those that have both."""
CONSTRAINED = [*OPENAI_KINDS, "tgi", "triton guided"]
CALLING = [*OPENAI_KINDS, "triton-openai"]

SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tgi messages": ({"kind": "tgi"}, {"options": {"api": "messages"}}),
    "triton guided": ({"kind": "triton"}, {"options": {"guided_decoding": True}}),
    "triton-openai": ({"kind": "triton-openai", "tool_calling": True}, {"options": {"tool_calling": True}}),
}


def a_world(tmp_path: Path, name: str) -> Any:
    engine, pool = SETUPS.get(name, ({"kind": name}, {}))
    return world(tmp_path, {"pool": engine}, pools={"pool": pool})


class Reach(pydantic.BaseModel):
    name: str
    metres: float


class Canal(pydantic.BaseModel):
    """Nested, with a list and an optional: what real applications ask for."""

    name: str
    depth: int
    reaches: list[Reach]
    lock: Reach | None


class OpenGate(pydantic.BaseModel):
    """Open a gate."""

    gate: str
    centimetres: int


def asking(text: str = "Which canal?") -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 300}


@pytest.mark.parametrize("name", CONSTRAINED)
async def test_parse(name: str, tmp_path: Path) -> None:
    """The SDK's schema reaches the engine in its own form, and the answer is the object."""
    async with a_world(tmp_path, name) as here, here.sdk() as sdk:
        answer = await sdk.chat.completions.parse(**asking(), response_format=Canal)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Canal)
    assert parsed.reaches[0].metres == 7
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", CONSTRAINED)
async def test_parse_in_a_stream(name: str, tmp_path: Path) -> None:
    """The streaming helper puts the same object together, and shows it as it grows."""
    async with a_world(tmp_path, name) as here, here.sdk() as sdk:
        grown = 0
        async with sdk.chat.completions.stream(**asking(), response_format=Canal) as stream:
            async for event in stream:
                grown += event.type == "content.delta"
            final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Canal)
    assert grown > 3


@pytest.mark.parametrize("name", ["trtllm", "vllm", "sglang", "llamacpp", "openai", "triton guided"])
async def test_any_json(name: str, tmp_path: Path) -> None:
    async with a_world(tmp_path, name) as here, here.sdk() as sdk:
        answer = await sdk.chat.completions.create(**asking(), response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize("choice", ["auto", "required", "named"])
async def test_tools(name: str, choice: str, tmp_path: Path) -> None:
    """A call has an id, a name and arguments; the reason is `tool_calls`, whatever the engine calls it."""
    tool = openai.pydantic_function_tool(OpenGate)
    wanted: Any = {"type": "function", "function": {"name": "OpenGate"}} if choice == "named" else choice
    async with a_world(tmp_path, name) as here, here.sdk() as sdk:
        answer = await sdk.chat.completions.parse(
            **asking("Please OpenGate number seven."), tools=[tool], tool_choice=wanted
        )
    [called] = answer.choices[0].message.tool_calls or []
    assert called.id
    assert called.function.name == "OpenGate"
    assert isinstance(called.function.parsed_arguments, OpenGate)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content


@pytest.mark.parametrize("name", CALLING)
async def test_tools_in_a_stream(name: str, tmp_path: Path) -> None:
    """The streaming helper sees the arguments grow, and one call at the end."""
    tool = openai.pydantic_function_tool(OpenGate)
    async with a_world(tmp_path, name) as here, here.sdk() as sdk:
        pieces = []
        async with sdk.chat.completions.stream(**asking("Please OpenGate."), tools=[tool]) as stream:
            async for event in stream:
                if event.type == "tool_calls.function.arguments.delta":
                    pieces.append(event.arguments_delta)
            final = await stream.get_final_completion()
    [called] = final.choices[0].message.tool_calls or []
    assert isinstance(called.function.parsed_arguments, OpenGate)
    assert "".join(pieces) == called.function.arguments
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("name", CALLING)
async def test_words_where_no_tool_is_called(name: str, tmp_path: Path) -> None:
    tool = openai.pydantic_function_tool(OpenGate)
    async with a_world(tmp_path, name) as here, here.sdk() as sdk:
        answer = await sdk.chat.completions.create(**asking("OpenGate?"), tools=[tool], tool_choice="none")
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


async def refused(here: World, **more: Any) -> str | None:
    """The parameter that the 400 names."""
    async with here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as error:
            await sdk.chat.completions.create(**{**asking(), **more})
    assert error.value.code == "unsupported_parameter"
    return error.value.param


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("triton", "tools", [openai.pydantic_function_tool(OpenGate)]),
        ("tgi", "tools", [openai.pydantic_function_tool(OpenGate)]),
        ("triton", "response_format", {"type": "json_object"}),
        ("tgi", "response_format", {"type": "json_object"}),
        ("triton", "logprobs", True),
        ("tgi messages", "presence_penalty", 0.5),
        ("trtllm", "web_search_options", {"search_context_size": "low"}),
    ],
)
async def test_what_an_engine_has_nothing_for_is_refused_by_name(
    name: str, field: str, value: Any, tmp_path: Path
) -> None:
    """And nothing is sent."""
    async with a_world(tmp_path, name) as here:
        assert await refused(here, **{field: value}) == field
        assert here.engine().statistics().requests == 0


async def test_the_next_pool_serves_what_the_first_cannot(tmp_path: Path) -> None:
    """A parameter that an engine lacks makes its pool unusable for this request, not the request."""
    engines = {"first": {"kind": "triton"}, "second": {"kind": "vllm"}}
    async with world(tmp_path, engines) as here, here.sdk() as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            **asking("OpenGate!"), tools=[openai.pydantic_function_tool(OpenGate)]
        )
        assert raw.headers["x-headgate-pool"] == "second"
        plain = await sdk.chat.completions.with_raw_response.create(**asking())
        assert plain.headers["x-headgate-pool"] == "first"
