"""The adapter for `engine: sglang`."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backends.answers import get
from backends.contract import Answers, Decoder, GenerateRequest, HttpRequest, Load, Metadata, Unsupported
from backends.openai_adapter import OpenAiDialectAdapter, ask
from backends.openai_dialect import OpenAiDecoder, choices_asked
from backends.sglang import load, metadata, wire

__all__ = ["SglangAdapter", "SglangOptions"]


class SglangOptions(msgspec.Struct, frozen=True):
    """How the server was started."""

    low_priority_values_first: bool = False
    """Started with --schedule-low-priority-values-first."""


class SglangAdapter(OpenAiDialectAdapter):
    """SGLang's OpenAI server. Health is asked on the model list: its /health generates a token, queued behind
    the load, and takes a second or more."""

    kind = "sglang"
    metadata_paths = metadata.PATHS
    reuses_prefixes = True
    takes_priority = True

    def __init__(self, options: SglangOptions | None = None) -> None:
        self._options = options or SglangOptions()

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return wire.unsupported(request)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request, low_first=self._options.low_priority_values_first)

    def decoder(self, request: GenerateRequest) -> Decoder:
        return OpenAiDecoder(choices_asked(request), wire.classify)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)

    def load_request(self) -> HttpRequest | None:
        return get("/v1/loads")

    def read_load(self, status: int, body: bytes) -> Load | None:
        return load.read_load(status, body)

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        """Text only: it has no route that counts messages."""
        if text is None:
            return None
        return ask("/tokenize", {"model": model, "prompt": text, "add_special_tokens": True})
