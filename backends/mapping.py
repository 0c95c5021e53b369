"""Parameters of a request -> what an engine takes, by a table: one rule for each parameter of each route.

An engine's `parameters.py` holds its tables and nothing beside them decides: `Table.unsupported` asks the
rules whether they can serve the values, `Table.write` lets the same rules write the body. One function of a
rule does both, so what is not refused can be written. docs/parameters.md is printed from the same tables
(`python -m backends.parameters`).

What becomes of a parameter, in six words:

    forwarded   under its name, as it is
    renamed     under another name, as it is
    converted   in another form
    emulated    done by the gateway, though the engine may be told as well
    neutral     not sent: it changes no answer; the rule says why
    refused     a 400 that names it, unless its value asks for nothing

A rule may refuse single values whatever its word: a value that the engine would answer with an error, ignore
in silence, or die of, never reaches it.
"""

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from backends.contract import GenerateRequest, Unsupported

__all__ = [
    "LOGITS", "NEVER", "NOTHING", "ONE_BY_ONE", "SAFE", "Check", "Conflict", "How", "Rule", "Table",
    "Tables", "Unfit", "anything", "boolean", "converted", "emulated", "forwarded", "is_constrained",
    "json_schema_of", "logit_bias", "neutral", "number", "one_of", "record", "records", "refused",
    "renamed", "text", "texts", "token_ids", "whole",
]  # fmt: skip


class How(enum.StrEnum):
    """What becomes of a parameter."""

    FORWARDED = "forwarded"
    RENAMED = "renamed"
    CONVERTED = "converted"
    EMULATED = "emulated"
    NEUTRAL = "neutral"
    REFUSED = "refused"


class Unfit(Exception):
    """The engine cannot serve this value. The message is a sentence for the client."""


Convert = Callable[[str, Any], Mapping[str, Any]]
"""Name and value -> entries of the body. Raises Unfit. Pure, and total for every JSON value."""

Check = Callable[[Any], Any]
"""A value -> the value as the engine takes it. Raises Unfit."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one parameter."""

    how: How
    convert: Convert
    says: str = ""
    """For the page: under which name, in which form, or why."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Values that the engine takes, but not together."""

    param: str
    message: str
    holds: Callable[[GenerateRequest], bool]


def _leave(request: GenerateRequest, body: dict[str, Any]) -> None:
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Table:
    """What one route of one engine takes."""

    rules: Mapping[str, Rule]
    others: Rule
    """For names that have no rule."""
    conflicts: tuple[Conflict, ...] = ()
    finish: Callable[[GenerateRequest, dict[str, Any]], None] = field(default=_leave)
    """What depends on several parameters: changes the body that the rules wrote."""

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        """The first parameter that cannot be served, and why."""
        for name, value in _given(request):
            try:
                self.rules.get(name, self.others).convert(name, value)
            except Unfit as unfit:
                return Unsupported(name, str(unfit))
        for conflict in self.conflicts:
            if conflict.holds(request):
                return Unsupported(conflict.param, conflict.message)
        return None

    def write(self, request: GenerateRequest) -> dict[str, Any]:
        """The entries of the body, for a request that `unsupported` lets pass."""
        body: dict[str, Any] = {}
        for name, value in _given(request):
            body.update(self.rules.get(name, self.others).convert(name, value))
        self.finish(request, body)
        return body


@dataclass(frozen=True, slots=True)
class Tables:
    """Both routes of one engine, as it is set up."""

    chat: Table
    completions: Table

    def of(self, request: GenerateRequest) -> Table:
        return self.completions if request.messages is None else self.chat


def _given(request: GenerateRequest) -> Iterator[tuple[str, Any]]:
    """The parameters that say something. Absent and null are the same everywhere."""
    if request.messages is not None:
        yield "messages", request.messages
    if request.prompt is not None:
        yield "prompt", request.prompt
    for name, value in request.parameters.items():
        if value is not None:
            yield name, value
    if request.max_tokens is not None:
        yield "max_tokens", request.max_tokens
    if request.n != 1:
        yield "n", request.n
    if stops := [stop for stop in request.stop if stop]:
        yield "stop", stops


