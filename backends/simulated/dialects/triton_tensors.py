"""Tensors out of flat JSON, as Triton's generate extension makes them, and what a model does with them.

A body is a flat JSON object (and one nested object, `parameters`): a key that is an input tensor's name
becomes that tensor, typed and shaped; any other scalar becomes a request parameter and is silently
ignored. Two vocabularies hide behind TensorRT-LLM on Triton (classic and llmapi): a `Vocabulary` is the
models of one repository, their tensors, and how they ask and answer.
"""

import abc
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from backends.simulated.live import Piece
from backends.simulated.options import ServerOptions
from backends.simulated.tokens import EngineTokenizer

__all__ = ["Asked", "Refused", "Tensors", "Vocabulary", "as_int32", "read_tensors"]

Datatype = Literal["BYTES", "INT32", "INT64", "UINT64", "FP32", "BOOL"]
Tensors = Mapping[str, tuple[Datatype, list[int]]]
"""Name -> datatype and shape."""

_FAILURE = "Traceback (most recent call last):\n  simulated failure of the engine\n"

_ACCESS_ERRORS: Mapping[Datatype, str] = MappingProxyType(
    {
        "BYTES": "non-string as string",
        "INT32": "non-signed-integer as signed-integer",
        "INT64": "non-signed-integer as signed-integer",
        "UINT64": "non-unsigned-integer as unsigned-integer",
        "FP32": "non-number as double",
        "BOOL": "non-boolean as boolean",
    }
)
_FITS: Mapping[Datatype, Callable[[Any], bool]] = MappingProxyType(
    {
        "BYTES": lambda value: isinstance(value, str),
        "INT32": lambda value: type(value) is int,
        "INT64": lambda value: type(value) is int,
        "UINT64": lambda value: type(value) is int and value >= 0,
        "FP32": lambda value: type(value) in (int, float),
        "BOOL": lambda value: isinstance(value, bool),
    }
)


class Refused(Exception):
    """The server or the model answers with an error before anything is generated."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class Asked:
    """A request to a model that speaks, read."""

    model: str
    id: str | None
    tensors: dict[str, Any]
    text: str
    prompt: list[int]
    max_tokens: int
    """Below 1: the model ends without a response."""
    streams: bool
    """Whether there is a response for each token."""
    choices: int = 1
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    says: str | None = None
    """All that a constraint lets the model say."""

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.tensors.get(name, default))


class Vocabulary(abc.ABC):
    """The models of a repository and their tensors."""

    models: tuple[str, ...]
    speaking: tuple[str, ...]
    """Those that take and give text."""
    decoupled: tuple[str, ...]
    """Those that may give several responses, where the server's options allow."""
    inputs: Tensors
    outputs: Tensors
    required: tuple[str, ...]
    exports_load: bool
    """Whether the backend exports `nv_trt_llm_*` metrics."""

    def __init__(self, tokenizer: EngineTokenizer, options: ServerOptions, max_sequences: int) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.max_batch_size = max_sequences

    @abc.abstractmethod
    def asked(self, model: str, request_id: str | None, tensors: dict[str, Any]) -> Asked:
        """What is asked for. Raises Refused."""

    @abc.abstractmethod
    def response(
        self, asked: Asked, said: list[list[Piece]], news: Sequence[Piece], *, streamed: bool
    ) -> dict[str, Any]:
        """The output tensors of one response; tensors of one element come as scalars.

        said: all pieces so far by choice; news: those of this response; streamed: it is one of several.
        """

    def failure(self) -> str:
        """What the model says when it breaks."""
        return _FAILURE

    def cancels(self, tensors: Mapping[str, Any]) -> bool:
        """Whether a request with these tensors stops another one."""
        return False

    def cancelled(self, asked: Asked, said: list[list[Piece]]) -> dict[str, Any] | None:
        """The last response of a stream that was stopped, if there is one."""
        return None


def read_tensors(
    body: bytes, tensors: Tensors, required: Sequence[str], model: str
) -> tuple[str | None, dict[str, Any]]:
    """The request's id and the tensors' values: a list where the last dimension is free, else one element.

    Raises Refused in the order in which the server looks.
    """
    content = _parse(body)
    request_id = content.pop("id", None)
    if request_id is not None and not isinstance(request_id, str):
        raise Refused(500, "Unable to parse 'id': attempt to access JSON non-string as string")
    nested = content.pop("parameters", None)
    values: dict[str, Any] = {}
    for name, value in [*content.items(), *(nested.items() if isinstance(nested, dict) else ())]:
        if name in tensors:
            values[name] = _tensor(name, value, *tensors[name])
        elif not isinstance(value, str | int | float):
            raise Refused(
                400,
                f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'.",
            )
    missing = [name for name in required if name not in values]
    if missing:
        raise Refused(
            400,
            f"[request id: {request_id or '<id_unknown>'}] expected number of inputs between "
            f"{len(required)} and {len(tensors)} but got {len(values)} inputs for model '{model}'. Got "
            f"input(s) {sorted(values)}, but missing required input(s) {missing}. "
            "Please provide all required input(s).",
        )
    return request_id, values


def _parse(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError as error:
        # RapidJSON's words and its offset, for the two cases that were seen.
        if not body.strip():
            reason = "The document is empty. at 0"
        elif re.match(rb'\s*\{\s*[^"}\s]', body):
            reason = "Missing a name for object member. at 1"
        else:
            reason = f"Invalid value. at {getattr(error, 'pos', 0)}"
        raise Refused(500, f"failed to parse the request JSON buffer: {reason}") from error
    if not isinstance(content, dict):
        raise Refused(500, "attempt to get members for non-object")
    return content


def _tensor(name: str, value: Any, datatype: Datatype, shape: list[int]) -> Any:
    values = value if isinstance(value, list) else [value]
    if not all(_FITS[datatype](item) for item in values):
        what = "JSON bytes array" if datatype == "BYTES" else "'data'"
        raise Refused(500, f"Unable to parse {what}: attempt to access JSON {_ACCESS_ERRORS[datatype]}")
    if shape[-1] == -1:
        return values
    if len(values) != 1:
        raise Refused(
            400, f"[request id: <id_unknown>] input '{name}' batch size does not match other inputs for model"
        )
    return values[0]


def as_int32(value: int) -> int:
    """INT32 is not range-checked: it wraps."""
    return (value + 2**31) % 2**32 - 2**31
