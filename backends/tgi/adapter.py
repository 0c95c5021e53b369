"""The adapter for `engine: tgi`."""

from typing import Annotated

import msgspec

from backends.contract import (
    Decoder,
    GenerateRequest,
    Health,
    HttpRequest,
    RelayMode,
    Unsupported,
)
from backends.tgi import wire

__all__ = ["TgiAdapter", "TgiOptions"]


class TgiOptions(msgspec.Struct, frozen=True):
    """Launch flags that limit what a client may ask; the defaults are TGI's."""

    max_stop_sequences: Annotated[int, msgspec.Meta(ge=0)] = 4


class TgiAdapter:
    """TGI's native routes: text in, text out."""

    kind = "tgi"
    applies_template = False
    adds_bos = True
    relay: RelayMode = "translated"
    canonical = False

    def __init__(self, options: TgiOptions | None = None) -> None:
        self._options = options or TgiOptions()

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return wire.unsupported(request, max_stop_sequences=self._options.max_stop_sequences)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request)

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.TgiDecoder(stops=request.stop)

    def health_request(self) -> HttpRequest:
        return HttpRequest("GET", "/health")

    def read_health(self, status: int, body: bytes) -> Health:
        """A 503 passes: after a failed generation the next probe tries one on the shards."""
        return Health(ready=status == 200, live=True)
