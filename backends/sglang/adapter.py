"""The adapter for `engine: sglang`."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backends.answers import get
from backends.contract import Answers, GenerateRequest, HttpRequest, Load, Metadata
from backends.doors import ALL_DOORS, NativeDoors
from backends.openai_adapter import OpenAiDialectAdapter, ask
from backends.sglang import errors, load, metadata, parameters, wire

__all__ = ["SglangAdapter", "SglangOptions"]


class SglangOptions(msgspec.Struct, frozen=True):
    """How the server was started."""

    low_priority_values_first: bool = False
    """Started with --schedule-low-priority-values-first."""


class SglangAdapter(OpenAiDialectAdapter):
    """SGLang's OpenAI server. Health is asked on the model list: its /health generates a token, queued behind
    the load, and takes a second or more."""

    kind = "sglang"
    doors = NativeDoors(
        ALL_DOORS,
        errors.TABLE,
        paths={"score": "/v1/score"},
        adapted=("embeddings", "messages"),
        asks_for=wire.adapter_in_name,
    )
    cancels_first = True
    metadata_paths = metadata.PATHS
    reuses_prefixes = True
    takes_priority = True
    tables = parameters.TABLES
    errors = errors.TABLE

    def __init__(self, options: SglangOptions | None = None) -> None:
        self._options = options or SglangOptions()

    def encode(self, request: GenerateRequest) -> HttpRequest:
        written = self.tables.of(request).write(request)
        return wire.encode(request, written, low_first=self._options.low_priority_values_first)

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        """By its `rid`, as long as SGLang knows it: a closed stream is forgotten at once, and releases up to
        0.5.19 then drop their own abort, two seconds later, and compute it to its end (sglang#35255). Of
        several prompts or choices each gets an id that nobody else knows, and bodies that are passed on name
        none: those are closed only."""
        return None if request.native is not None else wire.cancel(request)

    def lingers(self, request: GenerateRequest) -> float:
        """What cannot be told by id: a stream is noticed two seconds after its close, others by polling every
        four (python/sglang/srt/managers/tokenizer_manager.py)."""
        return 0.0 if self.cancel_request(request) is not None else 2.0

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
