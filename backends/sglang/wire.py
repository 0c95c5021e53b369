"""SGLang on the wire: OpenAI's shapes, any model name answered. Its keys: `parameters.py`, its errors:
`errors.py`.

Our id travels as `rid`, which names the request in its logs and to /abort_request.

A `priority` counts where the server was started with `--enable-priority-scheduling`: the higher goes first,
or the lower with `--schedule-low-priority-values-first` (managers/schedule_policy.py); else it is ignored, or
with `--abort-on-priority-when-disabled` answered with a 503. A LoRA adapter is named by `lora_path`, beside
the base model.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.contract import GenerateRequest, HttpRequest, Lora, Priority
from backends.headers import json_headers
from backends.openai_dialect import choices_asked, openai_request

__all__ = ["adapter_in_name", "cancel", "encode", "priority"]


def encode(
    request: GenerateRequest, parameters: Mapping[str, Any], *, low_first: bool = False
) -> HttpRequest:
    """`low_first`: as the server orders priorities."""
    body = {**parameters, "rid": request.request_id}
    if request.lora is not None:
        body |= {"model": request.model, "lora_path": request.lora.name}
    if request.priority is not None:
        body["priority"] = priority(request.priority, low_first=low_first)
    return openai_request(request, body)


def adapter_in_name(model: str, lora: Lora) -> Mapping[str, Any]:
    """How bodies without `lora_path` ask for an adapter: behind a colon in the model's name, whose first part
    is not looked at (srt/entrypoints/openai/serving_base.py)."""
    return {"model": f"{model.partition(':')[0]}:{lora.name}"}


def cancel(request: GenerateRequest) -> HttpRequest | None:
    """Stops `request`, which has a `rid` of its own only if it asks for one choice of one prompt."""
    if choices_asked(request) != 1:
        return None
    body = msgspec.json.encode({"rid": request.request_id, "abort_all": False})
    return HttpRequest("POST", "/abort_request", json_headers(request), body)


def priority(asked: Priority, *, low_first: bool = False) -> int:
    """Interactive 20,000, standard 10,000, batch 0, or the other way round, and the client's own on top."""
    return (2 - asked.level if low_first else asked.level) * 10_000 + asked.own
