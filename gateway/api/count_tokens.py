"""`POST /v1/messages/count_tokens`: how many tokens a conversation is, by the gateway's own count.

It holds for the models that `/v1/messages` serves.
"""

from collections.abc import Mapping
from typing import Any

from gateway.api.asgi import Scope, key_of
from gateway.api.questions import Question
from gateway.call import ROUTES, Call, Dialect
from gateway.errors import EndpointNotServed
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord


class CountTokensEndpoint(Question):
    def key(self, scope: Scope) -> bytes | None:
        return key_of(scope)

    def dialect(self, body: Mapping[str, Any]) -> Dialect:
        return "messages"

    def check(self, runtime: Runtime, call: Call) -> None:
        pools = runtime.snapshot.pools.values()
        if not any(call.model.name in pool.serves and "messages" in pool.doors for pool in pools):
            raise EndpointNotServed(f"This model is not served at {ROUTES['messages']}.", param="model")

    async def answer(self, runtime: Runtime, call: Call, record: RequestRecord) -> dict[str, Any]:
        counted = await runtime.counting.count(call.model, call.request, call)
        record.prompt_tokens, record.prompt_tier = counted.tokens, counted.tier
        return {"input_tokens": counted.tokens}
