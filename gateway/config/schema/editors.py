"""The JSON Schema of routes.yaml, which editors use to complete and check it."""

from typing import Any

from gateway.config.schema import RoutesFile
from gateway.config.schema.values import VARIABLE_PATTERN


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of routes.yaml, with `${VAR}` allowed where a number or a word is asked."""
    schema = RoutesFile.model_json_schema()
    _allow_variables(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "routes.yaml"}


def _allow_variables(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _allow_variables(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("propertyNames", "enum", "default", "required"):
                _allow_variables(value)
        if node.get("type") in ("integer", "number", "boolean") or "enum" in node or "pattern" in node:
            kept = {key: node.pop(key) for key in ("title", "description", "default") if key in node}
            alternatives = [dict(node), {"type": "string", "pattern": VARIABLE_PATTERN}]
            node.clear()
            node.update(kept, anyOf=alternatives)
