"""Faults of Redis after it did something, or instead: answers that were lost, no memory, wrong values."""

import asyncio
from contextlib import suppress

import pytest

from gateway.limits.contract import Adjustment, Charge, StoreUnavailable
from tests.gateway.builders import a_limit
from tests.gateway.limits.conformance import an_account
from tests.gateway.limits.redis_bench import a_store, arrived, budgets, proxied, take, until, used
from tests.redis_server import RedisServer


async def test_a_charge_whose_answer_was_lost_is_given_back_once(
    redis_server: RedisServer, namespace: str
) -> None:
    """The proxy cuts the reply: partial grants of a rate, a budget and a level go back as they were
    granted."""
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        accounts = [*budgets(100, 3), an_account(a_limit(5, "concurrent"))]
        assert (await store.reserve("other", [Charge(a, 2, 2) for a in accounts])).granted
        written = redis_server.calls("zadd")
        proxy.cut_after = 1
        with pytest.raises(StoreUnavailable):
            await store.reserve(
                "lost", [Charge(accounts[0], 9, 9), Charge(accounts[1], 9, 1), Charge(accounts[2], 9, 1)]
            )
        assert proxy.cuts == 1
        assert redis_server.calls("zadd") >= written + 2, "it was executed"
        await arrived(store)
        assert await used(store, *accounts) == [2, 2, 2]
        assert not redis_server.client.keys(f"{{{namespace}}}:granted:*")


async def test_the_undoing_is_itself_lost(redis_server: RedisServer, namespace: str) -> None:
    """It is sent again, and has its effect once."""
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        (account,) = budgets(100)
        await take(store, account, 50, "other")
        for cut in range(1, 4):
            proxy.cut_after = 1
            with pytest.raises(StoreUnavailable):
                await take(store, account, 7, f"lost-{cut}")
            proxy.cut_after = 1  # the answer to the greeting, or to the undoing
            await until(lambda cut=cut: proxy.cuts == 2 * cut)
            await arrived(store)
            assert await used(store, account) == [50]


async def test_a_settlement_whose_answer_was_lost_counts_once(
    redis_server: RedisServer, namespace: str
) -> None:
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        (account,) = budgets(100)
        for cut in (1, 2):
            await take(store, account, 20, "h")
            sent = redis_server.calls("zrem")
            proxy.cut_after = 1
            store.adjust("h", [Adjustment(account, -15)], final=True)
            await until(lambda cut=cut: proxy.cuts == cut)
            await arrived(store)
            assert redis_server.calls("zrem") == sent + 1, "executed once"
            assert await used(store, account) == [5 * cut]


async def test_an_undoing_that_comes_first_keeps_the_charge_from_happening(
    redis_server: RedisServer, namespace: str
) -> None:
    """A stalled server may execute what it was sent on an old connection after what came on a new one."""
    async with proxied(redis_server, namespace) as (_, store):
        (account,) = budgets(100)
        store._undo("h", f"{store._me}.{store._steps + 1:x}", [Charge(account, 7, 7)])
        await arrived(store)
        with pytest.raises(StoreUnavailable, match="given up"):
            await take(store, account, 7, "h")
        assert await used(store, account) == [0]
        assert (await take(store, account, 7, "h")).granted, "another step of it may"


async def test_settlements_wait_for_redis(redis_server: RedisServer, namespace: str) -> None:
    """1,000 requests end while it is away; corrections on the way go with the last one."""
    async with proxied(redis_server, namespace, timeout=1.0) as (proxy, store):
        (account,) = budgets(100_000)
        for number in range(1000):
            await take(store, account, 10, f"h{number}")
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not store.link.up)
        for number in range(1000):
            store.adjust(f"h{number}", [Adjustment(account, 5)], final=False)
            store.adjust(f"h{number}", [Adjustment(account, -3)], final=True)
        assert store.link.kept == 1000
        await proxy.listen()
        await until(lambda: store.link.up and not store.link.kept)
        assert await used(store, account) == [12_000]
        assert store.link.dropped == 0


async def test_settlements_that_are_too_many_are_counted(redis_server: RedisServer, namespace: str) -> None:
    """What is kept for Redis is bounded."""
    async with proxied(redis_server, namespace, timeout=1.0, keep=10) as (proxy, store):
        (account,) = budgets(1000)
        for number in range(30):
            await take(store, account, 10, f"h{number}")
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not store.link.up)
        for number in range(30):
            store.adjust(f"h{number}", [Adjustment(account, -10)], final=True)
        assert (store.link.kept, store.link.dropped) == (10, 20)
        await proxy.listen()
        await until(lambda: store.link.up and not store.link.kept)
        assert await used(store, account) == [200]


