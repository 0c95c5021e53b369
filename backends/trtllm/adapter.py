"""The adapter for `engine: trtllm`."""

from backends.contract import (
    Decoder,
    GenerateRequest,
    Health,
    HttpRequest,
    RelayMode,
    Unsupported,
)
from backends.options import NoOptions
from backends.trtllm import wire

__all__ = ["TrtllmAdapter"]


class TrtllmAdapter:
    """`trtllm-serve`: OpenAI's shapes with a closed list of keys."""

    kind = "trtllm"
    applies_template = True
    adds_bos = True
    relay: RelayMode = "patched"
    canonical = False  # chunk ids change in a stream, and finish reasons may be its own words

    def __init__(self, options: NoOptions | None = None) -> None:
        pass

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return wire.unsupported(request)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request)

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.decoder(request)

    def health_request(self) -> HttpRequest:
        """/health, which unlike /health_generate does not queue behind the load."""
        return HttpRequest("GET", "/health")

    def read_health(self, status: int, body: bytes) -> Health:
        """It listens only once the engine is loaded: a 503 is an executor that is dead or shutting down."""
        return Health(ready=status == 200, live=status != 503)
