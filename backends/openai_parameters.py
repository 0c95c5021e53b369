"""Rules that engines of OpenAI's dialect share, and what their tables do at the end.

The dialect's names are OpenAI's; what an engine makes of a value is its own. So these are building blocks:
an engine's `parameters.py` takes those that are true of it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.contract import GenerateRequest
from backends.mapping import (
    NEVER,
    SAFE,
    Conflict,
    Rule,
    Unfit,
    boolean,
    converted,
    forwarded,
    json_schema_of,
    number,
    record,
    records,
    refused,
    whole,
)

__all__ = [
    "CHAT_ONLY", "COMMON", "CONFLICTS", "FORMATS", "LOGPROBS", "NO_FIM", "TOOLS", "TOOL_CONFLICTS",
    "documents", "guided_json", "int64_seed", "is_greedy", "named_tool", "response_format", "settle",
    "top_p_above_zero", "uint64_seed",
]  # fmt: skip

_TINY = 1e-6
"""A top_p of 0 keeps the likeliest token alone, and so does this, which engines take that refuse 0."""


def top_p_above_zero() -> Rule:
    def convert(value: Any) -> Mapping[str, Any]:
        return {"top_p": max(number(0, 1)(value), _TINY)}

    return converted(convert, f"as it is; 0, which is an error there, as {_TINY}")


def uint64_seed() -> Rule:
    def convert(value: Any) -> Mapping[str, Any]:
        return {"seed": whole(-(2**63), 2**64 - 1)(value) & (2**64 - 1)}

    return converted(convert, "unsigned: a negative one modulo 2^64")


def int64_seed(random: int | None = None) -> Rule:
    """`random`: the value by which the engine means no seed at all."""

    def convert(value: Any) -> Mapping[str, Any]:
        seed = (whole(-(2**63), 2**64 - 1)(value) + 2**63) % 2**64 - 2**63
        return {"seed": seed - 1 if seed == random else seed}

    without = "" if random is None else f"; {random}, which means none there, as {random - 1}"
    return converted(convert, f"signed: modulo 2^64{without}")


# ------------------------------------------------------------------------------------------------ tools


def tools(value: Any) -> list[dict[str, Any]]:
    """Functions, each with a name. OpenAI's custom tools are grammars that these engines do not know."""
    if not isinstance(value, list):
        raise Unfit("This engine takes a list of tools here.")
    for tool in value:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise Unfit("This engine takes tools of type function only.")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise Unfit("A tool's function needs a name.")
        if not isinstance(function.get("parameters"), dict | None):
            raise Unfit("A function's parameters are a JSON schema.")
        if not isinstance(function.get("description"), str | None):
            raise Unfit("A function's description is a string.")
        if not isinstance(function.get("strict"), bool | None):
            raise Unfit("A function's strict is true or false.")
    return value


def tool_choice(value: Any) -> Any:
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return value
    if named_tool(value) is None:
        raise Unfit("This engine takes none, auto, required or one named function as tool_choice.")
    return value


def named_tool(value: Any) -> str | None:
    """The function that `tool_choice` names; None: it names none."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        return None
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _wants_absent_tools(request: GenerateRequest) -> bool:
    """`required` or a name where there is nothing to choose from."""
    choice, given = request.parameters.get("tool_choice"), request.parameters.get("tools") or ()
    if (name := named_tool(choice)) is not None:
        return all(tool["function"]["name"] != name for tool in given)
    return choice == "required" and not given


TOOLS: Mapping[str, Rule] = {
    "tools": forwarded(tools),
    "tool_choice": forwarded(tool_choice),
    "parallel_tool_calls": forwarded(boolean),
}
TOOL_CONFLICTS = (
    Conflict("tool_choice", "tool_choice asks for a tool that tools does not hold.", _wants_absent_tools),
)


def documents(value: Any) -> list[dict[str, Any]]:
    """What a template for retrieval gets: objects of texts."""
    given = records(value)
    if not all(isinstance(each, str) for document in given for each in document.values()):
        raise Unfit("This engine takes documents of texts.")
    return given


CHAT_ONLY: Mapping[str, Rule] = {
    name: refused(f"{name} belongs to chats.")
    for name in (
        "tools", "parallel_tool_calls", "top_logprobs", "reasoning_effort", "documents",
        "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
    )
} | {"tool_choice": refused("tool_choice belongs to chats.", "none", "auto")}  # fmt: skip
"""On completions."""

LOGPROBS: Mapping[str, Rule] = {
    "logprobs": forwarded(boolean),
    "top_logprobs": forwarded(whole(0, 20)),
}
"""Of chats, as OpenAI bounds them."""

# ------------------------------------------------------------------------------------ structured output


def response_format(value: Any) -> Mapping[str, Any]:
    """OpenAI's three forms. `text` asks for nothing, and is not sent."""
    given = record(value)
    match given.get("type"):
        case "text":
            return {}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            if (schema := json_schema_of(given)) is None:
                raise Unfit("A response_format of type json_schema needs json_schema.schema, an object.")
            wrapper = given["json_schema"]
            name = wrapper.get("name")
            wrapped = {"name": name if isinstance(name, str) else "schema", "schema": schema}
            for key, kind in (("strict", bool), ("description", str)):
                if isinstance(wrapper.get(key), kind):
                    wrapped[key] = wrapper[key]
            return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
        case _:
            raise Unfit("This engine knows text, json_object and json_schema.")


