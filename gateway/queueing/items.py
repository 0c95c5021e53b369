"""What waits for a replica: a request as the scheduler knows it, and what may become of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from gateway.config.snapshot import PriorityClass
from gateway.fleet.ledger import Slot

if TYPE_CHECKING:  # these know items
    from gateway.queueing.fairness import Account
    from gateway.queueing.lines import Flow
    from gateway.queueing.scheduler import PoolScheduler

__all__ = ["INFINITE", "Item", "Reason", "Refusal", "Standing"]

Reason = Literal["no_replica", "queue_full", "overloaded"]

SMALL, MEDIUM, LONG = range(3)
"""Lanes: sizes of requests that have a line of their own."""
LANES = ("small", "medium", "long")
NO_HITS: Mapping[str, int] = MappingProxyType({})
INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not (or no longer) in line."""

    reason: Reason
    """`no_replica`: all are excluded, drained or asleep; `queue_full`: a bound is reached; `overloaded`: its
    budget cannot be met (shed)."""
    retry_after: float
    """Seconds after which the line is expected to be short enough, from the rate at which it drains."""


@dataclass(slots=True, eq=False, kw_only=True)
class Item:
    """A request that wants a replica: what is known of it, and whom to tell. One offer per item."""

    arrival: float
    """Seconds on the scheduler's clock; a request that is tried again keeps its own, and so its place."""
    entered: float | None = None
    """When it came to this pool, if another one had it first: the class budget counts from here, since what
    one pool could not do in time another one shall not refuse unseen."""
    prompt_tokens: int
    output_tokens: int
    """Expected, over all choices."""
    granted: Callable[[Slot], None]
    """Called once, inside `offer` or a later dispatch: the slot is the item's."""
    refused: Callable[[Refusal], None]
    """Called once, if the item is dropped from the line after `offer` had returned None."""
    name: str = ""
    """The request's id, for people who look at the line."""
    tenant: str = ""
    weight: float = 1.0
    """The tenant's weight."""
    priority: PriorityClass = PriorityClass.standard
    deadline: float | None = None
    """When the first token must have come at the latest, seconds on the clock, as its client has it; None: it
    has said nothing. Where its class is shed, the budget holds too: the earlier of both."""
    budget: float | None = None
    """Seconds to the first token that it has where its class is shed; None: as the policy has it."""
    exclude: frozenset[str] = frozenset()
    """Ids of replicas it must not get."""
    prefix: tuple[int, ...] = ()
    """Chained hashes of its prompt's leading blocks."""
    block_tokens: int = 0
    """Tokens of its prompt per block; 0: `Policy.prefix_tokens`."""
    session: str | None = None
    """`x-session-id` or `prompt_cache_key`: requests that share one share a prefix."""
    adapter: str | None = None
    """LoRA adapter, where the pool serves several."""
    size: int = 0
    """Bytes held while it waits."""
    lenders: frozenset[str] = frozenset()
    """Other pools that may serve it."""
    preempted: int = 0
    """How often its slot was taken back. Then no bound of the line keeps it out."""
    streamed: bool = True
    """Whether the engine streams: without a stream no first token is seen, its time is predicted."""

    # The scheduler's own, from `offer` on:
    hits: Mapping[str, int] = field(default_factory=lambda: NO_HITS, init=False)
    """Replica id -> tokens of the prompt that it probably holds."""
    uncached: int = field(default=0, init=False)
    """Prompt tokens to compute on the replica that holds most of it."""
    lane: int = field(default=SMALL, init=False)
    work: float = field(default=0.0, init=False)
    key: float = field(default=0.0, init=False)
    number: int = field(default=-1, init=False)
    latest: float = field(default=INFINITE, init=False)
    """When it must have been sent."""
    flow: "Flow | None" = field(default=None, init=False)
    """Set while it is in line."""
    account: "Account | None" = field(default=None, init=False)
    slot: Slot | None = field(default=None, init=False)
    cost: float = field(default=0.0, init=False)
    """What its tenant was charged, as prompt tokens; 0 where nobody waited when it was sent."""
    fill: float = field(default=0.0, init=False)
    """Seconds by which it has moved its replica's fill on (pacing.py)."""
    borrower: "PoolScheduler | None" = field(default=None, init=False)
    """In whose line it stood, if another pool's replica has got it."""

    @property
    def long(self) -> bool:
        return self.lane == LONG

    @property
    def since(self) -> float:
        """When its class budget began."""
        return self.arrival if self.entered is None else self.entered


@dataclass(frozen=True, slots=True)
class Standing:
    """One waiting request: its position (from 1) and how long it is expected to wait."""

    item: Item
    position: int
    expected_wait: float
