"""`/v1/responses/{id}` and below: nothing is stored, and a caller with a key is told so."""

from collections.abc import Callable

from gateway.api.asgi import Receive, Scope, Send, authorization
from gateway.errors import NotImplementedHere
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord
from gateway.tenants.authentication import Authenticator


class StoredResponses:
    def __init__(self, runtime: Callable[[], Runtime], authenticator: Authenticator) -> None:
        self._runtime = runtime
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["headgate.record"]
        tenant, key = self._authenticator.tenant(self._runtime().snapshot, authorization(scope))
        record.tenant = tenant.name
        record.key_id = key.id if key is not None else None
        raise NotImplementedHere("Responses are not stored here: each is told once, by the request for it.")
