"""Of a pool: what wakes it and puts it to sleep, and what warms a replica up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.config.snapshot.values import EMPTY


@dataclass(frozen=True, slots=True)
class EngineWake:
    """The engine's own way (`EngineAdapter.sleep`): vLLM's sleep mode, Triton's model repository."""


@dataclass(frozen=True, slots=True)
class HttpStep:
    """One request, answered 2xx when it is done. `url` None: to each replica, with the pool's credentials."""

    path: str
    url: str | None = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: EMPTY, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class HttpWake:
    """Requests, one after the other. Nothing in `cool`: it is never put to sleep."""

    wake: tuple[HttpStep, ...]
    cool: tuple[HttpStep, ...] = ()


@dataclass(frozen=True, slots=True)
class CommandWake:
    """Programs with their arguments, for no shell; each has done it when it ends with 0."""

    wake: tuple[str, ...]
    cool: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KubernetesWake:
    """A Deployment or StatefulSet, scaled to `replicas` and to 0."""

    resource: Literal["deployment", "statefulset"]
    name: str
    namespace: str | None = None
    """None: the gateway's own."""
    replicas: int = 1


Wake = EngineWake | HttpWake | CommandWake | KubernetesWake


@dataclass(frozen=True, slots=True)
class Activation:
    """How a pool that may sleep is woken, and when it sleeps (gateway/activation/). Seconds."""

    wake: Wake
    timeout: float
    """For a wake, from its beginning until a replica may have requests."""
    idle_after: float | None
    """Without a request for so long, it is put to sleep; None: it is not."""
    while_waking: Literal["hold", "fallback", "refuse"] = "hold"
    """What becomes of requests until it is awake."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a replica that appears or returns is sent before traffic (gateway/activation/warming.py)."""

    prompts: tuple[str, ...] = ()
    max_tokens: int = 1
    common_prefixes: int = 0
    """So many of the system prompts that were seen most often are sent too."""
    timeout: float = 30.0
    """Seconds after which the replica gets traffic all the same."""
