"""The admin API, on its own listener: look at pools, replicas and requests; ask why.

Every route wants the administrator's key.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gateway.api.asgi import Receive, Scope, Send, authorization, send_json
from gateway.api.reading import decode_body, read_call
from gateway.api.receiving import check_media_type, read_body
from gateway.api.sessions import session_named
from gateway.call import ROUTES, Dialect
from gateway.config.snapshot import ANONYMOUS, Pool, Tenant
from gateway.errors import BadRequest
from gateway.planning.shares import lopsided, parts_of
from gateway.routing.explaining import explain
from gateway.routing.router import choose_route
from gateway.runtime import Runtime
from gateway.telemetry.records import RecordBook
from gateway.tenants.authentication import Authenticator

ENOUGH = 100
"""Requests in ten minutes from which on shares of work mean something."""
MOST_WAITING = 1000
"""Rows of a pool's line."""

Handler = Callable[[Scope, Receive], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler returns where 200 is not the status."""

    status: int
    value: Any


class AdminEndpoint:
    """Checks the administrator's key, then answers with what `handler` returns, as JSON."""

    def __init__(
        self, handler: Handler, runtime: Callable[[], Runtime], authenticator: Authenticator
    ) -> None:
        self._handler = handler
        self._runtime = runtime
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._authenticator.require_admin(self._runtime().snapshot, authorization(scope))
        answer = await self._handler(scope, receive)
        if not isinstance(answer, Answer):
            answer = Answer(200, answer)
        await send_json(scope, send, answer.status, answer.value)


class AdminHandlers:
    """What there is to see."""

    def __init__(self, runtime: Callable[[], Runtime], book: RecordBook, clock: Callable[[], float]) -> None:
        self._runtime = runtime
        self._book = book
        self._clock = clock

    async def pools(self, scope: Scope, receive: Receive) -> Any:
        runtime = self._runtime()
        return {
            "config": runtime.snapshot.hash,
            "pools": [self._pool(runtime, pool) for pool in runtime.snapshot.pools.values()],
            "warnings": warnings_of(runtime),
        }

    async def queues(self, scope: Scope, receive: Receive) -> Any:
        """Who waits where, and which steps of a brown-out are on; long lines are cut off at MOST_WAITING."""
        runtime = self._runtime()
        ladders = [asdict(row) for row in runtime.pipeline.brownout.rows()]
        return {
            "queues": [
                {
                    "pool": name,
                    **asdict(queue.statistics()),
                    "overload": [row for row in ladders if row["pool"] == name],
                    "line": [asdict(waiting) for waiting in queue.line(MOST_WAITING)],
                }
                for name, queue in runtime.queues.items()
            ]
        }

    async def replicas(self, scope: Scope, receive: Receive) -> Any:
        return {
            "replicas": [
                {"pool": pool, **asdict(ledger.statistics())} for pool, ledger in self._runtime().ledgers()
            ]
        }

    async def requests(self, scope: Scope, receive: Receive) -> Any:
        now = self._clock()
        rows = [record.as_row(now) for record in self._book]
        return {
            "requests": [{k: v for k, v in row.items() if v is not None} for row in rows],
            "accepted": self._book.accepted,
            "outcomes": dict(self._book.outcomes),
        }

    async def lengths(self, scope: Scope, receive: Receive) -> Any:
        """What is learned of output lengths; the keys that were used last."""
        lengths = self._runtime().pipeline.lengths
        return {"lengths": [asdict(row) for row in lengths.rows()], **asdict(lengths.statistics())}

    async def explain(self, scope: Scope, receive: Receive) -> Any:
        """`{"tenant": T, "dialect": "chat", "session": S, "request": {a body}}` -> where it would go and why.

        `tenant` may be left out where authentication is off. A body that names a `model` itself is taken
        for the request.
        """
        runtime = self._runtime()
        with runtime.leases:  # a reload meanwhile leaves it its counting threads
            check_media_type(scope)
            asked = decode_body(await read_body(scope, receive, runtime.snapshot.server.max_body))
            return await explain_request(runtime, asked, self._clock())

    def _pool(self, runtime: Runtime, pool: Pool) -> dict[str, Any]:
        queue = runtime.queues[pool.name]
        return {
            "pool": pool.name,
            "engine": pool.engine,
            "relay": pool.relay,
            "upstream_stream": pool.upstream_stream,
            "doors": sorted(pool.doors),
            "max_generation_ms": None if pool.max_generation is None else 1e3 * pool.max_generation,
            "state": pool.state,
            "activation": None
            if (sleeper := runtime.sleepers.get(pool.name)) is None
            else asdict(sleeper.statistics()),
            "serves": dict(pool.serves),
            "adapters": {name: lora.name for name, lora in pool.loras.items()},
            "engine_priority": pool.engine_priority,
            "prefixes": {
                "tokens": pool.policy.prefix_tokens,
                "shared": pool.share_prefixes,
                "remembered": len(queue.scheduler.prefixes),
                "trust": {
                    ledger.replica.id: round(queue.scheduler.prefixes.trust(ledger.replica.id), 3)
                    for ledger in queue.ledgers
                },
            },
            "limits": asdict(pool.limits),
            "configured_limits": asdict(queue.pool.limits),
            "labels": dict(pool.labels),
            "lends_to": list(pool.lends_to),
            "slo": asdict(pool.slo),
            "class_slos": {priority.name: asdict(slo) for priority, slo in pool.class_slos.items()},
            "attained": [
                {
                    "class": row.priority_class,
                    "objective": row.objective,
                    "requests": row.requests,
                    "share": round(row.share, 4),
                }
                for row in runtime.pipeline.metrics.attainment.rows()
                if row.pool == pool.name
            ],
            "share": share_of(runtime, pool.name),
            "queue": asdict(queue.statistics()),
            "replicas": [asdict(ledger.statistics()) for ledger in queue.ledgers],
        }


def share_of(runtime: Runtime, pool: str) -> dict[str, float] | None:
    """The pool's parts of the work of ten minutes and of the capacity; None where no work came."""
    for part in parts_of(runtime.shares()):
        if part.pool == pool:
            return {"work": round(part.work, 4), "capacity": round(part.capacity, 4)}
    return None


def warnings_of(runtime: Runtime) -> list[str]:
    """Pools that have much more of the work than of the capacity, or less. A few requests say nothing."""
    if sum(queue.demand()[0] for queue in runtime.queues.values()) < ENOUGH:
        return []
    return [str(each) for each in lopsided(runtime.shares())]


async def explain_request(runtime: Runtime, asked: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Explain the request in `asked`. Raises the error that the request itself would get."""
    body = asked.get("request", asked if "model" in asked else None)
    if not isinstance(body, dict):
        raise BadRequest("'request' must hold the body of a chat or completions request.", param="request")
    default: Dialect = "completions" if "prompt" in body else "chat"
    dialect = asked.get("dialect", default)
    if dialect not in ROUTES:
        raise BadRequest(f"'dialect' is one of {', '.join(ROUTES)}.", param="dialect")
    call = read_call(
        {
            name: value
            for name, value in body.items()
            if body is not asked or name not in ("tenant", "dialect", "session")
        },
        dialect=dialect,
        call_id="explain",
        snapshot=runtime.snapshot,
        tenant=_tenant(runtime, asked.get("tenant")),
        key_id=None,
        received=now,
        session_id=_session(asked.get("session")),
    )
    pipeline = runtime.pipeline
    estimate = pipeline.explained(call, await pipeline.estimate(call))
    route = choose_route(runtime.snapshot, call, estimate)
    lesser = pipeline.brownout.degrade(runtime.snapshot, call, route)
    rows = pipeline.brownout.rows_for(runtime.snapshot, call, route)
    if lesser is not None:
        call, route = lesser.call, lesser.route
    told = explain(call, route, runtime.queues, runtime.sleepers)
    return {
        **told,
        "degraded": None if lesser is None else str(lesser),
        "overload": [asdict(row) for row in rows],
    }


def _session(name: object) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or (session := session_named(name)) is None:
        raise BadRequest(
            "'session' is what x-session-id would say: 1 to 200 ASCII characters.", param="session"
        )
    return session


def _tenant(runtime: Runtime, name: object) -> Tenant:
    tenants = runtime.snapshot.tenants
    if name in (None, ANONYMOUS.name) and runtime.snapshot.server.authentication == "off":
        return tenants.get(ANONYMOUS.name, ANONYMOUS)
    if not isinstance(name, str) or name not in tenants:
        raise BadRequest(f"'tenant' must be one of {', '.join(tenants) or 'none'}.", param="tenant")
    return tenants[name]
