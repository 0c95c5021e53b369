"""What each limit does while Redis cannot be asked. The store that is away is a real one, whose server is
gone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.limits.arithmetic import wait_for
from gateway.limits.contract import Adjustment, Charge, StoreUnavailable
from gateway.limits.failover import FailoverStore, Policy
from gateway.limits.memory import MemoryStore
from gateway.limits.redis_store import RedisStore
from tests.gateway.builders import Clock, a_limit
from tests.gateway.limits.conformance import START, an_account
from tests.gateway.limits.redis_bench import a_store, arrived, proxied, take, until, used
from tests.redis_server import RedisServer, free_port


@asynccontextmanager
async def away(processes: int = 4) -> AsyncIterator[tuple[FailoverStore, Clock, list[Policy]]]:
    """Nobody listens where Redis should be."""
    clock, noted = Clock(START), []
    async with a_store(f"redis://127.0.0.1:{free_port()}", "away", timeout=0.5, probe_every=30.0) as redis:
        await until(lambda: not redis.link.up)
        yield FailoverStore(redis, MemoryStore(clock, clock), lambda: processes, noted.append), clock, noted


async def test_local_grants_this_processs_share() -> None:
    """A quarter of the amount, refilled at a quarter of the rate."""
    async with away() as (store, clock, noted):
        account = an_account(a_limit(100))  # per minute
        verdict = await take(store, account, 25, "h")
        assert verdict.granted
        assert (verdict.standings[0].granted, verdict.standings[0].free) == (25, 0)
        verdict = await take(store, account, 10, "i")
        assert verdict.refused == (account,)
        (standing,) = verdict.standings
        limit = standing.account.limit
        wait = wait_for(limit, 10, standing.used, standing.credit, standing.now)
        assert wait == 24_000, "10 of 25 a minute"
        clock.tick(23.999)
        assert not (await take(store, account, 10, "i")).granted
        clock.tick(0.001)
        assert (await take(store, account, 10, "i")).granted
        assert noted == ["local"] * 4


async def test_a_share_is_at_least_one() -> None:
    async with away(processes=50) as (store, _, _):
        account = an_account(a_limit(3, "concurrent"))
        assert (await take(store, account, 1, "h")).granted
        assert not (await take(store, account, 1, "i")).granted
        store.adjust("h", [], final=True)
        assert (await take(store, account, 1, "i")).granted


async def test_a_request_larger_than_the_share_passes_when_nothing_is_used() -> None:
    """It could pass with Redis; the share pays it off, and the wait that is told is exact."""
    async with away() as (store, clock, _):
        account = an_account(a_limit(100))
        verdict = await take(store, account, 80, "h")
        assert verdict.granted
        assert verdict.standings[0].granted == 80
        verdict = await take(store, account, 60, "i")
        assert not verdict.granted
        (standing,) = verdict.standings
        limit = standing.account.limit
        assert wait_for(limit, 60, standing.used, standing.credit, standing.now) == 192_000, (
            "80 of 25 a minute"
        )
        clock.tick(191.9)
        assert not (await take(store, account, 60, "i")).granted
        clock.tick(0.1)
        assert (await take(store, account, 60, "i")).granted
        store.adjust("i", [Adjustment(account, -60)], final=True)
        store.adjust("h", [Adjustment(account, -80)], final=True)
        assert await used(store, account) == [0]


@pytest.mark.parametrize("enforce", [True, False])
async def test_closed_refuses_unless_it_only_looks_on(enforce: bool) -> None:
    async with away() as (store, _, noted):
        charges = [
            Charge(an_account(a_limit(100, name="one")), 5, 5),
            Charge(an_account(a_limit(100, name="two", store_down="closed", enforce=enforce)), 5, 5),
        ]
        if enforce:
            with pytest.raises(StoreUnavailable):
                await store.reserve("h", charges)
            assert noted == ["closed"]
        else:
            assert (await store.reserve("h", charges)).granted
            assert noted == ["local"]
        assert (await used(store, charges[0].account)) == [0 if enforce else 5]


async def test_open_grants_and_counts_nothing() -> None:
    async with away() as (store, _, noted):
        account = an_account(a_limit(10, store_down="open"))
        for number in range(5):
            verdict = await take(store, account, 9, f"h{number}")
            assert verdict.granted
            assert verdict.standings[0].granted == 9
            store.adjust(f"h{number}", [Adjustment(account, 5)], final=False)
            store.adjust(f"h{number}", [Adjustment(account, -9)], final=True)
        assert await used(store, account) == [0]
        assert noted == ["open"] * 5


async def test_one_no_is_a_no_for_all() -> None:
    """Nothing is charged where a share refuses, whatever the others' policies are."""
    async with away() as (store, _, _):
        open_, small, large = (
            an_account(a_limit(10, name="open", store_down="open")),
            an_account(a_limit(4, name="small")),
            an_account(a_limit(400, name="large")),
        )
        assert (await take(store, small, 1, "h")).granted
        verdict = await store.reserve("i", [Charge(a, 1, 1) for a in (open_, large, small)])
        assert not verdict.granted
        assert [s.granted for s in verdict.standings] == [None, None, None]
        assert [s.account for s in verdict.standings] == [open_, large, small]
        assert await used(store, large) == [0]


async def test_what_redis_granted_is_settled_in_redis(redis_server: RedisServer, namespace: str) -> None:
    """And what was granted locally is settled locally, also when it is back."""
    account, other = an_account(a_limit(1000, calendar="month")), an_account(a_limit(50, "concurrent"))
    async with proxied(redis_server, namespace, timeout=1.0) as (proxy, redis):
        memory = MemoryStore()
        store = FailoverStore(redis, memory, lambda: redis.processes)
        assert (await take(store, account, 10, "before")).granted
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not redis.link.up)
        assert (await store.reserve("apart", [Charge(account, 20, 20), Charge(other, 1, 1)])).granted
        told: list[int] = []
        store.adjust(
            "apart",
            [Adjustment(account, 5)],
            final=False,
            told=lambda them: told.extend(s.used for s in them),
        )
        assert told == [25]
        assert memory.held() == {other.key: 1}
        store.adjust("before", [Adjustment(account, -4)], final=True)
        await proxy.listen()
        await until(lambda: redis.link.up)
        await arrived(redis)
        assert await used(store, account) == [6]
        assert (await take(store, account, 1, "after")).granted
        store.adjust("apart", [Adjustment(account, -25)], final=True)
        store.adjust("after", [], final=True)
        await arrived(redis)
        assert await used(store, account, other) == [7, 0]
        assert await used(memory, account) == [0]
        assert memory.held() == {}
        assert memory.open == redis.open == 0


async def test_a_reservation_over_both(redis_server: RedisServer, namespace: str) -> None:
    """Another pool's limits are taken while Redis is away: each part is settled where it was charged."""
    first, second = an_account(a_limit(100, name="one")), an_account(a_limit(100, name="two"))
    async with proxied(redis_server, namespace, timeout=1.0) as (proxy, redis):
        memory = MemoryStore()
        store = FailoverStore(redis, memory, lambda: 1)
        assert (await take(store, first, 30, "h")).granted
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not redis.link.up)
        assert (await take(store, second, 40, "h")).granted
        store.adjust("h", [Adjustment(first, -30), Adjustment(second, -40)], final=True)
        assert await used(memory, second) == [0]
        await proxy.listen()
        await until(lambda: redis.link.up)
        await arrived(redis)
        assert await used(redis, first) == [0]
        assert isinstance(redis, RedisStore)
        assert redis.open == 0
