"""The adapter for `engine: vllm`."""

from collections.abc import Mapping, Sequence
from typing import Any

from backends.answers import get
from backends.contract import (
    Answers,
    GenerateRequest,
    Health,
    HttpRequest,
    Load,
    Metadata,
    SleepControl,
)
from backends.doors import ALL_DOORS, NativeDoors
from backends.openai_adapter import OpenAiDialectAdapter, ask
from backends.options import NoOptions
from backends.vllm import errors, load, metadata, parameters, wire
from backends.vllm.sleeping import VllmSleep

__all__ = ["VllmAdapter"]


class VllmAdapter(OpenAiDialectAdapter):
    """vLLM's OpenAI server. Notices a closed connection at once."""

    kind = "vllm"
    doors = NativeDoors(ALL_DOORS, errors.TABLE, adapted=ALL_DOORS)
    sleep: SleepControl | None = VllmSleep()
    metadata_paths = metadata.PATHS
    reuses_prefixes = True
    takes_priority = True
    tables = parameters.TABLES
    errors = errors.TABLE

    def __init__(self, options: NoOptions | None = None) -> None:
        pass

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request, self.tables.of(request).write(request))

    def health_request(self) -> HttpRequest:
        return get("/health")

    def read_health(self, status: int, body: bytes) -> Health:
        """A 503 is an engine core that died (vllm/entrypoints/serve/instrumentator/health.py)."""
        return Health(ready=status == 200, live=status != 503)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)

    def load_request(self) -> HttpRequest | None:
        return get("/metrics")

    def read_load(self, status: int, body: bytes) -> Load | None:
        return load.read_load(status, body)

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        if messages is not None:
            return ask("/tokenize", {"model": model, "messages": messages, "add_generation_prompt": True})
        return ask("/tokenize", {"model": model, "prompt": text or "", "add_special_tokens": True})
