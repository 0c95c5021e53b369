"""What trtllm-serve says when it does not answer, and how little that proves.

Everything raised in a handler becomes a 400 (tensorrt_llm/serve/openai_server.py, `create_error_response`),
so a broken engine looks like a bad request. A 400 counts as the client's fault only where its words, outside
what they quote, speak of a value in the request; anything else counts as the engine's. There is no answer for
an overload: requests wait. What fails behind the head of a stream is a cut body, and no event.
"""

import re
from typing import Any

from backends.contract import ErrorKind
from backends.error_table import BY_STATUS, TOO_LONG, ErrorTable, Rule, answer
from backends.openai_errors import BEGUN, ENDINGS, ended

__all__ = ["TABLE"]

_REFUSED = {400, 422}
_ENGINE_FAULT = re.compile(
    r"traceback|\bcuda|cublas|cudnn|nccl|\bmpi\b|out of memory|\boom\b|executor|\bworker|runtimeerror"
    r"|assertion|internal error|shut ?down|broken pipe|connection|errno|has no attribute|object is not"
    r"|nonetype",
    re.IGNORECASE,
)
_CLIENT_FAULT = re.compile(
    r"\b(?:must|should|expect(?:ed|s)|invalid|unsupported|not supported|not allowed|not permitted|requires?"
    r"|unknown|missing|out of (?:vocabulary )?range|at least|at most|greater than|less than|cannot be"
    r"|does not support|only support(?:s|ed)?|too (?:many|long|large|small))\b",
    re.IGNORECASE,
)


def _flat(message: str, kind: str = "BadRequestError", code: int = 400) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


TABLE = ErrorTable(
    (
        Rule("too long", "context length", ErrorKind.CONTEXT_LENGTH, says=TOO_LONG, where="in words or type"),
        # pydantic's list of errors, as text
        Rule("400 without a type", "validation", ErrorKind.CLIENT, _REFUSED, {""}),
        # gpt-oss handlers
        Rule("400 of type `internal_error`", "crash", ErrorKind.ENGINE, _REFUSED, {"internal_error"}),
        Rule(
            "400 that speaks of the engine",
            "crash",
            ErrorKind.ENGINE,
            _REFUSED,
            says=_ENGINE_FAULT,
            where="outside quotes",
        ),
        Rule(
            "400 that speaks of a value",
            "validation",
            ErrorKind.CLIENT,
            _REFUSED,
            says=_CLIENT_FAULT,
            where="outside quotes",
        ),
        Rule("any other 400", "crash", ErrorKind.ENGINE, _REFUSED),
        *BY_STATUS,
    ),
    {
        "too long": (
            answer(
                400,
                _flat(
                    "The sum of prompt length (5000.0), query length (0) should not exceed "
                    "max_num_tokens (4096)"
                ),
            ),
            answer(400, _flat("default_max_tokens (-904) must be greater than 0")),
        ),
        "400 without a type": (
            answer(
                400,
                {
                    "error": "[{'type': 'extra_forbidden', 'loc': ('body', 'best'), 'msg': 'Extra inputs are "
                    "not permitted', 'input': 3}]"
                },
            ),
        ),
        "400 of type `internal_error`": (answer(400, _flat("invalid channel", "internal_error")),),
        "400 that speaks of the engine": (
            answer(400, _flat("CUDA error: out of memory")),
            answer(400, _flat("Executor worker died; the server must be restarted")),
            answer(400, _flat("'NoneType' object is not iterable")),
        ),
        "400 that speaks of a value": (
            answer(400, _flat("Token ID 999999 out of vocabulary range [0, 32000)")),
            answer(400, _flat("Unsupported tool 'cuda worker'")),
        ),
        "any other 400": (answer(400, _flat("list index 7")),),
        "404": (answer(404, _flat("Response with id 'resp_1' not found.", "InvalidRequestError", 404)),),
        "501": (answer(501, _flat("Logprobs are not implemented here", "NotImplementedError", 501)),),
        "anything else": (answer(500, _flat("Internal server error", "InternalServerError", 500)),),
    },
    BEGUN,
    (*ENDINGS, ended("timeout", "timeout"), ended("cancelled")),
)
