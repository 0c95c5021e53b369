"""SGLang on the wire: OpenAI's shapes, errors flat, any model name answered. Its keys: `parameters.py`.

Overload inside a stream comes with status 200 and an error event whose `code` says 503. Our id travels as
`rid`, which names the request in its logs and to /abort_request.

A `priority` counts where the server was started with `--enable-priority-scheduling`: the higher goes first,
or the lower with `--schedule-low-priority-values-first` (managers/schedule_policy.py); else it is ignored, or
with `--abort-on-priority-when-disabled` answered with a 503. A LoRA adapter is named by `lora_path`, beside
the base model.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.contract import ErrorKind, GenerateRequest, HttpRequest, Priority
from backends.decoding import EngineWords
from backends.headers import json_headers
from backends.openai_dialect import choices_asked, openai_request
from backends.openai_dialect import classify as classify_openai

__all__ = ["cancel", "classify", "encode", "priority"]


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


def cancel(request: GenerateRequest) -> HttpRequest | None:
    """Stops `request`, which has a `rid` of its own only if it asks for one choice of one prompt."""
    if choices_asked(request) != 1:
        return None
    body = msgspec.json.encode({"rid": request.request_id, "abort_all": False})
    return HttpRequest("POST", "/abort_request", json_headers(request), body)


def priority(asked: Priority, *, low_first: bool = False) -> int:
    """Interactive 20,000, standard 10,000, batch 0, or the other way round, and the client's own on top."""
    return (2 - asked.level if low_first else asked.level) * 10_000 + asked.own


def classify(status: int | None, words: EngineWords) -> ErrorKind:
    """OpenAI's error table; the 503 of a server that takes no priorities is no overload."""
    if "using priority is disabled" in words.message.lower():
        return ErrorKind.ENGINE
    return classify_openai(status, words)
