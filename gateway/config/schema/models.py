"""`models`: what counts their tokens, how long answers may get, what they cost."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from gateway.config.schema.limits import Limit
from gateway.config.schema.values import (
    MOST,
    VARIABLE,
    JsonObject,
    MaybeCount,
    MaybeCountFromZero,
    MaybeText,
    ModelName,
    Name,
    Section,
    Text,
)

Price: TypeAlias = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False), VARIABLE]


class HuggingFaceTokenizer(Section):
    kind: Literal["huggingface"]
    """Counts with a Hugging Face tokenizer and its chat template."""
    path: Text
    """Directory with tokenizer.json, relative to this file."""
    chat_template: MaybeText = None
    """Template file, where it is not the tokenizer's own."""


class TiktokenTokenizer(Section):
    kind: Literal["tiktoken"]
    """Counts with a tiktoken vocabulary."""
    encoding: Text
    """E.g. `o200k_base`."""
    path: MaybeText = None
    """The vocabulary file, relative to this file; it is never downloaded. Without it, the encoding's file in
    TIKTOKEN_CACHE_DIR under tiktoken's own name for it."""


class EstimateTokenizer(Section):
    kind: Literal["estimate"]
    """Does not count: divides bytes by a constant, and says so in every answer."""
    bytes_per_token: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False), VARIABLE] = 4.0
    """UTF-8 bytes per token."""


class EngineTokenizer(Section):
    kind: Literal["engine"]
    """Asks an engine how many tokens a prompt has; estimates where it does not answer."""
    pool: Name
    """The pool whose replicas are asked; it serves this model."""
    timeout_ms: Annotated[int, Field(gt=0, le=10_000), VARIABLE] = 500
    """Milliseconds for the answer."""
    bytes_per_token: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False), VARIABLE] = 4.0
    """UTF-8 bytes per token, where it is estimated and no ratio is learned."""


Tokenizer: TypeAlias = Annotated[
    HuggingFaceTokenizer | TiktokenTokenizer | EngineTokenizer | EstimateTokenizer,
    Field(discriminator="kind"),
]


class MaxTokens(Section):
    default: MaybeCount = None
    """Output tokens assumed and sent when the client names none."""
    ceiling: MaybeCount = None
    """Most output tokens per choice."""
    policy: Literal["clamp", "refuse"] = "clamp"
    """A request for more than the ceiling: send less and say so, or answer 400."""
    margin: Annotated[int, Field(ge=0, le=MOST), VARIABLE] = 0
    """Tokens of the context, and of a pool's total, kept free between prompt and output. Default 0."""


class Prices(Section):
    """In any one currency; a million tokens."""

    placeholders: ClassVar[Mapping[str, Any]] = {"input": 0.0, "output": 0.0}

    input: Price
    """A million prompt tokens."""
    output: Price
    """A million output tokens."""
    cached_input: Annotated[Price | None, VARIABLE] = None
    """A million prompt tokens that the engine had in its cache. Default: as `input`."""


class PerDetail(Section):
    low: MaybeCountFromZero = None
    """Tokens of an image with `detail: low`."""
    high: MaybeCountFromZero = None
    """Tokens of an image with `detail: high`."""


class MediaTokens(Section):
    """Parts of a kind that has no cost here are refused."""

    image: MaybeCountFromZero = None
    """Tokens of an image."""
    per_detail: PerDetail = PerDetail()
    """Of an image that names its `detail`."""
    audio: MaybeCountFromZero = None
    """Tokens of a piece of audio."""
    video: MaybeCountFromZero = None
    """Tokens of a video."""
    file: MaybeCountFromZero = None
    """Tokens of a file."""


class Model(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"tokenizer": EstimateTokenizer(kind="estimate")}

    tokenizer: Tokenizer
    """What counts the tokens of a prompt."""
    count: Literal["exact", "auto", "estimate"] | None = None
    """`exact`: every prompt by the tokenizer. `estimate`: by bytes and what was learned of them. `auto`, the
    default where there is a tokenizer: estimated where nothing would be decided otherwise, else counted."""
    drift_warn: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), VARIABLE] = 0.05
    """Warn where most exact counts differ from the engine's by more than this part."""
    context: MaybeCount = None
    """Tokens of prompt and output together."""
    max_tokens: MaxTokens = MaxTokens()
    """Bounds on the output."""
    defaults: JsonObject = {}
    """Body fields used where the client gives none, e.g. `temperature`."""
    aliases: list[ModelName] = []
    """Other names that clients may use."""
    media_tokens: MediaTokens = MediaTokens()
    """What each part that is not text counts; such parts are taken only where they have a cost here."""
    prices: Prices | None = None
    """What `cost` limits count."""
    limits: list[Limit] = []
    """What all tenants together may use of this model."""
