"""routes.yaml as people write it: names, units and bounds of every key.

These models know single values; what only the whole file can tell (names that refer to each other, engine
options, files) is in `checking`. They are strict: an unknown key or a number in quotes is an error.

    python -m gateway.config.schema > gateway/config/routes.schema.json

writes the JSON Schema that editors use; a test holds the two together.
"""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from backends.contract import Door
from gateway.config.addresses import base_url, host_port
from gateway.config.positions import Variable, resolved
from gateway.config.snapshot import OrderName, PlacementName, Policy, QueueBounds

VARIABLE_PATTERN = r"^\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^{}]*)?\}$"
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"
MODEL_PATTERN = r"^(\*|[A-Za-z0-9_][A-Za-z0-9._:/@+-]{0,127})$"
DIGEST_PATTERN = r"^sha256:[0-9a-fA-F]{64}$"
HEADER_PATTERN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"
PATH_PATTERN = r"^/[\x21\x22\x24-\x7e]{0,2047}$"
KUBERNETES_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
HEADER_VALUE_PATTERN = r"^[\t\x20-\x7e\x80-\u00ff]{0,8192}$"

PHRASES: Mapping[str, str] = {
    NAME_PATTERN: "is not a name: letters, digits and . _ -, at most 64, not beginning with . or -",
    MODEL_PATTERN: "is not a model name: letters, digits and . _ : / @ + -, at most 128; or * alone",
    DIGEST_PATTERN: "is not sha256: and 64 hex digits (make one with `headgate keys`)",
    HEADER_PATTERN: "is not a header name",
    PATH_PATTERN: "is not a path: it begins with / and has no blanks and no #",
    KUBERNETES_PATTERN: "is not a name of Kubernetes: small letters, digits, - and .",
    HEADER_VALUE_PATTERN: "is not a header value of at most 8192 characters in one line",
}
"""What each pattern means, said of a value that does not match it."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    placeholders: ClassVar[Mapping[str, Any]] = {}
    """Stand-ins for required fields that could not be read, so that the others can be checked."""


# --------------------------------------------------------------------------------------- scalar types


def _typed(value: Any) -> Any:
    return resolved(value) if isinstance(value, Variable) else value


def _typed_deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed_deep(item) for key, item in value.items()}
    return [_typed_deep(item) for item in value] if isinstance(value, list) else _typed(value)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _served(value: Any) -> Any:
    """`a`, `[a, b]` and `{a: a, b: b}` mean the same."""
    names = _listed(value)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return value
    if len(set(names)) < len(names):
        raise PydanticCustomError("headgate", "names a model twice")
    return {name: name for name in names}


def _kinded(value: Any) -> Any:
    """`lanes` and `{kind: lanes}` mean the same."""
    return {"kind": value} if isinstance(value, str) else value


def _url(value: str) -> str:
    try:
        return base_url(value)
    except ValueError as error:
        raise PydanticCustomError("headgate", "{why}", {"why": str(error)}) from None


def _address(value: Any) -> tuple[str, int]:
    try:
        return host_port(value if isinstance(value, str) else "")
    except ValueError as error:
        raise PydanticCustomError("headgate", "{why}", {"why": str(error)}) from None


_VARIABLE = BeforeValidator(_typed)
_MOST = 10**12

Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=4096)]
Name: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
ModelName: TypeAlias = Annotated[str, Field(pattern=MODEL_PATTERN)]
Flag: TypeAlias = Annotated[bool, _VARIABLE]
Count: TypeAlias = Annotated[int, Field(ge=1, le=_MOST), _VARIABLE]
CountFromZero: TypeAlias = Annotated[int, Field(ge=0, le=_MOST), _VARIABLE]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False), _VARIABLE]
Milliseconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400_000, allow_inf_nan=False), _VARIABLE]
Weight: TypeAlias = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), _VARIABLE]
Address: TypeAlias = Annotated[tuple[str, int], BeforeValidator(_address, json_schema_input_type=str)]
Url: TypeAlias = Annotated[str, AfterValidator(_url)]
ClassName: TypeAlias = Literal["interactive", "standard", "batch"]
OneOrMore: TypeAlias = Annotated[
    list[Text], Field(min_length=1), BeforeValidator(_listed, json_schema_input_type=str | list[str])
]
ModelNames: TypeAlias = Annotated[
    list[ModelName], Field(min_length=1), BeforeValidator(_listed, json_schema_input_type=str | list[str])
]
Classes: TypeAlias = Annotated[
    list[ClassName],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=ClassName | list[ClassName]),
]

JsonObject: TypeAlias = Annotated[dict[Text, Any], BeforeValidator(_typed_deep)]

Shares: TypeAlias = Annotated[
    list[Literal["tenant", "key", "model", "pool"]],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]

MaybeCost: TypeAlias = Annotated[
    Annotated[float, Field(gt=0, le=500_000, allow_inf_nan=False)] | None, _VARIABLE
]
Price: TypeAlias = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False), _VARIABLE]
MaybeCount: TypeAlias = Annotated[Count | None, _VARIABLE]
MaybeCountFromZero: TypeAlias = Annotated[CountFromZero | None, _VARIABLE]
MaybeSeconds: TypeAlias = Annotated[Seconds | None, _VARIABLE]
MaybeMilliseconds: TypeAlias = Annotated[Milliseconds | None, _VARIABLE]
MaybeText: TypeAlias = Annotated[Text | None, BeforeValidator(lambda value: value or None)]
"""Text, or nothing: also where a variable is empty, `${TGI_KEY:-}`."""


# --------------------------------------------------------------------------------------------- server


class Timeouts(Section):
    """What is absent in a pool is the server's, and there the built-in default."""

    connect_s: MaybeSeconds = None
    """Seconds to connect to a replica. Default 2."""
    first_token_s: MaybeSeconds = None
    """Seconds from sending until the first event. Default 120."""
    idle_s: MaybeSeconds = None
    """Seconds between two events of a stream. Default 30."""
    keepalive_s: Annotated[Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] | None, _VARIABLE] = (
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
    timeout_ms: Annotated[float, Field(ge=5, le=5000, allow_inf_nan=False), _VARIABLE] = 100.0
    """Milliseconds that Redis has for one answer."""
    settle_tokens: Annotated[int, Field(ge=1, le=100_000), _VARIABLE] = 32
    """Output tokens of a stream after which its reservation is corrected."""
    settle_ms: Annotated[float, Field(ge=10, le=60_000, allow_inf_nan=False), _VARIABLE] = 250.0
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
    max_body_mb: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False), _VARIABLE] = 4.0
    """Largest request body, MiB."""
    drain_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False), _VARIABLE] = 30.0
    """Seconds that streams in flight get to end after SIGTERM."""
    timeouts: Timeouts = Timeouts()
    """For all pools; a pool may override each."""


