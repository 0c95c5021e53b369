"""What was decided while the gateway ran, beside what the file says: keys, revocations, drains.

The file is the base; an `Overlay` lies on top. It is a value: read from the store whole, applied whole.
Times are seconds since 1970, by the wall clock: they must mean the same after a restart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key made by `headgate keys create` or its admin twin. One id has several after a rotation."""

    id: str
    tenant: str
    digest: str = field(repr=False)
    """SHA-256 of the key, 64 lower-case hex digits."""
    created: float
    expires: float | None
    who: str


@dataclass(frozen=True, slots=True)
class Revocation:
    """A key, of the file or of the store, that is not valid any more."""

    digest: str = field(repr=False)
    since: float
    """From when on: a rotated key may live on for a while."""
    at: float
    who: str

    def holds(self, now: float) -> bool:
        """Whether the key is out. One revoked at once stays out even if the clock is set back."""
        return self.since <= self.at or self.since <= now


@dataclass(frozen=True, slots=True)
class Drain:
    """A replica that gets no new requests."""

    replica: str
    at: float
    who: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    at: float
    who: str
    action: str
    """E.g. `keys.revoke`."""
    target: str
    detail: str


@dataclass(frozen=True, slots=True)
class Overlay:
    """The state of one moment."""

    keys: tuple[StoredKey, ...] = ()
    """Oldest first."""
    revocations: Mapping[str, Revocation] = field(default_factory=lambda: MappingProxyType({}))
    """By digest."""
    drains: Mapping[str, Drain] = field(default_factory=lambda: MappingProxyType({}))
    """By replica id."""
    version: tuple[int, int] = (0, 0)
    """Compare with `StateStore.version`: another one means that something may have changed since."""
