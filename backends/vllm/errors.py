"""What vLLM says when it does not answer (vllm/entrypoints/openai/server_utils.py, serve/*/serving.py).

A priority that the server was not started for is no fault of the client; nor are tools that it was not
started for, nor a dead engine core, which some handlers call a bad request.
"""

import re

from backends.contract import ErrorKind
from backends.error_table import ErrorTable, Rule, answer, event
from backends.openai_errors import BEGUN, ENDINGS, NO_TOOL_PARSER, RULES, ended, error

__all__ = ["TABLE"]

_DEAD = error(
    "EngineCore encountered an issue. See stack trace (above) for the root cause.", "InternalServerError", 500
)

TABLE = ErrorTable(
    (
        Rule(
            "priorities are off",
            "crash",
            ErrorKind.ENGINE,
            says=re.compile(r"priority scheduling is not enabled", re.IGNORECASE),
        ),
        Rule(
            "the engine core is dead",
            "crash",
            ErrorKind.ENGINE,
            says=re.compile(r"EngineCore (?:encountered an issue|initialization failed)|EngineDeadError"),
        ),
        NO_TOOL_PARSER,
        *RULES,
    ),
    {
        "priorities are off": (
            answer(
                400,
                error("Got priority 10000 but Priority scheduling is not enabled.", "BadRequestError", 400),
            ),
        ),
        "the engine core is dead": (
            answer(500, _DEAD),
            answer(400, error("EngineCore encountered an issue.", "BadRequestError", 400)),
            event(_DEAD, done=True),
        ),
        NO_TOOL_PARSER.name: tuple(
            answer(400, error(words, "BadRequestError", 400))
            for words in (
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                'tool_choice="required" requires --tool-call-parser to be set',
                'tool_choice=function "f" requires --tool-call-parser to be set',
            )
        ),
        "too long": (
            answer(
                400,
                error(
                    "This model's maximum context length is 4096 tokens. However, you requested 512 output "
                    "tokens and your prompt contains at least 3585 input tokens. Please reduce the length of "
                    "the input prompt.",
                    "BadRequestError",
                    400,
                    "input_tokens",
                ),
            ),
            answer(
                400,
                error(
                    "You passed 3585 input tokens and requested 512 output tokens. However, the model's "
                    "context length is only 4096 tokens, resulting in a maximum input length of 3584 tokens.",
                    "BadRequestError",
                    400,
                    "input_tokens",
                ),
            ),
            event(
                error("This model's maximum context length is 4096 tokens.", "BadRequestError", 400),
                done=True,
            ),
        ),
        "any other 4xx": (
            answer(400, error("top_p must be in (0, 1], got 7.0.", "BadRequestError", 400, "top_p")),
            event(error("Invalid grammar specification.", "BadRequestError", 400), done=True),
        ),
        "401, 403": (answer(401, {"error": "Unauthorized"}),),
        "404": (answer(404, error("The model `nope` does not exist.", "NotFoundError", 404, "model")),),
        "429, 503": (
            answer(
                503, error("The engine is busy and cannot accept new requests.", "Service Unavailable", 503)
            ),
        ),
        "501": (answer(501, error("Tokenizer info is not available.", "NotImplementedError", 501)),),
        "anything else": (
            answer(500, error("list index out of range", "InternalServerError", 500)),
            event(
                error("CUDA error: an illegal memory access was encountered", "InternalServerError", 500),
                done=True,
            ),
        ),
    },
    BEGUN,
    (*ENDINGS, ended("abort"), ended("error")),
)