# --------------------------------------------------------------------------------------------- limits


class Limit(Section):
    """At most so many of exactly one unit, over time or at a time."""

    name: Name | None = None
    """Shown where the limit says no; made of its place and unit where it has none."""
    requests: MaybeCount = None
    """Requests."""
    tokens: MaybeCount = None
    """Tokens, prompt and output."""
    input_tokens: MaybeCount = None
    """Tokens of prompts."""
    output_tokens: MaybeCount = None
    """Tokens of answers."""
    cost: MaybeCost = None
    """Money, in the currency unit of the models' `prices`."""
    concurrent: MaybeCount = None
    """Requests at a time. Without `per`."""
    tokens_in_flight: MaybeCount = None
    """Tokens, prompt and expected output, of the requests at a time. Without `per`."""
    per: Literal["second", "minute", "hour", "day", "calendar_day", "calendar_month"] | None = None
    """The period: refilled evenly over it, or, of calendar ones, a budget that starts anew with it (UTC)."""
    model: ModelNames | None = None
    """Only for these models."""
    pool: OneOrMore | None = None
    """Only for requests that these pools take."""
    enforce: Flag = True
    """`false`: only count what it would have refused."""
    store_down: Literal["local", "closed", "open"] = "local"
    """When Redis cannot be asked: this process's share of the amount, refuse with 503, or let through."""
    overrun: Literal["finish", "cut"] = "finish"
    """An answer that outruns its reservation when nothing is left: let it finish, or end it as `length`."""
    clamp: Flag = False
    """Where less output is left than expected, send a smaller max_tokens instead of refusing."""


