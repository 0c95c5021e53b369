"""trtllm-serve on the wire. Which keys it takes: `parameters.py`; what its errors mean: `errors.py`.

A LoRA adapter is an object, `lora_request`, whose id is the key of the engine's cache and whose path must lie
on the engine's own disk; the model's name chooses none. A `priority` is a number from 0 to 1, higher first,
0.5 where none is given; newer builds only, and it counts with a `waiting_queue_policy` of `priority`
(tensorrt_llm/llmapi/llm_args.py).
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import GenerateRequest, HttpRequest, Lora, Priority
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request
from backends.trtllm import errors

__all__ = ["decoder", "encode", "lora_fault", "priority"]


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    body = dict(parameters)
    if request.lora is not None:
        body["model"] = request.model
        body["lora_request"] = {
            "lora_name": request.lora.name,
            "lora_int_id": request.lora.id,
            "lora_path": request.lora.path,
        }
    if request.priority is not None:
        body["priority"] = priority(request.priority)
    return openai_request(request, body)


def lora_fault(lora: Lora) -> str | None:
    if lora.scale != 1.0:
        return "has no scale of its own in this engine"
    return "needs an id and a path for this engine" if lora.id is None or lora.path is None else None


def priority(asked: Priority) -> float:
    """Batch 1/6, standard 1/2, interactive 5/6, and the client's own within its third."""
    return round((asked.level + 0.5 + asked.own / 2002) / 3, 6)


def decoder(request: GenerateRequest) -> OpenAiDecoder:
    return OpenAiDecoder(choices_asked(request), errors.TABLE)
