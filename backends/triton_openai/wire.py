"""Triton's OpenAI frontend on the wire: OpenAI's shapes; its errors: `errors.py`.

It refuses much that is good OpenAI, so that is refused here first: `parameters.py`. Without `max_tokens` it
stops after 16 tokens, chat too: a bound is always sent. Its reason to end is `stop` even where the length
was: in streams that can be known better, for no piece of text is less than a token.
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import Delta, GenerateRequest, HttpRequest
from backends.decoding import Classify
from backends.openai_cutting import CuttingDecoder
from backends.openai_dialect import choices_asked, openai_request

__all__ = ["DEFAULT_MAX_TOKENS", "FrontendDecoder", "encode"]

DEFAULT_MAX_TOKENS = 1024
"""Sent where nobody names a bound."""


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    body = {"max_tokens": DEFAULT_MAX_TOKENS, **parameters}
    return openai_request(request, body, {"x-request-id": request.request_id})


class FrontendDecoder(CuttingDecoder):
    """Its answers. One call has one choice."""

    def __init__(self, request: GenerateRequest, classify: Classify) -> None:
        super().__init__(choices_asked(request), classify, request.stop)
        self._max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        self._pieces = 0

    def delta_of(self, choice: Any, position: int, *, streamed: bool) -> Delta | None:
        delta = super().delta_of(choice, position, streamed=streamed)
        if delta is not None and streamed:
            self._pieces += bool(delta.text)
            if delta.finish_reason == "stop" and self._pieces >= self._max_tokens:
                delta.finish_reason = "length"
        return delta
