"""Errors in OpenAI's shapes, as vLLM, SGLang, llama.cpp and others fill them.

An error inside a 200 is classed by the status that its `code` names, else by its type and by a `code` that is
a word. That is the closer of the two: OpenAI calls most of what it refuses an `invalid_request_error`, so the
rule of that name is the last.
"""

import re
from typing import Any

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

__all__ = ["BEGUN", "BROKEN", "ENDINGS", "NO_TOOL_PARSER", "OPENAI", "RULES", "chunk", "ended", "error"]

_UNTOLD = {None}
_INSIDE_200 = "200, type of "

RULES: tuple[Rule, ...] = (
    Rule(
        "too long", "context length", ErrorKind.CONTEXT_LENGTH, {None, 400, 413, 422, 500},
        says=TOO_LONG, where="in words or type",
    ),
    Rule(
        _INSIDE_200 + "a model not found", "model absent", ErrorKind.NOT_FOUND, _UNTOLD,
        {"notfounderror", "not_found_error", "model_not_found"},
    ),
    Rule(
        _INSIDE_200 + "a bad key", "auth", ErrorKind.AUTH, _UNTOLD,
        {"authentication_error", "permission_error", "invalid_api_key"},
    ),
    Rule(
        _INSIDE_200 + "an overload", "overload", ErrorKind.OVERLOADED, _UNTOLD,
        {"rate_limit_error", "rate_limit_exceeded", "overloaded_error", "server_is_overloaded",
         "unavailable_error", "service unavailable", "serviceunavailableerror"},
    ),
    Rule(
        _INSIDE_200 + "something missing", "unsupported", ErrorKind.UNSUPPORTED, _UNTOLD,
        {"not_supported_error", "notimplementederror"},
    ),
    Rule(_INSIDE_200 + "a timeout", "timeout", ErrorKind.TIMEOUT, _UNTOLD, {"timeout_error"}),
    Rule(
        _INSIDE_200 + "a bad request", "validation", ErrorKind.CLIENT, _UNTOLD,
        {"invalid_request_error", "badrequesterror", "validation_error", "invalid_prompt"},
    ),
    *BY_STATUS,
)  # fmt: skip

NO_TOOL_PARSER = Rule(
    "started without a parser of tool calls", "unsupported", ErrorKind.UNSUPPORTED, {None, 400},
    says=re.compile(r"requires? .{0,60}--tool-call-parser to be set"), param="tools",
)  # fmt: skip
"""vLLM and, in the same words, Triton's OpenAI frontend: a good request, for a server with other flags."""

BROKEN = {
    "timeout": ErrorKind.TIMEOUT,  # TensorRT-LLM
    "cancelled": ErrorKind.ENGINE,  # TensorRT-LLM: somebody else cancelled it, since we close the connection
    "abort": ErrorKind.ENGINE,  # vLLM, SGLang
    "error": ErrorKind.ENGINE,  # vLLM
}
"""Finish reasons that are no good end."""


def chunk(text: str = "", finish: str | None = None) -> bytes:
    """An event of a chat stream, for examples."""
    delta = {"content": text} if text else {}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).body


BEGUN = chunk("Hello")

ENDINGS: tuple[Ending, ...] = (
    Ending("an empty body", "crash", ErrorKind.ENGINE, plain(200)),
    Ending("`[DONE]` and nothing before it", "crash", ErrorKind.ENGINE, Example(200, b"data: [DONE]\n\n")),
    Ending("the body ends without `[DONE]` and without a finish reason", "crash", ErrorKind.ENGINE,
           Example(200, chunk("Hello"))),
    Ending("an answer without a choice", "crash", ErrorKind.ENGINE, answer(200, {"choices": []})),
    Ending("not JSON", "crash", ErrorKind.ENGINE, plain(200, "<html>It works!</html>")),
)  # fmt: skip


def ended(word: str, situation: Situation = "crash") -> Ending:
    """A choice that ends with a reason that is no good end."""
    name = f"finish_reason `{word}`"
    example = Example(200, chunk("Hello", word) + b"data: [DONE]\n\n")
    return Ending(name, situation, BROKEN[word], example)


def error(
    message: str, kind: str | None = None, code: int | str | None = None, param: str | None = None
) -> Any:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


OPENAI = ErrorTable(
    RULES,
    {
        "too long": (
            answer(
                400,
                error(
                    "This model's maximum context length is 4096 tokens. However, your messages resulted in "
                    "5000 tokens.",
                    "invalid_request_error",
                    "context_length_exceeded",
                    "messages",
                ),
            ),
        ),
        "any other 4xx": (
            answer(
                400, error("Invalid value for 'temperature'", "invalid_request_error", None, "temperature")
            ),
        ),
        "401, 403": (
            answer(401, error("Incorrect API key provided", "invalid_request_error", "invalid_api_key")),
        ),
        "404": (
            answer(404, error("The model 'nope' does not exist", "invalid_request_error", "model_not_found")),
        ),
        "408, 504": (plain(504, "upstream request timeout"),),
        "429, 503": (
            answer(429, error("Rate limit reached", "rate_limit_error", "rate_limit_exceeded")),
            answer(503, error("The server is overloaded", "server_error")),
            plain(503, "no healthy upstream"),
        ),
        "501": (answer(501, error("Not implemented", "not_supported_error")),),
        "anything else": (
            answer(500, error("The server had an error", "server_error")),
            plain(502, "<html><h1>502 Bad Gateway</h1></html>"),
            event(error("The server had an error", "server_error")),
        ),
        "200, type of a model not found": (
            event(error("no such model", "not_found_error")),
            event(error("no such model", "invalid_request_error", "model_not_found")),
        ),
        "200, type of a bad key": (
            event(error("no such key", "authentication_error")),
            event(error("no such key", "invalid_request_error", "invalid_api_key")),
        ),
        "200, type of an overload": (
            event(error("Overloaded", "overloaded_error")),
            event(error("Rate limit reached", "rate_limit_error", "rate_limit_exceeded")),
            event(error("Rate limit reached", "tokens", "rate_limit_exceeded")),
        ),
        "200, type of something missing": (event(error("no embeddings here", "not_supported_error")),),
        "200, type of a timeout": (event(error("took too long", "timeout_error")),),
        "200, type of a bad request": (
            event(error("Invalid 'tools'", "invalid_request_error")),
            event(error("Invalid 'top_p'", "invalid_request_error", "invalid_value", "top_p")),
        ),
    },
    BEGUN,
    ENDINGS,
)
"""Any engine of OpenAI's dialect."""
