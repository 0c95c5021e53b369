"""The adapter for `engine: openai`."""

from backends.contract import (
    Decoder,
    GenerateRequest,
    Health,
    HttpRequest,
    RelayMode,
    Unsupported,
)
from backends.openai import wire
from backends.options import NoOptions

__all__ = ["OpenAiAdapter"]


class OpenAiAdapter:
    """An engine whose shapes are OpenAI's."""

    kind = "openai"
    applies_template = True
    adds_bos = True
    relay: RelayMode = "patched"
    canonical = True

    def __init__(self, options: NoOptions | None = None) -> None:
        pass

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        """Nothing is known of the engine behind: it says so itself."""
        return None

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request)

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.decoder(request)

    def health_request(self) -> HttpRequest:
        """The model list: /health is not OpenAI's, and SGLang's generates a token."""
        return HttpRequest("GET", "/v1/models")

    def read_health(self, status: int, body: bytes) -> Health:
        """While it loads, llama.cpp answers 503 on every route: alive, not ready."""
        return Health(ready=status == 200, live=True)
