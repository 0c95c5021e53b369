"""Brown-out: what is taken from requests while the line is long, by rule or by class."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gateway.config.schema.values import (
    VARIABLE,
    ClassName,
    MaybeCount,
    MaybeMilliseconds,
    ModelName,
    Name,
    Section,
)


class OverloadWhen(Section):
    """All given signals of the pool's line must have reached their thresholds."""

    queue_wait_ms: MaybeMilliseconds = None
    """Milliseconds in which the work drains that may go before a newcomer of its class."""
    waiting: MaybeCount = None
    """Requests in line."""


class OverloadStep(Section):
    """What is taken from a request while the line is long; the steps that are on hold together."""

    placeholders: ClassVar[Mapping[str, Any]] = {"when": OverloadWhen()}

    when: OverloadWhen
    """When it goes on."""
    off_below: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), VARIABLE] = 0.5
    """It goes off when a signal has stayed below this part of its threshold,"""
    dwell_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), VARIABLE] = 10.0
    """for so many seconds."""
    max_tokens: MaybeCount = None
    """Most output tokens per choice."""
    n: MaybeCount = None
    """Most choices per prompt."""
    priority_class: ClassName | None = Field(None, alias="class")
    """The most urgent class: others wait as this one."""
    model: ModelName | None = None
    """The model that answers instead; the client sees it in `x-headgate-model`."""
    pools: Annotated[list[Name] | None, Field(min_length=1)] = None
    """Pools that serve it. Default: those of the rule that do."""


class ClassPolicy(Section):
    """What holds for a priority class, whatever the rule."""

    overload: list[OverloadStep] = []
    """What its requests lose while the line is long, in steps."""
