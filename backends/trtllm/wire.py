"""trtllm-serve on the wire: which keys it takes, and what its errors mean.

Its request models are `extra="forbid"` (tensorrt_llm/serve/openai_protocol.py): one unknown key and the whole
request is a 400. So parameters pass by list, not by chance. Nulls are left out: older builds type some fields
without them, and an absent key means the same.

Its errors prove little. Everything raised in a handler becomes a 400 (openai_server.py,
`create_error_response`), so a broken engine looks like a bad request. A 400 counts as the client's fault only
where its words speak of a value in the request; anything else counts as the engine's.

A LoRA adapter is an object, `lora_request`, whose id is the key of the engine's cache and whose path must lie
on the engine's own disk; the model's name chooses none. A `priority` is a number from 0 to 1, higher first,
0.5 where none is given; newer builds only, and it counts with a `waiting_queue_policy` of `priority`
(tensorrt_llm/llmapi/llm_args.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from backends.contract import ErrorKind, GenerateRequest, HttpRequest, Lora, Priority, Unsupported
from backends.decoding import EngineWords, kind_of_status, says_too_long
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request

__all__ = [
    "CHAT_PARAMETERS", "COMPLETIONS_PARAMETERS", "classify", "decoder", "encode", "lora_fault", "priority",
    "unsupported",
]  # fmt: skip

_BOTH = frozenset({
    # OpenAI's
    "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "user",
    "response_format",
    # TensorRT-LLM's
    "top_k", "top_p_min", "min_p", "repetition_penalty", "length_penalty", "early_stopping",
    "use_beam_search", "best_of", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens",
    "skip_special_tokens", "truncate_prompt_tokens", "add_special_tokens", "echo",
})  # fmt: skip
CHAT_PARAMETERS = _BOTH | {
    "top_logprobs", "tools", "tool_choice", "reasoning_effort",
    "add_generation_prompt", "documents", "chat_template_kwargs", "cache_salt", "thinking_token_budget",
}  # fmt: skip
"""Parameters of /v1/chat/completions that reach the engine. `parallel_tool_calls` is not among them: older
builds refuse it and newer ones ignore it."""
COMPLETIONS_PARAMETERS = _BOTH
"""Parameters of /v1/completions that reach the engine."""

_OPERATORS_ONLY = {
    "lora_request": "names paths on the engine's disk",
    "chat_template": "is a program that the engine would run",
    "disaggregated_params": "addresses the engine's memory",
}


def unsupported(request: GenerateRequest) -> Unsupported | None:
    """Fields that the engine would refuse with a 400 that names nobody, or that crash it."""
    top_k = request.parameters.get("top_k")
    if isinstance(top_k, int) and top_k < 0:  # a negative one ends 1.0-era servers (TensorRT-LLM#6329)
        return Unsupported("top_k", "This engine takes a top_k of 0 (off) or more.")
    if request.parameters.get("suffix"):
        return Unsupported("suffix", "This engine cannot insert text before a suffix.")
    for field, reason in _OPERATORS_ONLY.items():
        if request.parameters.get(field) is not None:
            return Unsupported(field, f"{field} {reason}; it is not for clients.")
    return None


def encode(request: GenerateRequest) -> HttpRequest:
    allowed = COMPLETIONS_PARAMETERS if request.messages is None else CHAT_PARAMETERS
    parameters = _only(request.parameters, allowed)
    if request.lora is not None:
        parameters["model"] = request.model
        parameters["lora_request"] = {
            "lora_name": request.lora.name,
            "lora_int_id": request.lora.id,
            "lora_path": request.lora.path,
        }
    if request.priority is not None:
        parameters["priority"] = priority(request.priority)
    return openai_request(request, parameters)


def lora_fault(lora: Lora) -> str | None:
    if lora.scale != 1.0:
        return "has no scale of its own in this engine"
    return "needs an id and a path for this engine" if lora.id is None or lora.path is None else None


def priority(asked: Priority) -> float:
    """Batch 1/6, standard 1/2, interactive 5/6, and the client's own within its third."""
    return round((asked.level + 0.5 + asked.own / 2002) / 3, 6)


def _only(parameters: Mapping[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name in allowed and value is not None}


def decoder(request: GenerateRequest) -> OpenAiDecoder:
    return OpenAiDecoder(choices_asked(request), classify)


_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")  # a client's own words must not make the engine look broken
_ENGINE_FAULT = re.compile(
    r"traceback|\bcuda|cublas|cudnn|nccl|\bmpi\b|out of memory|\boom\b|executor|\bworker|runtimeerror"
    r"|assertion|internal error|shut ?down|broken pipe|connection|errno|has no attribute|object is not"
    r"|nonetype",
    re.IGNORECASE,
)
_CLIENT_FAULT = re.compile(
    r"\b(?:must|should|expect(?:ed|s)|invalid|unsupported|not supported|not allowed|not permitted|requires?"
    r"|unknown|missing|out of (?:vocabulary )?range|at least|at most|greater than|less than|cannot be"
    r"|does not support|only support(?:s|ed)?|too (?:many|long|large|small))\b",
    re.IGNORECASE,
)


def classify(status: int | None, words: EngineWords) -> ErrorKind:
    """The error table of trtllm-serve."""
    if says_too_long(words):
        return ErrorKind.CONTEXT_LENGTH
    status = status or words.code
    if status not in (400, 422):
        return kind_of_status(status)
    if not words.type:  # pydantic's list of errors, as text
        return ErrorKind.CLIENT
    text = _QUOTED.sub("", words.message)
    if words.type == "internal_error" or _ENGINE_FAULT.search(text):  # the type: gpt-oss handlers
        return ErrorKind.ENGINE
    return ErrorKind.CLIENT if _CLIENT_FAULT.search(text) else ErrorKind.ENGINE
