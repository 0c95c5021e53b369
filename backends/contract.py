"""What an engine is to the gateway: requests, events, errors and the seams between them.

The gateway imports this module and nothing else of `backends` (its composition root also imports
`backends.registry`). Nothing here knows a wire format, and nothing here knows a tenant.

A request to an engine passes three seams, each with one job:

    EngineAdapter   pure      GenerateRequest -> HttpRequest;  response bytes -> Event
    Transport       I/O       HttpRequest -> Exchange (status, headers, body bytes); bytes only, never lines
    Engine          both      one replica: `generate(request)` -> Generation, a stream of Event batches

The errors of this package:

    EngineError                 what an engine's answer, or its silence, means to the caller
      .kind: ErrorKind          whose fault it is, in eight words
      .reached                  False: nothing was sent; the replica could not even be connected to
    TransportError              how a connection failed; `Engine` turns it into an EngineError
      ConnectFailed             refused, unresolvable, TLS failed, or no connection in time; nothing was sent
      ConnectionBroken          closed or reset before the clean end of the body
      ResponseInvalid           not HTTP, conflicting framing, headers over the limit, an encoded body
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

import msgspec

__all__ = [
    "Answer", "Answers", "ConnectFailed", "ConnectionBroken", "Decoder", "Delta", "Done", "Door", "Doors",
    "Endpoint", "Engine", "EngineAdapter", "EngineError", "EngineLimits", "EngineRegistry", "ErrorKind",
    "Event", "Exchange", "Failure", "FinishReason", "GenerateRequest", "Generation", "Health",
    "HttpRequest", "Identified", "Load", "Lora", "Metadata", "NativeRequest", "OptionError", "Priority",
    "Prompt", "RelayMode", "ResponseInvalid", "SleepControl", "Takes", "Transport", "TransportError",
    "Unsupported", "Usage", "Vocabulary",
]  # fmt: skip

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
"""The four reasons an OpenAI client knows. Engines' own words are mapped by their `wire.py`."""

RelayMode = Literal["raw", "patched", "translated"]
"""How events reach the client: bytes untouched; OpenAI shape with our id, model and finish_reason;
or built anew from another dialect."""

Door = Literal["chat", "completions", "embeddings", "responses", "messages", "rerank", "score"]
"""A public API. `chat` and `completions` are translated for every engine; the others are for engines that
serve them natively: OpenAI's embeddings and responses, Anthropic's messages, vLLM's reranking and scoring."""

Prompt = str | list[str] | list[int] | list[list[int]]
"""The four forms of OpenAI's `prompt`: text, texts, token ids, lists of token ids."""


# ------------------------------------------------------------------------------------------- requests


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter over the model that a request names. What of it an engine needs, `lora_fault` says."""

    name: str
    """As the engine, or those who keep it, call the adapter."""
    id: int | None = None
    """Its number, where the engine knows adapters by numbers."""
    path: str | None = None
    """Where the engine finds its weights, on the engine's own disk."""
    scale: float = 1.0


class Priority(msgspec.Struct, frozen=True, kw_only=True):
    """How urgent a request is, for engines that order their own queue. Each has its own scale."""

    level: Literal[0, 1, 2]
    """2 is the most urgent: the gateway's class."""
    own: int = 0
    """-1000 to 1000: the client's `priority`, in the engine's own direction, within its level."""


class NativeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client sent to a door that engines serve natively: passed on as it came, with another model name
    and bound."""

    door: Door
    body: bytes
    """A JSON object."""
    model: str = ""
    """What the client calls the model: the name that the answer is to bear."""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Those of the client that its engine must see, names in lower case."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation, free of any engine's dialect. The gateway has already bounded and named everything.

    Exactly one of `messages` (chat) and `prompt` (completions) is set.
    """

    request_id: str
    """Ours, unique; engines that take an id get this one. `[A-Za-z0-9._-]`, at most 128 characters."""
    model: str
    """The name that this engine wants (the right side of `serves`)."""
    stream: bool
    """Whether the engine is asked to stream; not necessarily what the client asked."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """OpenAI chat messages as the client wrote them; content is a string, a list of parts, or null."""
    prompt: Prompt | None = None
    rendered: str | None = None
    """`messages` through the model's chat template, control tokens in user text neutralised, without a
    leading BOS where the engine adds its own. Set only for adapters with `applies_template` False."""
    traceparent: str | None = None
    """W3C trace context, passed on as a header."""
    max_tokens: int | None = None
    """Output tokens per choice; None only where the model declares no bound at all."""
    n: int = 1
    stop: tuple[str, ...] = ()
    lora: Lora | None = None
    """The adapter to use over `model`; `lora_fault` of it is None."""
    priority: Priority | None = None
    """Told to the engine; only for adapters with `takes_priority`."""
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Every other field of the client's body, by its OpenAI name, values as sent and already type-checked
    where OpenAI defines a type (`temperature`, `top_p`, `seed`, `logprobs`, `tools`, ...). Unknown fields
    are kept here too; an adapter forwards, converts or drops them. `model`, `messages`, `prompt`,
    `stream`, `stream_options`, `max_tokens`, `max_completion_tokens`, `n`, `stop`, `priority` are never
    in it."""
    native: NativeRequest | None = None
    """Set for all doors but chat and completions: what is sent. `messages` and `prompt` then hold its texts,
    to be counted and looked at, and are not."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as bytes, relative to a replica's base URL. `path` begins with a slash."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Takes:
    """What one call may ask for, None being any number. A request that asks for more is sent in several."""

    prompts: int | None = None
    choices: int | None = None
    """For each prompt: n."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why an engine cannot serve a request that is good OpenAI: the field at fault and a sentence."""

    param: str
    message: str


# ---------------------------------------------------------------------------- what engines tell of themselves


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer to a question that generates nothing."""

    status: int
    body: bytes = b""


Answers = Mapping[str, Answer]
"""Answers by the path of their question. A question that got none is absent."""

Vocabulary = Literal["classic", "llmapi", "other"]
"""The tensor names of a Triton model: TensorRT-LLM's two, or something else."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine says of its limits. None is untold: nothing is ever guessed."""

    context_tokens: int | None = None
    """The served context: prompt and output together."""
    prompt_tokens: int | None = None
    in_flight: int | None = None
    """Requests that it holds at a time, running or waiting; those above are refused, or wait unseen."""
    stop_sequences: int | None = None
    train_context_tokens: int | None = None
    """What the model was trained for: an upper bound of `context_tokens`, and not a limit served."""
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What an engine says of itself and its models. None is untold."""

    models: tuple[str, ...] | None = None
    """Names that it answers to, as it wants them."""
    ready: Mapping[str, bool] | None = None
    """By model, where it tells models apart."""
    limits: EngineLimits = EngineLimits()
    """Of several models, the smallest."""
    per_model: Mapping[str, EngineLimits] | None = None
    """By model, where it tells models apart."""
    server: str | None = None
    version: str | None = None
    extensions: tuple[str, ...] | None = None
    vocabulary: Vocabulary | None = None
    decoupled: bool | None = None
    """Whether a Triton model may send more than one response, without which it cannot stream."""
    template_takes_tools: bool | None = None
    """Whether its chat template has a place for tools. Without one, an engine may drop them in silence."""
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    """Tensor names of a Triton model."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine says that it is. None is untold, which is never zero: keep the last figure and let
    it age."""

    running: int | None = None
    waiting: int | None = None
    in_flight: int | None = None
    """Running and waiting together, where it cannot tell them apart."""
    kv_usage: float | None = None
    """Used share of the KV cache, 0..1."""
    prefix_hit_ratio: float | None = None
    """Share of prompt blocks or tokens found in the KV cache, 0..1."""
    requests_total: int | None = None
    """Requests that ended well since the engine's start."""
    failures_total: int | None = None
    preemptions_total: int | None = None
    """Times that it took a running request's cache away, to compute it again later."""
    per_model: Mapping[str, "Load"] | None = None


@dataclass(frozen=True, slots=True)
class Identified:
    """An upstream, recognised from what it answers."""

    kind: str
    """What `engine:` should say."""
    options: Mapping[str, Any]
    """What `options:` should say; empty where the defaults fit."""
    how: str
    """A sentence: from which answer it is known. Holds nothing but ASCII and no control characters."""
    models: Mapping[str, str]
    """As `serves:` may say: a public name -> the name that it wants. Empty: none that could be served."""
    limits: EngineLimits = EngineLimits()
    version: str | None = None


