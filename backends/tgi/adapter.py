"""The adapter for `engine: tgi`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from backends.answers import get, items_of, json_body
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
from backends.openai_adapter import ask, named_only
from backends.tgi import errors, load, messages, metadata, parameters, wire

__all__ = ["TgiAdapter", "TgiOptions"]


class TgiOptions(msgspec.Struct, frozen=True):
    """Which of its interfaces to use, and launch flags that limit what a client may ask (TGI's defaults)."""

    api: Literal["native", "messages"] = "native"
    """`native`: text in, text out; the gateway renders the chat template. `messages`: TGI's OpenAI routes,
    where TGI renders it; with tools and log probabilities, and with less exact errors."""
    max_stop_sequences: Annotated[int, msgspec.Meta(ge=0)] = 4
    max_client_batch_size: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Prompts in one call; the native routes take one."""


class _Token(msgspec.Struct):
    """What is said of a token is not read: that takes five times as long."""


class _Chat(msgspec.Struct):
    tokenize_response: list[_Token]


_TOKENS = msgspec.json.Decoder(list[_Token] | _Chat)


class TgiAdapter:
    """Text Generation Inference. Notices a closed connection at the next token."""

    kind = "tgi"
    doors = NO_DOORS
    adds_bos = True
    canonical = False
    reuses_prefixes = True  # since 3.0
    takes_priority = False
    cancels_first = False
    load_port: int | None = None
    sleep: SleepControl | None = None

    def __init__(self, options: TgiOptions | None = None) -> None:
        self._options = options or TgiOptions()
        self._is_native = self._options.api == "native"
        self.applies_template = not self._is_native
        self.takes = Takes(1 if self._is_native else self._options.max_client_batch_size, choices=1)
        self.relay: RelayMode = "translated" if self._is_native else "patched"
        tables = parameters.native_tables if self._is_native else parameters.messages_tables
        self.errors = errors.NATIVE if self._is_native else errors.MESSAGES
        self.tables = tables(max_stop_sequences=self._options.max_stop_sequences)

    def lora_fault(self, lora: Lora) -> str | None:
        """Named in `adapter_id`, or as the model of its Messages API. An unknown name is the base model, and
        nothing says so."""
        return named_only(lora)

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        return self.tables.of(request).unsupported(first_part(request, self.takes))

    def encode(self, request: GenerateRequest) -> HttpRequest:
        encode = wire.encode if self._is_native else messages.encode
        return encode(request, self.tables.of(request).write(request))

    def decoder(self, request: GenerateRequest) -> Decoder:
        if self._is_native:
            return wire.TgiDecoder(stops=request.stop)
        return messages.decoder(request)

    def health_request(self) -> HttpRequest:
        return get("/health")

    def read_health(self, status: int, body: bytes) -> Health:
        """A 503 passes: after a failed generation the next probe tries one on the shards."""
        return Health(ready=status == 200, live=True)

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        return None

    def lingers(self, request: GenerateRequest) -> float:
        """It drops a request when it has the next token for it."""
        return 0.0

    def metadata_requests(self, model: str | None = None) -> Sequence[HttpRequest]:
        return [get(path) for path in metadata.PATHS]

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)

    def load_request(self) -> HttpRequest | None:
        return get("/metrics")

    def read_load(self, status: int, body: bytes) -> Load | None:
        return load.read_load(status, body)

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        """`/chat_tokenize` renders the template and counts; it is not on the list of every build."""
        if messages is not None:
            return ask("/chat_tokenize", {"model": model, "messages": messages})
        return ask("/tokenize", {"inputs": text or ""})

    def read_token_count(self, status: int, body: bytes) -> int | None:
        """A list of tokens; of messages, inside `tokenize_response`."""
        if 200 <= status < 300:
            try:
                told = _TOKENS.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass  # the rare case pays for a second try
            else:
                return len(told if isinstance(told, list) else told.tokenize_response)
        answer = json_body(status, body)
        tokens = items_of(answer).get("tokenize_response", answer)
        return len(tokens) if isinstance(tokens, list) else None
