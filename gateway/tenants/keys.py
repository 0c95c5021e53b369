"""The keys in force: those of the file, those of the state store, less what was revoked.

`keys_in_force` is a pure function of both; its result is the dict that each request's key is looked up in.
`KeyDesk` makes, rotates and revokes keys for the command line and the admin API. A key in clear is seen
once, in what `create` and `rotate` return.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from gateway.config.snapshot import Key, Snapshot, Tenant
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.state.overlay import Overlay, Revocation, StoredKey
from gateway.state.store import StateStore, Taken
from gateway.tenants.authentication import digest_of, new_key

KeyState = Literal["active", "retiring", "expired", "revoked", "no tenant"]
"""`retiring`: rotated, valid until its grace is over. `no tenant`: the file no longer names its tenant."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_DURATION = re.compile(r"(\d{1,9})(s|m|h|d|w)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key for people. Never the key itself, and never its digest."""

    id: str
    tenant: str
    state: KeyState
    source: Literal["file", "store"]
    created: float | None
    expires: float | None
    who: str | None
    """Who made it."""
    revoked: float | None
    revoked_by: str | None


@dataclass(frozen=True, slots=True)
class MadeKey:
    key: str = field(repr=False)
    """In clear: show it once."""
    row: KeyRow


def keys_in_force(snapshot: Snapshot, overlay: Overlay) -> Mapping[str, tuple[Tenant, Key]]:
    """Digest -> tenant and key: file + overlay. A revocation wins over both; a key whose tenant the file
    does not name is no key. `snapshot` is the file's own."""
    found: dict[str, tuple[Tenant, Key]] = {}
    for stored in overlay.keys:
        if (tenant := snapshot.tenants.get(stored.tenant)) is not None:
            degrade = all(key.degrade for key in tenant.keys if key.id == stored.id)
            found[stored.digest] = tenant, Key(stored.id, stored.digest, stored.expires, degrade)
    found |= snapshot.keys
    for digest, revocation in overlay.revocations.items():
        if revocation.since <= revocation.at:
            found.pop(digest, None)
        elif digest in found:
            tenant, key = found[digest]
            found[digest] = tenant, replace(key, expires=_earliest(key.expires, revocation.since))
    return MappingProxyType(found)


