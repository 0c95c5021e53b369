"""The admin API that changes things: keys, drains, the configuration. Who did what is kept in an audit."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.activation.sleeping import Sleeper
from gateway.admin.endpoints import Answer
from gateway.api.asgi import Receive, Scope
from gateway.api.errors import error_body
from gateway.api.reading import decode_body
from gateway.api.receiving import check_media_type, read_body
from gateway.config.snapshot import Snapshot
from gateway.errors import BadRequest, Conflict, NotFound
from gateway.fleet.ledger import ReplicaLedger
from gateway.reloading import Reloader
from gateway.runtime import Runtime
from gateway.state.live import LiveState
from gateway.tenants.keys import KeyDesk, MadeKey, duration_of

BODY_LIMIT = 65536
"""Bytes of an admin body."""


class CreateKey(BaseModel):
    """Body of `POST /admin/keys`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str
    id: str | None = None
    expires: str | None = None
    """A duration: 90s, 15m, 12h, 30d, 2w."""


class RotateKey(BaseModel):
    """Body of `POST /admin/keys/{id}/rotate`; may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    grace: str = "0s"
    """How long the old key stays valid."""


Body = TypeVar("Body", bound=BaseModel)


class KeyHandlers:
    """Keys of the file and of the state store."""

    def __init__(self, state: LiveState, file: Callable[[], Snapshot]) -> None:
        """`file` gives the configuration as the file has it, without the overlay."""
        self._state = state
        self._file = file
        self._desk = KeyDesk(state.store)

    async def create(self, scope: Scope, receive: Receive) -> Any:
        asked = await _body(scope, receive, CreateKey)
        lifetime = None if asked.expires is None else _duration(asked.expires, "expires")
        who, file = _who(scope), self._file()
        made = await self._state.change(
            lambda: self._desk.create(file, asked.tenant, key_id=asked.id, lifetime=lifetime, who=who)
        )
        return Answer(201, _shown(made))

    async def list(self, scope: Scope, receive: Receive) -> Any:
        file = self._file()
        rows = await asyncio.to_thread(self._desk.rows, file)
        return {"keys": [asdict(row) for row in rows]}

    async def rotate(self, scope: Scope, receive: Receive) -> Any:
        asked = await _body(scope, receive, RotateKey)
        grace = _duration(asked.grace, "grace")
        who, file, key_id = _who(scope), self._file(), scope["path_params"]["id"]
        made = await self._state.change(lambda: self._desk.rotate(file, key_id, grace=grace, who=who))
        return Answer(201, _shown(made))

    async def revoke(self, scope: Scope, receive: Receive) -> Any:
        who, file, key_id = _who(scope), self._file(), scope["path_params"]["id"]
        rows = await self._state.change(lambda: self._desk.revoke(file, key_id, who=who))
        return {"revoked": [asdict(row) for row in rows]}


class ReplicaHandlers:
    """Taking replicas out of service, and back."""

    def __init__(self, state: LiveState, runtime: Callable[[], Runtime]) -> None:
        self._state = state
        self._runtime = runtime

    async def drain(self, scope: Scope, receive: Receive) -> Any:
        """The replica gets no new requests from the answer on; ask again to see what is still in flight."""
        pool, ledger = self._find(scope)
        if ledger.drained is None:
            who, name = _who(scope), ledger.replica.id
            await self._state.change(lambda: self._state.store.drain(name, at=time.time(), who=who))
        return _progress(pool, ledger)

    async def enable(self, scope: Scope, receive: Receive) -> Any:
        pool, ledger = self._find(scope)
        if ledger.drained is not None:
            who, name = _who(scope), ledger.replica.id
            await self._state.change(lambda: self._state.store.enable(name, at=time.time(), who=who))
        return _progress(pool, ledger)

    def _find(self, scope: Scope) -> tuple[str, ReplicaLedger]:
        name = scope["path_params"]["id"]
        for pool, ledger in self._runtime().ledgers():
            if ledger.replica.id == name:
                return pool, ledger
        raise NotFound(f"There is no replica {name[:100]!r}.")


class PoolHandlers:
    """Waking pools, and putting them to sleep."""

    def __init__(self, state: LiveState, runtime: Callable[[], Runtime]) -> None:
        self._state = state
        self._runtime = runtime

    async def wake(self, scope: Scope, receive: Receive) -> Any:
        """Begins a wake, also right after one that failed; ask again to see how it goes."""
        name, sleeper = self._find(scope)
        sleeper.wake()
        return await self._noted(scope, "pools.wake", name, sleeper)

    async def cool(self, scope: Scope, receive: Receive) -> Any:
        name, sleeper = self._find(scope)
        sleeper.cool()
        return await self._noted(scope, "pools.cool", name, sleeper)

    async def _noted(self, scope: Scope, action: str, name: str, sleeper: Sleeper) -> Answer:
        statistics = sleeper.statistics()
        await asyncio.to_thread(self._state.store.note, action, name, at=time.time(), who=_who(scope))
        under_way = statistics.state in ("waking", "cooling")
        return Answer(202 if under_way else 200, {"pool": name, **asdict(statistics)})

    def _find(self, scope: Scope) -> tuple[str, Sleeper]:
        name, runtime = scope["path_params"]["name"], self._runtime()
        if name not in runtime.snapshot.pools:
            raise NotFound(f"There is no pool {name[:100]!r}.")
        sleeper = runtime.sleepers.get(name)
        if sleeper is None:
            raise Conflict(f"Nothing wakes pool {name}: it has no `wake`.")
        return name, sleeper


class ConfigHandlers:
    """What configuration runs, loading it again, and what administrators did."""

    def __init__(
        self,
        state: LiveState,
        runtime: Callable[[], Runtime],
        reloader: Reloader,
        retired: Callable[[], int],
    ) -> None:
        """`retired`: how many older configurations still have requests in flight."""
        self._state = state
        self._runtime = runtime
        self._reloader = reloader
        self._retired = retired

    async def show(self, scope: Scope, receive: Receive) -> Any:
        runtime = self._runtime()
        snapshot = runtime.snapshot
        return {
            "hash": snapshot.hash,
            "source": snapshot.source,
            "loaded_at": self._reloader.loaded_at,
            "last_reload": asdict(self._reloader.last),
            "warnings": self._reloader.warnings,
            "older_in_use": self._retired(),
            "state": {"durable": self._state.store.warning is None, "warning": self._state.store.warning},
            "summary": _summary(runtime),
        }

    async def reload(self, scope: Scope, receive: Receive) -> Any:
        if not self._reloader.possible:
            raise Conflict("This gateway was not started from a file.")
        who = _who(scope)
        result = await self._reloader.reload(who)
        await asyncio.to_thread(
            self._state.store.note,
            "config.reload",
            result.hash,
            "ok" if result.ok else "refused",
            at=result.at,
            who=who,
        )
        if result.ok:
            return asdict(result)
        error = BadRequest("The file has problems; the old configuration stays.", code="config_invalid")
        return Answer(400, {**error_body(error), **asdict(result)})

    async def audit(self, scope: Scope, receive: Receive) -> Any:
        rows = await asyncio.to_thread(self._state.store.audit)
        return {"audit": [asdict(row) for row in rows]}


def _summary(runtime: Runtime) -> dict[str, Any]:
    """The configuration without anything secret: no credentials, headers, or hashes of keys."""
    snapshot = runtime.snapshot
    return {
        "models": {
            name: {"context": model.context, "tokenizer": model.tokenizer.kind}
            for name, model in snapshot.models.items()
        },
        "pools": {
            name: {
                "engine": pool.engine,
                "serves": dict(pool.serves),
                "limits": asdict(runtime.queues[name].pool.limits),
                "replicas": [replica.id for replica in pool.replicas],
            }
            for name, pool in snapshot.pools.items()
        },
        "rules": [{"name": rule.name, "pools": [hop.pool for hop in rule.chain]} for rule in snapshot.rules],
        "tenants": {
            name: {"keys": [key.id for owner, key in snapshot.keys.values() if owner.name == name]}
            for name in snapshot.tenants
        },
    }


def _progress(pool: str, ledger: ReplicaLedger) -> dict[str, Any]:
    statistics = ledger.statistics()
    return {
        "pool": pool,
        "replica": statistics.id,
        "drained": None if statistics.drained is None else asdict(statistics.drained),
        "in_flight": statistics.in_flight,
        "outstanding_tokens": statistics.outstanding_tokens,
        "idle": statistics.in_flight == 0,
    }


def _shown(made: MadeKey) -> dict[str, Any]:
    return {"key": made.key, **asdict(made.row)}


def _who(scope: Scope) -> str:
    client = scope.get("client")
    return f"admin@{client[0]}" if client else "admin"


def _duration(text: str, param: str) -> float:
    try:
        return duration_of(text)
    except ValueError as error:
        raise BadRequest(f"'{param}': {error}.", param=param) from None


async def _body(scope: Scope, receive: Receive, kind: type[Body]) -> Body:
    """The body as a `kind`; an empty one is `{}`. Raises BadRequest."""
    raw = await read_body(scope, receive, BODY_LIMIT)
    if raw:
        check_media_type(scope)
    try:
        return kind.model_validate(decode_body(raw) if raw else {})
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise BadRequest(f"{param or 'The body'}: {first['msg']}.", param=param) from None
