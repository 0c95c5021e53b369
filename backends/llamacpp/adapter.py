"""The adapter for `engine: llamacpp`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backends.answers import as_count, get, items_of, json_body
from backends.contract import (
    Answers,
    Decoder,
    GenerateRequest,
    Health,
    HttpRequest,
    Load,
    Lora,
    Metadata,
    Takes,
)
from backends.doors import NativeDoors
from backends.llamacpp import errors, load, metadata, parameters, wire
from backends.openai_adapter import OpenAiDialectAdapter, ask

__all__ = ["LlamacppAdapter", "LlamacppOptions"]


class LlamacppOptions(msgspec.Struct, frozen=True):
    """How the server was started, and how it should sample."""

    metrics: bool = False
    """Started with --metrics, which tell the queue as well; else its slots are asked."""
    neutral_sampling: bool = False
    """Send OpenAI's defaults where the client names none, instead of leaving llama.cpp its own."""


class LlamacppAdapter(OpenAiDialectAdapter):
    """llama.cpp's server. Notices a gone client when it next writes to its stream, else hardly."""

    kind = "llamacpp"
    doors = NativeDoors(
        ("embeddings", "responses", "messages", "rerank"),
        errors.TABLE,
        adapted=("responses",),  # the only body that it reads with the chats' own fields
        asks_for=wire.asked_adapter,
    )
    takes = Takes(prompts=1, choices=1)
    """Builds before December 2025 refuse n, and answer a list of prompts with a list of answers."""
    reuses_prefixes = True  # by slot: a request gets the slot that begins most alike
    metadata_paths = metadata.PATHS
    errors = errors.TABLE

    def __init__(self, options: LlamacppOptions | None = None) -> None:
        self._options = options or LlamacppOptions()
        self.tables = parameters.tables(neutral_sampling=self._options.neutral_sampling)

    def lora_fault(self, lora: Lora) -> str | None:
        return wire.lora_fault(lora)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request, self.tables.of(request).write(request))

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.decoder(request)

    def lingers(self, request: GenerateRequest) -> float:
        """A whole answer's client is looked for after a second without a result for anybody
        (server_response::recv_with_timeout): while others stream, that is never."""
        return 0.0 if request.stream else math.inf

    def health_request(self) -> HttpRequest:
        return get("/health")

    def read_health(self, status: int, body: bytes) -> Health:
        """While it loads it answers 503 on every route: alive, not ready."""
        return Health(ready=status == 200, live=True)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)

    def load_request(self) -> HttpRequest | None:
        return get("/metrics" if self._options.metrics else "/slots")

    def read_load(self, status: int, body: bytes) -> Load | None:
        return load.read_load(status, body)

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        if messages is not None:
            return ask("/v1/chat/completions/input_tokens", {"model": model, "messages": messages})
        return ask("/tokenize", {"content": text or "", "add_special": True, "parse_special": True})

    def read_token_count(self, status: int, body: bytes) -> int | None:
        """`tokens` of a text, `input_tokens` of messages."""
        counted = as_count(items_of(json_body(status, body)).get("input_tokens"))
        return super().read_token_count(status, body) if counted is None else counted
