"""Public models: what counts their tokens, how long answers may get, what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.config.snapshot.values import EMPTY

CountPolicy = Literal["exact", "auto", "estimate"]
"""Count every prompt, none, or those where the exact length could change a decision."""


@dataclass(frozen=True, slots=True)
class Prices:
    """1 / COST_UNIT (limits.py) per token."""

    input: int
    output: int
    cached_input: int
    """Of prompt tokens that the engine had in its cache."""


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Which tokenizer counts for a model.

    `huggingface`: `path` is a directory with tokenizer.json, tokenizer_config.json and a chat template.
    `tiktoken`: `encoding` names an encoding, `path` its local vocabulary file (never fetched); None: the one
    in TIKTOKEN_CACHE_DIR.
    `engine`: a replica of `pool` is asked; the estimate where it does not answer within `timeout` seconds.
    `estimate`: bytes divided by `bytes_per_token`; says of itself that it is an estimate.
    """

    kind: Literal["huggingface", "tiktoken", "engine", "estimate"]
    path: str | None = None
    encoding: str | None = None
    chat_template: str | None = None
    """A template file, where it is not the tokenizer's own."""
    bytes_per_token: float = 4.0
    pool: str | None = None
    timeout: float = 0.5


@dataclass(frozen=True, slots=True)
class MaxTokens:
    """Output bounds of a model, in tokens per choice."""

    default: int | None = None
    """Assumed for the estimate and sent when the client names none."""
    ceiling: int | None = None
    policy: Literal["clamp", "refuse"] = "clamp"
    """What happens to a request for more than the ceiling (the tenant's or the model's)."""
    margin: int = 0
    """Tokens of the context, and of a pool's total, that are kept free between prompt and output."""


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """What a part of a chat that is not text costs, in tokens. None: such parts are not taken."""

    image: int | None = None
    image_low: int | None = None
    """Of an image with `detail: low`; None: as any other."""
    image_high: int | None = None
    audio: int | None = None
    video: int | None = None
    file: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    tokenizer: TokenizerSpec
    context: int | None = None
    """Tokens of prompt and output together."""
    max_tokens: MaxTokens = MaxTokens()
    defaults: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    """Body fields used where the client gives none, e.g. `temperature`."""
    aliases: tuple[str, ...] = ()
    count: CountPolicy = "auto"
    """Whether prompts may be estimated. Without a tokenizer they always are."""
    drift_warn: float = 0.05
    """Part by which most exact counts may differ from the engine's before somebody is told."""
    media_tokens: MediaTokens = MediaTokens()
    prices: Prices | None = None
    """None: it costs nothing."""
