"""The adapter for `engine: triton`."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

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
    RelayMode,
    SleepControl,
    Takes,
    Unsupported,
)
from backends.doors import NO_DOORS
from backends.fanning import first_part
from backends.triton import errors, llmapi, load, metadata, parameters, wire
from backends.triton.sleeping import TritonSleep

__all__ = ["TritonAdapter", "TritonOptions"]


class TritonOptions(msgspec.Struct, frozen=True):
    """How the models of a Triton are set up."""

    vocabulary: Literal["classic", "llmapi"] = "classic"
    """The names of the models' tensors: `ensemble` and `tensorrt_llm_bls` are classic, the PyTorch backend's
    `tensorrt_llm` is llmapi. `--upstream` finds it out; /v2/models/{m} tells it."""
    text_mode: Literal["delta", "cumulative", "auto"] | None = None
    """Whether a stream's events hold new text or all text so far, which nothing tells. None: cumulative with
    llmapi; else `delta` for a model named `ensemble`, `auto` for others."""
    add_special_tokens: bool = True
    """The parameter of the preprocessing model: whether it puts a BOS before the text."""
    guided_decoding: bool = False
    """Whether the model has the guided_decoding tensors and a backend for them. Where it has not, Triton
    ignores them in silence, so response_format is refused unless this is set."""
    attentive: bool = False
    """Whether the classic models look whether their request was cancelled. TensorRT-LLM's do not, as shipped
    (README.md, "Cancellation", has the lines to add): what is wasted is estimated by it."""
    metrics_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8002


class TritonAdapter:
    """Triton with TensorRT-LLM's models: text in, text out."""

    kind = "triton"
    doors = NO_DOORS
    applies_template = False
    relay: RelayMode = "translated"
    canonical = False
    takes_priority = False  # its queue knows priorities, the generate routes and these models do not
    cancels_first = False
    takes = Takes(prompts=1, choices=1)
    sleep: SleepControl | None = TritonSleep()

    def __init__(self, options: TritonOptions | None = None) -> None:
        self._options = options or TritonOptions()
        self._is_llmapi = self._options.vocabulary == "llmapi"
        self.reuses_prefixes = self._is_llmapi  # the classic models do with enable_kv_cache_reuse
        self.errors = errors.LLMAPI if self._is_llmapi else errors.CLASSIC
        self.adds_bos = self._options.add_special_tokens
        self.tables = (
            parameters.llmapi_tables()
            if self._is_llmapi
            else parameters.classic_tables(guided_decoding=self._options.guided_decoding)
        )
        self.load_port: int | None = self._options.metrics_port

    def lora_fault(self, lora: Lora) -> str | None:
        """A number for the classic models, which have its weights from their prefetch directory or an earlier
        request of somebody else's; for llmapi (newer) all three."""
        if lora.scale != 1.0:
            return "has no scale of its own in this engine"
        if self._is_llmapi:
            complete = lora.id is not None and lora.path is not None
            return None if complete else "needs an id and a path for this engine"
        if lora.path is not None:
            return "is loaded from the engine's lora_prefetch_dir: no path"
        return "needs an id for this engine" if lora.id is None else None

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return self.tables.of(request).unsupported(first_part(request, self.takes))

    def encode(self, request: GenerateRequest) -> HttpRequest:
        encode = llmapi.encode if self._is_llmapi else wire.encode
        return encode(request, self.tables.of(request).write(request))

    def decoder(self, request: GenerateRequest) -> Decoder:
        return wire.TritonDecoder(
            stops=request.stop,
            max_tokens=wire.max_tokens_sent(request),
            text_mode=self._text_mode(request.model),
        )

    def _text_mode(self, model: str) -> wire.TextMode:
        if self._options.text_mode is not None:
            return self._options.text_mode
        if self._is_llmapi:
            return "cumulative"
        return "delta" if model == "ensemble" else "auto"

    def health_request(self) -> HttpRequest:
        return get("/v2/health/ready")

    def read_health(self, status: int, body: bytes) -> Health:
        """200 once all models are ready (strict readiness, the default); 400 until then."""
        return Health(ready=status == 200, live=True)

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        """llmapi takes a cancel by id. The BLS model makes up its own inner ids: none reaches it."""
        return llmapi.cancel(request) if self._is_llmapi else None

    def lingers(self, request: GenerateRequest) -> float:
        """llmapi looks every 100 ms whether it was told (`cancellation_check_period_ms`). The classic models
        as shipped never look, so that they compute to the end; attentive ones are told by Triton, which
        notices a closed connection when it next writes to it: of a whole answer, at its end."""
        if self._is_llmapi:
            return 0.05
        return 0.0 if request.stream and self._options.attentive else math.inf

    def metadata_requests(self, model: str | None = None) -> Sequence[HttpRequest]:
        paths = () if model is None else metadata.model_paths(model)
        return [*metadata.server_requests(), *map(get, paths)]

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)

    def load_request(self) -> HttpRequest | None:
        return get("/metrics")

    def read_load(self, status: int, body: bytes) -> Load | None:
        return load.read_load(status, body)

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        """It has no route that counts."""
        return None

    def read_token_count(self, status: int, body: bytes) -> int | None:
        return None
