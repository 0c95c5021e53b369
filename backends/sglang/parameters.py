"""What SGLang takes (python/sglang/srt/entrypoints/openai/protocol.py, sampling/sampling_params.py; 0.5.10).

It ignores what it does not know. Some of what it knows is not for clients: it chooses adapters past the
model's name, runs code, or names other hosts. Names that have no rule are forwarded.
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import GenerateRequest
from backends.mapping import (
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
    token_ids,
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
    int64_seed,
    named_tool,
    response_format,
    settle,
    top_p_above_zero,
)

__all__ = ["TABLES"]


def _top_k(value: Any) -> Mapping[str, Any]:
    return {"top_k": whole(-1)(value) or -1}


_BOTH: Mapping[str, Rule] = {
    **COMMON,
    "top_p": top_p_above_zero(),
    "seed": int64_seed(),
    "logit_bias": forwarded(logit_bias),
    **FORMATS,
    "guided_regex": renamed("regex", text),
    "regex": forwarded(text),
    "ebnf": forwarded(text),
    "top_k": converted(_top_k, "0, an error there, as -1: off"),
    "min_p": forwarded(number(0, 1)),
    "repetition_penalty": forwarded(number(high=2, above=0)),
    "min_tokens": forwarded(whole(0)),
    "ignore_eos": forwarded(boolean),
    "stop_token_ids": forwarded(token_ids),
    "include_stop_str_in_output": renamed("no_stop_trim", boolean),
    "skip_special_tokens": forwarded(boolean),
    "cache_salt": forwarded(text),
    "custom_params": refused("It feeds logit processors; it is not for clients."),
    "return_routed_experts": refused("It opens the engine's inside; it is not for clients."),
}
_CHAT: Mapping[str, Rule] = {
    **_BOTH,
    **TOOLS,
    **LOGPROBS,
    "reasoning_effort": forwarded(one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    "continue_final_message": forwarded(boolean),
    "chat_template_kwargs": forwarded(record),
}
_COMPLETIONS: Mapping[str, Rule] = {
    **_BOTH,
    **CHAT_ONLY,
    "logprobs": forwarded(whole(0, 20)),
    "echo": forwarded(boolean),
}

_OTHERS = forwarded(says="SGLang ignores what it does not know")


def _is_torn(request: GenerateRequest) -> bool:
    """It would constrain the answer and drop the choice, with a warning in its log."""
    given = request.parameters
    choice = given.get("tool_choice")
    constrained = any(given.get(name) for name in ("guided_json", "guided_regex", "regex", "ebnf")) or bool(
        response_format(given.get("response_format") or {"type": "text"})
    )
    return constrained and bool(given.get("tools")) and (choice == "required" or bool(named_tool(choice)))


TABLES = Tables(
    chat=Table(
        _CHAT,
        _OTHERS,
        (
            *CONFLICTS,
            *TOOL_CONFLICTS,
            Conflict(
                "tool_choice", "This engine cannot force a tool and constrain the answer at once.", _is_torn
            ),
        ),
        settle,
    ),
    completions=Table(_COMPLETIONS, _OTHERS, CONFLICTS, settle),
)
