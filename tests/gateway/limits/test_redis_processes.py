"""Processes that share limits: parted from Redis, killed, or out for longer than their lease."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from gateway.limits import redis_store
from gateway.limits.failover import FailoverStore
from gateway.limits.memory import MemoryStore
from tests.conftest import REPO
from tests.gateway.builders import a_limit
from tests.gateway.limits.conformance import an_account
from tests.gateway.limits.redis_bench import a_store, arrived, budgets, proxied, take, until, used
from tests.redis_server import RedisServer


async def test_a_partition_grants_one_amount_more_at_most(redis_server: RedisServer, namespace: str) -> None:
    """Two processes are cut off, each spends its share; healed, they go on from what Redis knew."""
    (account,) = budgets(100)

    async def spend(store: FailoverStore, name: str) -> int:
        granted = 0
        for number in range(200):
            granted += (await take(store, account, 1, f"{name}{number}")).granted
        return granted

    async with (
        proxied(redis_server, namespace, timeout=1.0) as (proxy_1, one),
        proxied(redis_server, namespace, timeout=1.0) as (proxy_2, two),
    ):
        stores = [
            FailoverStore(store, MemoryStore(), lambda store=store: store.processes) for store in (one, two)
        ]
        one.beat()
        await until(lambda: (one.processes, two.processes) == (2, 2))
        before = await spend(stores[0], "a")
        assert before == 100
        for proxy, store in ((proxy_1, one), (proxy_2, two)):
            await proxy.refuse()
            proxy.reset()
            await until(lambda store=store: not store.link.up)
        apart = [await spend(store, f"{n}-apart-") for n, store in enumerate(stores)]
        assert apart == [50, 50]
        for proxy, store in ((proxy_1, one), (proxy_2, two)):
            await proxy.listen()
            await until(lambda store=store: store.link.up)
        assert [await spend(store, f"{n}-after-") for n, store in enumerate(stores)] == [0, 0]


CHILD = """
import asyncio, sys
from tests.gateway.builders import a_limit
from tests.gateway.limits.conformance import an_account
from tests.gateway.limits.redis_bench import a_store, take

async def main():
    async with a_store(sys.argv[1], sys.argv[2], lease=1.0, beat=0.3) as store:
        assert (await take(store, an_account(a_limit(3, "concurrent")), 3)).granted
        print("holds", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_process_gives_its_slots_back(redis_server: RedisServer, namespace: str) -> None:
    """While it lives they are its own, far beyond one lease; SIGKILLed, they are free within one."""
    lease = 1.0
    account = an_account(a_limit(3, "concurrent"))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, redis_server.url, namespace],
        cwd=REPO, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == b"holds\n"
        async with a_store(redis_server.url, namespace, lease=lease, beat=0.3) as store:
            end = time.monotonic() + 2.2 * lease
            while time.monotonic() < end:
                assert not (await take(store, account, 1)).granted
                await asyncio.sleep(0.1)
            assert store.processes == 2
            child.send_signal(signal.SIGKILL)
            child.wait(timeout=5)
            killed = time.monotonic()
            while not (await take(store, account, 3)).granted:
                await asyncio.sleep(0.02)
            assert time.monotonic() - killed < lease + 0.3
            await until(lambda: store.processes == 1)
    finally:
        child.kill()
        child.wait(timeout=5)
        child.stdout.close()


def test_slots_of_the_dead_are_back_within_30_seconds() -> None:
    """A slot is renewed at the last heartbeat before the end at the latest; two heartbeats may be lost."""
    assert redis_store.LEASE < 30
    assert 3 * redis_store.BEAT < redis_store.LEASE


async def test_slots_outlive_an_outage_longer_than_their_lease(
    redis_server: RedisServer, namespace: str
) -> None:
    """Nobody could renew them, so they ran out; but they are held, and count again as soon as Redis is
    back."""
    account = an_account(a_limit(10, "concurrent"))
    async with proxied(redis_server, namespace, timeout=1.0, lease=0.3, beat=0.1) as (proxy, store):
        await take(store, account, 4)
        await proxy.refuse()
        proxy.reset()
        async with a_store(redis_server.url, namespace) as other:
            assert await used(other, account) == [4]
            await asyncio.sleep(0.45)
            assert await used(other, account) == [0]
            await proxy.listen()
            await until(lambda: store.link.up)
            await arrived(store)
            assert await used(other, account) == [4]