class SharedLimit(Limit):
    """A limit for everybody, or for each of something."""

    tenant: OneOrMore | None = None
    """Only for these tenants."""
    each: Shares = []
    """The amount is for each tenant, key, model or pool by itself, or each combination of these."""


# --------------------------------------------------------------------------------------------- models


class HuggingFaceTokenizer(Section):
    kind: Literal["huggingface"]
    """Counts with a Hugging Face tokenizer and its chat template."""
    path: Text
    """Directory with tokenizer.json, relative to this file."""
    chat_template: MaybeText = None
    """Template file, where it is not the tokenizer's own."""


class TiktokenTokenizer(Section):
    kind: Literal["tiktoken"]
    """Counts with a tiktoken vocabulary."""
    encoding: Text
    """E.g. `o200k_base`."""
    path: MaybeText = None
    """The vocabulary file, relative to this file; it is never downloaded. Without it, the encoding's file in
    TIKTOKEN_CACHE_DIR under tiktoken's own name for it."""


class EstimateTokenizer(Section):
    kind: Literal["estimate"]
    """Does not count: divides bytes by a constant, and says so in every answer."""
    bytes_per_token: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False), _VARIABLE] = 4.0
    """UTF-8 bytes per token."""


class EngineTokenizer(Section):
    kind: Literal["engine"]
    """Asks an engine how many tokens a prompt has; estimates where it does not answer."""
    pool: Name
    """The pool whose replicas are asked; it serves this model."""
    timeout_ms: Annotated[int, Field(gt=0, le=10_000), _VARIABLE] = 500
    """Milliseconds for the answer."""
    bytes_per_token: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False), _VARIABLE] = 4.0
    """UTF-8 bytes per token, where it is estimated and no ratio is learned."""


Tokenizer: TypeAlias = Annotated[
    HuggingFaceTokenizer | TiktokenTokenizer | EngineTokenizer | EstimateTokenizer,
    Field(discriminator="kind"),
]


class MaxTokens(Section):
    default: MaybeCount = None
    """Output tokens assumed and sent when the client names none."""
    ceiling: MaybeCount = None
    """Most output tokens per choice."""
    policy: Literal["clamp", "refuse"] = "clamp"
    """A request for more than the ceiling: send less and say so, or answer 400."""
    margin: Annotated[int, Field(ge=0, le=_MOST), _VARIABLE] = 0
    """Tokens of the context, and of a pool's total, kept free between prompt and output. Default 0."""


class Prices(Section):
    """In any one currency; a million tokens."""

    placeholders: ClassVar[Mapping[str, Any]] = {"input": 0.0, "output": 0.0}

    input: Price
    """A million prompt tokens."""
    output: Price
    """A million output tokens."""
    cached_input: Annotated[Price | None, _VARIABLE] = None
    """A million prompt tokens that the engine had in its cache. Default: as `input`."""


class PerDetail(Section):
    low: MaybeCountFromZero = None
    """Tokens of an image with `detail: low`."""
    high: MaybeCountFromZero = None
    """Tokens of an image with `detail: high`."""


