"""Triton's OpenAI frontend on the wire: OpenAI's shapes, FastAPI's `{"detail": ...}` for errors.

It refuses much that is good OpenAI, with a 400 in words (python/openai/openai_frontend/engine/
triton_engine.py, `_validate_chat_request`), so that is refused here first. Without `max_tokens` it stops
after 16 tokens, chat too: a bound is always sent. Its reason to end is `stop` even where the length was.
"""

import re

from backends.contract import ErrorKind, GenerateRequest, HttpRequest, Unsupported
from backends.decoding import EngineWords, says_too_long
from backends.openai_dialect import classify as classify_openai
from backends.openai_dialect import openai_request, without

__all__ = ["DEFAULT_MAX_TOKENS", "classify", "encode", "unsupported"]

DEFAULT_MAX_TOKENS = 1024
"""Sent where nobody names a bound."""

_NOT_FORWARDED = frozenset({"priority"})
_NOT_SUPPORTED = re.compile(
    r"currently supported|not (?:currently )?supported|only supports?|unsupported", re.IGNORECASE
)
_NOT_FOUND = re.compile(r"unknown model|model .{0,200}not found", re.IGNORECASE)


def unsupported(request: GenerateRequest) -> Unsupported | None:
    parameters = request.parameters
    if request.n != 1:
        return Unsupported("n", "This engine gives one choice for each request.")
    if isinstance(request.prompt, list) and not (
        len(request.prompt) == 1 and isinstance(request.prompt[0], str)
    ):
        return Unsupported("prompt", "This engine takes one prompt, as text.")
    for field in ("logit_bias", "logprobs", "top_logprobs", "suffix"):
        if parameters.get(field):
            return Unsupported(field, f"This engine does not take {field}.")
    response_format = parameters.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") != "text":
        return Unsupported("response_format", "This engine cannot constrain its output in this way.")
    return None


def encode(request: GenerateRequest) -> HttpRequest:
    parameters = without(request.parameters, _NOT_FORWARDED)
    if request.max_tokens is None:
        parameters["max_tokens"] = DEFAULT_MAX_TOKENS
    return openai_request(request, parameters, {"x-request-id": request.request_id})


def classify(status: int | None, words: EngineWords) -> ErrorKind:
    """Its error table: whatever the backend raises is a 400 or a 500 with `detail`."""
    if not says_too_long(words):
        if _NOT_FOUND.search(words.message):
            return ErrorKind.NOT_FOUND
        if status == 400 and _NOT_SUPPORTED.search(words.message):
            return ErrorKind.UNSUPPORTED
        if "Exceeds maximum queue size" in words.message:
            return ErrorKind.OVERLOADED
    return classify_openai(status, words)
