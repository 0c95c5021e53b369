"""The adapter for `engine: triton-openai`."""

from backends.answers import get
from backends.contract import Answers, Decoder, GenerateRequest, Health, HttpRequest, Metadata, Unsupported
from backends.openai_adapter import OpenAiDialectAdapter
from backends.openai_cutting import CuttingDecoder
from backends.openai_dialect import choices_asked
from backends.options import NoOptions
from backends.triton_openai import metadata, wire

__all__ = ["TritonOpenAiAdapter"]


class TritonOpenAiAdapter(OpenAiDialectAdapter):
    """Triton's OpenAI frontend."""

    kind = "triton-openai"
    metadata_paths = metadata.PATHS

    def __init__(self, options: NoOptions | None = None) -> None:
        pass

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return wire.unsupported(request)

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return wire.encode(request)

    def decoder(self, request: GenerateRequest) -> Decoder:
        return CuttingDecoder(choices_asked(request), wire.classify, request.stop)

    def health_request(self) -> HttpRequest:
        return get("/health/ready")

    def read_health(self, status: int, body: bytes) -> Health:
        """200, or 400 until its models are ready."""
        return Health(ready=status == 200, live=True)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)