class MediaTokens(Section):
    """Parts of a kind that has no cost here are refused."""

    image: MaybeCountFromZero = None
    """Tokens of an image."""
    per_detail: PerDetail = PerDetail()
    """Of an image that names its `detail`."""
    audio: MaybeCountFromZero = None
    """Tokens of a piece of audio."""
    video: MaybeCountFromZero = None
    """Tokens of a video."""
    file: MaybeCountFromZero = None
    """Tokens of a file."""


class Model(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"tokenizer": EstimateTokenizer(kind="estimate")}

    tokenizer: Tokenizer
    """What counts the tokens of a prompt."""
    count: Literal["exact", "auto", "estimate"] | None = None
    """`exact`: every prompt by the tokenizer. `estimate`: by bytes and what was learned of them. `auto`, the
    default where there is a tokenizer: estimated where nothing would be decided otherwise, else counted."""
    drift_warn: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _VARIABLE] = 0.05
    """Warn where most exact counts differ from the engine's by more than this part."""
    context: MaybeCount = None
    """Tokens of prompt and output together."""
    max_tokens: MaxTokens = MaxTokens()
    """Bounds on the output."""
    defaults: JsonObject = {}
    """Body fields used where the client gives none, e.g. `temperature`."""
    aliases: list[ModelName] = []
    """Other names that clients may use."""
    media_tokens: MediaTokens = MediaTokens()
    """What each part that is not text counts; such parts are taken only where they have a cost here."""
    prices: Prices | None = None
    """What `cost` limits count."""
    limits: list[Limit] = []
    """What all tenants together may use of this model."""


# ---------------------------------------------------------------------------------------------- pools


class Lora(Section):
    """Which of these an engine needs: docs/engines.md."""

    placeholders: ClassVar[Mapping[str, Any]] = {"name": ""}

    name: Text
    """As the engine calls the adapter."""
    id: Annotated[int, Field(ge=0, le=2**63 - 1), _VARIABLE] | None = None
    """Its number, for engines that know adapters by numbers."""
    path: MaybeText = None
    """Where the engine finds its weights, on the engine's own disk."""
    scale: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), _VARIABLE] = 1.0
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

    may_wait_s: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False), _VARIABLE] | None = None
    """Seconds by which it lets others go first. Default: interactive 0, standard 5, batch 600."""
    shed: Annotated[Flag | None, _VARIABLE] = None
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
    kappa: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False), _VARIABLE] = Policy().kappa
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
    fair_after_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), _VARIABLE] = Policy().fair_after
    """Only while the line takes so long to drain, or somebody had to be refused lately; 0: always."""
    quantum: Count = int(Policy().quantum)
    """Work, as tokens of a short prompt, by which a tenant may be ahead of another that waits."""
    headroom: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _VARIABLE] = Policy().headroom
    """Part of each replica that is closed to a tenant above its share while others are active."""
    budget_ms: Milliseconds = Policy().budget * 1000
    """Time to the first token for classes that are shed; the client's own deadline, if that is earlier.
    Written, it wins over the slo; else the slo gives it where it promises `ttft_p95_ms` or `queue_ms`."""
    budget_long_ms: Milliseconds = Policy().budget_long * 1000
    """The same in the long lane."""
    preempt: Annotated[int, Field(ge=0, le=100), _VARIABLE] = 0
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


class EngineWake(Section):
    kind: Literal["engine"]
    """The engine's own way: vLLM's sleep mode, Triton's model repository."""


