"""The configuration as the gateway runs it: immutable, checked, every name resolved.

`loading` makes one `Snapshot` from a file; a request takes the current one at its start and keeps it to
its end, so a reload never changes the rules under a request in flight. The meanings are those of the
routes.yaml grammar (docs/routes.md).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal

from backends.contract import Door, EngineAdapter, Lora, RelayMode

EMPTY: Mapping[str, Any] = MappingProxyType({})

Fit = Literal["next", "clamp", "refuse"]
"""What to do where the client asked for more output than a pool leaves: try the next pool of the chain,
send less and say so, or answer 400."""

HopReason = Literal["unavailable", "failed", "overloaded", "too_long"]
"""Why a request may leave a pool for the next one of its chain."""

CountPolicy = Literal["exact", "auto", "estimate"]
"""Count every prompt, none, or those where the exact length could change a decision."""

UpstreamStream = Literal["auto", "always", "client"]


class PriorityClass(enum.IntEnum):
    """Priority classes; a higher value is more urgent."""

    batch = 0
    standard = 1
    interactive = 2


# ------------------------------------------------------------------------------------------- limits

Unit = Literal[
    "requests", "input_tokens", "output_tokens", "tokens", "cost", "concurrent", "tokens_in_flight"
]
"""What a limit counts. `concurrent` and `tokens_in_flight` are given back at a request's end."""

Calendar = Literal["day", "month"]

Share = Literal["tenant", "key", "model", "pool"]

COST_UNIT = 10**10
"""Costs are counted in this fraction of the currency unit that prices are written in: fine enough for
prices of 0.0001 a million tokens, and 900,000 units still are exact in a double, which is what Lua has."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` of `unit`, over time or at a time, for a part of the traffic."""

    name: str
    """Unique in the file; errors, metrics and explain say it."""
    unit: Unit
    amount: int
    """Requests or tokens; of `cost`, in 1 / COST_UNIT."""
    per: int | None = None
    """Seconds in which the amount is refilled, evenly. None for budgets and for what is given back."""
    calendar: Calendar | None = None
    """A budget: it starts anew with each day or month, UTC."""
    tenants: tuple[str, ...] = ()
    """Only requests of these; empty means of any. So are `keys`, `models` and `pools`."""
    keys: tuple[str, ...] = ()
    """Ids of keys of the one tenant that `tenants` names."""
    models: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    each: tuple[Share, ...] = ()
    """The amount is for each of these by itself, e.g. each tenant on each model; else for all together."""
    enforce: bool = True
    """False: it only counts what it would have refused."""
    store_down: Literal["local", "closed", "open"] = "local"
    """When the shared store cannot be asked: this process's share of the amount, refuse, or let through."""
    overrun: Literal["finish", "cut"] = "finish"
    """When an answer outruns its reservation and nothing is left: let it finish, or cut it."""
    clamp: bool = False
    """Where fewer output tokens are left than expected: send a smaller max_tokens instead of refusing."""


@dataclass(frozen=True, slots=True)
class Prices:
    """1 / COST_UNIT per token."""

    input: int
    output: int
    cached_input: int
    """Of prompt tokens that the engine had in its cache."""


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


# --------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Which tokenizer counts for a model.

    `huggingface`: `path` is a directory with tokenizer.json, tokenizer_config.json and a chat template.
    `tiktoken`: `encoding` names an encoding, `path` its local vocabulary file (never fetched); None: the one
    in TIKTOKEN_CACHE_DIR.
    `engine`: a replica of `pool` is asked; the estimate where it does not answer within `timeout` seconds.
    `estimate`: bytes divided by `bytes_per_token`; says of itself that it is an estimate.
    """

    kind: Literal["huggingface", "tiktoken", "engine", "estimate"]
    path: str | None = None
    encoding: str | None = None
    chat_template: str | None = None
    """A template file, where it is not the tokenizer's own."""
    bytes_per_token: float = 4.0
    pool: str | None = None
    timeout: float = 0.5


