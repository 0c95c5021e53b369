"""`POST /tokenize`, in vLLM's shape: how many tokens a prompt is to the gateway, and which.

    {"model", "prompt": text}      special tokens added as engines add them (`add_special_tokens`: false
                                   for none)
    {"model", "messages": [...]}   in the model's chat template, with its generation prompt
                                   (`add_generation_prompt`: false for none), nothing more added
    -> {"count", "max_model_len", "tokens": [id, ...] | null, "token_strs": [text, ...] | null, "source"}

(vllm/entrypoints/serve/tokenize/protocol.py; `source`, who says so, is ours.) `tokens` is null where the
count is an estimate or an engine's, or the text too long to list.
"""

from collections.abc import Mapping
from typing import Any

from gateway.api.asgi import Scope, authorization
from gateway.api.questions import Question
from gateway.call import Call, Dialect
from gateway.errors import BadRequest
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord


class TokenizeEndpoint(Question):
    def key(self, scope: Scope) -> bytes | None:
        return authorization(scope)

    def dialect(self, body: Mapping[str, Any]) -> Dialect:
        if (body.get("prompt") is None) == (body.get("messages") is None):
            raise BadRequest("One of 'prompt' and 'messages' is wanted.", param="prompt")
        if body.get("prompt") is not None and not isinstance(body["prompt"], str):
            raise BadRequest("'prompt' must be a string here.", param="prompt")
        return "chat" if body.get("prompt") is None else "completions"

    def check(self, runtime: Runtime, call: Call) -> None:
        for name in ("add_generation_prompt", "add_special_tokens", "return_token_strs"):
            _flag(call, name, default=False)

    async def answer(self, runtime: Runtime, call: Call, record: RequestRecord) -> dict[str, Any]:
        told = await runtime.counting.tokenize(
            call.model,
            call.request,  # its `add_generation_prompt` is read there
            add_special_tokens=_flag(call, "add_special_tokens", default=call.request.messages is None),
            strings=_flag(call, "return_token_strs", default=False),
            call=call,
        )
        record.prompt_tokens, record.prompt_tier = told.count.tokens, told.count.tier
        return {
            "count": told.count.tokens,
            "max_model_len": call.model.context,
            "tokens": told.ids,
            "token_strs": told.strings,
            "source": told.count.source,
        }


def _flag(call: Call, name: str, *, default: bool) -> bool:
    value = call.request.parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false.", param=name)
    return value
