"""The store in Redis: the suite that holds all stores, and the trace that memory and Redis agree on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.gateway.limits.conformance import START, Bench, StoreConformance
from tests.gateway.limits.redis_bench import a_store, arrived
from tests.redis_server import RedisServer


class TestRedisStore(StoreConformance):
    """The whole suite, against a real server whose clock the test tells."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer, namespace: str) -> None:
        self._url, self._namespace = redis_server.url, namespace

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Bench]:
        now = [round(START * 1000)]

        def advance(seconds: float) -> None:
            now[0] += round(seconds * 1000)

        # A lease that outlasts every step that a test makes: what runs out is tested apart.
        async with a_store(self._url, self._namespace, lease=10_000_000.0, clock=lambda: now[0]) as store:
            yield Bench(store, advance, lambda: arrived(store))
