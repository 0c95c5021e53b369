"""The committed JSON Schema and the reference page agree with the grammar."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config.schema.editors import json_schema

REPO = Path(__file__).resolve().parents[3]


def test_the_committed_schema_is_current() -> None:
    """Else run: python -m gateway.config.schema > gateway/config/routes.schema.json"""
    committed = json.loads((REPO / "gateway/config/routes.schema.json").read_text())
    assert committed == json_schema()


def keys(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from node.get("properties", {})
        for value in node.values():
            yield from keys(value)
    elif isinstance(node, list):
        for item in node:
            yield from keys(item)


def words(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (word for word in node.get("enum", ()) if isinstance(word, str))
        if isinstance(node.get("const"), str):
            yield node["const"]
        for value in node.values():
            yield from words(value)
    elif isinstance(node, list):
        for item in node:
            yield from words(item)


@pytest.mark.parametrize("name", sorted({*keys(json_schema()), *words(json_schema())}))
def test_the_reference_page_names_every_key_and_word(name: str) -> None:
    assert f"`{name}`" in (REPO / "docs/routes.md").read_text()


def test_every_key_has_a_description_for_editors() -> None:
    for name, definition in json_schema()["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"


def test_editors_may_see_a_variable_where_a_number_is_wanted() -> None:
    limits = json_schema()["$defs"]["PoolLimits"]["properties"]["in_flight"]
    alternatives = json.dumps(limits)
    assert '"type": "integer"' in alternatives
    assert r"\\$\\{" in alternatives


def test_defaults_in_the_examples_of_the_reference_page_are_yaml() -> None:
    """Every yaml block of docs/routes.md parses."""
    page = (REPO / "docs/routes.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        assert yaml.safe_load(block) is not None