class HttpStep(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"path": "/"}

    path: Annotated[str, Field(pattern=PATH_PATTERN)]
    """Path of the request, with its query."""
    url: Url | None = None
    """Base URL that it is sent to, once. Absent: it is sent to each replica, with the pool's `upstream`."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    """Method of the request."""
    headers: dict[
        Annotated[str, Field(pattern=HEADER_PATTERN)], Annotated[str, Field(pattern=HEADER_VALUE_PATTERN)]
    ] = Field(default={}, repr=False)
    """Its headers, beside `content-type`."""
    body: JsonObject | None = Field(None, repr=False)
    """Its body, sent as JSON."""


class HttpWake(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"wake": []}

    kind: Literal["http"]
    """Requests that an operator writes down."""
    wake: Annotated[list[HttpStep], Field(min_length=1)]
    """What wakes it: requests, one after the other, each answered 2xx."""
    cool: list[HttpStep] = []
    """What puts it to sleep. Absent: nothing does."""


class CommandWake(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"wake": []}

    kind: Literal["command"]
    """Programs; only where the gateway was started with `--allow-commands`."""
    wake: Annotated[list[Text], Field(min_length=1)]
    """What wakes it: a program and its arguments, for no shell."""
    cool: list[Text] = []
    """What puts it to sleep. Absent: nothing does."""


class KubernetesWake(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"name": ""}

    kind: Literal["kubernetes"]
    """Scales a Deployment or StatefulSet, with the service account of the gateway's pod."""
    resource: Literal["deployment", "statefulset"] = "deployment"
    """What is scaled."""
    name: Annotated[str, Field(pattern=KUBERNETES_PATTERN)]
    """Its name."""
    namespace: Annotated[str, Field(pattern=KUBERNETES_PATTERN)] | None = None
    """Its namespace. Default: the gateway's."""
    replicas: Count = 1
    """To how many pods it is woken; to sleep: 0."""


Wake: TypeAlias = Annotated[EngineWake | HttpWake | CommandWake | KubernetesWake, Field(discriminator="kind")]


class WarmUp(Section):
    """What a replica that appears or returns is sent before it gets traffic."""

    prompts: list[Text] = []
    """Texts, each sent as a chat of one message to each model of the pool."""
    max_tokens: Count = 1
    """Output tokens of each."""
    common_prefixes: Annotated[int, Field(ge=0, le=32), _VARIABLE] = 0
    """So many of the system prompts that the pool saw most often are sent too. 0: none is remembered."""
    timeout_s: Seconds = 30.0
    """After so many seconds the replica gets traffic all the same."""


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
        Wake | None, BeforeValidator(_kinded, json_schema_input_type=Literal["engine"] | Wake | None)
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
    scheduler: Annotated[
        Scheduler, BeforeValidator(_kinded, json_schema_input_type=OrderName | Scheduler)
    ] = Scheduler()
    """Who goes next: `lanes`, `slack`, `sjf`, `fcfs`, or a mapping with settings."""
    placement: Annotated[
        Placement, BeforeValidator(_kinded, json_schema_input_type=PlacementName | Placement)
    ] = Placement()
    """To which replica: `predicted_ttft`, `least_tokens`, `least_requests`, ..., or a mapping."""
    lends_to: list[Name] = []
    """Pools whose waiting requests idle replicas of this one serve, where the rule's chain leads on here."""
    engine_priority: Flag = False
    """Tell the engines how urgent a request is, by its class and the client's `priority`. They must have been
    started for it."""
    profile: MaybeText = None
    """A file of `headgate calibrate`: how fast its replicas are until their answers have told."""


# ---------------------------------------------------------------------------------------------- rules


class Range(Section):
    """Bounds on a count of tokens; all given ones hold."""

    lt: MaybeCountFromZero = None
    """Less than."""
    lte: MaybeCountFromZero = None
    """At most."""
    gt: MaybeCountFromZero = None
    """More than."""
    gte: MaybeCountFromZero = None
    """At least."""


class EstimateRange(Range):
    """Bounds on the estimate; all given ones hold."""

    if_clamped: MaybeCount = None
    """It also holds where prompt and so many output tokens per choice pass; the output is bounded to fit."""


class When(Section):
    """All given conditions must hold; a list means any of."""

    model: ModelNames | None = None
    """Model names or aliases."""
    tenant: OneOrMore | None = None
    """Tenant names."""
    priority_class: Classes | None = Field(None, alias="class")
    """Priority classes."""
    estimated_total_tokens: EstimateRange | None = None
    """Prompt and expected output together."""
    prompt_tokens: Range | None = None
    """The prompt alone."""
    stream: Annotated[Flag | None, _VARIABLE] = None
    """Whether the client asked for a stream."""


