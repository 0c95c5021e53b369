"""`POST /tokenize`, in vLLM's shape: how many tokens a prompt is to the gateway, and which.

    {"model", "prompt": text}      special tokens added as engines add them (`add_special_tokens`: false
                                   for none)
    {"model", "messages": [...]}   in the model's chat template, with its generation prompt
                                   (`add_generation_prompt`: false for none), nothing more added
    -> {"count", "max_model_len", "tokens": [id, ...] | null, "token_strs": [text, ...] | null, "source"}

(vllm/entrypoints/serve/tokenize/protocol.py; `source`, who says so, is ours.) `tokens` is null where the
count is an estimate or an engine's, or the text too long to list. Nothing is sent to an engine but, where one
counts for the model, that question; no limit is charged. So that those who only ask never stand in the way
of requests, few are answered at a time.
"""

from collections.abc import Callable

from gateway.api.asgi import Receive, Scope, Send, authorization, send_json
from gateway.api.reading import decode_body, read_call
from gateway.api.receiving import check_media_type, read_body
from gateway.call import Call
from gateway.errors import BadRequest, Unavailable
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord
from gateway.tenants.authentication import Authenticator

MOST_AT_ONCE = 16
"""Questions being answered; a small part of the line before the counting threads, which requests share."""


class TokenizeEndpoint:
    def __init__(
        self, runtime: Callable[[], Runtime], authenticator: Authenticator, clock: Callable[[], float]
    ) -> None:
        self._runtime = runtime
        self._authenticator = authenticator
        self._clock = clock
        self._at_once = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self._runtime()  # one configuration for the whole way
        with runtime.leases:
            await self._serve(runtime, scope, receive, send)

    async def _serve(self, runtime: Runtime, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["headgate.record"]
        tenant, key = self._authenticator.tenant(runtime.snapshot, authorization(scope))
        record.tenant = tenant.name
        record.key_id = key.id if key is not None else None
        check_media_type(scope)
        body = decode_body(await read_body(scope, receive, runtime.snapshot.server.max_body))
        if (body.get("prompt") is None) == (body.get("messages") is None):
            raise BadRequest("One of 'prompt' and 'messages' is wanted.", param="prompt")
        if body.get("prompt") is not None and not isinstance(body["prompt"], str):
            raise BadRequest("'prompt' must be a string here.", param="prompt")
        call = read_call(
            body,
            dialect="chat" if body.get("prompt") is None else "completions",
            call_id=record.request_id,
            snapshot=runtime.snapshot,
            tenant=tenant,
            key_id=record.key_id,
            received=self._clock(),
        )
        record.model = call.model.name
        is_chat = call.request.messages is not None
        _flag(call, "add_generation_prompt", default=True)  # read by Counting
        add_special_tokens = _flag(call, "add_special_tokens", default=not is_chat)
        strings = _flag(call, "return_token_strs", default=False)
        if self._at_once >= MOST_AT_ONCE:
            raise Unavailable("Too many prompts are being tokenized.", reason="overloaded")
        self._at_once += 1
        try:
            told = await runtime.counting.tokenize(
                call.model,
                call.request,
                add_special_tokens=add_special_tokens,
                strings=strings,
                call=call,
            )
        finally:
            self._at_once -= 1
        answer = {
            "count": told.count.tokens,
            "max_model_len": call.model.context,
            "tokens": told.ids,
            "token_strs": told.strings,
            "source": told.count.source,
        }
        await send_json(scope, send, 200, answer)


def _flag(call: Call, name: str, *, default: bool) -> bool:
    value = call.request.parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false.", param=name)
    return value
