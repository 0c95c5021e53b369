"""Whom we may load: this machine, or a host whose owner says so."""

import ipaddress
from urllib.parse import urlsplit


class TargetRefused(ValueError):
    """The URL is not one, or names a host that nobody said is theirs."""


def check_target(url: str, *, owned: bool) -> str:
    """The URL without its trailing slash and `/v1`. Raises TargetRefused.

    A name counts as this machine only if it is `localhost`: any other may resolve to anything.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TargetRefused(f"{url!r} is not an http:// or https:// URL")
    if parts.query or parts.fragment or parts.username is not None:
        raise TargetRefused(f"{url!r}: no query, fragment or credentials; the key goes into --key")
    if not owned and not _is_this_machine(parts.hostname):
        raise TargetRefused(
            f"{parts.hostname} is not this machine. A load test on somebody else's host is an attack: "
            "if it is yours, say --i-own-this-host"
        )
    return url.rstrip("/").removesuffix("/v1")


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
