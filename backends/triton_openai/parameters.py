"""What Triton's OpenAI frontend takes over the TensorRT-LLM backend (python/openai/openai_frontend/engine:
triton_engine.py, `_validate_chat_request`; utils/triton.py, `_create_trtllm_inference_request`).

It parses all of OpenAI's schema and hands the model seven values of it: what is not among them is dropped in
silence there, and so is refused here.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from backends.mapping import ONE_BY_ONE, Rule, Table, Tables, Unfit, emulated, forwarded, refused
from backends.openai_parameters import CHAT_ONLY, COMMON, TOOL_CONFLICTS, TOOLS, settle, uint64_seed

__all__ = ["tables"]

_LOGPROBS = "This engine gives no log probabilities."


def _stop(value: Any) -> Mapping[str, Any]:
    return {"stop": value}


def _prompt(value: Any) -> str:
    prompts = value if isinstance(value, list) else [value]
    if len(prompts) != 1 or not isinstance(prompts[0], str):
        raise Unfit("This engine takes prompts as text.")
    return prompts[0]


_BOTH: Mapping[str, Rule] = {
    **COMMON,
    "n": ONE_BY_ONE,
    "stop": emulated(_stop, "sent, and cut by the gateway: this engine leaves it in the text"),
    "seed": uint64_seed(),
    "logit_bias": refused("This engine cannot bias tokens."),
    "logprobs": refused(_LOGPROBS, nothing=(False,)),
    "top_logprobs": refused(_LOGPROBS),
    "response_format": refused("This engine cannot constrain its output.", {"type": "text"}, nothing=()),
    "guided_json": refused("This engine cannot constrain its output."),
    "top_k": refused("This engine's frontend hands on no top_k.", -1),
    "repetition_penalty": refused("This engine's frontend hands on no repetition_penalty.", 1),
}
_OTHERS = refused("This engine's frontend would ignore it in silence.")
_NO_TOOLS = "This engine parses no tool calls: it was started without a parser of them (`tool_calling`)."
_WITHOUT_TOOLS = {"tools": refused(_NO_TOOLS), "tool_choice": refused(_NO_TOOLS, "none", "auto")}


@cache  # a reload compares adapters: the same options, the same tables
def tables(*, tool_calling: bool) -> Tables:
    chat: Mapping[str, Rule] = {
        **_BOTH,
        **(TOOLS if tool_calling else _WITHOUT_TOOLS),
        "parallel_tool_calls": refused("This engine does not keep a model from calling several tools.", True),
    }
    completions = {**_BOTH, **CHAT_ONLY, "prompt": forwarded(_prompt)}
    return Tables(
        chat=Table(chat, _OTHERS, TOOL_CONFLICTS, settle),
        completions=Table(completions, _OTHERS, (), settle),
    )
