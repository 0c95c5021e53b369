"""What llama.cpp's server says when it does not answer (tools/server/server-common.cpp,
`format_error_response`).

It has no overload of its own: it queues without bound. A 503 is a server that still loads. Behind the error
event of a stream comes no `[DONE]`. Tool calls of earlier turns that are not JSON are a 500 there
(common/chat.cpp, `func_args_not_string`), though they are the client's.
"""

import re

from backends.contract import ErrorKind
from backends.error_table import ErrorTable, Rule, answer, event
from backends.openai_errors import BEGUN, ENDINGS, RULES, error

__all__ = ["TABLE"]

_TOO_LONG = error(
    "request (6000 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "exceed_context_size_error",
    400,
)

TABLE = ErrorTable(
    (
        Rule(
            "arguments of a tool call that are not JSON",
            "validation",
            ErrorKind.CLIENT,
            {400, 500},
            says=re.compile(r"Failed to parse tool call arguments as JSON"),
            where="at the start",
            param="messages",
        ),
        *RULES,
    ),
    {
        "arguments of a tool call that are not JSON": (
            answer(
                500,
                error(
                    "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] parse "
                    "error at line 1, column 2: syntax error while parsing object key",
                    "server_error",
                    500,
                ),
            ),
        ),
        "too long": (
            answer(400, _TOO_LONG),
            event(_TOO_LONG),
            answer(
                500,
                error(
                    "input (900 tokens) is too large to process. increase the physical batch size (current "
                    "batch size: 512)",
                    "server_error",
                    500,
                ),
            ),
        ),
        "any other 4xx": (answer(400, error('"messages" is required', "invalid_request_error", 400)),),
        "401, 403": (answer(401, error("Invalid API Key", "authentication_error", 401)),),
        "404": (answer(404, error("File Not Found", "not_found_error", 404)),),
        "429, 503": (answer(503, error("Loading model", "unavailable_error", 503)),),
        "501": (answer(501, error("This server does not support embeddings.", "not_supported_error", 501)),),
        "anything else": (
            answer(500, error("Context size has been exceeded.", "server_error", 500)),
            event(error("Compute error.", "server_error", 500)),
        ),
    },
    BEGUN,
    ENDINGS,
)