class OtherModel(Section):
    """Answer with another model; the client sees it in `x-headgate-model`."""

    placeholders: ClassVar[Mapping[str, Any]] = {"model": "", "pools": []}

    model: ModelName
    """The model that answers instead."""
    pools: Annotated[list[Name], Field(min_length=1)]
    """Pools that serve it, in order."""


POOL_TAG, MODEL_TAG, SPLIT_TAG = "a pool", "another model", "weights"


def entry_tag(value: Any) -> str | None:
    """What an entry of a chain is; None: nothing that there is."""
    if isinstance(value, str):
        return POOL_TAG
    if isinstance(value, dict):
        return MODEL_TAG if "model" in value or "pools" in value else SPLIT_TAG
    return None


Part: TypeAlias = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False), _VARIABLE]

ChainEntry: TypeAlias = Annotated[
    Annotated[Name, Tag(POOL_TAG)]
    | Annotated[OtherModel, Tag(MODEL_TAG)]
    | Annotated[dict[Name, Part], Field(min_length=1), Tag(SPLIT_TAG)],
    Discriminator(
        entry_tag,
        custom_error_type="headgate",
        custom_error_message="is neither a pool name, nor {POOL: weight}, nor {model: ..., pools: [...]}",
    ),
]


class Mirror(Section):
    """Nobody waits for it, nobody pays for it."""

    placeholders: ClassVar[Mapping[str, Any]] = {"pool": "", "share": 0.0}

    pool: Name
    """Must serve the models that reach the rule."""
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _VARIABLE]
    """Part of the rule's requests, 0 to 1."""
    in_flight: Count = 4
    """Mirrored requests at a time; the others are left out."""
    tokens_per_minute: Count | None = None
    """Prompt and output tokens that it may cost; what is beyond is left out."""


class OverloadWhen(Section):
    """All given signals of the pool's line must have reached their thresholds."""

    queue_wait_ms: MaybeMilliseconds = None
    """Milliseconds in which the work drains that may go before a newcomer of its class."""
    waiting: MaybeCount = None
    """Requests in line."""


class OverloadStep(Section):
    """What is taken from a request while the line is long; the steps that are on hold together."""

    placeholders: ClassVar[Mapping[str, Any]] = {"when": OverloadWhen()}

    when: OverloadWhen
    """When it goes on."""
    off_below: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _VARIABLE] = 0.5
    """It goes off when a signal has stayed below this part of its threshold,"""
    dwell_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), _VARIABLE] = 10.0
    """for so many seconds."""
    max_tokens: MaybeCount = None
    """Most output tokens per choice."""
    n: MaybeCount = None
    """Most choices per prompt."""
    priority_class: ClassName | None = Field(None, alias="class")
    """The most urgent class: others wait as this one."""
    model: ModelName | None = None
    """The model that answers instead; the client sees it in `x-headgate-model`."""
    pools: Annotated[list[Name] | None, Field(min_length=1)] = None
    """Pools that serve it. Default: those of the rule that do."""


class ClassPolicy(Section):
    """What holds for a priority class, whatever the rule."""

    overload: list[OverloadStep] = []
    """What its requests lose while the line is long, in steps."""


