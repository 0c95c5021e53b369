"""What TGI says when it does not answer (router/src/lib.rs, `impl From<InferError>`; server.rs).

The type decides, where there is one. Every error of a stream comes with status 200; on the OpenAI routes such
errors have no type and all name status 422, an overload too, so there the words go before the status.
"""

import re
from collections.abc import Mapping

from backends.contract import ErrorKind
from backends.error_table import (
    BY_STATUS,
    TOO_LONG,
    Ending,
    ErrorTable,
    Example,
    Rule,
    answer,
    event,
    plain,
)
from backends.openai_errors import BEGUN, ENDINGS

__all__ = ["MESSAGES", "NATIVE", "RULES"]

RULES: tuple[Rule, ...] = (
    Rule("too long", "context length", ErrorKind.CONTEXT_LENGTH, says=TOO_LONG, where="in words or type"),
    Rule("type `overloaded`", "overload", ErrorKind.OVERLOADED, types={"overloaded"}),
    Rule(
        "type of a bad request",
        "validation",
        ErrorKind.CLIENT,
        types={"validation", "template_error", "missing_template_variable", "tool_error"},
    ),
    Rule(
        "type of a failed generation",
        "crash",
        ErrorKind.ENGINE,
        types={"generation", "incomplete_generation", "incomplete_generation_stream", "healthcheck"},
    ),
    Rule(
        "words of an overload",
        "overload",
        ErrorKind.OVERLOADED,
        says=re.compile("Model is overloaded"),
        where="at the start",
    ),
    Rule(
        "words of a failed generation",
        "crash",
        ErrorKind.ENGINE,
        says=re.compile("Request failed during generation|Incomplete generation"),
        where="at the start",
    ),
    Rule("424", "crash", ErrorKind.ENGINE, {424}),
    *BY_STATUS,
)


def _native(message: str, kind: str) -> Mapping[str, str]:
    return {"error": message, "error_type": kind}


def _chat(message: str) -> Mapping[str, object]:
    return {"error": {"message": message, "http_status_code": 422}}


_LONG = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens "
    "and 512 `max_new_tokens`"
)
_VALUE = "Input validation error: `top_p` must be > 0.0 and < 1.0"
_FAILED = "Request failed during generation: Server error: transport error"
_BEHIND_THE_ROUTER: Mapping[str, tuple[Example, ...]] = {
    "401, 403": (plain(401),),
    "404": (plain(404),),
    "424": (plain(424, "the shard is gone"),),
    "any other 4xx": (
        plain(422, "Failed to deserialize the JSON body into the target type: missing field `inputs`"),
    ),
    "anything else": (plain(500, "Internal Server Error"),),
}
"""Alike on all routes."""

_TOKEN = event(
    {"index": 1, "token": {"id": 1, "text": "Hello", "special": False}, "generated_text": None}
).body

NATIVE = ErrorTable(
    RULES,
    {
        "too long": (answer(422, _native(_LONG, "validation")), event(_native(_LONG, "validation"))),
        "type `overloaded`": (
            answer(429, _native("Model is overloaded", "overloaded")),
            event(_native("Model is overloaded", "overloaded")),
        ),
        "type of a bad request": (
            answer(422, _native(_VALUE, "validation")),
            event(_native(_VALUE, "validation")),
        ),
        "type of a failed generation": (
            answer(424, _native(_FAILED, "generation")),
            answer(500, _native("Incomplete generation", "incomplete_generation")),
            event(_native(_FAILED, "generation")),
            event(_native("Incomplete generation", "incomplete_generation_stream")),
        ),
        **_BEHIND_THE_ROUTER,
    },
    _TOKEN,
    (
        Ending("an empty body", "crash", ErrorKind.ENGINE, plain(200)),
        Ending("the body ends without `generated_text`", "crash", ErrorKind.ENGINE, Example(200, _TOKEN)),
        Ending(
            "an answer without `generated_text`", "crash", ErrorKind.ENGINE, answer(200, {"details": None})
        ),
        Ending("not JSON", "crash", ErrorKind.ENGINE, plain(200, "<html>It works!</html>")),
    ),
)
MESSAGES = ErrorTable(
    RULES,
    {
        "too long": (answer(422, _native(_LONG, "validation")), event(_chat(_LONG), done=True)),
        "type `overloaded`": (answer(429, _native("Model is overloaded", "overloaded")),),
        "words of an overload": (event(_chat("Model is overloaded"), done=True),),
        "type of a bad request": (
            answer(422, _native("Template error: roles must alternate", "template_error")),
            answer(422, _native("Tool error: Grammar and tools are mutually exclusive", "tool_error")),
        ),
        "type of a failed generation": (answer(424, _native(_FAILED, "generation")),),
        "words of a failed generation": (event(_chat(_FAILED), done=True),),
        **_BEHIND_THE_ROUTER,
        "any other 4xx": (*_BEHIND_THE_ROUTER["any other 4xx"], event(_chat(_VALUE), done=True)),
    },
    BEGUN,
    ENDINGS,
)
