"""Engines' errors in the client's vocabulary. Their own words are shown only where they are fit for it."""

from backends.contract import EngineError, ErrorKind
from gateway.call import PROMPT_FIELDS, Call
from gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineFailed,
    EngineTimeout,
    GatewayError,
    Unavailable,
    UnsupportedByEngine,
    engine_text,
)


def gateway_error_of(error: EngineError, call: Call) -> GatewayError:
    """An engine's error in the client's vocabulary; its text only where it is fit to be shown."""
    text = engine_text(error.message)
    match error.kind:
        case ErrorKind.CLIENT:
            return BadRequest(text or "The engine refuses this request.", param=error.param)
        case ErrorKind.UNSUPPORTED:
            return UnsupportedByEngine(text or "The engine cannot serve this request.", param=error.param)
        case ErrorKind.CONTEXT_LENGTH:
            return ContextLengthExceeded(
                text or "The prompt is longer than the engine accepts.",
                param=PROMPT_FIELDS[call.dialect],
            )
        case ErrorKind.OVERLOADED:
            return Unavailable(
                "The engines are overloaded.", reason="overloaded", retry_after=error.retry_after or 1.0
            )
        case ErrorKind.TIMEOUT:
            return EngineTimeout("The engine did not answer in time.")
        case ErrorKind.NOT_FOUND | ErrorKind.AUTH:
            return EngineFailed("The engine refused the gateway; its operator can see why in the log.")
        case ErrorKind.ENGINE:
            if not error.reached:
                return Unavailable("No engine can be reached for this model.", reason="no_replica")
            return EngineFailed("The engine failed.")
