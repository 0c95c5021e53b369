"""Stores on a real Redis, for tests: built as the gateway builds them, on clocks that tests can hold."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.config.redis_urls import parse_redis_url
from gateway.limits.redis_link import RedisLink
from gateway.limits.redis_nodes import Nodes
from gateway.limits.redis_store import RedisStore
from gateway.tasks import TaskSet

EASY = 5.0
"""Seconds: a timeout for tests that are about something else, on a machine that is busy."""


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
    await until(lambda: not (store.link.kept or store.link._flight or store.link._queue or store.link._first))


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        await asyncio.sleep(0.002)
