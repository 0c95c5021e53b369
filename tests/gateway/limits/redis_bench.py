"""Stores on a real Redis, for tests: built as the gateway builds them, on clocks that tests can hold, and
reached through a proxy that can fail."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.config.redis_urls import parse_redis_url
from gateway.limits.contract import Account, Charge, StoreUnavailable, Verdict
from gateway.limits.redis_link import RedisLink
from gateway.limits.redis_nodes import Nodes
from gateway.limits.redis_store import RedisStore
from gateway.tasks import TaskSet
from tests.fault_proxy import FaultProxy
from tests.gateway.builders import a_limit
from tests.gateway.limits.conformance import an_account
from tests.redis_server import RedisServer

EASY = 5.0
"""Seconds: a timeout for tests that are about something else, on a machine that is busy."""
TIMEOUT = 0.1
"""Seconds: as by default."""
SLACK = 0.15
"""Seconds by which a busy machine may be late."""


def a_link(url: str, namespace: str, *, timeout: float = EASY, **settings: Any) -> RedisLink:
    parsed = parse_redis_url(url)
    nodes = Nodes(parsed, namespace, max(1.0, timeout))
    return RedisLink(nodes, shown=str(parsed), timeout=timeout, **settings)


@asynccontextmanager
async def a_store(
    url: str,
    namespace: str,
    *,
    timeout: float = EASY,
    lease: float = 25.0,
    beat: float = 8.0,
    clock: Callable[[], int] | None = None,
    **settings: Any,
) -> AsyncIterator[RedisStore]:
    """A store that runs; `settings` are the link's."""
    store = RedisStore(
        a_link(url, namespace, timeout=timeout, **settings),
        namespace=namespace,
        lease=lease,
        beat=beat,
        clock=clock,
    )
    tasks = TaskSet()
    tasks.start(store.run(), "limits")
    try:
        yield store
    finally:
        await store.aclose()
        await tasks.aclose()


async def arrived(store: RedisStore) -> None:
    """Until nothing is on its way."""
    await until(lambda: not (store.link.kept or store.link._flight or store.link._queue))


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def proxied(
    server: RedisServer, namespace: str, **settings: Any
) -> AsyncIterator[tuple[FaultProxy, RedisStore]]:
    """A store that reaches the server through a proxy, connected."""
    settings = {"timeout": TIMEOUT, "probe_every": 0.05, **settings}
    async with FaultProxy(server.port) as proxy, a_store(proxy.url, namespace, **settings) as store:
        await store.look([an_account(a_limit(1))])
        yield proxy, store


async def take(
    store: Any, account: Account, amount: int, holding: str = "one", least: int | None = None
) -> Verdict:
    charge = Charge(account, amount, amount if least is None else least)
    verdict: Verdict = await store.reserve(holding, [charge])
    return verdict


async def used(store: Any, *accounts: Account) -> list[int]:
    return [standing.used for standing in await store.look(accounts)]


async def timed(store: Any, account: Account) -> float:
    """Seconds until the store cannot tell."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await take(store, account, 1, "timed")
    return time.monotonic() - began


def budgets(*amounts: int) -> list[Account]:
    """Accounts that do not drain within a test."""
    return [an_account(a_limit(amount, calendar="month", name=f"b{n}")) for n, amount in enumerate(amounts)]
