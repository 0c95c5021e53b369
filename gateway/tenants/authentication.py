"""Who is calling: a key's SHA-256 is looked up, the key itself is kept nowhere."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

from gateway.config.snapshot import ANONYMOUS, Key, Snapshot, Tenant
from gateway.errors import InvalidKey, NotAdmin

KEY_PREFIX = "hg-"


def digest_of(key: str) -> str:
    """How a key is stored: SHA-256, hex. Keys are random, so no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh key: 192 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(24)


def bearer(authorization: bytes | None) -> str | None:
    """The key in an Authorization header; None where there is none or it is not a bearer's."""
    scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


class Authenticator:
    """Keys -> tenants, and the administrator's key."""

    def __init__(self, admin_digest: str | None, now: Callable[[], float] = time.time) -> None:
        """`now` is the wall clock: keys expire by it, looked at anew for each request."""
        self._admin_digest = admin_digest
        self._now = now

    def tenant(self, snapshot: Snapshot, authorization: bytes | None) -> tuple[Tenant, Key | None]:
        """Whose request this is. Raises InvalidKey, or NotAdmin for the administrator's key."""
        if snapshot.server.authentication == "off":
            return snapshot.tenants.get(ANONYMOUS.name, ANONYMOUS), None
        key = bearer(authorization)
        if key is None:
            raise InvalidKey("Send your key as `authorization: Bearer <key>`.")
        digest = digest_of(key)
        found = self._valid(snapshot, digest)
        if found is None:
            if self.is_admin(authorization):
                raise NotAdmin("The administrator's key does not run models.")
            raise InvalidKey("This key is not valid.")
        return found

    def is_admin(self, authorization: bytes | None) -> bool:
        key = bearer(authorization)
        return (
            key is not None
            and self._admin_digest is not None
            and hmac.compare_digest(digest_of(key), self._admin_digest)
        )

    def require_admin(self, snapshot: Snapshot, authorization: bytes | None) -> None:
        """Raises InvalidKey, or NotAdmin for a tenant's key."""
        if self.is_admin(authorization):
            return
        key = bearer(authorization)
        if key is not None and self._valid(snapshot, digest_of(key)) is not None:
            raise NotAdmin("A tenant's key does not open the admin API.")
        raise InvalidKey("Send the administrator's key as `authorization: Bearer <key>`.")

    def _valid(self, snapshot: Snapshot, digest: str) -> tuple[Tenant, Key] | None:
        found = snapshot.keys.get(digest)
        if found is None or not hmac.compare_digest(found[1].digest, digest):
            return None
        expires = found[1].expires
        return found if expires is None or self._now() < expires else None
