"""A generic OpenAI-dialect engine on the wire: everything is forwarded, and errors come in OpenAI's shape.

The request id travels in `x-request-id`, which vLLM puts into its own id and its logs and others ignore.
"""

from backends.contract import GenerateRequest, HttpRequest
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request

__all__ = ["decoder", "encode"]


def encode(request: GenerateRequest) -> HttpRequest:
    return openai_request(request, request.parameters, {"x-request-id": request.request_id})


def decoder(request: GenerateRequest) -> OpenAiDecoder:
    return OpenAiDecoder(choices_asked(request))
