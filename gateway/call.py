"""The request as the gateway understands it: read once, frozen, handed from room to room."""

from dataclasses import dataclass
from typing import Literal

from backends.contract import GenerateRequest
from gateway.config.snapshot import Model, PriorityClass, Tenant

Dialect = Literal["chat", "completions"]
"""Which public endpoint was called, and so in which shape the answer leaves."""


Tier = Literal["exact", "cached", "estimate"]
"""Who said how many tokens a prompt has: a tokenizer just now, one before, or bytes by a ratio."""


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
    deadline: float | None = None
    """Loop time by which the client wants its first token; None where it does not say."""
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


@dataclass(frozen=True, slots=True)
class Weighed:
    """A prompt as `tokens/learning.py` sees it: two prompts of one key have about the same ratio."""

    key: tuple[str, str, str, str, int]
    """(tenant, model, form, kind of text, size class)."""
    size: int
    """Bytes of its texts in UTF-8, at least 1."""
    overhead: float
    """Tokens that stand for no text."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Output tokens per choice that policy allows, before any pool is chosen."""

    tokens: int | None
    """None: nothing bounds it."""
    asked: int | None
    by: str
    """What set it: `asked`, `tenant`, `model`, `context`, `rule NAME` or `nothing`."""
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
