"""What a constrained answer says: the JSON that a schema allows, and which function a model calls.

Real engines mask the tokens that a grammar does not allow. Here the text is made whole from the schema and
said token by token, at the pace of any other answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["called", "instance", "instance_of"]

_MAX_DEPTH = 20


def instance_of(schema: Any) -> str:
    """A JSON text that `schema` allows; `{}` where it says nothing."""
    return json.dumps(instance(schema, schema), ensure_ascii=False)


def instance(schema: Any, root: Any, depth: int = 0) -> Any:
    """A value that `schema` allows: its first choice wherever it leaves one. References lead into `root`."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return {}
    if isinstance(reference := schema.get("$ref"), str):
        target = root
        for step in reference.removeprefix("#/").split("/"):
            target = target.get(step, {}) if isinstance(target, Mapping) else {}
        return instance(target, root, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return instance(schema[name][0], root, depth + 1)
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "string":
            return "water".ljust(schema.get("minLength", 0), "r")[: schema.get("maxLength")]
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 6) + 1)
        case "boolean":
            return True
        case "null":
            return None
        case "array":
            item = instance(schema.get("items", {}), root, depth + 1)
            return [item] * max(1, schema.get("minItems", 1))
        case _:
            properties = schema.get("properties") or {}
            return {name: instance(each, root, depth + 1) for name, each in properties.items()}


def called(
    tools: Sequence[Mapping[str, Any]], choice: Any, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, str] | None:
    """Name and arguments of the function that is called; None: the model answers in words.

    `auto` calls a function whose name stands in the last message, if that is the user's.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    name: str | None = None
    if isinstance(choice, Mapping):
        name = choice["function"]["name"]
    elif choice == "required":
        name = next(iter(functions))
    elif choice in (None, "auto") and messages and messages[-1].get("role") == "user":
        name = next((each for each in functions if each in str(messages[-1].get("content"))), None)
    if name is None or name not in functions:
        return None
    schema = functions[name].get("parameters") or functions[name].get("arguments") or {}
    return name, instance_of(schema)
