"""The administrator's key: given by the operator, or made at the first start and shown once."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from gateway.tenants.authentication import digest_of, new_key

MIN_LENGTH = 32
FILE_NAME = "admin-key.sha256"
_DIGEST = re.compile("[0-9a-f]{64}")  # anything else would shut everybody out for good


class AdminKeyRefused(ValueError):
    """The given key is too weak, or none was given where one must be."""


@dataclass(frozen=True, slots=True)
class AdminKey:
    digest: str = field(repr=False)
    made: str | None = field(default=None, repr=False)
    """The key in clear, if it was made just now: show it once."""


def find_admin_key(given: str | None, state: Path, *, loopback: bool) -> AdminKey:
    """The key in force.

    A given one must have 32 characters or more. Without one: the hash kept in `state`, else a new key,
    whose hash is kept there. An admin listener off loopback must be given a key.
    """
    if given is not None:
        if len(given) < MIN_LENGTH:
            raise AdminKeyRefused(
                f"the admin key needs at least {MIN_LENGTH} characters (`headgate keys new`)"
            )
        return AdminKey(digest_of(given))
    if not loopback:
        raise AdminKeyRefused(
            "an admin listener off loopback needs HEADGATE_ADMIN_KEY or HEADGATE_ADMIN_KEY_FILE"
        )
    kept = state / FILE_NAME
    key = new_key()
    try:
        if kept.is_file() and _DIGEST.fullmatch(digest := kept.read_text(errors="replace").strip()):
            return AdminKey(digest)
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(digest_of(key) + "\n")
    except OSError:
        pass  # nothing can be kept here: the key holds for this process only
    return AdminKey(digest_of(key), key)
