"""What Triton's OpenAI frontend says when it does not answer: FastAPI's `detail`.

Whatever the backend raises is a 400 or a 500, so its words go before the status
(python/openai/openai_frontend/frontend/fastapi/routers).
"""

import re

from backends.contract import ErrorKind
from backends.error_table import ErrorTable, Rule, answer
from backends.openai_errors import BEGUN, ENDINGS, NO_TOOL_PARSER, RULES

__all__ = ["TABLE"]

_TOO_LONG, *_REST = RULES

TABLE = ErrorTable(
    (
        _TOO_LONG,
        Rule(
            "no such model",
            "model absent",
            ErrorKind.NOT_FOUND,
            says=re.compile(r"unknown model|model .{0,200}not found", re.IGNORECASE),
        ),
        NO_TOOL_PARSER,
        Rule(
            "400, not supported",
            "unsupported",
            ErrorKind.UNSUPPORTED,
            {400},
            says=re.compile(
                r"currently supported|not (?:currently )?supported|only supports?|unsupported", re.IGNORECASE
            ),
        ),
        Rule(
            "queue full",
            "overload",
            ErrorKind.OVERLOADED,
            says=re.compile(r"Exceeds maximum queue size|Request timeout expired", re.IGNORECASE),
        ),
        *_REST,
    ),
    {
        "too long": (answer(500, {"detail": "Prompt length (5000) exceeds maximum input length (4096)"}),),
        "no such model": (answer(400, {"detail": "Unknown model: nope"}),),
        NO_TOOL_PARSER.name: (
            answer(400, {"detail": "having tools in the request requires --tool-call-parser to be set"}),
        ),
        "400, not supported": (
            answer(400, {"detail": "Received n=2, but only single choice (n=1) is currently supported"}),
        ),
        "queue full": (answer(500, {"detail": "[request id: 1] Exceeds maximum queue size"}),),
        "any other 4xx": (
            answer(
                422, {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]}
            ),
        ),
        "401, 403": (answer(401, {"detail": "Unauthorized: invalid header 'api-key'"}),),
        "anything else": (
            answer(500, {"detail": 'Traceback (most recent call last): File "/opt/x.py", line 1'}),
        ),
    },
    BEGUN,
    ENDINGS,
)
