"""Pools: engines of one kind, what they serve under which names, what they take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from backends.contract import Door, EngineAdapter, Lora, RelayMode
from gateway.config.snapshot.activation import Activation, WarmUp
from gateway.config.snapshot.scheduling import Pace, Policy, QueueBounds, Slo
from gateway.config.snapshot.values import EMPTY, PriorityClass

UpstreamStream = Literal["auto", "always", "client"]


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Lengths in tokens; None is unlimited. Per replica: `in_flight` is requests, `kv_tokens` what its
    cache holds; None is unknown."""

    prompt: int | None = None
    total: int | None = None
    in_flight: int | None = None
    kv_tokens: int | None = None
    adapters: int | None = None
    """LoRA adapters that a replica holds at a time."""


@dataclass(frozen=True, slots=True)
class Replica:
    id: str
    url: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """Credentials and TLS towards the replicas of a pool. Never logged."""

    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: EMPTY, repr=False)
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `first_token`: sent until the first event; `idle`: between events; `keepalive`: silence in a
    stream that has begun until a comment is sent; `total`: the whole request from its receipt, waiting
    included; `send`: one write to a client that does not read."""

    connect: float = 2.0
    first_token: float = 120.0
    idle: float = 30.0
    keepalive: float = 15.0
    """Infinite: never."""
    total: float = 3600.0
    send: float = 60.0


@dataclass(frozen=True, slots=True)
class Pool:
    name: str
    engine: str
    adapter: EngineAdapter
    serves: Mapping[str, str]
    """Public model name -> the name this engine wants; of a LoRA adapter, its base model's."""
    replicas: tuple[Replica, ...]
    limits: PoolLimits = PoolLimits()
    upstream: Upstream = Upstream()
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    state: Literal["hot", "warm", "cold"] = "hot"
    """What it is while nobody asks for it: in service, asleep in a process that stays, or not there. Without
    an activation `cold` pools take no traffic, and the others do."""
    slo: Slo = Slo()
    class_slos: Mapping[PriorityClass, Slo] = field(default_factory=lambda: MappingProxyType({}))
    """Of classes that are promised something else than the pool at large."""
    relay: RelayMode = "patched"
    upstream_stream: UpstreamStream = "auto"
    max_generation: float | None = None
    """Seconds after which a generation ends with what there is; None: it may take its time."""
    doors: frozenset[Door] = frozenset(("chat", "completions"))
    """Public endpoints that its engines serve."""
    timeouts: Timeouts = Timeouts()
    queue: QueueBounds = QueueBounds()
    policy: Policy = Policy()
    loras: Mapping[str, Lora] = field(default_factory=lambda: MappingProxyType({}))
    """Public model name -> the adapter that it is, for those that are one."""
    share_prefixes: bool = True
    """Whether a tenant's prompts may profit from what engines computed for another's."""
    engine_priority: bool = False
    """Whether engines are told how urgent a request is."""
    lends_to: tuple[str, ...] = ()
    """Pools whose waiting requests its idle replicas serve, where the request's chain goes on to this one."""
    pace: Pace | None = None
    """None: nobody measured it."""
    activation: Activation | None = None
    """None: it is neither woken nor put to sleep."""
    warm_up: WarmUp | None = None

    def promised(self, priority: PriorityClass) -> Slo:
        """What requests of a class are promised here."""
        return self.class_slos.get(priority, self.slo)