# ----------------------------------------------------------------------------------------------- rules


def anything(value: Any) -> Any:
    """No check: the gateway's reader has done it, or the engine behind is not known."""
    return value


NOTHING: tuple[Any, ...] = (False, 0, "", [], {})
"""Values that ask for nothing of most parameters."""


def forwarded(check: Check = anything, says: str = "") -> Rule:
    """Under its own name."""
    return Rule(How.FORWARDED, lambda name, value: {name: check(value)}, says)


def renamed(to: str, check: Check = anything, says: str = "") -> Rule:
    return Rule(How.RENAMED, lambda _, value: {to: check(value)}, says or f"`{to}`")


def converted(convert: Callable[[Any], Mapping[str, Any]], says: str) -> Rule:
    return Rule(How.CONVERTED, lambda _, value: convert(value), says)


def emulated(convert: Callable[[Any], Mapping[str, Any]], says: str) -> Rule:
    """Done by the gateway; `convert` checks, and writes what the engine is told besides."""
    return Rule(How.EMULATED, lambda _, value: convert(value), says)


def neutral(says: str) -> Rule:
    """Never sent, whatever it is."""
    return Rule(How.NEUTRAL, lambda _, __: {}, says)


ONE_BY_ONE = emulated(lambda _: {}, "each choice is asked for in a call of its own")
"""Of `n`, for engines that give one choice (`backends/fanning.py`)."""


def refused(message: str, *unless: Any, nothing: tuple[Any, ...] = NOTHING) -> Rule:
    """A 400 with `message`, `unless` the value is one of these, or asks for `nothing`."""
    harmless = (*nothing, *unless)

    def convert(_: str, value: Any) -> Mapping[str, Any]:
        if not any(_is_same(value, each) for each in harmless):
            raise Unfit(message)
        return {}

    allowed = ", ".join(f"`{msgspec.json.encode(each).decode()}`" for each in unless)
    return Rule(How.REFUSED, convert, f"{message} Let through: {allowed}." if unless else message)


def _is_same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


# ---------------------------------------------------------------------------------------------- checks


def number(low: float = -math.inf, high: float = math.inf, *, above: float | None = None) -> Check:
    """A number from `low` to `high`, and more than `above`. NaN and infinity are none."""

    def check(value: Any) -> Any:
        is_number = type(value) in (int, float) and math.isfinite(_float(value))
        if not (is_number and low <= value <= high and (above is None or value > above)):
            raise Unfit(_wanted("a number", low, high, above))
        return value

    return check


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of JSON has no bound
        return math.inf


