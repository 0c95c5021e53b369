"""`limits`, in all the places where they are written (`limiting` brings them together)."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from gateway.config.schema.values import (
    VARIABLE,
    Flag,
    MaybeCount,
    ModelNames,
    Name,
    OneOrMore,
    Section,
    listed,
)

Shares: TypeAlias = Annotated[
    list[Literal["tenant", "key", "model", "pool"]],
    BeforeValidator(listed, json_schema_input_type=str | list[str]),
]

MaybeCost: TypeAlias = Annotated[
    Annotated[float, Field(gt=0, le=500_000, allow_inf_nan=False)] | None, VARIABLE
]


class Limit(Section):
    """At most so many of exactly one unit, over time or at a time."""

    name: Name | None = None
    """Shown where the limit says no; made of its place and unit where it has none."""
    requests: MaybeCount = None
    """Requests."""
    tokens: MaybeCount = None
    """Tokens, prompt and output."""
    input_tokens: MaybeCount = None
    """Tokens of prompts."""
    output_tokens: MaybeCount = None
    """Tokens of answers."""
    cost: MaybeCost = None
    """Money, in the currency unit of the models' `prices`."""
    concurrent: MaybeCount = None
    """Requests at a time. Without `per`."""
    tokens_in_flight: MaybeCount = None
    """Tokens, prompt and expected output, of the requests at a time. Without `per`."""
    per: Literal["second", "minute", "hour", "day", "calendar_day", "calendar_month"] | None = None
    """The period: refilled evenly over it, or, of calendar ones, a budget that starts anew with it (UTC)."""
    model: ModelNames | None = None
    """Only for these models."""
    pool: OneOrMore | None = None
    """Only for requests that these pools take."""
    enforce: Flag = True
    """`false`: only count what it would have refused."""
    store_down: Literal["local", "closed", "open"] = "local"
    """When Redis cannot be asked: this process's share of the amount, refuse with 503, or let through."""
    overrun: Literal["finish", "cut"] = "finish"
    """An answer that outruns its reservation when nothing is left: let it finish, or end it as `length`."""
    clamp: Flag = False
    """Where less output is left than expected, send a smaller max_tokens instead of refusing."""


class SharedLimit(Limit):
    """A limit for everybody, or for each of something."""

    tenant: OneOrMore | None = None
    """Only for these tenants."""
    each: Shares = []
    """The amount is for each tenant, key, model or pool by itself, or each combination of these."""
