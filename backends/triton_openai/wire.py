"""Triton's OpenAI frontend on the wire: OpenAI's shapes, FastAPI's `{"detail": ...}` for errors.

It refuses much that is good OpenAI, so that is refused here first: `parameters.py`. Without `max_tokens` it
stops after 16 tokens, chat too: a bound is always sent. Its reason to end is `stop` even where the length
was.
"""

import re
from collections.abc import Mapping
from typing import Any

from backends.contract import ErrorKind, GenerateRequest, HttpRequest
from backends.decoding import EngineWords, says_too_long
from backends.openai_dialect import classify as classify_openai
from backends.openai_dialect import openai_request

__all__ = ["DEFAULT_MAX_TOKENS", "classify", "encode"]

DEFAULT_MAX_TOKENS = 1024
"""Sent where nobody names a bound."""

_NOT_SUPPORTED = re.compile(
    r"currently supported|not (?:currently )?supported|only supports?|unsupported", re.IGNORECASE
)
_NOT_FOUND = re.compile(r"unknown model|model .{0,200}not found", re.IGNORECASE)


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    body = {"max_tokens": DEFAULT_MAX_TOKENS, **parameters}
    return openai_request(request, body, {"x-request-id": request.request_id})


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
