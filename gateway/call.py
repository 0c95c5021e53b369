"""The request as the gateway understands it: read once, frozen, handed from room to room."""

from dataclasses import dataclass
from typing import Literal

from backends.contract import GenerateRequest
from gateway.config.snapshot import Model, PriorityClass, Tenant

Dialect = Literal["chat", "completions"]
"""Which public endpoint was called, and so in which shape the answer leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
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
    asked_max_tokens: int | None
    """What the client asked for; None where it asked for nothing."""
    received: float
    """Loop time at which the body was complete, seconds."""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class PromptCount:
    """Tokens of a prompt: the sum over all prompts where a completion has several."""

    tokens: int
    exact: bool
    source: str
    """Who says so, e.g. `tokenizer llama3` or `estimate 4.0 bytes/token`."""
    longest: int
    """Tokens of the longest single prompt; equals `tokens` unless there are several."""
    prompts: int = 1


@dataclass(frozen=True, slots=True)
class Bound:
    """Output tokens per choice that policy allows, before any pool is chosen."""

    tokens: int | None
    """None: nothing bounds it."""
    asked: int | None
    by: str
    """What set it: `asked`, `tenant`, `model`, `context` or `nothing`."""
    clamped: bool
    """The client asked for more and gets less."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the request is expected to cost, in tokens.

    total = prompt + n x min(bound, expected output), step 5 of a request's way (pipeline.py).
    """

    prompt: PromptCount
    bound: Bound
    output: int
    """Expected output tokens per choice."""
    output_by: str
    """`bound`, `learned p90`, `model default` or `assumed`."""
    total: int
