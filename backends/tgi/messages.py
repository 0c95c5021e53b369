"""TGI's Messages API (its OpenAI routes) on the wire: `options: {api: messages}`.

TGI applies the chat template here. Its schema is OpenAI's by name only: `parameters.py`. The stop string
stays in the text, and text may run past it: cut here, choice by choice.
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import GenerateRequest, HttpRequest
from backends.openai_cutting import CuttingDecoder
from backends.openai_dialect import choices_asked, openai_request
from backends.tgi import errors

__all__ = ["decoder", "encode"]


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    return openai_request(request, parameters)


def decoder(request: GenerateRequest) -> CuttingDecoder:
    return CuttingDecoder(choices_asked(request), errors.MESSAGES, request.stop)
