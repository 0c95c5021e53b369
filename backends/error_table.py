"""Tables of errors: what an engine says when it does not answer, and whose fault that is.

An engine's table is a list of rules, tried in order; the first that holds gives the kind. A rule may look at
the status (of HTTP, or the one that an error inside a 200 names), at the error's type, and at its words. The
last rules are `BY_STATUS`, alike for every engine, and the very last one takes everything: what nobody knows
is the engine's fault.

Beside the rules a table holds *examples*: answers as this engine writes them, each under the name of the
rule that takes it. docs/errors.md is printed from them (`python -m gateway.cli.error_page`), and the tests
send each through the engine's decoder: it must come out as its rule says, and no rule may stand in another's
shadow.

Some failures are told by no words: a stream that ends without its end, a choice that ends with an odd
reason. Decoders know those; the table lists them as *endings*, held to the decoder by their examples too.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from backends.contract import ErrorKind
from backends.decoding import EngineWords

__all__ = [
    "BY_STATUS", "TOO_LONG", "Ending", "ErrorTable", "Example", "Rule", "Situation", "answer", "event",
    "plain",
]  # fmt: skip

Situation = Literal[
    "overload", "validation", "context length", "unsupported", "model absent", "auth", "timeout", "crash"
]
"""What has happened, in an operator's words. `crash` is all that is broken, the model's own code included."""

Where = Literal["anywhere", "at the start", "outside quotes", "in words or type"]


class Example(NamedTuple):
    """An answer as an engine writes it."""

    status: int
    body: bytes


class Rule(NamedTuple):
    """Holds where all that it names does; None names nothing."""

    name: str
    situation: Situation
    kind: ErrorKind
    statuses: Collection[int | None] | None = None
    """None among them: an error inside a 200 that names no status."""
    types: Collection[str] | None = None
    """Of which the error has one, as its type or its reason; in lower case."""
    says: re.Pattern[str] | None = None
    where: Where = "anywhere"
    param: str | None = None
    """What of the request it speaks of, where the engine does not name it."""

    def holds(self, status: int | None, words: EngineWords) -> bool:
        if self.statuses is not None and status not in self.statuses:
            return False
        if self.types is not None and words.types.isdisjoint(self.types):
            return False
        if self.says is None:
            return True
        match self.where:
            case "anywhere":
                return self.says.search(words.message) is not None
            case "at the start":
                return self.says.match(words.message) is not None
            case "outside quotes":
                return self.says.search(_QUOTED.sub("", words.message)) is not None
            case "in words or type":
                return any(self.says.search(text) for text in (words.message, *words.types))


_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
"""A client's own words, quoted by the engine, must not make it look broken."""


class Ending(NamedTuple):
    """A failure that no words tell."""

    name: str
    situation: Situation
    kind: ErrorKind
    example: Example


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """What one engine says; a `decoding.Classify`."""

    rules: tuple[Rule, ...]
    examples: Mapping[str, tuple[Example, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By the name of their rule."""
    begun: bytes = b""
    """The beginning of a good stream, with text: what an error in the middle of an answer comes behind."""
    endings: tuple[Ending, ...] = ()

    def rule(self, status: int | None, words: EngineWords) -> Rule:
        """The first rule that holds."""
        status = status or words.code
        return next(rule for rule in self.rules if rule.holds(status, words))

    def __call__(self, status: int | None, words: EngineWords) -> ErrorKind:
        return self.rule(status, words).kind

    def param(self, status: int | None, words: EngineWords) -> str | None:
        """What of the request is at fault: as the engine named it, else as the rule does."""
        return words.param or self.rule(status, words).param


def answer(status: int, value: Any) -> Example:
    """A whole answer in JSON."""
    return Example(status, msgspec.json.encode(value))


def event(value: Any, *, done: bool = False) -> Example:
    """An event of a stream whose status was 200; `done`: `[DONE]` follows."""
    return Example(200, b"data: " + msgspec.json.encode(value) + b"\n\n" + b"data: [DONE]\n\n" * done)


def plain(status: int, text: str = "") -> Example:
    """A whole answer that is no JSON."""
    return Example(status, text.encode())


# -------------------------------------------------------------------------------- alike for every engine

TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size"
    # vLLM, SGLang, llama.cpp
    r"|maximum context length|available context size|context length \(|context length is only"
    r"|maximum (?:model|input) length|too large to process"
    # TensorRT-LLM; the last one says that the prompt leaves no room
    r"|(?:prompt|input|sequence|encoder) (?:length|tokens?)\b[^.\n]{0,200}?\b(?:exceed|longer than)"
    r"|exceeds? (?:the )?max_(?:num_tokens|seq_len|input_len)"
    r"|`?default_max_tokens`? \(-?\d+\) (?:must|should) be greater than 0"
    # TGI
    r"|`inputs` tokens \+ `max_new_tokens` must be|`inputs` must have less than",
    re.IGNORECASE,
)
"""The many forms of "prompt, or prompt + output, too long"."""

BY_STATUS: tuple[Rule, ...] = (
    Rule("401, 403", "auth", ErrorKind.AUTH, {401, 403}),
    Rule("404", "model absent", ErrorKind.NOT_FOUND, {404}),
    Rule("408, 504", "timeout", ErrorKind.TIMEOUT, {408, 504}),
    Rule("429, 503", "overload", ErrorKind.OVERLOADED, {429, 503}),
    Rule("501", "unsupported", ErrorKind.UNSUPPORTED, {501}),
    Rule("any other 4xx", "validation", ErrorKind.CLIENT, range(400, 500)),
    Rule("anything else", "crash", ErrorKind.ENGINE),
)
"""What a status alone says, where nothing above it held."""
