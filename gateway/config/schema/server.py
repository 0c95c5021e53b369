"""`server`: listeners, where state is kept, bounds of the whole process."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.config.schema.values import VARIABLE, Address, MaybeSeconds, MaybeText, Name, Section, Text


class Timeouts(Section):
    """What is absent in a pool is the server's, and there the built-in default."""

    connect_s: MaybeSeconds = None
    """Seconds to connect to a replica. Default 2."""
    first_token_s: MaybeSeconds = None
    """Seconds from sending until the first event. Default 120."""
    idle_s: MaybeSeconds = None
    """Seconds between two events of a stream. Default 30."""
    keepalive_s: Annotated[Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] | None, VARIABLE] = (
        None
    )
    """Seconds of silence after which a stream that has begun gets a comment; 0: never. Default 15."""
    total_s: MaybeSeconds = None
    """Seconds for the whole request from its receipt, waiting included. Default 3600."""
    send_s: MaybeSeconds = None
    """Seconds for one write to a client that does not read. Default 60."""


class LimitSettings(Section):
    mode: Literal["direct", "leased"] = "leased"
    """With Redis: ask it for every admission, or spend slices of limits that were leased from it."""
    timeout_ms: Annotated[float, Field(ge=5, le=5000, allow_inf_nan=False), VARIABLE] = 100.0
    """Milliseconds that Redis has for one answer."""
    settle_tokens: Annotated[int, Field(ge=1, le=100_000), VARIABLE] = 32
    """Output tokens of a stream after which its reservation is corrected."""
    settle_ms: Annotated[float, Field(ge=10, le=60_000, allow_inf_nan=False), VARIABLE] = 250.0
    """Milliseconds after which it is, if that is sooner."""
    namespace: Name = "headgate"
    """Prefix of all keys in Redis."""


class Server(Section):
    listen: Address = ("127.0.0.1", 8080)
    """host:port of the API. Default 127.0.0.1:8080."""
    admin: Address = ("127.0.0.1", 8081)
    """host:port of the admin API. Default 127.0.0.1:8081."""
    state: Text = "./.headgate"
    """Directory for what the gateway must remember, relative to this file."""
    redis_url: MaybeText = Field(None, repr=False)
    """Where limits are kept that several processes share: redis://, rediss://, redis+sentinel:// or
    redis+cluster://. Absent: in this process."""
    limits: LimitSettings = LimitSettings()
    """How limits are kept."""
    authentication: Literal["keys", "off"] = "keys"
    """`off` lets everyone in as the tenant `anonymous`; on loopback only, unless `--insecure`."""
    metrics: Literal["off", "loopback", "open"] = "loopback"
    """Who may read /metrics on `listen`; the admin listener always serves it."""
    max_body_mb: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False), VARIABLE] = 4.0
    """Largest request body, MiB."""
    drain_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False), VARIABLE] = 30.0
    """Seconds that streams in flight get to end after SIGTERM."""
    timeouts: Timeouts = Timeouts()
    """For all pools; a pool may override each."""
