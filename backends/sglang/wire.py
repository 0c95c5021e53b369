"""SGLang on the wire: OpenAI's shapes, errors flat, unknown keys ignored, any model name answered.

Overload inside a stream comes with status 200 and an error event whose `code` says 503. Some of its fields
are not for clients: they choose adapters past the model's name, run code, or name other hosts
(python/sglang/srt/entrypoints/openai/protocol.py).

A `priority` counts where the server was started with `--enable-priority-scheduling`: the higher goes first,
or the lower with `--schedule-low-priority-values-first` (managers/schedule_policy.py); else it is ignored, or
with `--abort-on-priority-when-disabled` answered with a 503. A LoRA adapter is named by `lora_path`, beside
the base model.
"""

from typing import Any

from backends.contract import ErrorKind, GenerateRequest, HttpRequest, Priority, Unsupported
from backends.decoding import EngineWords
from backends.openai_dialect import classify as classify_openai
from backends.openai_dialect import openai_request, without

__all__ = ["classify", "encode", "priority", "unsupported"]

_NOT_FORWARDED = frozenset({
    "priority", "rid", "data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank",
    "return_hidden_states",
})  # fmt: skip
_OPERATORS_ONLY = {
    "lora_path": "chooses an adapter past the model's name",
    "custom_logit_processor": "is a program that the engine would run",
    "bootstrap_host": "names a host that the engine would connect to",
    "bootstrap_port": "names a host that the engine would connect to",
    "bootstrap_room": "names a host that the engine would connect to",
    "session_params": "reaches into the engine's sessions",
}


def unsupported(request: GenerateRequest) -> Unsupported | None:
    for field, reason in _OPERATORS_ONLY.items():
        if request.parameters.get(field) is not None:
            return Unsupported(field, f"{field} {reason}; it is not for clients.")
    return None


def encode(request: GenerateRequest, *, low_first: bool = False) -> HttpRequest:
    """Our id travels as `rid`, which names the request in its logs and to /abort_request. `low_first`: as the
    server orders priorities."""
    parameters: dict[str, Any] = without(request.parameters, _NOT_FORWARDED)
    parameters["rid"] = request.request_id
    if request.lora is not None:
        parameters |= {"model": request.model, "lora_path": request.lora.name}
    if request.priority is not None:
        parameters["priority"] = priority(request.priority, low_first=low_first)
    return openai_request(request, parameters)


def priority(asked: Priority, *, low_first: bool = False) -> int:
    """Interactive 20,000, standard 10,000, batch 0, or the other way round, and the client's own on top."""
    return (2 - asked.level if low_first else asked.level) * 10_000 + asked.own


def classify(status: int | None, words: EngineWords) -> ErrorKind:
    """OpenAI's error table; the 503 of a server that takes no priorities is no overload."""
    if "using priority is disabled" in words.message.lower():
        return ErrorKind.ENGINE
    return classify_openai(status, words)
