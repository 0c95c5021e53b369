"""The adapter for `engine: triton-openai`."""

import msgspec

from backends.answers import get
from backends.contract import Answers, Decoder, GenerateRequest, Health, HttpRequest, Metadata, Takes
from backends.doors import NativeDoors
from backends.openai_adapter import OpenAiDialectAdapter
from backends.triton_openai import errors, metadata, parameters, wire

__all__ = ["TritonOpenAiAdapter", "TritonOpenAiOptions"]


class TritonOpenAiOptions(msgspec.Struct, frozen=True):
    """How the frontend was started."""

    tool_calling: bool = False
    """Started with --tool-call-parser; without it requests with tools are refused."""


class TritonOpenAiAdapter(OpenAiDialectAdapter):
    """Triton's OpenAI frontend."""

    kind = "triton-openai"
    doors = NativeDoors(("embeddings",), errors.TABLE)
    takes = Takes(prompts=1, choices=1)
    metadata_paths = metadata.PATHS
    errors = errors.TABLE

    def __init__(self, options: TritonOpenAiOptions | None = None) -> None:
        self.tables = parameters.tables(tool_calling=(options or TritonOpenAiOptions()).tool_calling)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request, self.tables.of(request).write(request))

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.FrontendDecoder(request, self.errors)

    def health_request(self) -> HttpRequest:
        return get("/health/ready")

    def read_health(self, status: int, body: bytes) -> Health:
        """200, or 400 until its models are ready."""
        return Health(ready=status == 200, live=True)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)
