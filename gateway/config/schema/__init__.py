"""routes.yaml as people write it: names, units and bounds of every key.

    server, models, pools, rules, tenants, limits   the sections of the file
    scheduling, activation                          what is large in a pool: its line, and its sleep
    overload                                        brown-out, of rules and of classes
    values                                          what all are made of: names, numbers with bounds
    editors                                         the JSON Schema

These models know single values; what only the whole file can tell (names that refer to each other, engine
options, files) is in `checking`. They are strict: an unknown key or a number in quotes is an error.

    python -m gateway.config.schema > gateway/config/routes.schema.json

writes the JSON Schema that editors use; a test holds the two together.
"""

from typing import Annotated, Literal

from pydantic import Field

from gateway.config.schema.activation import (
    CommandWake,
    EngineWake,
    HttpStep,
    HttpWake,
    KubernetesWake,
    Wake,
    WarmUp,
)
from gateway.config.schema.limits import Limit, SharedLimit
from gateway.config.schema.models import (
    EngineTokenizer,
    EstimateTokenizer,
    HuggingFaceTokenizer,
    MaxTokens,
    MediaTokens,
    Model,
    PerDetail,
    Prices,
    TiktokenTokenizer,
    Tokenizer,
)
from gateway.config.schema.overload import ClassPolicy, OverloadStep, OverloadWhen
from gateway.config.schema.pools import Adapted, Lora, Pool, PoolLimits, Replica, Upstream
from gateway.config.schema.rules import (
    SPLIT_TAG,
    EstimateRange,
    Mirror,
    OtherModel,
    Range,
    Rule,
    When,
    entry_tag,
)
from gateway.config.schema.scheduling import Class, Placement, Queue, Scheduler, Slo
from gateway.config.schema.server import LimitSettings, Server, Timeouts
from gateway.config.schema.tenants import Allow, Key, Tenant
from gateway.config.schema.values import PHRASES, ClassName, ModelName, Name, Section

__all__ = [
    "PHRASES",
    "SPLIT_TAG",
    "Adapted",
    "Allow",
    "Class",
    "ClassPolicy",
    "CommandWake",
    "EngineTokenizer",
    "EngineWake",
    "EstimateRange",
    "EstimateTokenizer",
    "HttpStep",
    "HttpWake",
    "HuggingFaceTokenizer",
    "Key",
    "KubernetesWake",
    "Limit",
    "LimitSettings",
    "Lora",
    "MaxTokens",
    "MediaTokens",
    "Mirror",
    "Model",
    "OtherModel",
    "OverloadStep",
    "OverloadWhen",
    "PerDetail",
    "Placement",
    "Pool",
    "PoolLimits",
    "Prices",
    "Queue",
    "Range",
    "Replica",
    "RoutesFile",
    "Rule",
    "Scheduler",
    "Section",
    "Server",
    "SharedLimit",
    "Slo",
    "Tenant",
    "TiktokenTokenizer",
    "Timeouts",
    "Tokenizer",
    "Upstream",
    "Wake",
    "WarmUp",
    "When",
    "entry_tag",
]


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
