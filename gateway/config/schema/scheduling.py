"""Of a pool: who goes next, to which replica, how long the line may get, and what is promised."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.config.schema.values import (
    VARIABLE,
    ClassName,
    Count,
    CountFromZero,
    Flag,
    MaybeCount,
    MaybeCountFromZero,
    MaybeMilliseconds,
    Milliseconds,
    Seconds,
    Section,
)
from gateway.config.snapshot import OrderName, PlacementName, Policy, QueueBounds


class Slo(Section):
    """What is promised. Reported; and a budget of the scheduler where it has none of its own."""

    ttft_p95_ms: MaybeMilliseconds = None
    """95 of 100 streamed requests have their first token within so many milliseconds."""
    tpot_p99_ms: MaybeMilliseconds = None
    """99 of 100 streamed requests take no longer per output token after the first, milliseconds."""
    queue_ms: MaybeMilliseconds = None
    """95 of 100 requests wait no longer for a replica, milliseconds."""


class Queue(Section):
    max_requests: Count = QueueBounds().max_requests
    """Requests that may wait for this pool."""
    max_wait_s: Seconds = QueueBounds().max_wait
    """Seconds that one may wait."""
    max_tokens: MaybeCount = None
    """Prompt tokens that may wait, over all requests."""
    max_mb: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = None
    """MiB of request bodies that may wait."""


class Class(Section):
    """How the queue treats one priority class."""

    may_wait_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False), VARIABLE] | None = None
    """Seconds by which it lets others go first. Default: interactive 0, standard 5, batch 600."""
    shed: Annotated[Flag | None, VARIABLE] = None
    """Refuse a request whose first token cannot come within the budget. Default: interactive only."""
    reserved: CountFromZero = 0
    """Slots of each replica that only this class and more urgent ones may use."""
    slo: Slo = Slo()
    """What this class is promised here, field by field in place of the pool's; `null`: nothing."""


class Scheduler(Section):
    """The order in which waiting requests go; a word alone is the `kind`."""

    kind: OrderName = "lanes"
    """`lanes`: shorter first, aged, long prompts on replicas of their own; `slack`: without those; `sjf`:
    shortest first, without a bound on waiting; `fcfs`: first come, first served."""
    binding: Literal["late", "early"] = "late"
    """`late`: requests wait here until a replica has room; `early`: only for `in_flight`, else in engines."""
    kappa: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False), VARIABLE] = Policy().kappa
    """Seconds of place in line per second of predicted work."""
    slack_cap_s: Seconds = Policy().slack_cap
    """Seconds that its own length costs a request in line at most, approached by the longest."""
    strict: Flag = False
    """Nothing of a lower class goes before anything of a higher one."""
    classes: dict[ClassName, Class] = {}
    """Per priority class."""
    long_prompt: Count = Policy().long_prompt
    """Uncached prompt tokens beyond which a request is in the long lane."""
    tpot_target_ms: Milliseconds = Policy().tpot_target * 1000
    """Time per output token to keep: a replica gets prompts in doses of 1.5 times that, and under `lanes` no
    faster than leaves running answers that time."""
    tpot_long_ms: Milliseconds = Policy().tpot_long * 1000
    """The same on the replicas of the long lane, while nobody has to be refused for want of time."""
    fair: Flag = True
    """Balance tenants by their weights."""
    fair_after_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), VARIABLE] = Policy().fair_after
    """Only from when the line takes so long to drain until it takes a fifth of that, or while somebody had to
    be refused lately; 0: always."""
    quantum: Count = int(Policy().quantum)
    """Work, as tokens of a short prompt, by which a tenant may be ahead of another that waits."""
    headroom: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), VARIABLE] = Policy().headroom
    """Part of each replica that is closed to a tenant above its share while others are active."""
    budget_ms: Milliseconds = Policy().budget * 1000
    """Time to the first token for classes that are shed; the client's own deadline, if that is earlier.
    Written, it wins over the slo; else the slo gives it where it promises `ttft_p95_ms` or `queue_ms`."""
    budget_long_ms: Milliseconds = Policy().budget_long * 1000
    """The same in the long lane."""
    preempt: Annotated[int, Field(ge=0, le=100), VARIABLE] = 0
    """How often a batch request that was sent, and has no first token yet, may go back in line for an
    interactive one."""
    overdue: Literal["refuse", "demote"] = "refuse"
    """Answer 503 to a request that cannot meet its budget, or let it wait as `batch`."""


class Placement(Section):
    """Which of the replicas with room gets a request; a word alone is the `kind`."""

    kind: PlacementName = "predicted_ttft"
    """See docs/scheduling.md."""
    prefix_tokens: MaybeCountFromZero = None
    """Tokens per block in the picture of the engines' prefix caches; 0: they do not reuse prefixes. Default:
    128 for engines that do unless they are told not to, else 0."""
    share_prefixes: Flag = True
    """Whether a tenant's prompts may profit from what was computed for another's."""