# --------------------------------------------------------------------------------------------- events


class Delta(msgspec.Struct, kw_only=True):
    """A piece of one choice. Never empty: there is text, or any other field but `tokens` and `raw`; of a
    native answer `raw` alone will do, and is all that a client gets."""

    index: int = 0
    text: str = ""
    finish_reason: FinishReason | None = None
    tool_calls: list[dict[str, Any]] | None = None
    """OpenAI tool-call deltas: `index`, and any of `id`, `type`, `function{name, arguments}`."""
    logprobs: Any = None
    """OpenAI's `logprobs` object of the choice, as the engine sent it."""
    extra: dict[str, Any] | None = None
    """Other non-empty fields of the message or delta, e.g. `reasoning_content`, `refusal`."""
    tokens: int = 0
    """Output tokens behind this piece, as well as the engine tells (else 1 for a streamed piece)."""
    raw: bytes | None = None
    """The whole SSE event as received, blank line included, where the dialect is OpenAI's. If one event
    decodes to several deltas, the first carries it and the others carry None."""


class Usage(msgspec.Struct, kw_only=True):
    """Token counts as the engine told them; None is untold, which is never zero. The latest one wins."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    raw: bytes | None = None
    """As `Delta.raw`, when the event carried nothing but usage."""


class Done(msgspec.Struct, kw_only=True):
    """The answer ended the way this engine ends a good one. Terminal."""

    raw: bytes | None = None


class Failure(msgspec.Struct, kw_only=True):
    """The answer failed. Terminal. Decoders return it; `Generation.events` raises its error."""

    error: "EngineError"


Event = Delta | Usage | Done | Failure


# --------------------------------------------------------------------------------------------- errors


class ErrorKind(enum.StrEnum):
    """Whose fault, and so what may be done. The words of the wire vectors."""

    CLIENT = "client"  # the request is refused, here and on every replica
    CONTEXT_LENGTH = "context_length"  # prompt, or prompt + output, too long
    UNSUPPORTED = "unsupported"  # a good request that this engine cannot serve
    NO_ROUTE = "no_route"  # the engine lacks the whole route, as one does whose model is of another sort
    NOT_FOUND = "not_found"  # the engine lacks the model that the gateway asked for
    AUTH = "auth"  # the engine refuses the gateway's credentials
    OVERLOADED = "overloaded"  # backpressure; neither fault nor breaker
    TIMEOUT = "timeout"  # the engine gave up, or was given up, on time
    ENGINE = "engine"  # it broke, lied, or stopped in the middle

    @property
    def is_refusal(self) -> bool:
        """Whether the engine is in order, and every replica of its pool would say the same of the request."""
        return self in _REFUSALS


_REFUSALS = frozenset({ErrorKind.CLIENT, ErrorKind.CONTEXT_LENGTH, ErrorKind.UNSUPPORTED, ErrorKind.NO_ROUTE})


class EngineError(Exception):
    """What went wrong at an engine.

    `message` holds the engine's own words for logs and classing. It is never shown to a client unsanitised.
    `retryable`: may the same request go to another replica, as far as the engine is concerned? (Whether
    bytes have left for the client is the gateway's to know.)
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retryable: bool,
        status: int | None = None,
        retry_after: float | None = None,
        reached: bool = True,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retryable = retryable
        self.status = status
        self.retry_after = retry_after
        """Seconds, where the engine named them."""
        self.reached = reached
        self.param = param

    def __repr__(self) -> str:
        return f"EngineError({self.kind.value}, {self.message[:120]!r}, retryable={self.retryable})"


class TransportError(Exception):
    """A connection failed. Subclasses say how far it got."""


class ConnectFailed(TransportError):
    """No connection: refused, unresolvable, TLS failed, or not in time. Nothing was sent."""


class ConnectionBroken(TransportError):
    """The connection ended before the clean end of the body."""


class ResponseInvalid(TransportError):
    """What came back is not an HTTP answer that we accept."""


class OptionError(ValueError):
    """An engine option is unknown or has a bad value. `option` names it."""

    def __init__(self, option: str, message: str, choices: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.option = option
        self.choices = tuple(choices)
        """Valid names or values, for the nearest-name hint; empty where there is no list."""


# ---------------------------------------------------------------------------------------------- seams


class Decoder(Protocol):
    """Response bytes of one exchange -> events. Pure; fed in any split, it yields the same result.

    Call `head` once, `feed` for each piece, `end` at the clean end of the body. After a terminal event
    (`Done`, `Failure`) further bytes yield nothing. A connection that breaks is not told to the decoder:
    the caller raises on its own.
    """

    def head(self, status: int, headers: Mapping[str, str]) -> None: ...

    def feed(self, data: bytes) -> list[Event]: ...

    def end(self) -> list[Event]: ...


class Doors(Protocol):
    """The doors of one engine kind. `encode` and `decoder` are for requests with `native` set."""

    served: frozenset[Door]
    """By the release that the adapter was written from, `chat` and `completions` among them."""
    possible: frozenset[Door]
    """What some release may serve, or one behind a proxy: more than `served`, or the same."""
    adapted: frozenset[Door]
    """Those native ones at which the engine can be asked for a LoRA adapter."""

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """The native body, with the engine's model name, or its adapter's, the bound, whether to stream, and
        nothing else changed."""

    def decoder(self, request: GenerateRequest) -> Decoder:
        """A fresh decoder for the answer: its deltas, usage and end carry, in `raw`, all bytes that a client
        gets, with `native.model` where the engine's own name stood."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a health answer says. `live` False: the engine behind the HTTP server is gone for good."""

    ready: bool
    live: bool


class SleepControl(Protocol):
    """How an engine whose process stays gives its memory up, and takes it back. Pure.

    All of it may be said twice: an engine that is awake is not hurt by being woken. `models` are the names
    that the engine knows.
    """

    def wake_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        """What to send, one after the other; each answer is 2xx when that is done."""

    def sleep_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        """The reverse. Only for an engine that computes nothing: it may drop what it has."""

    def awake_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        """Questions that tell whether it is awake."""

    def read_awake(self, answers: "Answers") -> bool | None:
        """Their answers; None where they do not tell."""


class EngineAdapter(Protocol):
    """One engine dialect with its options; pure, stateless, shared by all requests of a pool."""

    kind: str
    """The engine's name in routes.yaml, e.g. `trtllm`."""
    applies_template: bool
    """True: takes chat messages. False: wants text; the gateway renders the chat template."""
    adds_bos: bool
    """Whether the engine puts a BOS before text it is given (only asked where it applies no template)."""
    relay: RelayMode
    """The relay mode of this dialect: `patched` for OpenAI's, `translated` for others."""
    canonical: bool
    """Whether its OpenAI shapes pass the conformance run untouched, so that `raw` may be configured."""
    reuses_prefixes: bool
    """Whether it keeps what it computed for a prompt's beginning, unless it is told not to."""
    takes_priority: bool
    """Whether `GenerateRequest.priority` means anything to it."""
    sleep: SleepControl | None
    """How it is put to sleep and woken; None: it cannot."""
    takes: Takes
    """How much it takes in one call. `encode` gets no more; `unsupported` judges each part."""

    @property
    def doors(self) -> "Doors":
        """What it serves natively, beside chat and completions."""

    def lora_fault(self, lora: Lora) -> str | None:
        """Why it cannot be asked for this adapter, as a phrase ("needs an id"); None where it can."""

    def unsupported(self, request: GenerateRequest) -> Unsupported | None:
        """The first reason why this engine cannot serve `request`, or None. `model`, `stream` and
        `max_tokens` of the request may still be those of another pool."""

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """The request in this engine's dialect. Total for whatever `unsupported` lets pass."""

    def decoder(self, request: GenerateRequest) -> Decoder:
        """A fresh decoder for the answer to `request`."""

    def health_request(self) -> HttpRequest:
        """A cheap question that generates nothing."""

    def read_health(self, status: int, body: bytes) -> Health: ...

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        """What to send besides dropping the connection, where that alone is noticed late; None: nothing."""

    cancels_first: bool
    """Whether that must have been answered before the connection is dropped: an engine that forgets a request
    with its connection no longer knows what it is told to stop."""

    def lingers(self, request: GenerateRequest) -> float:
        """Seconds for which it goes on computing `request`, on average, once that was given up; infinite
        where it computes it to its end. Known from its source, not seen: for estimates of what is wasted."""

    def metadata_requests(self, model: str | None = None) -> Sequence[HttpRequest]:
        """Questions whose answers tell what the engine serves; with `model`, also those about one model."""

    def read_metadata(self, answers: Answers) -> Metadata:
        """What `answers` tell. Those that are absent, refused or make no sense tell nothing."""

    def load_request(self) -> HttpRequest | None:
        """The question how busy it is; None: it does not tell."""

    load_port: int | None
    """The port of that question, where it is not the one of the requests."""

    def read_load(self, status: int, body: bytes) -> Load | None:
        """Its answer; None where it is none (refused, switched off, not in a known form)."""

    def tokenize_request(
        self, model: str, *, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> HttpRequest | None:
        """The question how many tokens `text`, or `messages` in the model's chat template with its
        generation prompt, are to the engine; special tokens counted as it would add them to a prompt. None:
        it cannot be asked (so for one of the two)."""

    def read_token_count(self, status: int, body: bytes) -> int | None:
        """Its answer; None where it is none."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a replica is and how to speak to it. `headers` holds credentials: never log one."""

    base_url: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    ca_file: str | None = None


class Exchange(Protocol):
    """An answer under way. Whoever opened it ends it: by reading to its end, or by `cancel`."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

    async def events(self) -> bytes:
        """The next body bytes as they arrived; b"" at the clean end, again and again.

        Raises ConnectionBroken or ResponseInvalid. No timeout of its own: the caller sets one.
        """

    def finish(self) -> None:
        """Want no more of it, its meaning being complete: the connection is kept if the body's end arrives
        soon, else dropped. Idempotent, never waits."""

    def cancel(self) -> None:
        """Drop the connection at once, unless the body has ended cleanly. Idempotent, never waits."""


class Transport(Protocol):
    """The data path's HTTP client: open, then an exchange's events and cancel (or finish), and aclose."""

    async def open(self, endpoint: Endpoint, request: HttpRequest) -> Exchange:
        """Send `request` and wait for the head of the answer.

        A reused connection that dies before the first byte of the answer is retried once on a fresh one.
        Raises TransportError. Cancelling it leaves nothing behind.
        """

    def dispatch(
        self, endpoint: Endpoint, request: HttpRequest, then: Callable[[], None] = lambda: None
    ) -> None:
        """Send `request` in the background and forget its answer; call `then` once it has come. Never waits,
        never raises; what is still under way after a few seconds, or at `aclose`, is dropped, and `then` is
        called all the same."""

    async def aclose(self) -> None: ...


class Generation(Protocol):
    """An answer under way, decoded."""

    async def events(self) -> list[Event]:
        """The next events, at least one; `Done` is the last.

        Never returns `Failure`: raises EngineError, after what came before it was returned. No timeout of
        its own: the caller sets one.
        """

    def cancel(self) -> None:
        """Tell the engine to stop, by dropping the connection. Idempotent; a no-op after the end."""


class Engine(Protocol):
    """One replica: an adapter, a transport and an endpoint."""

    adapter: EngineAdapter

    async def generate(self, request: GenerateRequest) -> Generation:
        """Send it and wait for the head of the answer. Raises EngineError."""


class EngineRegistry(Protocol):
    """The engine kinds there are. `backends.registry` is the real one."""

    def kinds(self) -> Sequence[str]: ...

    def adapter(self, kind: str, options: Mapping[str, Any]) -> EngineAdapter:
        """An adapter with strict options. Raises OptionError, or KeyError for an unknown kind."""

    def questions(self, answers: Answers = MappingProxyType({})) -> Sequence[HttpRequest]:
        """What to ask an unknown upstream next, given what it has answered; all cheap, none generates.

        Empty once nothing more would help, so: ask until it is empty, then `identify`. A question that got no
        answer at all must be put into `answers` with status 0, else it comes again.
        """

    def identify(self, answers: Answers) -> Identified | None:
        """Which engine gives these answers; None if it is none that is known."""
