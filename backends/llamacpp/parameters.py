"""What llama.cpp's server takes (tools/server/server-common.cpp, server-schema.cpp).

It copies every key of the body to its own parameters, whose names differ in part and whose defaults are not
OpenAI's: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05. Some of them reach past the gateway: `n_predict`
is an alias of max_tokens that wins over it, `n_cmpl` one of n. Names that have no rule are forwarded: they
may be its samplers'.
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
    boolean,
    converted,
    forwarded,
    logit_bias,
    number,
    one_of,
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
    FORMATS,
    LOGPROBS,
    TOOL_CONFLICTS,
    TOOLS,
    guided_json,
    response_format,
    settle,
)

__all__ = ["NEUTRAL_SAMPLING", "tables"]

NEUTRAL_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""OpenAI's defaults; llama.cpp's own are 0.8, 0.95, 40 and 0.05."""

_NO_SEED = 2**32 - 1


def _seed(value: Any) -> Mapping[str, Any]:
    seed = whole(-(2**63), 2**64 - 1)(value) & _NO_SEED
    return {"seed": seed - 1 if seed == _NO_SEED else seed}


def _top_k(value: Any) -> Mapping[str, Any]:
    return {"top_k": max(whole(-1)(value), 0)}


def _native_schema(value: Any) -> Mapping[str, Any]:
    """Its completions route knows no response_format."""
    wanted = response_format(value).get("response_format")
    if wanted is None:
        return {}
    return {"json_schema": wanted["json_schema"]["schema"] if "json_schema" in wanted else {"type": "object"}}


_OPERATORS = "It is the gateway's to choose."
_NATIVE_FORMAT = converted(_native_schema, "`json_schema`; `text` is not sent")

_BOTH: Mapping[str, Rule] = {
    **COMMON,
    "n": ONE_BY_ONE,
    "seed": converted(_seed, "its low 32 bits; all ones, which mean none there, less one"),
    "logit_bias": forwarded(logit_bias),
    "top_k": converted(_top_k, "-1 as 0: off"),
    "min_p": forwarded(number(0, 1)),
    "typical_p": forwarded(number(0, 1)),
    "repetition_penalty": renamed("repeat_penalty", number(above=0)),
    "ignore_eos": forwarded(boolean),
    "grammar": forwarded(text),
    "json_schema": forwarded(record),
    "n_predict": refused("It would lift the bound: use max_tokens.", -1),
    "n_cmpl": refused("It would lift the number of choices: use n."),
    "n_probs": refused("Use logprobs."),
    "id_slot": refused(_OPERATORS, -1),
    "slot_id": refused(_OPERATORS, -1),
    "n_keep": refused(_OPERATORS),
    "n_discard": refused(_OPERATORS),
    "cache_prompt": refused(_OPERATORS, True),
    "return_progress": refused("It would send events that are no answer."),
    "timings_per_token": refused("It would send what is no part of an answer."),
    "response_fields": refused("It would take away parts of the answer."),
    "sse_ping_interval": refused(_OPERATORS),
    "verbose": refused("It shows the engine's inside; it is not for clients."),
}


def _reasoning_effort(value: Any) -> Mapping[str, Any]:
    return {"reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh")(value)}


_CHAT: Mapping[str, Rule] = {
    **_BOTH,
    **TOOLS,
    **FORMATS,
    **LOGPROBS,
    "add_generation_prompt": forwarded(boolean),
    "chat_template_kwargs": forwarded(record),
    "reasoning_effort": converted(_reasoning_effort, "a variable of the template: `chat_template_kwargs`"),
}
_COMPLETIONS: Mapping[str, Rule] = {
    **_BOTH,
    **CHAT_ONLY,
    "response_format": _NATIVE_FORMAT,
    "guided_json": guided_json(_NATIVE_FORMAT),
    "logprobs": forwarded(whole(0, 20)),
}

_OTHERS = forwarded(says="llama.cpp ignores what it does not know")


def _tells_tool_calls_with_logprobs(request: GenerateRequest) -> bool:
    given = request.parameters
    return request.stream and bool(given.get("tools")) and bool(given.get("logprobs"))


def _has_grammar_and_tools(request: GenerateRequest) -> bool:
    given = request.parameters
    return bool(given.get("tools")) and given.get("tool_choice") != "none" and bool(given.get("grammar"))


def _count_probabilities(request: GenerateRequest, body: dict[str, Any]) -> None:
    """It tells 20 likely tokens where no number is asked for, and nothing at all for 0: 1 is the least."""
    if request.messages is not None and body.get("logprobs") and not body.get("top_logprobs"):
        body["top_logprobs"] = 1
    elif request.messages is None and body.get("logprobs") == 0:
        body["logprobs"] = 1


@cache  # a reload compares adapters: the same options, the same tables
def tables(*, neutral_sampling: bool) -> Tables:
    """`neutral_sampling`: send OpenAI's defaults where the client names none."""

    def finish(request: GenerateRequest, body: dict[str, Any]) -> None:
        settle(request, body)
        _count_probabilities(request, body)
        if (effort := body.pop("reasoning_effort", None)) is not None:
            body["chat_template_kwargs"] = {
                "reasoning_effort": effort,
                **body.get("chat_template_kwargs", {}),
            }
        if neutral_sampling:
            for name, value in NEUTRAL_SAMPLING.items():
                body.setdefault(name, value)

    return Tables(
        chat=Table(
            _CHAT,
            _OTHERS,
            (
                *CONFLICTS,
                *TOOL_CONFLICTS,
                Conflict(
                    "logprobs",
                    "This engine gives no log probabilities in streams with tools.",
                    _tells_tool_calls_with_logprobs,
                ),
                Conflict(
                    "grammar", "This engine cannot follow a grammar and call tools.", _has_grammar_and_tools
                ),
            ),
            finish,
        ),
        completions=Table(_COMPLETIONS, _OTHERS, CONFLICTS, finish),
    )
