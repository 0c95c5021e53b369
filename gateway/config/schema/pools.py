"""`pools`: engines of one kind, what they serve under which names, what they take."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from backends.contract import Door
from gateway.config.schema.activation import Wake, WarmUp
from gateway.config.schema.scheduling import Placement, Queue, Scheduler, Slo
from gateway.config.schema.server import Timeouts
from gateway.config.schema.values import (
    HEADER_PATTERN,
    HEADER_VALUE_PATTERN,
    VARIABLE,
    Flag,
    JsonObject,
    MaybeCount,
    MaybeMilliseconds,
    MaybeSeconds,
    MaybeText,
    ModelName,
    Name,
    Section,
    Text,
    Url,
    Weight,
    kinded,
    listed,
)
from gateway.config.snapshot import OrderName, PlacementName


def _served(value: Any) -> Any:
    """`a`, `[a, b]` and `{a: a, b: b}` mean the same."""
    names = listed(value)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return value
    if len(set(names)) < len(names):
        raise PydanticCustomError("headgate", "names a model twice")
    return {name: name for name in names}


class Lora(Section):
    """Which of these an engine needs: docs/engines.md."""

    placeholders: ClassVar[Mapping[str, Any]] = {"name": ""}

    name: Text
    """As the engine calls the adapter."""
    id: Annotated[int, Field(ge=0, le=2**63 - 1), VARIABLE] | None = None
    """Its number, for engines that know adapters by numbers."""
    path: MaybeText = None
    """Where the engine finds its weights, on the engine's own disk."""
    scale: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), VARIABLE] = 1.0
    """How strongly it is applied."""


def _named(value: Any) -> Any:
    """`french` and `{name: french}` mean the same."""
    return {"name": value} if isinstance(value, str) else value


class Adapted(Section):
    """A model that is a LoRA adapter over another."""

    placeholders: ClassVar[Mapping[str, Any]] = {"model": "", "adapter": Lora.model_construct(name="")}

    model: Text
    """The base model, as this engine calls it."""
    adapter: Annotated[Lora, BeforeValidator(_named, json_schema_input_type=Text | Lora)]
    """The adapter; a word alone is its `name`."""


PLAIN_TAG, ADAPTED_TAG = "a name", "an adapter"


def _served_tag(value: Any) -> str | None:
    if isinstance(value, dict | Adapted):
        return ADAPTED_TAG
    return None if isinstance(value, list) else PLAIN_TAG


Served: TypeAlias = Annotated[
    Annotated[Text, Tag(PLAIN_TAG)] | Annotated[Adapted, Tag(ADAPTED_TAG)],
    Discriminator(
        _served_tag,
        custom_error_type="headgate",
        custom_error_message="is neither the engine's name nor {model: ..., adapter: ...}",
    ),
]
Serves: TypeAlias = Annotated[
    dict[ModelName, Served],
    Field(min_length=1),
    BeforeValidator(_served, json_schema_input_type=ModelName | list[ModelName] | dict[ModelName, Served]),
]


class PoolLimits(Section):
    prompt: MaybeCount = None
    """Longest prompt, tokens."""
    total: MaybeCount = None
    """Longest prompt and output together, tokens."""
    in_flight: MaybeCount = None
    """Requests at a time per replica; more wait in the gateway's queue."""
    kv_tokens: MaybeCount = None
    """Tokens that a replica's cache holds; requests wait while it would overflow."""
    adapters: MaybeCount = None
    """LoRA adapters that a replica holds at a time."""


class Replica(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"id": "", "url": ""}

    id: Name
    """Unique in the file; shown in `x-headgate-replica` and metrics, where the URL never is."""
    url: Url
    """Base URL, http or https."""
    weight: Weight = 1.0
    """Share of the load, relative to the other replicas."""


class Upstream(Section):
    api_key: MaybeText = Field(None, repr=False)
    """Sent to the replicas as a bearer token. Write `${VAR}`, not the key."""
    api_key_file: MaybeText = None
    """File that holds the key, relative to this file; instead of `api_key`."""
    headers: dict[
        Annotated[str, Field(pattern=HEADER_PATTERN)], Annotated[str, Field(pattern=HEADER_VALUE_PATTERN)]
    ] = Field(default={}, repr=False)
    """Sent with every request to the replicas."""
    ca_file: MaybeText = None
    """PEM file of the authorities to trust instead of the system's."""


class Pool(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"engine": "", "serves": {}, "replicas": []}

    engine: Text
    """The engine kind, e.g. `trtllm`, `triton`, `tgi`."""
    options: JsonObject = {}
    """Options of that engine kind."""
    serves: Serves
    """Public model name to the name this engine wants, or to a LoRA adapter of it; a name alone, or a list,
    means both are equal."""
    replicas: Annotated[list[Replica], Field(min_length=1)]
    """The engines of this pool: same kind, same models, same limits."""
    limits: PoolLimits = PoolLimits()
    """What the engines take."""
    upstream: Upstream = Upstream()
    """Credentials and TLS towards the replicas."""
    labels: dict[Name, Text] = {}
    """Free words that a tenant's `allow` can ask for."""
    state: Literal["hot", "warm", "cold"] = "hot"
    """What it is while nobody asks for it: in service, asleep in a process that stays, or not there."""
    wake: Annotated[
        Wake | None, BeforeValidator(kinded, json_schema_input_type=Literal["engine"] | Wake | None)
    ] = None
    """What wakes it, and puts it to sleep: `engine`, or a mapping."""
    wake_timeout_s: MaybeSeconds = None
    """Seconds for a wake, until a replica may have requests. Default: 60; of a `cold` pool 600."""
    idle_after_s: MaybeSeconds = None
    """Seconds without a request after which it is put to sleep. Default: 900; of a `hot` pool never."""
    while_waking: Literal["hold", "fallback", "refuse"] = "hold"
    """Requests until it is awake: wait, go to the next pool of their chain, or get 503 with `retry-after`."""
    warm_up: WarmUp | None = None
    """What a replica that appears or returns is sent before it gets traffic."""
    slo: Slo = Slo()
    """What the operator promises."""
    relay: Literal["auto", "raw", "patched"] = "auto"
    """How events reach the client. `raw`: bytes untouched, for canonical engines with equal names."""
    upstream_stream: Literal["auto", "always", "client"] = "auto"
    """Whether the engine is asked to stream when the client did not."""
    max_generation_ms: MaybeMilliseconds = None
    """A generation ends after so long, with what there is by then."""
    doors: Annotated[list[Door], Field(min_length=1)] | None = None
    """The endpoints that its engines serve, all of them. Default: those that this engine kind does."""
    timeouts: Timeouts = Timeouts()
    """Override the server's, one by one."""
    queue: Queue = Queue()
    """Bounds of waiting."""
    scheduler: Annotated[Scheduler, BeforeValidator(kinded, json_schema_input_type=OrderName | Scheduler)] = (
        Scheduler()
    )
    """Who goes next: `lanes`, `slack`, `sjf`, `fcfs`, or a mapping with settings."""
    placement: Annotated[
        Placement, BeforeValidator(kinded, json_schema_input_type=PlacementName | Placement)
    ] = Placement()
    """To which replica: `predicted_ttft`, `least_tokens`, `least_requests`, ..., or a mapping."""
    lends_to: list[Name] = []
    """Pools whose waiting requests idle replicas of this one serve, where the rule's chain leads on here."""
    engine_priority: Flag = False
    """Tell the engines how urgent a request is, by its class and the client's `priority`. They must have been
    started for it."""
    profile: MaybeText = None
    """A file of `headgate calibrate`: how fast its replicas are until their answers have told."""