def duration_of(text: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `12h`, `30d` or `2w`. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a duration: write e.g. 90s, 15m, 12h, 30d or 2w")
    return float(int(match[1]) * _UNITS[match[2] or "s"])


class KeyDesk:
    """Keys over a store. Every method blocks: call it in a thread. `now` is the wall clock."""

    def __init__(self, store: StateStore, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now

    def rows(self, snapshot: Snapshot) -> list[KeyRow]:
        """Every key there is or was."""
        overlay, now = self._store.read(), self._now()
        return [
            _row(snapshot, known, overlay.revocations.get(known.digest), now)
            for known in _all(snapshot, overlay)
        ]

    def create(
        self, snapshot: Snapshot, tenant: str, *, key_id: str | None, lifetime: float | None, who: str
    ) -> MadeKey:
        """A key for a tenant of the file; the id is made up if None. Raises BadRequest, Conflict."""
        if tenant not in snapshot.tenants:
            raise BadRequest(
                f"'tenant' must be one of {', '.join(snapshot.tenants) or 'none'}.", param="tenant"
            )
        now = self._now()
        key = new_key()
        digest = digest_of(key)
        key_id = f"{tenant}-{digest[:8]}" if key_id is None else key_id
        if not _ID.fullmatch(key_id):
            raise BadRequest("'id' must be 1 to 64 of A-Z a-z 0-9 . _ -", param="id")
        if any(known.id == key_id for known in _of_file(snapshot)):
            raise Conflict(f"The file has a key with the id {key_id} already.", param="id")
        made = StoredKey(key_id, tenant, digest, now, None if lifetime is None else now + lifetime, who)
        try:
            self._store.add_key(made)
        except Taken:
            raise Conflict(f"There is, or was, a key with the id {key_id} already.", param="id") from None
        return MadeKey(key, _row(snapshot, made, None, now))

    def rotate(self, snapshot: Snapshot, key_id: str, *, grace: float, who: str) -> MadeKey:
        """A new key with the id and tenant of the old one, which stays valid for `grace` seconds.

        Older ones that are still valid get no more than that. It also works for a key of the file: the new
        one is in the store. Where the old one had a lifetime, the new one has the same. Raises NotFound,
        Conflict.
        """
        overlay, now = self._store.read(), self._now()
        valid = [
            known
            for known in self._named(snapshot, overlay, key_id)
            if _state(snapshot, known, overlay.revocations.get(known.digest), now) in ("active", "retiring")
        ]
        if not valid:
            raise Conflict(f"Key {key_id} is not valid any more: create one.")
        old = valid[-1]
        lifetime = None if old.expires is None else old.expires - old.created
        key = new_key()
        new = StoredKey(
            old.id, old.tenant, digest_of(key), now, None if lifetime is None else now + lifetime, who
        )
        self._store.rotate_key(new, [known.digest for known in valid], now + grace)
        return MadeKey(key, _row(snapshot, new, None, now))

    def revoke(self, snapshot: Snapshot, key_id: str, *, who: str) -> list[KeyRow]:
        """Revoke every key of that id, of the file or the store; or `sha256:<digest>`, known or not.

        Revoking twice is the same as once. Raises NotFound, Conflict.
        """
        now = self._now()
        if (written := _HASH.fullmatch(key_id.lower())) is not None:
            digests = [written[1]]
        else:
            digests = [known.digest for known in self._named(snapshot, self._store.read(), key_id)]
        self._store.revoke(key_id, digests, at=now, who=who)
        overlay = self._store.read()
        return [
            _row(snapshot, known, overlay.revocations.get(known.digest), now)
            for known in _all(snapshot, overlay)
            if known.digest in digests
        ]

    def _named(self, snapshot: Snapshot, overlay: Overlay, key_id: str) -> list[StoredKey]:
        found = [known for known in _all(snapshot, overlay) if known.id == key_id]
        if not found:
            raise NotFound(f"There is no key with the id {key_id[:100]!r}.")
        if len({known.tenant for known in found}) > 1:
            raise Conflict(
                f"Several tenants have a key with the id {key_id}: name it by its hash, sha256:..."
            )
        return found


_FILE = ""
"""Stands for the maker of the keys of the file."""


def _of_file(snapshot: Snapshot) -> Iterator[StoredKey]:
    for tenant in snapshot.tenants.values():
        for key in tenant.keys:
            yield StoredKey(key.id, tenant.name, key.digest, 0.0, None, _FILE)


def _all(snapshot: Snapshot, overlay: Overlay) -> Iterator[StoredKey]:
    yield from _of_file(snapshot)
    yield from overlay.keys


def _state(snapshot: Snapshot, known: StoredKey, revocation: Revocation | None, now: float) -> KeyState:
    if revocation is not None and revocation.holds(now):
        return "revoked"
    if known.expires is not None and known.expires <= now:
        return "expired"
    if known.tenant not in snapshot.tenants:
        return "no tenant"
    return "active" if revocation is None else "retiring"


def _row(snapshot: Snapshot, known: StoredKey, revocation: Revocation | None, now: float) -> KeyRow:
    in_file = known.who == _FILE
    return KeyRow(
        id=known.id,
        tenant=known.tenant,
        state=_state(snapshot, known, revocation, now),
        source="file" if in_file else "store",
        created=None if in_file else known.created,
        expires=known.expires,
        who=None if in_file else known.who,
        revoked=None if revocation is None else revocation.since,
        revoked_by=None if revocation is None else revocation.who,
    )


def _earliest(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