async def test_a_full_server_charges_nothing_and_takes_settlements(
    own_redis: RedisServer, namespace: str
) -> None:
    """OOM at the first write: all or nothing. It counts as down until it can write again."""
    async with a_store(own_redis.url, namespace, timeout=1.0, probe_every=0.05) as store:
        accounts = [*budgets(100, 100), an_account(a_limit(5, "concurrent"))]
        charges = [Charge(account, 2, 2) for account in accounts]
        assert (await store.reserve("before", charges)).granted
        own_redis.client.config_set("maxmemory", 1)
        own_redis.client.config_set("maxmemory-policy", "noeviction")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await store.reserve("full", charges)
        assert await used(store, *accounts) == [2, 2, 2]
        store.adjust("before", [Adjustment(account, -2) for account in accounts[:2]], final=True)
        await arrived(store)
        assert await used(store, *accounts) == [0, 0, 0], "settling frees memory: it begins with a removal"
        for _ in range(5):
            with suppress(StoreUnavailable):
                await store.reserve("full", charges)
        assert not store.link.up
        await asyncio.sleep(0.2)
        assert not store.link.up, "the greeting writes, so a full server does not pass for well"
        assert own_redis.client.info("errorstats")["errorstat_OOM"]["count"] >= 3
        own_redis.client.config_set("maxmemory", 0)
        await until(lambda: store.link.up)
        assert (await store.reserve("after", charges)).granted


async def test_a_flushed_server_starts_limits_anew(own_redis: RedisServer, namespace: str) -> None:
    """FLUSHALL in the middle of requests: no error, and their ends change nothing."""
    async with a_store(own_redis.url, namespace, timeout=1.0) as store:
        accounts = [*budgets(10), an_account(a_limit(3, "concurrent"))]
        assert (await store.reserve("h", [Charge(account, 3, 3) for account in accounts])).granted
        own_redis.client.flushall()
        assert await used(store, *accounts) == [0, 0]
        assert (await store.reserve("i", [Charge(account, 2, 2) for account in accounts])).granted
        store.beat()
        store.adjust("h", [Adjustment(accounts[0], 1)], final=False)
        store.adjust("h", [Adjustment(accounts[0], -1)], final=True)
        await arrived(store)
        assert await used(store, *accounts) == [2, 2]
        assert (store.link.up, store.link.opened) == (True, 0)


WRONG = {
    "list": lambda client, key: client.rpush(key, "x"),
    "hash": lambda client, key: client.hset(key, "a", "b"),
    "zset": lambda client, key: client.zadd(key, {"x": 1}),
    "string": lambda client, key: client.set(key, "nonsense"),
    "empty": lambda client, key: client.set(key, ""),
    "huge": lambda client, key: client.set(key, "r 99999999999999999999 0 0"),
    "binary": lambda client, key: client.set(key, b"\xff\x00r 1 2"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_wrong_values_are_rebuilt(redis_server: RedisServer, namespace: str, wrong: str) -> None:
    """WRONGTYPE or nonsense under each of the keys: looked at it is empty, charged it is made anew."""
    limits = [a_limit(10), a_limit(10, calendar="day", name="daily"), a_limit(10, "concurrent")]
    accounts = [an_account(limit) for limit in limits]
    charges = [Charge(account, 4, 4) for account in accounts]
    async with a_store(redis_server.url, namespace) as store:
        assert (await store.reserve("h", charges)).granted
        await arrived(store)
        keys = redis_server.client.keys(f"{{{namespace}}}:*")
        assert len(keys) == 6, keys
        store.adjust("h", [], final=True)
        await arrived(store)
        for number, key in enumerate(keys):
            redis_server.client.delete(*keys)
            WRONG[wrong](redis_server.client, key)
            assert await used(store, *accounts) == [0, 0, 0]
            verdict = await store.reserve(f"h{number}", charges)
            assert verdict.granted, verdict
            assert [standing.used for standing in verdict.standings] == [4, 4, 4]
            store.beat()
            await arrived(store)
            assert await used(store, *accounts) == [4, 4, 4]
            store.adjust(f"h{number}", [Adjustment(account, -1) for account in accounts[:2]], final=True)
            await arrived(store)
            assert await used(store, *accounts) == [3, 3, 0]
        assert (store.link.up, store.link.opened, store.link.dropped) == (True, 0, 0)


async def test_wrong_values_in_holders(redis_server: RedisServer, namespace: str) -> None:
    """A level's own numbers are nonsense: it is rebuilt."""
    account = an_account(a_limit(10, "concurrent"))
    async with a_store(redis_server.url, namespace) as store:
        for number, field in enumerate(("=", "h")):
            assert (await take(store, account, 4, f"h{number}")).granted
            redis_server.client.hset(
                f"{{{namespace}}}:n:{account.key}", field if field == "=" else f"h{number}", "?"
            )
            verdict = await take(store, account, 2, f"i{number}")
            assert verdict.granted
            for holding in (f"h{number}", f"i{number}"):
                store.adjust(holding, [], final=True)
            await arrived(store)
            assert await used(store, account) == [0]
