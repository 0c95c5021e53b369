"""Of a pool: what wakes it and puts it to sleep, and what warms a replica up."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from gateway.config.schema.values import (
    HEADER_PATTERN,
    HEADER_VALUE_PATTERN,
    KUBERNETES_PATTERN,
    PATH_PATTERN,
    VARIABLE,
    Count,
    JsonObject,
    Seconds,
    Section,
    Text,
    Url,
)


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
    common_prefixes: Annotated[int, Field(ge=0, le=32), VARIABLE] = 0
    """So many of the system prompts that the pool saw most often are sent too. 0: none is remembered."""
    timeout_s: Seconds = 30.0
    """After so many seconds the replica gets traffic all the same."""
