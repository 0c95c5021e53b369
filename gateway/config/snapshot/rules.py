"""Rules: conditions, chains of pools, and when a request goes on to the next one."""

from dataclasses import dataclass
from typing import Literal

from gateway.config.snapshot.overload import OverloadStep
from gateway.config.snapshot.values import PriorityClass

Fit = Literal["next", "clamp", "refuse"]
"""What to do where the client asked for more output than a pool leaves: try the next pool of the chain,
send less and say so, or answer 400."""

HopReason = Literal["unavailable", "failed", "overloaded", "too_long"]
"""Why a request may leave a pool for the next one of its chain."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds on a count of tokens; None is open."""

    lt: int | None = None
    lte: int | None = None
    gt: int | None = None
    gte: int | None = None

    def holds(self, value: int) -> bool:
        return (
            (self.lt is None or value < self.lt)
            and (self.lte is None or value <= self.lte)
            and (self.gt is None or value > self.gt)
            and (self.gte is None or value >= self.gte)
        )

    @property
    def most(self) -> int | None:
        """The largest number that the upper bounds let pass; None without one."""
        return min(
            (bound for bound in (self.lte, None if self.lt is None else self.lt - 1) if bound is not None),
            default=None,
        )

    def __str__(self) -> str:
        parts = ((">", self.gt), (">=", self.gte), ("<", self.lt), ("<=", self.lte))
        return " and ".join(f"{sign} {bound}" for sign, bound in parts if bound is not None)


@dataclass(frozen=True, slots=True)
class When:
    """A rule's condition: every given field must hold. Lists mean any of; model names are resolved."""

    model: tuple[str, ...] = ()
    tenant: tuple[str, ...] = ()
    priority_class: tuple[PriorityClass, ...] = ()
    estimated_total_tokens: Range | None = None
    if_clamped: int | None = None
    """`estimated_total_tokens`, which then has an upper bound, also holds where prompt and so many output
    tokens per choice pass below it; the output is then bounded to what fits."""
    prompt_tokens: Range | None = None
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """One entry of a rule's chain: a pool, and the other model it answers with, if any."""

    pool: str
    model: str | None = None
    weight: float | None = None
    """Its part of a split: neighbours with weights share the requests that reach them."""


Sticky = Literal["tenant", "key", "session", "request"]
"""Who draws a pool of a split, and keeps it."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A share of a rule's requests is sent to another pool too, whose answers nobody gets."""

    pool: str
    share: float
    """0 to 1."""
    in_flight: int = 4
    """Mirrored requests at a time; beyond this they are left out."""
    tokens_per_minute: int | None = None
    """Prompt tokens and asked output together; beyond this they are left out."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    chain: tuple[Hop, ...]
    when: When = When()
    fit: Fit = "next"
    on: frozenset[HopReason] = frozenset({"unavailable", "failed"})
    after: float = 0.0
    """Seconds to wait in an overloaded pool's queue before the `overloaded` hop is taken."""
    queue_comments: float | None = None
    """Seconds between two comments to a client that waits for a stream; None: none."""
    sticky: Sticky = "key"
    mirror: Mirror | None = None
    overload: tuple[OverloadStep, ...] = ()
    """What requests lose while the line is long, instead of being refused."""

    @property
    def splits(self) -> bool:
        """Whether part of the chain is drawn."""
        return any(hop.weight is not None for hop in self.chain)
