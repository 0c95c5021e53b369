"""`POST /v1/chat/completions`, `/v1/completions`, and the doors that engines serve natively."""

import asyncio
import re
from collections.abc import Callable

import msgspec

from gateway.api.asgi import Receive, Scope, Send, authorization, header, key_of
from gateway.api.deadlines import patience_of, time_budget_of
from gateway.api.reading import decode_body, read_call
from gateway.api.receiving import DisconnectWatch, check_media_type, read_body
from gateway.api.replies import StreamReply, WholeReply
from gateway.api.sessions import session_of
from gateway.call import Call, Dialect
from gateway.errors import BadRequest, Unavailable
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord
from gateway.tenants.authentication import Authenticator

DEGRADE_HEADER = b"x-headgate-degrade"
FORWARDED = (b"anthropic-version", b"anthropic-beta")
HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,1022}[\x21-\x7e])?")
"""What is forwarded of them."""

LARGE_BODY = 64 * 1024
"""Bytes of a body of which each step (decoded, read, weighed) may take the event loop some milliseconds."""


class GenerationEndpoint:
    """Steps 1 and 2 of a request's way (receive, read); the pipeline does the rest."""

    def __init__(
        self,
        dialect: Dialect,
        runtime: Callable[[], Runtime],
        authenticator: Authenticator,
        draining: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._dialect = dialect
        self._runtime = runtime
        self._authenticator = authenticator
        self._draining = draining
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self._runtime()  # one configuration for the whole way
        with runtime.leases:
            await self._serve(runtime, scope, receive, send)

    async def _serve(self, runtime: Runtime, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["headgate.record"]
        credentials = key_of(scope) if self._dialect == "messages" else authorization(scope)
        tenant, key = self._authenticator.tenant(runtime.snapshot, credentials)
        record.tenant = tenant.name
        record.key_id = key.id if key is not None else None
        if self._draining():
            raise Unavailable("The gateway is shutting down.", reason="draining")
        check_media_type(scope)
        patience, allowed = patience_of(scope), time_budget_of(scope)
        less = takes_less(scope)
        body = await read_body(scope, receive, runtime.snapshot.server.max_body)
        received = self._clock()
        traceparent = header(scope, b"traceparent")
        decoded = decode_body(body)
        await _let_others(body)
        call = read_call(
            decoded,
            dialect=self._dialect,
            call_id=record.request_id,
            snapshot=runtime.snapshot,
            tenant=tenant,
            key_id=record.key_id,
            received=received,
            deadline=None if patience is None else received + patience,
            stop_at=None if allowed is None else received + allowed,
            traceparent=traceparent.decode("latin-1") if traceparent is not None else None,
            degradable=less and (key is None or key.degrade),
            size=len(body),
            session_id=session_of(scope),
        )
        call = with_body(call, body, scope)
        await _let_others(body)
        record.received = received
        record.model = call.model.name
        record.stream = call.stream
        record.priority_class = call.priority_class.name
        async with DisconnectWatch(receive) as watch:
            kind = StreamReply if call.stream else WholeReply
            reply = kind(call, record, scope, send, watch, self._clock)
            try:
                await runtime.pipeline.serve(call, reply, record)
            except asyncio.CancelledError:
                if watch.gone or not self._draining():
                    raise
                # The drain is over. The cancellation was for this request: it becomes its answer.
                if record.task is not None:
                    record.task.uncancel()
                error = Unavailable("The gateway is shutting down.", reason="draining")
                if not reply.started:
                    raise error from None
                record.error_code = error.code
                record.finish("failed")
                async with asyncio.timeout(1):
                    await reply.fail(error)


def takes_less(scope: Scope) -> bool:
    """Whether the client would rather have a lesser answer than wait or be refused: `x-headgate-degrade: no`
    says that it would not. Raises BadRequest for another word than `yes` or `no`."""
    said = (header(scope, DEGRADE_HEADER) or b"yes").strip().lower()
    if said not in (b"yes", b"no"):
        name = DEGRADE_HEADER.decode()
        raise BadRequest(f"{name} is `yes` or `no`.", param=name)
    return said == b"yes"


def with_body(call: Call, body: bytes, scope: Scope) -> Call:
    """A call of a native door with what its engine is sent: the body, and the headers that belong to it."""
    native = call.request.native
    if native is None:
        return call
    headers = {}
    for name in FORWARDED if native.door == "messages" else ():
        value = (header(scope, name) or b"").decode("latin-1")
        if HEADER_VALUE.fullmatch(value):
            headers[name.decode()] = value
    native = msgspec.structs.replace(native, body=body, headers=headers)
    return msgspec.structs.replace(call, request=msgspec.structs.replace(call.request, native=native))


async def _let_others(body: bytes) -> None:
    """A turn for everybody else, between two steps that take milliseconds for a large body."""
    if len(body) > LARGE_BODY:
        await asyncio.sleep(0)
