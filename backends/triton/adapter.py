"""The adapter for `engine: triton`."""

from typing import Literal

import msgspec

from backends.contract import (
    Decoder,
    GenerateRequest,
    Health,
    HttpRequest,
    RelayMode,
    Unsupported,
)
from backends.triton import wire

__all__ = ["TritonAdapter", "TritonOptions"]


class TritonOptions(msgspec.Struct, frozen=True):
    """How the models of a Triton are set up, which its HTTP interface does not tell."""

    text_mode: Literal["delta", "cumulative", "auto"] | None = None
    """Whether a stream's events hold new text or all text so far. None: `delta` for a model named `ensemble`,
    `auto` for others."""
    add_special_tokens: bool = True
    """The parameter of the preprocessing model: whether it puts a BOS before the text."""
    guided_decoding: bool = False
    """Whether the model has the guided_decoding tensors and a backend for them. Where it has not, Triton
    ignores them in silence, so response_format is refused unless this is set."""


class TritonAdapter:
    """Triton with TensorRT-LLM's classic models: text in, text out."""

    kind = "triton"
    applies_template = False
    relay: RelayMode = "translated"
    canonical = False

    def __init__(self, options: TritonOptions | None = None) -> None:
        self._options = options or TritonOptions()
        self.adds_bos = self._options.add_special_tokens

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return wire.unsupported(request, guided_decoding=self._options.guided_decoding)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request, guided_decoding=self._options.guided_decoding)

    def decoder(self, request: GenerateRequest) -> Decoder:
        text_mode = self._options.text_mode or ("delta" if request.model == "ensemble" else "auto")
        return wire.TritonDecoder(
            stops=request.stop, max_tokens=wire.max_tokens_sent(request), text_mode=text_mode
        )

    def health_request(self) -> HttpRequest:
        return HttpRequest("GET", "/v2/health/ready")

    def read_health(self, status: int, body: bytes) -> Health:
        """200 once all models are ready (strict readiness, the default); 400 until then."""
        return Health(ready=status == 200, live=True)
