"""What the adapters of OpenAI-dialect engines have in common.

Each engine's adapter says on top of it what it takes, how it fails, and how it tells of itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from backends.answers import MODEL_LIST, as_count, get, items_of, json_body
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
from backends.doors import ALL_DOORS, NativeDoors
from backends.error_table import ErrorTable
from backends.fanning import first_part
from backends.mapping import Tables
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request
from backends.openai_errors import OPENAI

__all__ = ["OpenAiDialectAdapter", "ask", "named_only"]


def ask(path: str, body: Mapping[str, Any]) -> HttpRequest:
    """A question with a JSON body."""
    return HttpRequest("POST", path, {"content-type": "application/json"}, msgspec.json.encode(body))


def named_only(lora: Lora) -> str | None:
    """The fault of an adapter's description for engines that know adapters by name and nothing else."""
    if lora.id is not None or lora.path is not None:
        return "is known to this engine by its name alone: no id, no path"
    return None if lora.scale == 1.0 else "has no scale of its own in this engine"


class OpenAiDialectAdapter:
    """An engine of OpenAI's dialect. What it takes, its `tables` say; how it fails, its `errors`."""

    kind = "openai"
    applies_template = True
    adds_bos = True
    relay: RelayMode = "patched"
    canonical = False  # until the conformance run says so
    reuses_prefixes = False  # nobody knows
    takes_priority = False
    load_port: int | None = None
    sleep: SleepControl | None = None
    takes = Takes()
    doors = NativeDoors(("embeddings", "responses"), OPENAI, adapted=ALL_DOORS)
    cancels_first = False
    metadata_paths: ClassVar[tuple[str, ...]] = (MODEL_LIST,)
    tables: Tables
    errors: ErrorTable = OPENAI

    def lora_fault(self, lora: Lora) -> str | None:
        """Adapters are asked for as models, by name: vLLM's way, and all that OpenAI's dialect leaves."""
        return named_only(lora)

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return self.tables.of(request).unsupported(first_part(request, self.takes))

    def encode(self, request: GenerateRequest) -> HttpRequest:
        parameters = self.tables.of(request).write(request)
        return openai_request(request, parameters, {"x-request-id": request.request_id})

    def decoder(self, request: GenerateRequest) -> Decoder:
        return OpenAiDecoder(choices_asked(request), self.errors)

    def health_request(self) -> HttpRequest:
        return get(MODEL_LIST)

    def read_health(self, status: int, body: bytes) -> Health:
        return Health(ready=status == 200, live=True)

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        """Dropping the connection is enough, or all there is."""
        return None

    def lingers(self, request: GenerateRequest) -> float:
        """It stops within a step or two."""
        return 0.0

    def metadata_requests(self, model: str | None = None) -> Sequence[HttpRequest]:
        return [get(path) for path in self.metadata_paths]

    def read_metadata(self, answers: Answers) -> Metadata:
        raise NotImplementedError

    def load_request(self) -> HttpRequest | None:
        return None

    def read_load(self, status: int, body: bytes) -> Load | None:
        return None

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        return None

    def read_token_count(self, status: int, body: bytes) -> int | None:
        """`count`, or the length of `tokens`: what all engines that tokenise answer in some way."""
        answer = items_of(json_body(status, body))
        if (count := as_count(answer.get("count"))) is not None:
            return count
        tokens = answer.get("tokens")
        return len(tokens) if isinstance(tokens, list) else None
