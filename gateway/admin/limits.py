"""Limits, to look at: how they stand, and what they would answer. Nothing here charges anything."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

from gateway.api.asgi import Receive, Scope
from gateway.api.reading import decode_body
from gateway.api.receiving import check_media_type, read_body
from gateway.errors import BadRequest, Unavailable
from gateway.limits.contract import StoreUnavailable
from gateway.runtime import Runtime

__all__ = ["LimitHandlers"]

FIELDS = ("tenant", "key", "model", "pool", "prompt", "output", "tokens")


class LimitHandlers:
    """`GET /admin/limits` and `POST /admin/limits/try`."""

    def __init__(self, runtime: Callable[[], Runtime]) -> None:
        self._runtime = runtime

    async def show(self, scope: Scope, receive: Receive) -> Any:
        """Every account, or with `?tenant=` those of that tenant's requests."""
        runtime = self._runtime()
        given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tenant = given.get("tenant", [None])[-1]
        if tenant is not None:
            _known("tenant", tenant, runtime.snapshot.tenants)
        try:
            rows = await runtime.limiter.rows(runtime.snapshot, tenant)
        except StoreUnavailable as error:
            raise _unavailable() from error
        return {"limits": [asdict(row) for row in rows]}

    async def try_(self, scope: Scope, receive: Receive) -> Any:
        """`{"tenant": T, "key": K?, "model": M?, "pool": P?, "prompt": N, "output": N}` -> what each limit
        would answer to such a request. `tokens` stands for `prompt` where lengths are not told apart."""
        runtime = self._runtime()
        check_media_type(scope)
        asked = decode_body(await read_body(scope, receive, runtime.snapshot.server.max_body))
        return await try_limits(runtime, asked)


async def try_limits(runtime: Runtime, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What each limit would answer to the request in `asked`. Raises BadRequest, Unavailable."""
    snapshot = runtime.snapshot
    for field in asked:
        if field not in FIELDS:
            raise BadRequest(f"{field!r} is none of {', '.join(FIELDS)}.", param=field)
    tenant, key, model, pool = (_text(asked, field) for field in ("tenant", "key", "model", "pool"))
    if tenant is None:
        raise BadRequest("'tenant' must be given.", param="tenant")
    _known("tenant", tenant, snapshot.tenants)
    if key is not None:
        _known("key", key, [k.id for owner, k in snapshot.keys.values() if owner.name == tenant])
    if model is None and len(snapshot.models) == 1:
        (model,) = snapshot.models
    if model is not None:
        if (found := snapshot.model(model)) is None:
            raise BadRequest(f"'model' must be one of {', '.join(snapshot.models)}.", param="model")
        model = found.name
    if pool is not None:
        _known("pool", pool, snapshot.pools)
    prompt, output, tokens = (_count(asked, field) for field in ("prompt", "output", "tokens"))
    if tokens is not None and (prompt is not None or output is not None):
        raise BadRequest("Give either 'tokens' or 'prompt' and 'output'.", param="tokens")
    prompt = (prompt or 0) + (tokens or 0)
    try:
        trials = await runtime.limiter.try_(tenant, key, model or "", pool, prompt, output or 0)
    except StoreUnavailable as error:
        raise _unavailable() from error
    return {
        "granted": all(trial.answer not in ("refuse", "never") for trial in trials),
        "limits": [asdict(trial) for trial in trials],
    }


def _known(field: str, name: str, names: Any) -> None:
    if name not in names:
        raise BadRequest(f"{field!r} must be one of {', '.join(names) or 'none'}.", param=field)


def _text(asked: Mapping[str, Any], field: str) -> str | None:
    value = asked.get(field)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{field!r} must be text.", param=field)
    return value


def _count(asked: Mapping[str, Any], field: str) -> int | None:
    value = asked.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**12:
        raise BadRequest(f"{field!r} must be a count of tokens.", param=field)
    return value


def _unavailable() -> Unavailable:
    return Unavailable("Limits cannot be asked at the moment.", reason="limits_unknown")
