"""vLLM on the wire: OpenAI's shapes and more. Which keys it takes: `parameters.py`.

A `priority` is an error unless the server was started with `--scheduling-policy priority`; lower goes first
(vllm/v1/core/sched/request_queue.py). A LoRA adapter is a model of its own. The request id travels in
`x-request-id`, which vLLM puts into its own id and its logs.
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import GenerateRequest, HttpRequest, Priority
from backends.openai_dialect import openai_request

__all__ = ["encode", "priority"]


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    body = dict(parameters)
    if request.priority is not None:
        body["priority"] = priority(request.priority)
    return openai_request(request, body, {"x-request-id": request.request_id})


def priority(asked: Priority) -> int:
    """Interactive 0, standard 10,000, batch 20,000, and the client's own on top."""
    return (2 - asked.level) * 10_000 + asked.own
