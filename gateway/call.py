"""The request as the gateway understands it: read once, frozen, handed from room to room.

What is made for each request is a msgspec struct: a frozen dataclass takes five times as long to make. Those
that refer to nothing but plain values are none of the garbage collector's business (`gc=False`).
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from backends.contract import Door, GenerateRequest
from gateway.config.snapshot import Model, PriorityClass, Tenant

Dialect = Door
"""Which public endpoint was called, and so in which shape the answer leaves."""

ROUTES: Mapping[Dialect, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "rerank": "/v1/rerank",
    "score": "/score",
}

STREAMING: frozenset[Dialect] = frozenset(("chat", "completions", "responses", "messages"))
"""Those that generate, and so may stream."""

OPERATIONS: Mapping[Dialect, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "messages": "chat",
    "rerank": "rerank",
    "score": "score",
}
"""OpenTelemetry's `gen_ai.operation.name`."""

PROMPT_FIELDS: Mapping[Dialect, str] = {
    "chat": "messages",
    "completions": "prompt",
    "embeddings": "input",
    "responses": "input",
    "messages": "messages",
    "rerank": "documents",
    "score": "text_2",
}
"""Where the prompt is, for error messages."""


Tier = Literal["exact", "cached", "estimate"]
"""Who said how many tokens a prompt has: a tokenizer just now, one before, or bytes by a ratio."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """Ours, unique: engines, logs and metrics use it. `x-request-id` may show the client's own instead."""
    dialect: Dialect
    tenant: Tenant
    key_id: str | None
    """None where authentication is off."""
    priority_class: PriorityClass
    model: Model
    asked_model: str
    """The name the client typed, an alias perhaps."""
    request: GenerateRequest
    """Engine-neutral; model name, stream and max_tokens are filled in per attempt."""
    stream: bool
    include_usage: bool
    """Whether a streaming client asked for the usage chunk."""
    as_chat: bool = False
    """Its prompt is counted as the chat, or the pairs, that its engine may make of it: nearly exact."""
    asked_max_tokens: int | None
    """What the client asked for; None where it asked for nothing, 0 where nothing is to be generated."""
    received: float
    """Loop time at which the body was complete, seconds."""
    deadline: float | None = None
    """Loop time by which the client wants its first token; None where it does not say."""
    stop_at: float | None = None
    """Loop time at which it wants what there is by then; None where it does not say."""
    traceparent: str | None = None
    size: int = 0
    """Bytes of its body."""
    session_id: str | None = None
    """What the client calls the conversation: its `x-session-id`."""
    asked_priority: int = 0
    """The body's `priority`: for engines, never for the gateway's own line."""
    degradable: bool = True
    """Whether it may lose something in overload; else it waits or is refused."""

    @property
    def session(self) -> str | None:
        """What requests of one conversation share, within the tenant: the header, or OpenAI's
        `prompt_cache_key`."""
        key = self.request.parameters.get("prompt_cache_key") if self.session_id is None else self.session_id
        return key if isinstance(key, str) and key else None


def choices_computed(call: Call) -> int:
    """Answers that the engine makes per prompt; `best_of` may be more than the client gets."""
    best_of = call.request.parameters.get("best_of", 1)
    return max(call.request.n, best_of) if isinstance(best_of, int) else call.request.n


class PromptCount(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a prompt: the sum over all prompts where a completion has several."""

    tokens: int
    exact: bool
    source: str
    """Who says so, e.g. `tokenizer llama3` or `estimate 4.0 bytes/token`."""
    longest: int
    """Tokens of the longest single prompt; equals `tokens` unless there are several."""
    prompts: int = 1
    error: int = 0
    """Tokens by which the longest prompt may well be longer than counted, as far as that is known."""
    low: int | None = None
    """The least that an estimate of known error may well be; None for counts, and where no error is known."""
    cached: bool = False
    """Exact, and known without counting."""
    why: str = ""
    """Why the tier that answered did, e.g. `pool short (4096) lies within 4012..4188`."""
    weighed: "Weighed | None" = None
    """Of an estimate: what can be learned from it once an engine has told the true length."""

    @property
    def tier(self) -> Tier:
        """Who answered."""
        return "estimate" if not self.exact else "cached" if self.cached else "exact"

    @property
    def least(self) -> int:
        """Tokens that the longest prompt surely has; of an estimate of unknown error, half of it."""
        if self.exact:
            return self.longest
        return self.longest // 2 if self.low is None else self.low


class Weighed(msgspec.Struct, frozen=True, gc=False):
    """A prompt as `tokens/learning.py` sees it: two prompts of one key have about the same ratio."""

    key: tuple[str, str, str, str, int]
    """(tenant, model, form, kind of text, size class)."""
    size: int
    """Bytes of its texts in UTF-8, at least 1."""
    overhead: float
    """Tokens that stand for no text."""


class Bound(msgspec.Struct, frozen=True, gc=False):
    """Output tokens per choice that policy allows, before any pool is chosen."""

    tokens: int | None
    """None: nothing bounds it."""
    asked: int | None
    by: str
    """What set it: `asked`, `tenant`, `model`, `context`, `rule NAME`, `overload` or `nothing`."""
    clamped: bool
    """The client asked for more and gets less."""
    cap: tuple[int, str] | None = None
    """The least that a rule or an overload allows whatever model answers, and which of them."""


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """What the request is expected to cost, in tokens.

    total = prompt + n x min(bound, expected output), step 5 of a request's way (pipeline.py).
    """

    prompt: PromptCount
    bound: Bound
    output: int
    """Expected output tokens per choice."""
    output_by: str
    """`bound`, `learned p90` (`of the tenant`, `of the model` where no more is known), `model default` or
    `assumed`."""
    total: int
    mean: int = 0
    """Mean output tokens per choice, for work that adds up rather than must not run out; `output` as long as
    nothing is learned."""
    choices: int = 1
    """Answers computed: choices per prompt x prompts."""
    learned: bool = False
    """`output` and `mean` come from past answers, or would but for the bound."""
