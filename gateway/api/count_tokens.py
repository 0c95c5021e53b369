"""`POST /v1/messages/count_tokens`: how many tokens a conversation is, by the gateway's own count.

The same count by which rules and limits decide; where an engine counts for the model (`tokenizer: {kind:
engine}`), that question is sent to it, and nothing else ever is. So it is answered while all engines are
busy, and no limit is charged. It holds for the models that `/v1/messages` serves. Like `/tokenize`, few are
answered at a time.
"""

from collections.abc import Callable

from gateway.api.asgi import Receive, Scope, Send, key_of, send_json
from gateway.api.reading import decode_body, read_call
from gateway.api.receiving import check_media_type, read_body
from gateway.api.tokenize import MOST_AT_ONCE
from gateway.call import ROUTES
from gateway.errors import EndpointNotServed, NotImplementedHere, Unavailable
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord
from gateway.tenants.authentication import Authenticator


class CountTokensEndpoint:
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
        tenant, key = self._authenticator.tenant(runtime.snapshot, key_of(scope))
        record.tenant = tenant.name
        record.key_id = key.id if key is not None else None
        check_media_type(scope)
        call = read_call(
            decode_body(await read_body(scope, receive, runtime.snapshot.server.max_body)),
            dialect="messages",
            call_id=record.request_id,
            snapshot=runtime.snapshot,
            tenant=tenant,
            key_id=record.key_id,
            received=self._clock(),
        )
        record.model = call.model.name
        pools = runtime.snapshot.pools.values()
        if not any(call.model.name in pool.serves and "messages" in pool.doors for pool in pools):
            raise EndpointNotServed(f"This model is not served at {ROUTES['messages']}.", param="model")
        if self._at_once >= MOST_AT_ONCE:
            raise Unavailable("Too many prompts are being counted.", reason="overloaded")
        self._at_once += 1
        try:
            counted = await runtime.counting.count(call.model, call.request, call)
        finally:
            self._at_once -= 1
        record.prompt_tokens, record.prompt_tier = counted.tokens, counted.tier
        await send_json(scope, send, 200, {"input_tokens": counted.tokens})


class StoredResponses:
    """`/v1/responses/{id}` and below: nothing is stored."""

    def __init__(self, runtime: Callable[[], Runtime], authenticator: Authenticator) -> None:
        self._runtime = runtime
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._authenticator.tenant(self._runtime().snapshot, key_of(scope))
        raise NotImplementedHere("Responses are not stored here: each is told once, by the request for it.")
