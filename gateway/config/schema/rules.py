"""`rules`: conditions, chains of pools, and when a request goes on to the next one."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from gateway.config.schema.overload import OverloadStep
from gateway.config.schema.values import (
    VARIABLE,
    Classes,
    Count,
    Flag,
    MaybeCount,
    MaybeCountFromZero,
    ModelName,
    ModelNames,
    Name,
    OneOrMore,
    Section,
)


class Range(Section):
    """Bounds on a count of tokens; all given ones hold."""

    lt: MaybeCountFromZero = None
    """Less than."""
    lte: MaybeCountFromZero = None
    """At most."""
    gt: MaybeCountFromZero = None
    """More than."""
    gte: MaybeCountFromZero = None
    """At least."""


class EstimateRange(Range):
    """Bounds on the estimate; all given ones hold."""

    if_clamped: MaybeCount = None
    """It also holds where prompt and so many output tokens per choice pass; the output is bounded to fit."""


class When(Section):
    """All given conditions must hold; a list means any of."""

    model: ModelNames | None = None
    """Model names or aliases."""
    tenant: OneOrMore | None = None
    """Tenant names."""
    priority_class: Classes | None = Field(None, alias="class")
    """Priority classes."""
    estimated_total_tokens: EstimateRange | None = None
    """Prompt and expected output together."""
    prompt_tokens: Range | None = None
    """The prompt alone."""
    stream: Annotated[Flag | None, VARIABLE] = None
    """Whether the client asked for a stream."""


class OtherModel(Section):
    """Answer with another model; the client sees it in `x-headgate-model`."""

    placeholders: ClassVar[Mapping[str, Any]] = {"model": "", "pools": []}

    model: ModelName
    """The model that answers instead."""
    pools: Annotated[list[Name], Field(min_length=1)]
    """Pools that serve it, in order."""


POOL_TAG, MODEL_TAG, SPLIT_TAG = "a pool", "another model", "weights"


def entry_tag(value: Any) -> str | None:
    """What an entry of a chain is; None: nothing that there is."""
    if isinstance(value, str):
        return POOL_TAG
    if isinstance(value, dict):
        return MODEL_TAG if "model" in value or "pools" in value else SPLIT_TAG
    return None


Part: TypeAlias = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False), VARIABLE]

ChainEntry: TypeAlias = Annotated[
    Annotated[Name, Tag(POOL_TAG)]
    | Annotated[OtherModel, Tag(MODEL_TAG)]
    | Annotated[dict[Name, Part], Field(min_length=1), Tag(SPLIT_TAG)],
    Discriminator(
        entry_tag,
        custom_error_type="headgate",
        custom_error_message="is neither a pool name, nor {POOL: weight}, nor {model: ..., pools: [...]}",
    ),
]


class Mirror(Section):
    """Nobody waits for it, nobody pays for it."""

    placeholders: ClassVar[Mapping[str, Any]] = {"pool": "", "share": 0.0}

    pool: Name
    """Must serve the models that reach the rule."""
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), VARIABLE]
    """Part of the rule's requests, 0 to 1."""
    in_flight: Count = 4
    """Mirrored requests at a time; the others are left out."""
    tokens_per_minute: Count | None = None
    """Prompt and output tokens that it may cost; what is beyond is left out."""


class Rule(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"name": "", "pools": []}

    name: Name
    """Shown by explain, in headers and in metrics."""
    when: When = When()
    """The condition; absent, the rule takes whatever is left."""
    pools: Annotated[list[ChainEntry], Field(min_length=1)]
    """The whole chain, in order."""
    fit: Literal["next", "clamp", "refuse"] = "next"
    """If the client asked for more output than a pool leaves: next pool, send less, or answer 400."""
    on: list[Literal["unavailable", "failed", "overloaded", "too_long"]] = ["unavailable", "failed"]
    """Reasons for going on to the next pool."""
    after_ms: Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False), VARIABLE] = 0.0
    """Milliseconds to wait in an overloaded pool's queue before going on."""
    queue_comments_ms: Annotated[
        Annotated[float, Field(ge=500, le=60_000, allow_inf_nan=False)] | None, VARIABLE
    ] = None
    """Every so many milliseconds of waiting, a streamed request is told its place in line, as an SSE comment.
    The first one commits the status: what fails later is told in the stream."""
    sticky: Literal["tenant", "key", "session", "request"] = "key"
    """Who draws a pool of weighted entries, and keeps it."""
    mirror: Mirror | None = None
    """A pool that is sent a share of the requests too; its answers are thrown away."""
    overload: list[OverloadStep] = []
    """What requests lose while the line is long, in steps, before any is refused."""