@dataclass(frozen=True, slots=True)
class MaxTokens:
    """Output bounds of a model, in tokens per choice."""

    default: int | None = None
    """Assumed for the estimate and sent when the client names none."""
    ceiling: int | None = None
    policy: Literal["clamp", "refuse"] = "clamp"
    """What happens to a request for more than the ceiling (the tenant's or the model's)."""
    margin: int = 0
    """Tokens of the context, and of a pool's total, that are kept free between prompt and output."""


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """What a part of a chat that is not text costs, in tokens. None: such parts are not taken."""

    image: int | None = None
    image_low: int | None = None
    """Of an image with `detail: low`; None: as any other."""
    image_high: int | None = None
    audio: int | None = None
    video: int | None = None
    file: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    tokenizer: TokenizerSpec
    context: int | None = None
    """Tokens of prompt and output together."""
    max_tokens: MaxTokens = MaxTokens()
    defaults: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    """Body fields used where the client gives none, e.g. `temperature`."""
    aliases: tuple[str, ...] = ()
    count: CountPolicy = "auto"
    """Whether prompts may be estimated. Without a tokenizer they always are."""
    drift_warn: float = 0.05
    """Part by which most exact counts may differ from the engine's before somebody is told."""
    media_tokens: MediaTokens = MediaTokens()
    prices: Prices | None = None
    """None: it costs nothing."""


# ---------------------------------------------------------------------------------------------- pools


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
    fair_after: float = 5.0
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


# ---------------------------------------------------------------------------------------------- rules


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
class OverloadStep:
    """One step of a brown-out: on while a line is long, it takes something from each request.

    When it is on: queueing/brownout.py. What it takes: routing/degrading.py. All given signals must have
    reached their thresholds.
    """

    queue_wait: float | None = None
    """Seconds in which the work drains that may go before a newcomer of the class."""
    waiting: int | None = None
    """Requests in line."""
    off_below: float = 0.5
    """It goes off when a signal has stayed below this part of its threshold ..."""
    dwell: float = 10.0
    """... for so many seconds."""
    max_tokens: int | None = None
    """Most output tokens per choice."""
    n: int | None = None
    """Most choices per prompt."""
    priority_class: PriorityClass | None = None
    """The most urgent class."""
    model: str | None = None
    """The model that answers instead, ..."""
    pools: tuple[str, ...] = ()
    """... and the pools that are asked for it, before those of the chain."""


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


# -------------------------------------------------------------------------------------------- tenants


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    digest: str = field(repr=False)
    """SHA-256 of the key, 64 lower-case hex digits."""
    expires: float | None = None
    """Seconds since 1970; None for never. Keys of the file have no end, unless they are rotated."""
    degrade: bool = True
    """Whether its requests may lose something in overload (`overload`)."""


@dataclass(frozen=True, slots=True)
class Allow:
    """What a tenant may reach: model name patterns (`*`, `llama*`), and for each named label of a pool
    the values that are allowed. A label that is not named here is free."""

    models: tuple[str, ...] = ("*",)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: EMPTY)

    def model(self, name: str) -> bool:
        return "*" in self.models or any(fnmatchcase(name, pattern) for pattern in self.models)

    def pool_fault(self, pool: Pool) -> str | None:
        """The label that keeps this tenant out of `pool`, as a phrase, or None."""
        for label, values in self.labels.items():
            if (has := pool.labels.get(label)) not in values:
                return f"label {label}={has} is not among {', '.join(values)}"
        return None


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    keys: tuple[Key, ...] = ()
    priority_class: PriorityClass = PriorityClass.standard
    max_class: PriorityClass = PriorityClass.interactive
    weight: float = 1.0
    allow: Allow = Allow()
    max_tokens: int | None = None
    """Ceiling of output tokens per choice."""
    degrade: bool = True
    """Whether its requests may lose something in overload."""


ANONYMOUS = Tenant(name="anonymous")
"""Who calls where `authentication: off`, unless the file declares a tenant of this name."""


# ------------------------------------------------------------------------------------------ the whole


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
