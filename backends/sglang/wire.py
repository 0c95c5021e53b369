"""SGLang on the wire: OpenAI's shapes, errors flat, unknown keys ignored, any model name answered.

Overload inside a stream comes with status 200 and an error event whose `code` says 503. Some of its fields
are not for clients: they choose adapters past the model's name, run code, or name other hosts
(python/sglang/srt/entrypoints/openai/protocol.py).
"""

from backends.contract import GenerateRequest, HttpRequest, Unsupported
from backends.openai_dialect import openai_request, without

__all__ = ["encode", "unsupported"]

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


def encode(request: GenerateRequest) -> HttpRequest:
    """Our id travels as `rid`, which names the request in its logs and to /abort_request."""
    parameters = {**without(request.parameters, _NOT_FORWARDED), "rid": request.request_id}
    return openai_request(request, parameters)
