"""Of a pool: who goes next, to which replica, how long the line may get, and what is promised."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from gateway.config.snapshot.values import PriorityClass

OrderName = Literal["lanes", "slack", "sjf", "fcfs"]
PlacementName = Literal[
    "predicted_ttft",
    "least_tokens",
    "least_requests",
    "round_robin",
    "power_of_two",
    "lmetric",
    "prefix",
]
Binding = Literal["late", "early"]

OFFSETS: Mapping[PriorityClass, float] = MappingProxyType(
    {PriorityClass.interactive: 0.0, PriorityClass.standard: 5.0, PriorityClass.batch: 600.0}
)
"""Seconds by which a class lets others go first (`classes.<name>.may_wait_s`)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a class is promised, as the scheduler keeps to it. Seconds; None: its own setting holds."""

    ttft: float | None = None
    """To the first token."""
    queue: float | None = None
    """To being sent."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who of those that wait for a pool goes next, where, and when (gateway/queueing/scheduler.py).

    Times in seconds.
    """

    order: OrderName = "lanes"
    placement: PlacementName = "predicted_ttft"
    binding: Binding = "late"

    kappa: float = 100.0
    """Seconds of place in line per second of predicted work: shorter first."""
    slack_cap: float = 120.0
    """Seconds that a request's own work costs it in line at most, approached and never reached: the bound on
    overtaking."""
    offsets: Mapping[PriorityClass, float] = field(default_factory=lambda: OFFSETS)
    strict: bool = False
    """Classes are bands: nothing of a lower class goes before anything of a higher one."""

    long_prompt: int = 2048
    """Uncached prompt tokens beyond which a request goes in the long lane."""
    long_margin: float = 1.0
    """Replicas for the long lane, over the measured rate of its work."""
    tpot_target: float = 0.060
    """Seconds per output token that running requests may see: prefill is fed in doses of 1.5 times that, and
    under `lanes` no faster than leaves time for the steps between (pacing.py)."""
    tpot_long: float = 0.100
    """The same on replicas of the long set, while nobody has to be refused for want of time."""
    pace: bool = True
    """Whether `lanes` paces prefill at all; for comparisons."""
    dose: tuple[int, int] = (1024, 4096)
    """Least and most unstarted prompt tokens that a replica is given at a time."""
    kv_guard: float = 0.92
    """Share of a replica's cache that may be reserved."""

    fair: bool = True
    fair_after: float = 3.0
    """Tenants are held to their shares while the line takes so many seconds to drain, or lately somebody had
    to be refused for want of time; 0: always. In a short line all get what they ask for soon, and holding
    somebody back only costs."""
    quantum: float = 50_000.0
    """Work, as prompt tokens of a short prompt, by which a tenant may be ahead of the least served one that
    waits."""
    headroom: float = 0.30
    """Share of each replica's slots and cache closed to a tenant that holds more than its share."""

    shed: frozenset[PriorityClass] = frozenset({PriorityClass.interactive})
    """Classes whose requests are refused once their budget cannot be met."""
    budget: float = 10.0
    """Seconds to the first token for a request of those classes, unless its own deadline is earlier."""
    budget_long: float = 30.0
    """The same in the long lane; and never below `budget_stretch` times the bare prefill."""
    budget_stretch: float = 5.0
    budgets: Mapping[PriorityClass, Budget] = field(default_factory=lambda: MappingProxyType({}))
    budgets_long: Mapping[PriorityClass, Budget] = field(default_factory=lambda: MappingProxyType({}))
    """Of classes that are promised something (`slo`), in place of the two above."""
    overdue: Literal["refuse", "demote"] = "refuse"
    """What becomes of a request that cannot meet its budget: a refusal, or its place in line as `batch`."""
    reserved: Mapping[PriorityClass, int] = field(default_factory=lambda: MappingProxyType({}))
    """Slots per replica that only this class and more urgent ones may use."""
    preempt: int = 0
    """How often a batch request that was sent, and has no first token, may give way to interactive ones."""

    prefix_tokens: int = 0
    """Tokens per block of the prefix index; 0 where engines do not reuse prefixes, or nobody knows."""

    def time_to_first(self, priority: PriorityClass, *, long: bool, bare: float) -> float:
        """Seconds to the first token that a request of this class has, if it says nothing itself; `bare` is
        its prefill alone on the fastest replica."""
        seconds = self.budget_long if long else self.budget
        promised = (self.budgets_long if long else self.budgets).get(priority)
        if promised is None:
            return max(seconds, self.budget_stretch * bare)
        seconds = max(seconds if promised.ttft is None else promised.ttft, self.budget_stretch * bare)
        return seconds if promised.queue is None else min(seconds, promised.queue + bare)


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How many requests may wait for a replica of the pool, with how many prompt tokens and bytes of bodies
    together, and for how many seconds."""

    max_requests: int = 1000
    max_wait: float = 60.0
    max_tokens: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Slo:
    """What the operator promises. Milliseconds; None: nothing."""

    ttft_p95_ms: float | None = None
    tpot_p99_ms: float | None = None
    queue_ms: float | None = None

    def __bool__(self) -> bool:
        return any(promised is not None for promised in (self.ttft_p95_ms, self.tpot_p99_ms, self.queue_ms))


@dataclass(frozen=True, slots=True)
class Pace:
    """What a replica is taken to cost until its own answers tell (gateway/fleet/step_model.py). Seconds."""

    token_s: float
    """b: per uncached prompt token."""
    attention_s: float
    """q: per square of those."""
    step_s: float
    """a: between two tokens."""
    sequence_s: float
    """c: more of it per request in flight."""
    kv_s: float
    """d: and per cached token."""
