"""What trtllm-serve takes (tensorrt_llm/serve/openai_protocol.py; llmapi/sampling_params.py; 1.2 and 1.3).

Its request models are `extra="forbid"`: one unknown key, and the whole request is a 400. So the list is
closed, on both sides: a name that is not here is refused here, by its name. Both names of max_tokens at once
are a 400 too.
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import GenerateRequest
from backends.mapping import (
    Conflict,
    How,
    Rule,
    Table,
    Tables,
    Unfit,
    boolean,
    converted,
    forwarded,
    json_schema_of,
    logit_bias,
    number,
    one_of,
    record,
    refused,
    text,
    token_ids,
    whole,
)
from backends.openai_parameters import (
    CHAT_ONLY,
    COMMON,
    CONFLICTS,
    LOGPROBS,
    TOOL_CONFLICTS,
    TOOLS,
    documents,
    guided_json,
    is_greedy,
    settle,
    uint64_seed,
)

__all__ = ["TABLES"]


def _top_k(value: Any) -> Mapping[str, Any]:
    """A negative one, vLLM's word for off, ends 1.0-era servers (TensorRT-LLM#6329)."""
    return {"top_k": max(whole(-1)(value), 0)}


def _response_format(value: Any) -> Mapping[str, Any]:
    given = record(value)
    kind = given.get("type")
    if kind in ("text", "json_object"):
        return {} if kind == "text" else {"response_format": {"type": kind}}
    if kind == "json_schema":
        if json_schema_of(given) is None:
            raise Unfit("A response_format of type json_schema needs json_schema.schema, an object.")
        return {"response_format": {"type": kind, "json_schema": given["json_schema"]}}
    if kind in _FORMS and isinstance(given.get(_FORMS[kind][0]), _FORMS[kind][1]):
        return {"response_format": {"type": kind, _FORMS[kind][0]: given[_FORMS[kind][0]]}}
    raise Unfit("This engine takes text, json_object, json_schema, json, regex, ebnf or structural_tag.")


_FORMS: Mapping[Any, tuple[str, type]] = {
    "json": ("schema", dict), "regex": ("regex", str), "ebnf": ("ebnf", str),
    "structural_tag": ("format", dict),
}  # fmt: skip


def _guided_regex(value: Any) -> Mapping[str, Any]:
    return {"response_format": {"type": "regex", "regex": text(value)}}


def _parallel_tool_calls(value: Any) -> Mapping[str, Any]:
    if not boolean(value):
        raise Unfit("This engine does not keep a model from calling several tools at once.")
    return {}


_FORMAT = converted(_response_format, "as it is, checked; `text` is not sent")

_BOTH: Mapping[str, Rule] = {
    **COMMON,
    "seed": uint64_seed(),
    "logit_bias": forwarded(logit_bias),
    "response_format": _FORMAT,
    "guided_json": guided_json(_FORMAT),
    "guided_regex": converted(_guided_regex, "`response_format` of type regex"),
    "best_of": forwarded(whole(1)),
    "echo": forwarded(boolean),
    "top_k": converted(_top_k, "-1, which ends old servers, as 0: off"),
    "top_p_min": forwarded(number(0, 1)),
    "min_p": forwarded(number(0, 1)),
    "repetition_penalty": forwarded(number(above=0)),
    "min_tokens": forwarded(whole(0)),
    "ignore_eos": forwarded(boolean),
    "stop_token_ids": forwarded(token_ids),
    "include_stop_str_in_output": forwarded(boolean),
    "skip_special_tokens": forwarded(boolean),
    "spaces_between_special_tokens": forwarded(boolean),
    "truncate_prompt_tokens": forwarded(whole(1)),
    "add_special_tokens": forwarded(boolean),
}


_CHAT: Mapping[str, Rule] = {
    **_BOTH,
    **TOOLS,
    "parallel_tool_calls": Rule(
        How.REFUSED,
        lambda _, value: _parallel_tool_calls(value),
        "This engine does not keep a model from calling several tools at once. Let through: `true`.",
    ),
    **LOGPROBS,
    "reasoning_effort": forwarded(one_of("low", "medium", "high")),
    "add_generation_prompt": forwarded(boolean),
    "documents": forwarded(documents),
    "chat_template_kwargs": forwarded(record),
    "cache_salt": forwarded(text),
    "thinking_token_budget": forwarded(whole(0)),
}
_COMPLETIONS: Mapping[str, Rule] = {**_BOTH, **CHAT_ONLY, "logprobs": forwarded(whole(0, 20))}

_OTHERS = refused("This engine knows no such parameter, and refuses what it does not know.")


def _has_many_greedy_answers(request: GenerateRequest) -> bool:
    return is_greedy(request) and max(request.n, request.parameters.get("best_of") or 1) > 1


def _has_too_few_to_choose_from(request: GenerateRequest) -> bool:
    return (request.parameters.get("best_of") or request.n) < request.n


_CONFLICTS = (
    *CONFLICTS,
    Conflict("best_of", "best_of must be at least n.", _has_too_few_to_choose_from),
    Conflict(
        "n",
        "This engine gives one choice where sampling is off (temperature 0, top_p 0 or top_k 1).",
        _has_many_greedy_answers,
    ),
)

TABLES = Tables(
    chat=Table(_CHAT, _OTHERS, (*_CONFLICTS, *TOOL_CONFLICTS), settle),
    completions=Table(_COMPLETIONS, _OTHERS, _CONFLICTS, settle),
)
