"""What Triton says when it does not answer.

Its words go before the status: a bad request is a 500, and whatever a model raises is a 400 (only INTERNAL,
NOT_FOUND, UNAVAILABLE and UNSUPPORTED have statuses of their own; src/http_server.cc). A BLS model sends the
whole traceback of its code.
"""

import re

from backends.contract import ErrorKind
from backends.error_table import (
    BY_STATUS,
    TOO_LONG,
    Ending,
    ErrorTable,
    Example,
    Rule,
    Situation,
    answer,
    event,
    plain,
)

__all__ = ["BROKEN", "CLASSIC", "LLMAPI"]

BROKEN = {
    "timeout": ErrorKind.TIMEOUT,
    "cancelled": ErrorKind.ENGINE,  # by somebody else, since we are still reading
}
"""llmapi's finish reasons that are no good end."""

_REQUEST_ID = r"(?:\[request id: [^\]]{0,200}\] )?"

RULES: tuple[Rule, ...] = (
    Rule("too long", "context length", ErrorKind.CONTEXT_LENGTH, says=TOO_LONG, where="in words or type"),
    Rule(
        "queue full",
        "overload",
        ErrorKind.OVERLOADED,
        says=re.compile(r"Exceeds maximum queue size|Request timeout expired", re.IGNORECASE),
    ),
    Rule("the model raised", "crash", ErrorKind.ENGINE, says=re.compile("Traceback"), where="at the start"),
    Rule(
        "a bad tensor",
        "validation",
        ErrorKind.CLIENT,
        says=re.compile(
            _REQUEST_ID
            + r"(?:failed to parse the request JSON|Unable to parse|parameter '[^']{0,200}' has invalid type"
            r"|attempt to access JSON|expected number of inputs|unexpected inference input|unexpected shape"
            r"|unexpected data-?type|unable to find|input '[^']{0,200}' (?:batch size does not match|has)"
            r"|Input '[^']{0,200}'|missing|unexpected (?:explicit tensor|total byte size))",
        ),
        where="at the start",  # a traceback may quote any of these
    ),
    Rule(
        "no such model",
        "model absent",
        ErrorKind.NOT_FOUND,
        says=re.compile(
            r"Request for unknown model|has no available versions|Model version not ready|is not ready"
        ),
    ),
    Rule(
        "model and route do not fit",
        "unsupported",
        ErrorKind.UNSUPPORTED,
        says=re.compile(r"doesn't support models with decoupled"),
    ),
    Rule(  # asked not to stream: it said nothing, or streams all the same
        "not one response",
        "crash",
        ErrorKind.ENGINE,
        says=re.compile(r"expects model to produce exactly 1 response"),
    ),
    Rule("any other 400", "crash", ErrorKind.ENGINE, {400, 422}),
    *BY_STATUS,
)


def _error(text: str) -> dict[str, str]:
    return {"error": text}


_RAISED = _error('Traceback (most recent call last):\n  File "/models/tensorrt_llm_bls/1/model.py", line 108')
_TOO_LONG = _error("Prompt length (5000) exceeds maximum input length (4096)")
_EXAMPLES: dict[str, tuple[Example, ...]] = {
    "too long": (answer(400, _TOO_LONG), Example(400, event(_TOO_LONG).body), event(_TOO_LONG)),
    "queue full": (
        answer(503, _error("[request id: <id_unknown>] Exceeds maximum queue size")),
        answer(503, _error("Request timeout expired")),
    ),
    "the model raised": (answer(400, _RAISED), Example(400, event(_RAISED).body), event(_RAISED)),
    "a bad tensor": (
        answer(500, _error("failed to parse the request JSON buffer: Invalid value. at 0")),
        answer(500, _error("Unable to parse 'data': attempt to access JSON non-string as string")),
        answer(
            400,
            _error(
                "[request id: <id_unknown>] expected number of inputs between 2 and 13 but got 1 inputs "
                "for model 'tensorrt_llm_bls'."
            ),
        ),
    ),
    "no such model": (answer(404, _error("Request for unknown model: 'nope' is not found")),),
    "model and route do not fit": (
        answer(501, _error("HTTP end point doesn't support models with decoupled transaction policy")),
    ),
    "not one response": (
        answer(
            200,
            _error(
                "generate expects model to produce exactly 1 response, use generate stream for model "
                "that generates various number of responses"
            ),
        ),
    ),
    "any other 400": (answer(400, _error("Executor failed: CUDA error: an illegal memory access")),),
    "401, 403": (answer(403, _error("This API is restricted, expecting header 'triton-key'")),),
    "any other 4xx": (answer(405, _error("Method Not Allowed")),),
    "anything else": (
        answer(500, _error("in ensemble 'ensemble', Failed to process the request")),
        event(_error("in ensemble 'ensemble', Failed to process the request")),
    ),
}

_BEGUN = event({"model_name": "m", "model_version": "1", "text_output": "Hello"}).body
_ENDINGS = (
    Ending("an empty body, with status 200", "crash", ErrorKind.ENGINE, plain(200)),
    Ending("an answer without `text_output`", "crash", ErrorKind.ENGINE, answer(200, {"model_name": "m"})),
    Ending(
        "the body ends inside an event",
        "crash",
        ErrorKind.ENGINE,
        Example(200, _BEGUN + b'data: {"text_output": "wor'),
    ),
    Ending("not JSON", "crash", ErrorKind.ENGINE, plain(200, "<html>It works!</html>")),
)


def _ended(word: str, situation: Situation = "crash") -> Ending:
    value = {"model_name": "m", "text_output": "Hello", "finish_reason": word}
    return Ending(f"finish_reason `{word}`", situation, BROKEN[word], event(value))


CLASSIC = ErrorTable(RULES, _EXAMPLES, _BEGUN, _ENDINGS)
LLMAPI = ErrorTable(RULES, _EXAMPLES, _BEGUN, (*_ENDINGS, _ended("timeout", "timeout"), _ended("cancelled")))
