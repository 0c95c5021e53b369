"""trtllm-serve on the wire: what its errors mean. Which keys it takes: `parameters.py`.

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

from backends.contract import ErrorKind, GenerateRequest, HttpRequest, Lora, Priority
from backends.decoding import EngineWords, kind_of_status, says_too_long
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request

__all__ = ["classify", "decoder", "encode", "lora_fault", "priority"]


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
