"""The configuration as the gateway runs it: immutable, checked, every name resolved.

`loading` makes one `Snapshot` from a file; a request takes the current one at its start and keeps it to
its end, so a reload never changes the rules under a request in flight. The meanings are those of the
routes.yaml grammar (docs/routes.md); the modules are its sections, as in `schema`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.config.snapshot.activation import (
    Activation,
    CommandWake,
    EngineWake,
    HttpStep,
    HttpWake,
    KubernetesWake,
    Wake,
    WarmUp,
)
from gateway.config.snapshot.limits import COST_UNIT, Calendar, Limit, Share, Unit
from gateway.config.snapshot.models import CountPolicy, MaxTokens, MediaTokens, Model, Prices, TokenizerSpec
from gateway.config.snapshot.overload import OverloadStep
from gateway.config.snapshot.pools import Pool, PoolLimits, Replica, Timeouts, Upstream, UpstreamStream
from gateway.config.snapshot.rules import Fit, Hop, HopReason, Mirror, Range, Rule, Sticky, When
from gateway.config.snapshot.scheduling import (
    OFFSETS,
    Binding,
    Budget,
    OrderName,
    Pace,
    PlacementName,
    Policy,
    QueueBounds,
    Slo,
)
from gateway.config.snapshot.server import LimitSettings, Server
from gateway.config.snapshot.tenants import ANONYMOUS, Allow, Key, Tenant
from gateway.config.snapshot.values import EMPTY, PriorityClass

__all__ = [
    "ANONYMOUS",
    "COST_UNIT",
    "EMPTY",
    "OFFSETS",
    "Activation",
    "Allow",
    "Binding",
    "Budget",
    "Calendar",
    "CommandWake",
    "CountPolicy",
    "EngineWake",
    "Fit",
    "Hop",
    "HopReason",
    "HttpStep",
    "HttpWake",
    "Key",
    "KubernetesWake",
    "Limit",
    "LimitSettings",
    "MaxTokens",
    "MediaTokens",
    "Mirror",
    "Model",
    "OrderName",
    "OverloadStep",
    "Pace",
    "PlacementName",
    "Policy",
    "Pool",
    "PoolLimits",
    "Prices",
    "PriorityClass",
    "QueueBounds",
    "Range",
    "Replica",
    "Rule",
    "Server",
    "Share",
    "Slo",
    "Snapshot",
    "Sticky",
    "Tenant",
    "Timeouts",
    "TokenizerSpec",
    "Unit",
    "Upstream",
    "UpstreamStream",
    "Wake",
    "WarmUp",
    "When",
]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One whole configuration. `hash` is the SHA-256 of the file's bytes, hex."""

    source: str
    hash: str
    server: Server
    models: Mapping[str, Model]
    pools: Mapping[str, Pool]
    rules: tuple[Rule, ...]
    tenants: Mapping[str, Tenant]
    aliases: Mapping[str, str]
    """Alias -> model name."""
    limits: tuple[Limit, ...]
    """All limits of the file, wherever they are written."""
    keys: Mapping[str, tuple[Tenant, Key]] = field(repr=False)
    """Key digest -> whose it is. In force is what the file says with the state store's overlay on it."""
    overload: Mapping[PriorityClass, tuple[OverloadStep, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Steps of each class, whatever the rule."""

    def model(self, asked: str) -> Model | None:
        """The model a client names, by name or alias; the `*` model where it is declared and nothing else
        fits; None for an unknown one."""
        name = self.aliases.get(asked, asked)
        return self.models.get(name) or self.models.get("*")
