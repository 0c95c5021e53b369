"""Listeners, where state is kept, bounds of the whole process."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """How limits are kept. `redis_url` None: in this process."""

    redis_url: str | None = field(default=None, repr=False)
    mode: Literal["direct", "leased"] = "leased"
    """Ask Redis for every admission, or spend slices of limits locally."""
    timeout: float = 0.1
    """Seconds that one operation of the store may take."""
    settle_tokens: int = 32
    """Output tokens of a stream after which its reservation is corrected,"""
    settle_seconds: float = 0.25
    """or time, whichever is first."""
    namespace: str = "headgate"
    """Prefix of every key in Redis: gateways that share limits share it."""


@dataclass(frozen=True, slots=True)
class Server:
    listen: tuple[str, int] = ("127.0.0.1", 8080)
    admin: tuple[str, int] = ("127.0.0.1", 8081)
    state: str = "./.headgate"
    """Directory for what the gateway must remember, e.g. the hash of a made admin key."""
    authentication: Literal["keys", "off"] = "keys"
    metrics: Literal["off", "loopback", "open"] = "loopback"
    """Who may read /metrics on the data listener; the admin listener always serves it."""
    max_body: int = 4 * 1024 * 1024
    """Bytes of a request body."""
    drain: float = 30.0
    """Seconds that streams in flight get to end after SIGTERM."""
    limits: LimitSettings = LimitSettings()
