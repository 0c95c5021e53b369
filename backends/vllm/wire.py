"""vLLM on the wire: OpenAI's shapes and more; unknown keys are ignored in silence.

So a key that once meant something is the danger: `guided_json` and its like constrain nothing any more, with
status 200 (vllm#53975), and are refused here. A `priority` is an error unless the server was started with
`--scheduling-policy priority`; lower goes first (vllm/v1/core/sched/request_queue.py). A LoRA adapter is a
model of its own. The request id travels in `x-request-id`, which vLLM puts into its own id and its logs.
"""

from typing import Any

from backends.contract import ErrorKind, GenerateRequest, HttpRequest, Priority, Unsupported
from backends.decoding import EngineWords
from backends.openai_dialect import classify as classify_openai
from backends.openai_dialect import openai_request, without

__all__ = ["classify", "encode", "priority", "unsupported"]

_NOT_FORWARDED = frozenset({"priority", "request_id"})
_GUIDED = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend",
    "guided_whitespace_pattern",
)  # fmt: skip
_OPERATORS_ONLY = {
    "chat_template": "is a program that the engine would run",
    "kv_transfer_params": "addresses other engines' memory",
}


def unsupported(request: GenerateRequest) -> Unsupported | None:
    """Fields that vLLM would ignore although they change the answer, and those that are not for clients."""
    for field in _GUIDED:
        if request.parameters.get(field) is not None:
            return Unsupported(field, f"This engine ignores {field}: use response_format.")
    for field, reason in _OPERATORS_ONLY.items():
        if request.parameters.get(field) is not None:
            return Unsupported(field, f"{field} {reason}; it is not for clients.")
    return None


def encode(request: GenerateRequest) -> HttpRequest:
    parameters: dict[str, Any] = without(request.parameters, _NOT_FORWARDED)
    if request.priority is not None:
        parameters["priority"] = priority(request.priority)
    return openai_request(request, parameters, {"x-request-id": request.request_id})


def priority(asked: Priority) -> int:
    """Interactive 0, standard 10,000, batch 20,000, and the client's own on top."""
    return (2 - asked.level) * 10_000 + asked.own


def classify(status: int | None, words: EngineWords) -> ErrorKind:
    """OpenAI's error table; a priority that the server was not started for is no fault of the client."""
    if "priority scheduling is not enabled" in words.message.lower():
        return ErrorKind.ENGINE
    return classify_openai(status, words)
