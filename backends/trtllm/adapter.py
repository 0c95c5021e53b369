"""The adapter for `engine: trtllm`."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backends.answers import get
from backends.contract import (
    Answers,
    Decoder,
    GenerateRequest,
    Health,
    HttpRequest,
    Load,
    Lora,
    Metadata,
)
from backends.doors import NativeDoors
from backends.openai_adapter import OpenAiDialectAdapter, ask
from backends.trtllm import errors, load, metadata, parameters, wire

__all__ = ["TrtllmAdapter", "TrtllmOptions"]


class TrtllmOptions(msgspec.Struct, frozen=True):
    """How the server was started."""

    prometheus: bool = False
    """Started with `return_perf_metrics`: load is asked on /prometheus/metrics, whose reading drains
    nothing."""


class TrtllmAdapter(OpenAiDialectAdapter):
    """`trtllm-serve`: OpenAI's shapes with a closed list of keys."""

    kind = "trtllm"
    doors = NativeDoors(("responses",), errors.TABLE)
    canonical = False  # chunk ids change in a stream, and finish reasons may be its own words
    reuses_prefixes = True
    takes_priority = True
    metadata_paths = metadata.PATHS
    tables = parameters.TABLES
    errors = errors.TABLE

    def __init__(self, options: TrtllmOptions | None = None) -> None:
        self._options = options or TrtllmOptions()

    def lora_fault(self, lora: Lora) -> str | None:
        return wire.lora_fault(lora)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request, self.tables.of(request).write(request))

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.decoder(request)

    def lingers(self, request: GenerateRequest) -> float:
        """It looks once a second whether its client is there (tensorrt_llm/serve/openai_server.py)."""
        return 0.5

    def health_request(self) -> HttpRequest:
        """/health, which unlike /health_generate does not queue behind the load."""
        return get("/health")

    def read_health(self, status: int, body: bytes) -> Health:
        """It listens only once the engine is loaded: a 503 is an executor that is dead or shutting down."""
        return Health(ready=status == 200, live=status != 503)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)

    def load_request(self) -> HttpRequest | None:
        return get("/prometheus/metrics" if self._options.prometheus else "/metrics")

    def read_load(self, status: int, body: bytes) -> Load | None:
        return load.read_load(status, body)

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        """Text only, and only newer builds answer."""
        return None if text is None else ask("/_internal/tokenize", {"prompt": text})
