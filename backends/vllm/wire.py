"""vLLM on the wire: OpenAI's shapes and more; unknown keys are ignored in silence.

So a key that once meant something is the danger: `guided_json` and its like constrain nothing any more, with
status 200 (vllm#53975), and are refused here. `priority` without the scheduling policy for it is an error,
and classes are the gateway's business. The request id travels in `x-request-id`, which vLLM puts into its own
id and its logs.
"""

from backends.contract import GenerateRequest, HttpRequest, Unsupported
from backends.openai_dialect import openai_request, without

__all__ = ["encode", "unsupported"]

_NOT_FORWARDED = frozenset({"priority", "request_id"})
_GUIDED = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend",
    "guided_whitespace_pattern",
)  # fmt: skip
_OPERATORS_ONLY = {
    "chat_template": "is a program that the engine would run",
    "kv_transfer_params": "addresses other engines' memory",
}


def unsupported(request: GenerateRequest) -> Unsupported | None:
    """Fields that vLLM would ignore although they change the answer, and those that are not for clients."""
    for field in _GUIDED:
        if request.parameters.get(field) is not None:
            return Unsupported(field, f"This engine ignores {field}: use response_format.")
    for field, reason in _OPERATORS_ONLY.items():
        if request.parameters.get(field) is not None:
            return Unsupported(field, f"{field} {reason}; it is not for clients.")
    return None


def encode(request: GenerateRequest) -> HttpRequest:
    parameters = without(request.parameters, _NOT_FORWARDED)
    return openai_request(request, parameters, {"x-request-id": request.request_id})
