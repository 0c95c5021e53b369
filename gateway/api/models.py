"""`GET /v1/models` and `GET /v1/models/{id}`: what this tenant may use."""

from collections.abc import Callable
from typing import Any

from gateway.api.asgi import Receive, Scope, Send, authorization, send_json
from gateway.config.snapshot import Model, Snapshot
from gateway.errors import ModelNotFound
from gateway.runtime import Runtime
from gateway.telemetry.records import RequestRecord
from gateway.tenants.authentication import Authenticator


class ModelsEndpoint:
    """One model where the path names one, else the list."""

    def __init__(
        self, runtime: Callable[[], Runtime], authenticator: Authenticator, started: Callable[[], int]
    ) -> None:
        self._runtime = runtime
        self._authenticator = authenticator
        self._started = started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        snapshot = self._runtime().snapshot
        tenant, _ = self._authenticator.tenant(snapshot, authorization(scope))
        record: RequestRecord = scope["headgate.record"]
        record.tenant = tenant.name
        asked: str | None = scope["path_params"].get("model")
        cards = [
            self._card(name, model)
            for name, model in _names(snapshot)
            if name != "*" and tenant.allow.model(model.name)
        ]
        if asked is None:
            await send_json(scope, send, 200, {"object": "list", "data": cards})
            return
        for card in cards:
            if card["id"] == asked:
                await send_json(scope, send, 200, card)
                return
        raise ModelNotFound(
            f"The model {asked[:100]!r} does not exist here. GET /v1/models lists what does.", param="model"
        )

    def _card(self, name: str, model: Model) -> dict[str, Any]:
        card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._started(),
            "owned_by": "headgate",
        }
        if model.context is not None:
            card["max_model_len"] = model.context  # vLLM's name for it; clients read it
        return card


def _names(snapshot: Snapshot) -> list[tuple[str, Model]]:
    """Every public name, aliases included, with its model."""
    names = list(snapshot.models.items())
    names += [(alias, snapshot.models[name]) for alias, name in snapshot.aliases.items()]
    return names
