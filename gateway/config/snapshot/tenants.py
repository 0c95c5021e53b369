"""Tenants: who may call, with which keys, and what they may reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gateway.config.snapshot.pools import Pool
from gateway.config.snapshot.values import EMPTY, PriorityClass


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    digest: str = field(repr=False)
    """SHA-256 of the key, 64 lower-case hex digits."""
    expires: float | None = None
    """Seconds since 1970; None for never. Keys of the file have no end, unless they are rotated."""
    degrade: bool = True
    """Whether its requests may lose something in overload (`overload`)."""


@dataclass(frozen=True, slots=True)
class Allow:
    """What a tenant may reach: model name patterns (`*`, `llama*`), and for each named label of a pool
    the values that are allowed. A label that is not named here is free."""

    models: tuple[str, ...] = ("*",)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: EMPTY)

    def model(self, name: str) -> bool:
        return "*" in self.models or any(fnmatchcase(name, pattern) for pattern in self.models)

    def pool_fault(self, pool: Pool) -> str | None:
        """The label that keeps this tenant out of `pool`, as a phrase, or None."""
        for label, values in self.labels.items():
            if (has := pool.labels.get(label)) not in values:
                return f"label {label}={has} is not among {', '.join(values)}"
        return None


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    keys: tuple[Key, ...] = ()
    priority_class: PriorityClass = PriorityClass.standard
    max_class: PriorityClass = PriorityClass.interactive
    weight: float = 1.0
    allow: Allow = Allow()
    max_tokens: int | None = None
    """Ceiling of output tokens per choice."""
    degrade: bool = True
    """Whether its requests may lose something in overload."""


ANONYMOUS = Tenant(name="anonymous")
"""Who calls where `authentication: off`, unless the file declares a tenant of this name."""