def whole(low: int = -(2**31), high: int = 2**31 - 1) -> Check:
    """A whole number; 16.0 is one."""

    def check(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise Unfit(_wanted("a whole number", low, high, None))
        return value

    return check


def _wanted(what: str, low: float, high: float, above: float | None) -> str:
    from_, to = (f" from {low}" if low > -math.inf else ""), (f" to {high}" if high < math.inf else "")
    return f"This engine takes {what}{from_}{to}{'' if above is None else f', above {above}'} here."


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit("This engine takes true or false here.")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Unfit("This engine takes a string here.")
    return value


def texts(value: Any) -> list[str]:
    """A list of strings; one string is a list of one."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) and each for each in values):
        raise Unfit("This engine takes a list of strings here.")
    return list(values)


def token_ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < 2**31 for each in value):
        raise Unfit("This engine takes a list of token ids here.")
    return value


def record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unfit("This engine takes an object here.")
    return value


def records(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Unfit("This engine takes a list of objects here.")
    return value


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Unfit(f"This engine takes one of {', '.join(choices)} here.")
        return value

    return check


def logit_bias(value: Any) -> dict[str, Any]:
    """Token ids, as text, to biases."""
    biases = record(value)
    for token, bias in biases.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise Unfit("This engine takes an object of token ids here.")
        number(-100, 100)(bias)
    return biases


# -------------------------------------------------------------------------------------- structured output


def is_constrained(response_format: Any) -> bool:
    """Whether this `response_format` asks for anything but free text."""
    if response_format is None:
        return False
    return not (isinstance(response_format, Mapping) and response_format.get("type") == "text")


def json_schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """The schema in OpenAI's `{"type": "json_schema", "json_schema": {"name", "schema"}}`; None: none."""
    if not isinstance(response_format, Mapping) or response_format.get("type") != "json_schema":
        return None
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    return schema if isinstance(schema, Mapping) else None


# ------------------------------------------------------------------------------- alike for every engine

_BEAMS = refused("Beam search is not offered here: it keeps several answers alive at the price of one.")
_LOGITS = refused("Logits are not given out: ask for logprobs.")

LOGITS: Mapping[str, Rule] = {
    "use_beam_search": _BEAMS,
    "beam_width": refused("Beam search is not offered here.", 1),
    "num_beams": refused("Beam search is not offered here.", 1),
    "early_stopping": refused("It steers beam search, which is not offered here."),
    "length_penalty": refused("It steers beam search, which is not offered here.", 1),
    "return_context_logits": _LOGITS,
    "return_generation_logits": _LOGITS,
    "return_hidden_states": refused("Hidden states are not given out."),
    "logits_processors": refused("A logits processor is a program that the engine would run."),
    "custom_logit_processor": refused("A logit processor is a program that the engine would run."),
}
"""Beam search, logits and programs: never, wherever they would go."""

NEVER: Mapping[str, Rule] = {
    **LOGITS,
    "chat_template": refused("A template is a program that the engine would run; it is not for clients."),
    "guided_decoding_backend": refused("It chooses a part of the engine; it is not for clients."),
    "lora_request": refused("It names paths on the engine's disk; adapters are models here."),
    "lora_path": refused("It chooses an adapter past the model's name; adapters are models here."),
    "lora": refused("It chooses adapters past the model's name; adapters are models here."),
    "disaggregated_params": refused("It addresses the engine's memory; it is not for clients."),
    "kv_transfer_params": refused("It addresses other engines' memory; it is not for clients."),
    "ec_transfer_params": refused("It addresses other engines' memory; it is not for clients."),
    "bootstrap_host": refused("It names a host that the engine would connect to; it is not for clients."),
    "bootstrap_port": refused("It names a host that the engine would connect to; it is not for clients."),
    "bootstrap_room": refused("It names a host that the engine would connect to; it is not for clients."),
    "session_params": refused("It reaches into the engine's sessions; it is not for clients."),
    "prompt_embeds": refused("It brings tensors past the prompt that was counted; it is not for clients."),
    "input_ids": refused("It brings tokens past the prompt that was counted: use prompt."),
    "prompt_token_ids": refused("It brings tokens past the prompt that was counted: use prompt."),
    "prompt_logprobs": refused("Log probabilities of prompts are not relayed: logprobs are the answer's."),
    "request_id": refused("The gateway names requests: send the header x-request-id."),
    "rid": refused("The gateway names requests: send the header x-request-id."),
    "data_parallel_rank": refused("It chooses a part of the engine; it is not for clients."),
    "routed_dp_rank": refused("It chooses a part of the engine; it is not for clients."),
    "disagg_prefill_dp_rank": refused("It chooses a part of the engine; it is not for clients."),
}  # fmt: skip
"""What no engine is asked by a client, because it reaches past the gateway."""

SAFE: Mapping[str, Rule] = {
    "user": neutral("it names the end user for logs"),
    "safety_identifier": neutral("it names the end user for logs"),
    "metadata": neutral("labels of stored answers, and none is stored"),
    "store": neutral("nothing is stored, and the answer is the same"),
    "prompt_cache_key": emulated(lambda _: {}, "requests of one key go to one replica where that pays"),
    "prompt_cache_retention": neutral("how long a cache keeps a prompt is the engine's own business"),
    "prompt_cache_options": neutral("what a cache keeps is the engine's own business"),
    "prediction": neutral("a hint that makes OpenAI's models faster, not different"),
}
"""What changes no answer."""