def guided_json(of: Rule) -> Rule:
    """The extension that older clients of vLLM send, as the response_format that `of` takes."""

    def convert(value: Any) -> Mapping[str, Any]:
        schema = value
        if isinstance(value, str):
            try:
                schema = msgspec.json.decode(value)
            except (msgspec.DecodeError, RecursionError):
                schema = None
        if not isinstance(schema, dict):
            raise Unfit("guided_json is a JSON schema.")
        wrapper = {"name": "guided_json", "schema": schema}
        return of.convert("response_format", {"type": "json_schema", "json_schema": wrapper})

    return converted(convert, "`response_format` of type json_schema")


_FORMAT = converted(response_format, "as it is, checked; `text` is not sent")
FORMATS: Mapping[str, Rule] = {"response_format": _FORMAT, "guided_json": guided_json(_FORMAT)}
"""For engines that take OpenAI's three forms as they are."""


def _is_constrained_twice(request: GenerateRequest) -> bool:
    given = request.parameters
    asked = [name for name in _CONSTRAINTS if given.get(name) and not _is_free_text(given[name])]
    return len(asked) > 1


def _is_free_text(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


_CONSTRAINTS = (
    "response_format", "guided_json", "guided_regex", "structured_outputs", "regex", "ebnf", "grammar",
    "json_schema",
)  # fmt: skip
CONFLICTS = (
    Conflict("response_format", "An answer can be constrained in one way only.", _is_constrained_twice),
)
GUIDED: Mapping[str, Rule] = {
    "guided_regex": refused("This engine ignores guided_regex."),
    "guided_choice": refused("This engine ignores guided_choice: use response_format with an enum."),
    "guided_grammar": refused("This engine ignores guided_grammar."),
    "guided_whitespace_pattern": refused("This engine ignores guided_whitespace_pattern."),
}
"""What vLLM understood once, and no engine does any more."""

# ------------------------------------------------------------------------------------------- the common

NO_FIM = refused("This engine cannot insert text before a suffix.")

COMMON: Mapping[str, Rule] = {
    **NEVER,
    **SAFE,
    **GUIDED,
    "messages": forwarded(),
    "prompt": forwarded(),
    "max_tokens": forwarded(whole(1)),
    "n": forwarded(whole(1)),
    "stop": forwarded(),
    "temperature": forwarded(number(0, 2)),
    "top_p": forwarded(number(0, 1)),
    "presence_penalty": forwarded(number(-2, 2)),
    "frequency_penalty": forwarded(number(-2, 2)),
    "audio": refused("This engine gives text only."),
    "modalities": refused("This engine gives text only.", ["text"]),
    "functions": refused("functions has become tools: use that."),
    "function_call": refused("function_call has become tool_choice: use that.", "none", "auto"),
    "moderation": refused("Nothing moderates answers here."),
    "verbosity": refused("This engine's models know no verbosity.", "medium"),
    "web_search_options": refused("This engine does not search the web."),
    "best_of": refused("This engine cannot choose the best of several answers.", 1),
    "suffix": NO_FIM,
    "structured_outputs": refused("structured_outputs is vLLM's: use response_format."),
    "regex": refused("regex is SGLang's: use response_format."),
    "ebnf": refused("ebnf is SGLang's: use response_format."),
    "grammar": refused("grammar is llama.cpp's: use response_format."),
    "json_schema": refused("json_schema is llama.cpp's: use response_format."),
    "min_p": refused("This engine has no min_p."),
    "typical_p": refused("This engine has no typical_p.", 1),
    "min_tokens": refused("This engine knows no least number of tokens."),
    "ignore_eos": refused("This engine ends an answer where the model ends it."),
    "stop_token_ids": refused("This engine does not stop at token ids: use stop."),
    "bad_words": refused("This engine bans no words."),
    "allowed_token_ids": refused("This engine does not restrict tokens to a list."),
    "include_stop_str_in_output": refused("The stop string is cut off here."),
    "skip_special_tokens": refused("Special tokens are never shown here.", True),
    "spaces_between_special_tokens": refused("Special tokens are never shown here.", True),
    "truncate_prompt_tokens": refused("This engine does not cut prompts."),
    "add_special_tokens": refused("This engine adds special tokens as it is set up."),
    "continue_final_message": refused("This engine does not go on with a message."),
    "documents": refused("This engine's chat route takes no documents."),
    "chat_template_kwargs": refused("This engine's chat route takes no variables of the template."),
    "add_generation_prompt": refused("This engine always opens the answer.", True),
    "reasoning_effort": refused("This engine knows no reasoning_effort.", "none"),
    "thinking_token_budget": refused("This engine cannot bound the reasoning alone.", -1),
    "cache_salt": refused("This engine cannot keep prefixes apart."),
    "return_tokens_as_token_ids": refused("This engine tells tokens as text."),
    "echo": refused("This engine cannot repeat the prompt."),
}
"""What is true of most; an engine's table says what else it has. What is here refused would be an error
there, or ignored in silence."""


def is_greedy(request: GenerateRequest) -> bool:
    """Whether the parameters leave one token to choose from."""
    return any(
        isinstance(value := request.parameters.get(name), int | float) and value == one
        for name, one in (("temperature", 0), ("top_p", 0), ("top_k", 1))
    )


def settle(request: GenerateRequest, body: dict[str, Any]) -> None:
    """What hangs on another parameter, and would be an error without it."""
    if not body.get("tools"):
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    if not body.get("logprobs") and request.messages is not None:
        body.pop("top_logprobs", None)
        body.pop("logprobs", None)
    if (least := body.get("min_tokens")) is not None and request.max_tokens is not None:
        body["min_tokens"] = min(least, request.max_tokens)  # the bound may have been lowered here
