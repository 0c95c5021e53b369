"""llama.cpp's server on the wire: OpenAI's shapes, unknown keys ignored, any model name answered.

Its `max_tokens` has an older alias that wins over it, `n_predict`: a client's would lift the gateway's bound,
so it is not passed. A stream that failed ends behind its error event, without `[DONE]`. Keep-alive is a bare
`:`. It queues without bound (tools/server/README.md): the pool's `in_flight` is the only limit.

LoRA adapters are loaded at its start and known by number; a request says which of them, and how strongly, and
those that it does not name are off. Without a word all are on, unless the server was started with
`--lora-init-without-apply`.
"""

from typing import Any

from backends.contract import GenerateRequest, HttpRequest, Lora, Unsupported
from backends.openai_dialect import openai_request, without

__all__ = ["NEUTRAL_SAMPLING", "encode", "lora_fault", "unsupported"]

NEUTRAL_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""OpenAI's defaults; llama.cpp's own are 0.8, 0.95, 40 and 0.05."""

_NOT_FORWARDED = frozenset({
    "n_predict", "id_slot", "n_keep", "n_discard", "cache_prompt", "slot_id", "repetition_penalty",
    "return_progress", "timings_per_token",
})  # fmt: skip
_RESPONSE_FORMATS = frozenset({"text", "json_object", "json_schema"})


def unsupported(request: GenerateRequest) -> Unsupported | None:
    parameters = request.parameters
    if request.stream and parameters.get("tools") and parameters.get("logprobs"):
        return Unsupported("logprobs", "This engine gives no log probabilities in streams with tools.")
    response_format = parameters.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") not in _RESPONSE_FORMATS:
        return Unsupported("response_format", "This engine knows text, json_object and json_schema.")
    if parameters.get("lora") is not None:
        return Unsupported("lora", "lora chooses adapters past the model's name; it is not for clients.")
    return None


def encode(request: GenerateRequest, *, neutral_sampling: bool) -> HttpRequest:
    parameters: dict[str, Any] = without(request.parameters, _NOT_FORWARDED)
    if (penalty := request.parameters.get("repetition_penalty")) is not None:
        parameters.setdefault("repeat_penalty", penalty)
    if request.lora is not None:
        parameters |= {"model": request.model, "lora": [{"id": request.lora.id, "scale": request.lora.scale}]}
    if neutral_sampling:
        for name, value in NEUTRAL_SAMPLING.items():
            if parameters.get(name) is None:
                parameters[name] = value
    return openai_request(request, parameters)


def lora_fault(lora: Lora) -> str | None:
    if lora.path is not None:
        return "is loaded at this engine's start: no path"
    return "needs an id for this engine" if lora.id is None else None
