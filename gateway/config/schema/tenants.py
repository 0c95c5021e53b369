"""`tenants`: who may call, with which keys, and what they may reach."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from gateway.config.schema.limits import Limit
from gateway.config.schema.values import (
    DIGEST_PATTERN,
    ClassName,
    Flag,
    MaybeCount,
    Name,
    OneOrMore,
    Section,
    Weight,
)


class Key(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"id": "", "hash": ""}

    id: Name
    """Shown in logs, where the key never is."""
    hash: Annotated[str, Field(pattern=DIGEST_PATTERN)] = Field(repr=False)
    """`sha256:` and the SHA-256 of the key, hex."""
    limits: list[Limit] = []
    """What this key may use, within what its tenant may."""
    degrade: Flag = True
    """`false`: its requests lose nothing in overload; they wait or are refused."""


class Allow(Section):
    """`models`, and for each label of a pool the values allowed; a label not named here is free."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, OneOrMore]

    models: OneOrMore = ["*"]
    """Model names; * and ? are wildcards."""


class Tenant(Section):
    keys: list[Key] = []
    """API keys, as hashes."""
    priority_class: ClassName = Field("standard", alias="class")
    """Class of a request that asks for none."""
    max_class: ClassName = "interactive"
    """The most urgent class this tenant gets; a request above it is lowered."""
    weight: Weight = 1.0
    """Share of a contended pool, relative to other tenants."""
    allow: Allow = Allow()
    """What the tenant may reach."""
    max_tokens: MaybeCount = None
    """Most output tokens per choice."""
    limits: list[Limit] = []
    """What the tenant may use."""
    degrade: Flag = True
    """`false`: its requests lose nothing in overload; they wait or are refused."""
