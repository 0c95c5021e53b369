"""What TGI takes, on its native routes and on its Messages API (router/src/lib.rs, chat.rs, validation.rs).

    top_p              0 and 1 are refused; 1 means off, 0 greedy
    temperature        0 is refused on the native routes, where no sampling is said otherwise
    top_k, typical_p   their values for off are refused
    stop               a list only: a plain string is a 422; more than max_stop_sequences too

The Messages API is OpenAI's by name only:

    presence_penalty   becomes a repetition_penalty of itself + 2, so that 0 distorts every answer: never sent
                       as such; a repetition_penalty is sent under its name, less 2
    logit_bias         typed as a list: OpenAI's object is a 422
    response_format    wants its schema in `value`; knows no `text`
    tools              `[]` counts as tools; with a response_format it is a 422
    n                  accepted and ignored: one choice
    model              "tgi" is the base model; any other name chooses a LoRA adapter

Unknown keys are ignored. Its list is closed, for the project only mends faults now: what is not here is
refused here.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from backends.contract import GenerateRequest
from backends.mapping import (
    ONE_BY_ONE,
    Conflict,
    Rule,
    Table,
    Tables,
    Unfit,
    boolean,
    converted,
    emulated,
    forwarded,
    is_constrained,
    json_schema_of,
    neutral,
    number,
    record,
    refused,
    renamed,
    text,
    whole,
)
from backends.openai_parameters import (
    CHAT_ONLY,
    COMMON,
    CONFLICTS,
    TOOL_CONFLICTS,
    TOOLS,
    guided_json,
    settle,
    uint64_seed,
)
from backends.text_parameters import CHAT, COMPLETIONS, OTHERS, TEXT

__all__ = ["messages_tables", "native_tables"]

_MAX_TOP_LOGPROBS = 5

# ------------------------------------------------------------------------------------------ what both share


def grammar(response_format: Any) -> dict[str, Any] | None:
    """TGI's grammar for a `response_format`; None where none is asked for.

    TGI wants a schema with `properties` at its top, so `json_object` without a schema cannot be had.
    """
    given = record(response_format)
    value = given.get("value")
    match given.get("type"):
        case "text":
            return None
        case "json_schema":
            return _json(json_schema_of(given))
        case "json_object" | "json":
            return _json(value)
        case "regex" if isinstance(value, str):
            return {"type": "regex", "value": value}
        case _:
            raise Unfit(_NEEDS)


def _json(schema: Any) -> dict[str, Any]:
    if isinstance(schema, Mapping) and isinstance(schema.get("properties"), Mapping):
        return {"type": "json", "value": schema}
    raise Unfit(_NEEDS)


_NEEDS = "This engine needs a JSON schema with properties, or a regex."


def _constraint(to: str) -> Rule:
    def convert(value: Any) -> Mapping[str, Any]:
        constraint = grammar(value)
        return {} if constraint is None else {to: constraint}

    return converted(convert, f"`{to}`: type json with the schema, or regex; `json_object` needs a schema")


def _guided_regex(to: str) -> Rule:
    return converted(lambda value: {to: {"type": "regex", "value": text(value)}}, f"`{to}` of type regex")


def _stop(most: int) -> Rule:
    def convert(value: Any) -> Mapping[str, Any]:
        if len(value) > most:
            raise Unfit(f"This engine takes at most {most} stop sequences.")
        return {"stop": value}

    return emulated(convert, f"sent, at most {most} as a list, and cut by the gateway: it stays in the text")


def _less(name: str, off: tuple[float, ...], check: Any, says: str) -> Rule:
    """A warper that is refused to be told that it is off."""

    def convert(value: Any) -> Mapping[str, Any]:
        taken = check(value)
        return {} if taken in off else {name: taken}

    return converted(convert, says)


_NO_PRESENCE = refused("This engine has no presence_penalty.")

# ------------------------------------------------------------------------------------------ native routes


def _greedy(request: GenerateRequest, parameters: dict[str, Any]) -> None:
    """As its Messages API: sample at temperature 1 unless the client asks for 0. Without do_sample the native
    route would be greedy by default; with it any warper left would sample."""
    greedy = parameters.get("temperature") == 0 or parameters.get("top_p") == 0
    parameters["do_sample"] = not greedy
    if greedy:
        for name in ("temperature", "top_p", "typical_p", "top_k"):
            parameters.pop(name, None)


@cache  # a reload compares adapters: the same options, the same tables
def native_tables(*, max_stop_sequences: int) -> Tables:
    """`parameters` of /generate and /generate_stream."""
    both: Mapping[str, Rule] = {
        **TEXT,
        "max_tokens": renamed("max_new_tokens", whole(1)),
        "stop": _stop(max_stop_sequences),
        "temperature": converted(
            lambda value: {"temperature": number(0, 1e9)(value)}, "as it is; 0 as `do_sample: false`"
        ),
        "top_p": _less("top_p", (1,), number(0, 1), "as it is; 1 is not sent, 0 as `do_sample: false`"),
        "typical_p": _less("typical_p", (0, 1), number(0, 1), "as it is; 0 and 1 are not sent"),
        "top_k": _less("top_k", (-1, 0), whole(-1), "as it is; -1 and 0, which mean off, are not sent"),
        "presence_penalty": _NO_PRESENCE,
        "frequency_penalty": forwarded(number(-2, 2)),
        "repetition_penalty": forwarded(number(1e-9, 1e9)),
        "seed": uint64_seed(),
        "response_format": _constraint("grammar"),
        "guided_json": guided_json(_constraint("grammar")),
        "guided_regex": _guided_regex("grammar"),
    }
    return Tables(
        chat=Table({**both, **CHAT}, OTHERS, CONFLICTS, _greedy),
        completions=Table({**both, **CHAT_ONLY, **COMPLETIONS}, OTHERS, CONFLICTS, _greedy),
    )


# ------------------------------------------------------------------------------------------- Messages API


def _repetition(value: Any) -> Mapping[str, Any]:
    return {"presence_penalty": round(number(0.01, 1e6)(value) - 2.0, 9)}


def _prompts(value: Any) -> Any:
    prompts = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in prompts):
        raise Unfit("This engine takes prompts as text.")
    return value


def _finish_messages(request: GenerateRequest, body: dict[str, Any]) -> None:
    settle(request, body)
    if body.get("top_p") == 0:
        del body["top_p"]
        body["temperature"] = 0


def _constrains_and_calls(request: GenerateRequest) -> bool:
    given = request.parameters
    constrained = is_constrained(given.get("response_format")) or any(
        given.get(name) for name in ("guided_json", "guided_regex")
    )
    return constrained and bool(given.get("tools"))


@cache  # a reload compares adapters: the same options, the same tables
def messages_tables(*, max_stop_sequences: int) -> Tables:
    """Its OpenAI routes."""
    both: Mapping[str, Rule] = {
        **COMMON,
        "n": ONE_BY_ONE,
        "stop": _stop(max_stop_sequences),
        "temperature": forwarded(number(0, 1e9)),
        "top_p": _less("top_p", (1,), number(0, 1), "as it is; 1 is not sent, 0 as a temperature of 0"),
        "presence_penalty": _NO_PRESENCE,
        "seed": uint64_seed(),
        "logit_bias": refused("This engine cannot bias tokens."),
        "top_k": refused("This engine's OpenAI routes take no top_k.", -1),
        "tool_prompt": forwarded(text),
    }
    chat: Mapping[str, Rule] = {
        **both,
        **TOOLS,
        "parallel_tool_calls": neutral("it makes one call at a time"),
        "repetition_penalty": converted(
            _repetition, "`presence_penalty`, less 2: what TGI makes of that one"
        ),
        "logprobs": forwarded(boolean),
        "top_logprobs": forwarded(whole(0, _MAX_TOP_LOGPROBS), f"at most {_MAX_TOP_LOGPROBS}"),
        "response_format": _constraint("response_format"),
        "guided_json": guided_json(_constraint("response_format")),
        "guided_regex": _guided_regex("response_format"),
    }
    completions: Mapping[str, Rule] = {
        **both,
        **CHAT_ONLY,
        "prompt": forwarded(_prompts),
        "repetition_penalty": forwarded(number(0.01, 1e6)),
        "logprobs": refused("This engine gives no log probabilities for completions.", nothing=(False,)),
        "response_format": refused(
            "This engine's completions route constrains nothing.", {"type": "text"}, nothing=()
        ),
        "guided_json": refused("This engine's completions route constrains nothing."),
        "tool_prompt": refused("tool_prompt belongs to chats."),
    }
    conflicts = (
        *CONFLICTS,
        Conflict(
            "response_format",
            "This engine cannot constrain its output and call tools at once.",
            _constrains_and_calls,
        ),
    )
    return Tables(
        chat=Table(chat, OTHERS, (*conflicts, *TOOL_CONFLICTS), _finish_messages),
        completions=Table(completions, OTHERS, (), _finish_messages),
    )
