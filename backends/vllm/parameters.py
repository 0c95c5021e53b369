"""What vLLM takes (vllm/entrypoints/openai/*/protocol.py, vllm/sampling_params.py; 0.33).

It ignores what it does not know, with status 200, so a name that once meant something is the danger:
`guided_regex` and its like constrain nothing any more (vllm#53975). Those are refused or translated. Names
that have no rule are forwarded, for its versions add some faster than a table can.
"""

from collections.abc import Mapping

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
    text,
    texts,
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
    documents,
    int64_seed,
    settle,
    top_p_above_zero,
)

__all__ = ["TABLES"]

_INSTEAD = "vLLM ignores {} in silence: use structured_outputs."

_BOTH: Mapping[str, Rule] = {
    **COMMON,
    "top_p": top_p_above_zero(),
    "seed": int64_seed(random=-1),
    "logit_bias": forwarded(logit_bias),
    **FORMATS,
    **{
        name: refused(_INSTEAD.format(name))
        for name in ("guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern")
    },
    "structured_outputs": forwarded(record),
    "top_k": forwarded(whole(-1)),
    "min_p": forwarded(number(0, 1)),
    "repetition_penalty": forwarded(number(above=0)),
    "min_tokens": forwarded(whole(0)),
    "ignore_eos": forwarded(boolean),
    "stop_token_ids": forwarded(token_ids),
    "bad_words": converted(lambda value: {"bad_words": texts(value)}, "a list; one word as a list of one"),
    "allowed_token_ids": forwarded(token_ids),
    "include_stop_str_in_output": forwarded(boolean),
    "skip_special_tokens": forwarded(boolean),
    "spaces_between_special_tokens": forwarded(boolean),
    "truncate_prompt_tokens": forwarded(whole(-1)),
    "add_special_tokens": forwarded(boolean),
    "thinking_token_budget": forwarded(whole(-1)),
    "cache_salt": forwarded(text),
    "return_tokens_as_token_ids": forwarded(boolean),
    "echo": forwarded(boolean),
}
_CHAT: Mapping[str, Rule] = {
    **_BOTH,
    **TOOLS,
    **LOGPROBS,
    "reasoning_effort": forwarded(one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    "add_generation_prompt": forwarded(boolean),
    "continue_final_message": forwarded(boolean),
    "documents": forwarded(documents),
    "chat_template_kwargs": forwarded(record),
}
_COMPLETIONS: Mapping[str, Rule] = {**_BOTH, **CHAT_ONLY, "logprobs": forwarded(whole(0, 20))}

_OTHERS = forwarded(says="vLLM ignores what it does not know")


def _has_many_greedy_answers(request: GenerateRequest) -> bool:
    """Its greedy is a temperature of 0 alone (sampling_params.py, `_verify_greedy_sampling`)."""
    temperature = request.parameters.get("temperature")
    return request.n > 1 and temperature is not None and temperature < 1e-5


def _goes_on_and_opens(request: GenerateRequest) -> bool:
    given = request.parameters
    return bool(given.get("continue_final_message")) and given.get("add_generation_prompt") is not False


_CONFLICTS = (
    *CONFLICTS,
    Conflict("n", "This engine gives one choice at a temperature of 0.", _has_many_greedy_answers),
)

TABLES = Tables(
    chat=Table(
        _CHAT,
        _OTHERS,
        (
            *_CONFLICTS,
            *TOOL_CONFLICTS,
            Conflict(
                "continue_final_message",
                "continue_final_message needs add_generation_prompt: false.",
                _goes_on_and_opens,
            ),
        ),
        settle,
    ),
    completions=Table(_COMPLETIONS, _OTHERS, _CONFLICTS, settle),
)
