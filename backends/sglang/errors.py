"""What SGLang says when it does not answer (python/sglang/srt/entrypoints/openai/serving_base.py).

Its errors are flat in whole answers. In streams they come with status 200 and name their own in `code`, an
overload too. The 503 of a server that takes no priorities is no overload.
"""

import re
from typing import Any

from backends.contract import ErrorKind
from backends.error_table import ErrorTable, Rule, answer, event
from backends.openai_errors import BEGUN, ENDINGS, RULES, ended

__all__ = ["TABLE"]


def _flat(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


_FULL = _flat("The request queue is full.", "503", 503)
_EVICTED = _flat("The request is aborted by a higher priority request.", "503", 503)
_TOO_LONG = "The input (5000 tokens) is longer than the model's context length (4096 tokens)."

TABLE = ErrorTable(
    (
        Rule(
            "priorities are off",
            "crash",
            ErrorKind.ENGINE,
            says=re.compile(r"using priority is disabled", re.IGNORECASE),
        ),
        *RULES,
    ),
    {
        "priorities are off": (
            answer(503, _flat("Using priority is disabled for this server.", "503", 503)),
        ),
        "too long": (
            answer(400, _flat(_TOO_LONG, "BadRequestError", 400)),
            event({"error": _flat(_TOO_LONG, "BadRequestError", 400)}, done=True),
        ),
        "any other 4xx": (answer(400, _flat("Messages cannot be empty.", "BadRequestError", 400)),),
        "401, 403": (answer(401, {"error": "Unauthorized"}),),
        "404": (answer(404, {"detail": "Not Found"}),),
        "429, 503": (
            answer(503, _FULL),
            answer(503, _EVICTED),
            event({"error": _FULL}, done=True),
            event({"error": _EVICTED}, done=True),
        ),
        "anything else": (
            answer(500, _flat("Internal server error: CUDA out of memory", "InternalServerError", 500)),
            event({"error": _flat("scheduler died", "InternalServerError", 500)}, done=True),
        ),
    },
    BEGUN,
    (*ENDINGS, ended("abort")),
)
