"""The tables of parameters: complete, honest, and what docs/parameters.md says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats

from backends import parameters
from backends.contract import GenerateRequest
from backends.mapping import How
from backends.registry import REGISTRY
from gateway.api.reading import READ_FIELDS
from tests.conftest import REPO

every_column = pytest.mark.parametrize("column", parameters.COLUMNS, ids=lambda column: column.name)


def _request(route: str, **given: Any) -> GenerateRequest:
    prompt: dict[str, Any] = {"messages": []} if route == "chat" else {"prompt": "hi"}
    return GenerateRequest(
        request_id="r", model="m", stream=False, rendered="hi", max_tokens=8, parameters=given, **prompt
    )


def test_the_page_is_printed_from_the_tables() -> None:
    """`python -m backends.parameters > docs/parameters.md`."""
    assert (REPO / "docs" / "parameters.md").read_text(encoding="utf-8") == parameters.page()


def test_the_rows_are_openais() -> None:
    """Every field that the official SDK can send has a row, and no row is invented."""
    chat, completion = (
        set(get_type_hints(params.CompletionCreateParamsBase)) for params in (chats, completions)
    )
    assert set(parameters.OPENAI_CHAT) == chat | {"stream"}
    assert set(parameters.OPENAI_COMPLETIONS) == completion | {"stream"}


def test_what_the_gateway_keeps_is_what_its_reader_takes_out() -> None:
    """Adapters get the rest."""
    handed_on = {"messages", "prompt", "max_tokens", "n", "stop"}
    assert set(parameters.GATEWAY) == READ_FIELDS - handed_on


def test_the_count_is_of_all_cells() -> None:
    cells = parameters.cells()
    rows = {(cell.route, cell.parameter) for cell in cells}
    assert len(cells) == len(rows) * len(parameters.COLUMNS)
    assert Counter(cell.rule.how for cell in cells).keys() == set(How)


def test_what_is_not_forwarded_says_why() -> None:
    """A 400 without a reason, or a field that goes nowhere, is no mapping."""
    for cell in parameters.cells():
        assert cell.rule.says or cell.rule.how is How.FORWARDED, cell[:3]


VALUES: tuple[Any, ...] = (
    True,
    False,
    0,
    1,
    -1,
    2.5,
    "x",
    "auto",
    [],
    ["x"],
    [1],
    {},
    {"a": 1},
    {"type": "text"},
)


@every_column
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_cells_word_is_what_happens(column: parameters.Column, route: str) -> None:
    """Over many values: a refused or neutral one is never in the body, a forwarded one is under its name, a
    renamed one is under another; what passes can be written."""
    adapter = REGISTRY.adapter(column.kind, column.options)
    empty = _body(adapter.encode(_request(route)).body)
    for cell in parameters.cells():
        if cell.column != column.name or cell.route != route or cell.parameter in _SELF_EVIDENT:
            continue
        name, how = cell.parameter, cell.rule.how
        served = 0
        for value in VALUES:
            request = _request(route, **{name: value})
            refusal = adapter.unsupported(request)
            if refusal is not None:
                continue
            body = _body(adapter.encode(request).body)
            served += 1
            if how in (How.REFUSED, How.NEUTRAL):
                assert body == empty, (name, value)
            if how is How.RENAMED:
                assert name not in body, (name, value)
            if how is How.FORWARDED and value and name not in _WANT_COMPANY:
                assert body[name] == value, (name, value)
        assert served or name in _WANT_FORMS, f"{name}: nothing passes"


_SELF_EVIDENT = {*parameters.GATEWAY, "messages", "prompt", "max_tokens", "n", "stop"}
_WANT_COMPANY = {"top_logprobs", "tool_choice", "parallel_tool_calls"}
"""Not sent without what they speak of."""
_WANT_FORMS = {
    "reasoning_effort", "response_format", "guided_json", "tools", "documents", "continue_final_message",
}  # fmt: skip
"""Of which none of the values is one."""


def _body(data: bytes) -> dict[str, Any]:
    body = json.loads(data)
    return {**body, **body.pop("parameters", {})} if "inputs" in body else body


@every_column
@pytest.mark.parametrize(
    "field",
    [
        "use_beam_search",
        "beam_width",
        "return_context_logits",
        "return_generation_logits",
        "logits_processors",
    ],
)
def test_beams_and_logits_are_offered_nowhere(column: parameters.Column, field: str) -> None:
    refusal = REGISTRY.adapter(column.kind, column.options).unsupported(_request("chat", **{field: 4}))
    assert refusal is not None
    assert refusal.param == field


@every_column
def test_openais_defaults_are_served_everywhere(column: parameters.Column) -> None:
    """A client that writes out every default asks for nothing."""
    given = {
        "temperature": 1, "top_p": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {},
        "logprobs": False, "tools": [], "response_format": {"type": "text"}, "user": "u", "metadata": {},
        "store": False, "parallel_tool_calls": True, "modalities": ["text"], "verbosity": "medium",
        "functions": [], "seed": 7, "tool_choice": "auto", "top_k": -1, "min_p": 0, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert REGISTRY.adapter(column.kind, column.options).unsupported(_request("chat", **given)) is None


def test_the_command_counts(capsys: pytest.CaptureFixture[str]) -> None:
    parameters.main(["--count"])
    table = capsys.readouterr().out
    assert table.splitlines()[0].split(" | ")[1:] == [*How, "cells |"]
    assert f"| {len(parameters.cells())} |" in table


def test_the_page_is_named_where_engines_are() -> None:
    page: Path = REPO / "docs" / "engines.md"
    assert "parameters.md" in page.read_text(encoding="utf-8")