class Rule(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"name": "", "pools": []}

    name: Name
    """Shown by explain, in headers and in metrics."""
    when: When = When()
    """The condition; absent, the rule takes whatever is left."""
    pools: Annotated[list[ChainEntry], Field(min_length=1)]
    """The whole chain, in order."""
    fit: Literal["next", "clamp", "refuse"] = "next"
    """If the client asked for more output than a pool leaves: next pool, send less, or answer 400."""
    on: list[Literal["unavailable", "failed", "overloaded", "too_long"]] = ["unavailable", "failed"]
    """Reasons for going on to the next pool."""
    after_ms: Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False), _VARIABLE] = 0.0
    """Milliseconds to wait in an overloaded pool's queue before going on."""
    queue_comments_ms: Annotated[
        Annotated[float, Field(ge=500, le=60_000, allow_inf_nan=False)] | None, _VARIABLE
    ] = None
    """Every so many milliseconds of waiting, a streamed request is told its place in line, as an SSE comment.
    The first one commits the status: what fails later is told in the stream."""
    sticky: Literal["tenant", "key", "session", "request"] = "key"
    """Who draws a pool of weighted entries, and keeps it."""
    mirror: Mirror | None = None
    """A pool that is sent a share of the requests too; its answers are thrown away."""
    overload: list[OverloadStep] = []
    """What requests lose while the line is long, in steps, before any is refused."""


# -------------------------------------------------------------------------------------------- tenants


class Key(Section):
    placeholders: ClassVar[Mapping[str, Any]] = {"id": "", "hash": ""}

    id: Name
    """Shown in logs, where the key never is."""
    hash: Annotated[str, Field(pattern=DIGEST_PATTERN)] = Field(repr=False)
    """`sha256:` and the SHA-256 of the key, hex."""
    limits: list[Limit] = []
    """What this key may use, within what its tenant may."""
    degrade: Flag = True
    """`false`: its requests lose nothing in overload; they wait or are refused."""


class Allow(Section):
    """`models`, and for each label of a pool the values allowed; a label not named here is free."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, OneOrMore]

    models: OneOrMore = ["*"]
    """Model names; * and ? are wildcards."""


class Tenant(Section):
    keys: list[Key] = []
    """API keys, as hashes."""
    priority_class: ClassName = Field("standard", alias="class")
    """Class of a request that asks for none."""
    max_class: ClassName = "interactive"
    """The most urgent class this tenant gets; a request above it is lowered."""
    weight: Weight = 1.0
    """Share of a contended pool, relative to other tenants."""
    allow: Allow = Allow()
    """What the tenant may reach."""
    max_tokens: MaybeCount = None
    """Most output tokens per choice."""
    limits: list[Limit] = []
    """What the tenant may use."""
    degrade: Flag = True
    """`false`: its requests lose nothing in overload; they wait or are refused."""


# ------------------------------------------------------------------------------------------ the whole


class RoutesFile(Section):
    """The rules by which Headgate routes; docs/routes.md explains every key."""

    version: Literal[1]
    """Version of this grammar."""
    server: Server = Server()
    """Listeners and process-wide bounds."""
    models: Annotated[dict[ModelName, Model], Field(min_length=1)]
    """Public models; `*` stands for every name not declared."""
    pools: Annotated[dict[Name, Pool], Field(min_length=1)]
    """Replicas of one engine kind, serving the same models with the same limits."""
    rules: Annotated[list[Rule], Field(min_length=1)]
    """Tried in order; the first match wins."""
    tenants: dict[Name, Tenant] = {}
    """Who may call, and how much."""
    limits: list[SharedLimit] = []
    """What all tenants together, or each of them, may use."""
    classes: dict[ClassName, ClassPolicy] = {}
    """What holds for a priority class, whatever the rule."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of routes.yaml, with `${VAR}` allowed where a number or a word is asked."""
    schema = RoutesFile.model_json_schema()
    _allow_variables(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "routes.yaml"}


def _allow_variables(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _allow_variables(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("propertyNames", "enum", "default", "required"):
                _allow_variables(value)
        if node.get("type") in ("integer", "number", "boolean") or "enum" in node or "pattern" in node:
            kept = {key: node.pop(key) for key in ("title", "description", "default") if key in node}
            alternatives = [dict(node), {"type": "string", "pattern": VARIABLE_PATTERN}]
            node.clear()
            node.update(kept, anyOf=alternatives)


def main() -> None:
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
