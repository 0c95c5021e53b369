"""Questions about a prompt that no engine is sent: what `/tokenize` and `count_tokens` share.

A question is read as the request that it is about, with a tenant's key and among that tenant's models, and is
answered by the gateway's own count, the one by which rules and limits decide. Where an engine counts for the
model (`tokenizer: {kind: engine}`), that question is sent to it, and nothing else ever is; so questions are
answered while all engines are busy, and no limit is charged. Those who only ask must never stand in the way
of requests: of each kind few are answered at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from gateway.api.asgi import Receive, Scope, Send, send_json
from gateway.api.reading import decode_body, read_call
from gateway.api.receiving import check_media_type, read_body
from gateway.call import Call, Dialect
from gateway.errors import Unavailable
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord
from gateway.tenants.authentication import Authenticator

__all__ = ["MOST_AT_ONCE", "Question"]

MOST_AT_ONCE = 16
"""Questions being answered; a small part of the line before the counting threads, which requests share."""


class Question(ABC):
    """One kind of question."""

    def __init__(
        self, runtime: Callable[[], Runtime], authenticator: Authenticator, clock: Callable[[], float]
    ) -> None:
        self._runtime = runtime
        self._authenticator = authenticator
        self._clock = clock
        self._at_once = 0

    @abstractmethod
    def key(self, scope: Scope) -> bytes | None:
        """Where the credentials of this route are."""

    @abstractmethod
    def dialect(self, body: Mapping[str, Any]) -> Dialect:
        """What kind of request `body` is about. Raises BadRequest."""

    @abstractmethod
    def check(self, runtime: Runtime, call: Call) -> None:
        """Raise GatewayError where there is no answer, before anything is counted."""

    @abstractmethod
    async def answer(self, runtime: Runtime, call: Call, record: RequestRecord) -> dict[str, Any]:
        """The answer as JSON."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self._runtime()  # one configuration for the whole way
        with runtime.leases:
            await self._serve(runtime, scope, receive, send)

    async def _serve(self, runtime: Runtime, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["headgate.record"]
        tenant, key = self._authenticator.tenant(runtime.snapshot, self.key(scope))
        record.tenant = tenant.name
        record.key_id = key.id if key is not None else None
        check_media_type(scope)
        body = decode_body(await read_body(scope, receive, runtime.snapshot.server.max_body))
        call = read_call(
            body,
            dialect=self.dialect(body),
            call_id=record.request_id,
            snapshot=runtime.snapshot,
            tenant=tenant,
            key_id=record.key_id,
            received=self._clock(),
        )
        record.model = call.model.name
        self.check(runtime, call)
        if self._at_once >= MOST_AT_ONCE:
            raise Unavailable("Too many prompts are being counted.", reason="overloaded")
        self._at_once += 1
        try:
            answer = await self.answer(runtime, call, record)
        finally:
            self._at_once -= 1
        await send_json(scope, send, 200, answer)
