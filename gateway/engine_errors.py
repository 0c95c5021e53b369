"""Engines' errors in the client's vocabulary. Their own words are shown only where they are fit for it.

`MEANINGS` is the whole of it: for each kind of engine error what the client is told, and for which hops of a
rule's chain (`on:`) the request may go on to the next pool. docs/errors.md shows it beside what engines say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from backends.contract import EngineError, ErrorKind
from gateway.call import PROMPT_FIELDS, Call, Dialect
from gateway.config.snapshot import HopReason
from gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineFailed,
    EngineTimeout,
    GatewayError,
    NotImplementedHere,
    Unavailable,
    UnsupportedByEngine,
    engine_text,
)

__all__ = ["MEANINGS", "UNREACHED", "Meaning", "gateway_error_for", "gateway_error_of", "meaning_of"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a kind of engine error is to a client, and to the chain of pools."""

    error: type[GatewayError]
    words: str
    quotes: bool = False
    """Whether the engine's own words, where they are fit, come in place of ours: it speaks of the request."""
    on: HopReason | None = None
    """The reason under which the next pool of the chain may be tried; None: none may."""


_REFUSED = Meaning(
    EngineFailed, "The engine refused the gateway; its operator can see why in the log.", on="failed"
)

MEANINGS: Mapping[ErrorKind, Meaning] = {
    ErrorKind.CLIENT: Meaning(BadRequest, "The engine refuses this request.", quotes=True),
    ErrorKind.CONTEXT_LENGTH: Meaning(
        ContextLengthExceeded, "The prompt is longer than the engine accepts.", quotes=True, on="too_long"
    ),
    ErrorKind.UNSUPPORTED: Meaning(
        UnsupportedByEngine, "The engine cannot serve this request.", quotes=True, on="unavailable"
    ),
    ErrorKind.NO_ROUTE: Meaning(
        NotImplementedHere, "The engines of this model do not serve this route.", on="unavailable"
    ),
    ErrorKind.OVERLOADED: Meaning(Unavailable, "The engines are overloaded.", on="overloaded"),
    ErrorKind.TIMEOUT: Meaning(EngineTimeout, "The engine did not answer in time.", on="failed"),
    ErrorKind.NOT_FOUND: _REFUSED,
    ErrorKind.AUTH: _REFUSED,
    ErrorKind.ENGINE: Meaning(EngineFailed, "The engine failed.", on="failed"),
}

UNREACHED = Meaning(Unavailable, "No engine can be reached for this model.", on="unavailable")
"""Nothing was sent: not even a connection was had."""


def meaning_of(error: EngineError) -> Meaning:
    if error.kind is ErrorKind.ENGINE and not error.reached:
        return UNREACHED
    return MEANINGS[error.kind]


def gateway_error_of(error: EngineError, call: Call) -> GatewayError:
    """An engine's error in the client's vocabulary; its text only where it is fit to be shown."""
    return gateway_error_for(error, call.dialect)


def gateway_error_for(error: EngineError, dialect: Dialect) -> GatewayError:
    """The same, for a request of this dialect."""
    meaning = meaning_of(error)
    words = (engine_text(error.message) if meaning.quotes else None) or meaning.words
    if meaning is UNREACHED:
        return Unavailable(words, reason="no_replica")
    if meaning.error is Unavailable:
        return Unavailable(words, reason="overloaded", retry_after=error.retry_after or 1.0)
    if meaning.error is ContextLengthExceeded:
        return ContextLengthExceeded(words, param=PROMPT_FIELDS[dialect])
    if meaning.error is NotImplementedHere:
        return NotImplementedHere(words)
    return meaning.error(words, param=error.param if meaning.quotes else None)
