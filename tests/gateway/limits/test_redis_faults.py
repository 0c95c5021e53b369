"""Every fault of Redis that is named in docs/redis.md as it is first seen, on the connection, against a real
server behind a proxy. Each test shows that its fault took effect, by what the proxy or the server counted.

What was done and not told is in test_redis_effects.py; what becomes of processes, in test_redis_processes.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from gateway.limits.contract import Account, Adjustment, Charge, Standing, StoreUnavailable
from gateway.limits.redis_store import RedisStore
from tests.conftest import REPO
from tests.gateway.builders import a_limit
from tests.gateway.limits.conformance import an_account
from tests.gateway.limits.redis_bench import (
    SLACK,
    TIMEOUT,
    a_store,
    arrived,
    budgets,
    proxied,
    take,
    timed,
    until,
    used,
)
from tests.gateway.suspensions import When, cancel_everywhere
from tests.redis_server import RedisServer


@pytest.mark.parametrize("when", ["waiting", "as it ends", "twice"])
async def test_a_cancelled_call_leaves_its_reply_to_nobody(
    redis_server: RedisServer, namespace: str, when: When
) -> None:
    """Cancelled at each await, 100 ms from the server, among others on one connection: everybody gets what is
    for him, known by a canary amount, and what the cancelled one was charged is given back."""
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        proxy.latency = 0.05
        numbers = iter(range(1, 10_000))
        mine = budgets(10**9)[0]

        async def scenario() -> Standing:
            verdict = await store.reserve("mine", [Charge(mine, 777_777, 777_777)])
            return verdict.standings[0]

        async def neighbour() -> None:
            number = next(numbers)
            account = Account(f"neighbour/{number}", mine.limit)
            verdict = await take(store, account, number, f"n{number}")
            (standing,) = verdict.standings
            assert (standing.account, standing.granted, standing.used) == (account, number, number)

        async def check(outcome: Any) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(neighbour())
            if isinstance(outcome, Standing):
                store.adjust("mine", [Adjustment(mine, -777_777)], final=True)
            else:
                assert isinstance(outcome, asyncio.CancelledError)
            await arrived(store)
            assert await used(store, mine) == [0]

        async def among_others() -> Standing:
            others = [asyncio.get_running_loop().create_task(neighbour()) for _ in range(5)]
            try:
                return await scenario()
            finally:
                crowd.extend(others)

        crowd: list[asyncio.Task[None]] = []
        assert await cancel_everywhere(among_others, check, when) >= 1
        await asyncio.gather(*crowd)
        assert proxy.delayed > 4, "the line is long"
        store.adjust("mine", [], final=True)  # of the last scenario, which nobody cancelled
        assert store.open == next(numbers) - 1, "nothing but what the neighbours hold"


async def test_many_cancelled_at_random_moments(redis_server: RedisServer, namespace: str) -> None:
    """300 calls on one connection, a third of them cancelled at some time of their way."""
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        proxy.latency, proxy.slicer = 0.02, 97
        limit = budgets(10**9)[0].limit
        kept: list[int] = []

        async def one(number: int) -> None:
            account = Account(f"a/{number}", limit)
            verdict = await take(store, account, number, f"h{number}")
            assert (verdict.standings[0].account, verdict.standings[0].granted) == (account, number)
            kept.append(number)

        tasks = []
        for number in range(1, 301):
            tasks.append(asyncio.get_running_loop().create_task(one(number)))
            if number % 3 == 0:
                asyncio.get_running_loop().call_later((number % 37) / 500, tasks[-1].cancel)
            if number % 20 == 0:
                await asyncio.sleep(0.002)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [
            number for number, outcome in enumerate(outcomes, 1) if isinstance(outcome, BaseException)
        ]
        assert all(isinstance(outcome, asyncio.CancelledError | None) for outcome in outcomes), outcomes
        assert len(cancelled) > 20
        await arrived(store)
        proxy.latency = 0
        assert sum(await used(store, *[Account(f"a/{n}", limit) for n in cancelled])) == 0
        assert await used(store, *[Account(f"a/{n}", limit) for n in kept]) == kept
        assert proxy.pieces > 300


async def test_a_reply_for_somebody_else_ends_the_connection(
    redis_server: RedisServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name is not the one that is awaited: nobody gets it."""
    async with proxied(redis_server, namespace) as (proxy, store):
        name = store.link._counter + 1
        proxy.tamper = lambda reply: reply.replace(b"$1\r\n%d\r\n" % name, b"$1\r\n%d\r\n" % (name + 1))
        with pytest.raises(StoreUnavailable, match="another call"):
            await take(store, budgets(10)[0], 3)
        assert proxy.tampered == 1
        assert "meant for another call" in caplog.text
        proxy.tamper = None
        await arrived(store)
        assert await used(store, *budgets(10)) == [0], "what it charged was given back"
        assert proxy.connections == 2


async def test_a_reply_that_nobody_asked_for_ends_the_connection(
    redis_server: RedisServer, namespace: str
) -> None:
    async with proxied(redis_server, namespace) as (proxy, store):
        proxy.tamper = lambda reply: reply + b"*1\r\n$5\r\nhello\r\n"
        await store.look(budgets(10))
        proxy.tamper = None
        await until(lambda: proxy.connections == 2)
        assert await used(store, *budgets(10)) == [0]


async def opens_and_closes(store: RedisStore, account: Account, heal: Callable[[], None]) -> None:
    """No request waits longer than one timeout until the breaker opens, then none; healed, it closes."""
    waits = []
    while store.link.up:
        waits.append(await timed(store, account))
        assert len(waits) <= 20
    assert max(waits) < TIMEOUT + SLACK
    assert store.link.opened == 1
    assert max([await timed(store, account) for _ in range(50)]) < 0.02, "none waits"
    heal()
    await until(lambda: store.link.up)
    assert (await take(store, account, 1, "healed")).granted


async def test_a_black_hole_opens_the_breaker(
    redis_server: RedisServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes are taken, nothing ever comes back. One line tells of each change."""
    caplog.set_level(logging.INFO)
    async with proxied(redis_server, namespace) as (proxy, store):
        proxy.black_hole = True

        def heal() -> None:
            assert proxy.swallowed > 500
            proxy.black_hole = False

        await opens_and_closes(store, budgets(10)[0], heal)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2, lines
        assert "no answer within 100 ms" in lines[0]
        assert "store_down" in lines[0]
        assert "again" in lines[1]


async def test_a_stopped_server_opens_the_breaker(own_redis: RedisServer, namespace: str) -> None:
    """SIGSTOP: connections are made, nobody answers. What was executed on waking is given back."""
    async with a_store(own_redis.url, namespace, timeout=TIMEOUT, probe_every=0.05) as store:
        account = budgets(1000)[0]
        await store.look([account])
        own_redis.pause()
        await opens_and_closes(store, account, own_redis.resume)
        await arrived(store)
        await until(lambda: own_redis.client.get(f"{{{namespace}}}:a:{account.key}").startswith("b 1 "))
        assert await used(store, account) == [1], "the one that was granted"


async def test_many_wait_together_one_timeout_at_most(redis_server: RedisServer, namespace: str) -> None:
    """100 requests in a black hole: none waits for those before it."""
    async with proxied(redis_server, namespace) as (proxy, store):
        proxy.black_hole = True
        began = time.monotonic()
        waits = await asyncio.gather(*(timed(store, account) for account in budgets(*[10] * 100)))
        assert max(waits) < TIMEOUT + SLACK
        assert time.monotonic() - began < TIMEOUT + SLACK
        assert proxy.swallowed > 5000


async def test_a_refused_connection_is_known_at_once(redis_server: RedisServer, namespace: str) -> None:
    async with proxied(redis_server, namespace) as (proxy, store):
        account = budgets(10)[0]
        await proxy.refuse()
        proxy.reset()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        waits = []
        while store.link.up:
            waits.append(await timed(store, account))
        assert max(waits, default=0) < TIMEOUT + SLACK
        assert "no connection" in store.link.reason
        assert await timed(store, account) < 0.02
        await proxy.listen()
        await until(lambda: store.link.up)
        assert (await take(store, account, 1)).granted


async def test_a_reset_connection_is_made_anew(redis_server: RedisServer, namespace: str) -> None:
    """RST while nobody waits: the next request does not notice."""
    async with proxied(redis_server, namespace) as (proxy, store):
        for count in range(2, 5):
            proxy.reset()
            assert proxy.resets
            await until(lambda count=count: proxy.connections == count)
            assert (await take(store, budgets(10)[0], 1, f"h{count}")).granted
        assert store.link.opened == 0


async def test_a_reset_with_calls_in_flight_fails_them_and_gives_back(
    redis_server: RedisServer, namespace: str
) -> None:
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        accounts = budgets(10, 10, 10)
        proxy.latency = 0.05
        calls = asyncio.gather(*(take(store, a, 4, a.key) for a in accounts), return_exceptions=True)
        await asyncio.sleep(0.02)
        proxy.reset()
        assert all(isinstance(outcome, StoreUnavailable) for outcome in await calls)
        proxy.latency = 0
        await arrived(store)
        assert await used(store, *accounts) == [0, 0, 0]


async def test_a_server_that_starts_again_has_empty_keys(own_redis: RedisServer, namespace: str) -> None:
    """Limits start anew, no error; what was charged before is not given back a second time."""
    async with a_store(own_redis.url, namespace, timeout=1.0, probe_every=0.05) as store:
        (account,) = budgets(10)
        assert (await take(store, account, 7, "before")).granted
        own_redis.kill()
        await until(lambda: not store.link.up)
        store.adjust("before", [Adjustment(account, -7)], final=True)
        assert store.link.kept == 1
        own_redis.start_again()
        await until(lambda: store.link.up)
        await arrived(store)
        assert own_redis.client.info()["uptime_in_seconds"] < 5
        assert await used(store, account) == [0]
        assert (await take(store, account, 10, "after")).granted


async def test_slow_is_still_one_round_trip(redis_server: RedisServer, namespace: str) -> None:
    """80 ms away, and 30 requests at any moment of others' flight: each takes one round trip, none queues."""
    async with proxied(redis_server, namespace, timeout=0.5) as (proxy, store):
        (account,) = budgets(1000)
        await take(store, account, 1, "warm")
        proxy.latency = 0.04
        executed = redis_server.calls("evalsha") + redis_server.calls("eval")
        waits = []

        async def one(number: int) -> None:
            await asyncio.sleep(number / 250)
            began = time.monotonic()
            assert (await take(store, account, 1, f"h{number}")).granted
            waits.append(time.monotonic() - began)

        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(one(number))
        assert min(waits) >= 0.079
        assert sorted(waits)[15] < 0.12
        assert redis_server.calls("evalsha") + redis_server.calls("eval") - executed == 30
        assert proxy.delayed >= 30


async def test_a_replica_is_left_and_found_again_as_master(own_redis: RedisServer, namespace: str) -> None:
    """READONLY: nothing is charged, the connection is made anew until somebody can write."""
    async with a_store(own_redis.url, namespace, timeout=1.0, probe_every=0.05) as store:
        (account,) = budgets(10)
        assert (await take(store, account, 3, "before")).granted
        own_redis.client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable):
            await take(store, account, 3, "readonly")
        await until(lambda: not store.link.up)
        assert "read only" in store.link.reason
        connected = own_redis.client.info()["total_connections_received"]
        own_redis.client.replicaof("NO", "ONE")
        await until(lambda: store.link.up)
        assert own_redis.client.info()["total_connections_received"] > connected
        assert await used(store, account) == [3], "no amnesty, and nothing of the refused one"


async def test_a_stale_replica_is_left_too(own_redis: RedisServer, namespace: str) -> None:
    """MASTERDOWN."""
    async with a_store(own_redis.url, namespace, timeout=1.0, probe_every=0.05) as store:
        await store.look(budgets(1))
        own_redis.client.config_set("replica-serve-stale-data", "no")
        own_redis.client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="MASTER"):
            await store.look(budgets(1))
        await until(lambda: not store.link.up)
        own_redis.client.replicaof("NO", "ONE")
        await until(lambda: store.link.up)


async def test_a_loading_server_is_waited_for(own_redis: RedisServer, namespace: str) -> None:
    """LOADING is not wellness, and what was kept is kept."""
    (account,) = budgets(10)
    async with a_store(own_redis.url, namespace) as store:
        assert (await take(store, account, 4)).granted
    for number in range(300):
        own_redis.client.set(f"other-{number}", "x")
    own_redis.client.save()
    own_redis.kill()
    options, own_redis.options = (
        own_redis.options,
        ("--key-load-delay", "3000", "--loading-process-events-interval-bytes", "1024"),
    )
    started = asyncio.get_running_loop().create_task(asyncio.to_thread(own_redis.start_again))
    try:
        async with a_store(own_redis.url, namespace, timeout=0.3, probe_every=0.02) as store:
            reasons = set()
            while not started.done():
                reasons.add(store.link.reason)
                await asyncio.sleep(0.005)
            await until(lambda: store.link.up)
            assert any("loading" in reason for reason in reasons), reasons
            assert await used(store, account) == [4]
    finally:
        await started
        own_redis.options = options


async def test_a_lost_connection_is_written_to_no_more(redis_server: RedisServer, namespace: str) -> None:
    """Whenever it is lost, while something is being sent as well, what wrote to it ends: a second writer
    would take calls, and their replies would reach others."""
    (account,) = budgets(1000)
    async with a_store(redis_server.url, namespace, opens_after=1000) as store:
        await take(store, account, 1, "kept")
        for steps in range(12):
            store.adjust("kept", [Adjustment(account, 1)], final=False)
            for _ in range(steps):
                await asyncio.sleep(0)
            store.link._lose("lost by the test")
            with suppress(StoreUnavailable):
                await used(store, account)
            assert (await used(store, account))[0] > 0
            writers = [task for task in asyncio.all_tasks() if task.get_name() == "limits: to Redis"]
            assert len(writers) == 1, steps


# --------------------------------------------------------------------------- F36: scripts unknown


async def test_scripts_that_the_server_forgot_are_sent_whole(
    redis_server: RedisServer, namespace: str
) -> None:
    """SCRIPT FLUSH: EVAL, once for each; in between nothing fails, also not what is under way."""
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        (account,) = budgets(1000)
        await take(store, account, 1, "first")
        proxy.latency = 0.02
        for turn in range(3):
            whole = redis_server.calls("eval")
            redis_server.client.script_flush()
            verdicts = await asyncio.gather(*(take(store, account, 1, f"{turn}-{n}") for n in range(10)))
            assert all(verdict.granted for verdict in verdicts)
            assert redis_server.calls("eval") > whole
        assert await used(store, account) == [31]


async def test_a_slot_given_back_is_free_for_who_asks_afterwards(
    own_redis: RedisServer, namespace: str
) -> None:
    """Who gives a slot back and then asks for one is heard in that order, whether both leave in one batch, or
    the end leaves first and the server, which is new, does not know its script."""
    account = an_account(a_limit(1, "concurrent"))
    async with a_store(own_redis.url, namespace) as store:
        assert (await take(store, account, 1, "a")).granted
        own_redis.pause()
        store.adjust("a", [], final=True)
        await until(lambda: len(store.link._flight) == 1)  # the end, unanswered
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(take(store, account, 1, "b"))
            await until(lambda: len(store.link._flight) == 2)
            own_redis.resume()
        assert asked.result().granted
        for last, holding in pairwise("bcdef"):
            store.adjust(last, [], final=True)
            assert (await take(store, account, 1, holding)).granted


async def test_what_is_charged_on_the_way_arrives_before_the_end(
    redis_server: RedisServer, namespace: str
) -> None:
    """Corrections that leave in one batch with the end are of an open reservation still."""
    (account,) = budgets(1000)
    async with a_store(redis_server.url, namespace) as store:
        for turn in range(1, 4):
            await take(store, account, 1, f"{turn}")
            store.adjust(f"{turn}", [Adjustment(account, 5)], final=False)
            store.adjust(f"{turn}", [Adjustment(account, -2)], final=True)
            await arrived(store)
            assert await used(store, account) == [4 * turn]


async def test_cancelled_while_its_script_is_unknown(redis_server: RedisServer, namespace: str) -> None:
    """Its second sending does not happen, and nothing is charged."""
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        (account,) = budgets(1000)
        proxy.latency = 0.02
        for wait in range(0, 100, 8):
            redis_server.client.script_flush()
            task = asyncio.get_running_loop().create_task(take(store, account, 1, f"h{wait}"))
            await asyncio.sleep(wait / 1000)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
                store.adjust(f"h{wait}", [Adjustment(account, -1)], final=True)
            await arrived(store)
            assert await used(store, account) == [0]


async def test_a_user_that_may_do_no_more_than_needed(own_redis: RedisServer, namespace: str) -> None:
    """The rule in docs/redis.md: own keys, and the commands that scripts use; SCRIPT is not among them."""
    text = (REPO / "docs" / "redis.md").read_text()
    (rule,) = [line for line in text.splitlines() if line.strip().startswith("ACL SETUSER headgate")]
    words = rule.replace("{headgate}", f"{{{namespace}}}").replace("PASSWORD", "hunter2").split()
    own_redis.client.execute_command(*words)
    url = f"redis://headgate:hunter2@127.0.0.1:{own_redis.port}"
    async with a_store(url, namespace, beat=0.05) as store:
        accounts = [*budgets(10), an_account(a_limit(5)), an_account(a_limit(5, "concurrent"))]
        verdict = await store.reserve("h", [Charge(account, 3, 1) for account in accounts])
        assert verdict.granted
        store.adjust("h", [Adjustment(accounts[0], 1)], final=False)
        heard = own_redis.calls("zcard")
        await until(lambda: own_redis.calls("zcard") > heard + 2)
        assert await used(store, *accounts[::2]) == [4, 3]
        store.adjust("h", [Adjustment(accounts[0], -4)], final=True)
        await arrived(store)
        assert await used(store, *accounts[::2]) == [0, 0]
        assert (await take(store, accounts[0], 5, "undone", least=1)).granted
        store._undo("undone", store._open["undone"].steps[0], [Charge(accounts[0], 5, 1)])
        store._undo("never", "never", [Charge(accounts[0], 5, 1)])
        await arrived(store)
        assert await used(store, accounts[0]) == [0]
        assert (store.link.up, store.link.opened, store.link.dropped) == (True, 0, 0)
    assert not own_redis.client.acl_log(), "nothing was denied"


@pytest.mark.parametrize("size", [1, 7])
async def test_replies_in_pieces(redis_server: RedisServer, namespace: str, size: int) -> None:
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        proxy.slicer = size
        (account,) = budgets(10)
        assert (await take(store, account, 4)).granted
        assert proxy.pieces > 30
        assert await used(store, account) == [4]


async def test_a_narrow_line(redis_server: RedisServer, namespace: str) -> None:
    async with proxied(redis_server, namespace, timeout=5.0) as (proxy, store):
        proxy.bandwidth = 20_000
        assert (await take(store, budgets(10)[0], 4)).granted
        assert proxy.delayed >= 2


async def test_password_and_user_are_told_to_nobody(
    own_redis: RedisServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong credentials: a failure like others, and no word of them in logs, errors or reprs."""
    caplog.set_level(logging.DEBUG)
    own_redis.client.acl_setuser("zoe", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    url = f"redis://zoe:hunter2@127.0.0.1:{own_redis.port}/0"
    async with a_store(url, namespace, timeout=1.0, probe_every=0.05) as store:
        with pytest.raises(StoreUnavailable) as told:
            await take(store, budgets(10)[0], 1)
        await until(lambda: not store.link.up)
        text = caplog.text + repr(told.value) + str(told.value.__dict__) + repr(vars(store.link))
        assert "hunter2" not in text
        assert "cannot be kept at redis://127.0.0.1" in caplog.text
    assert own_redis.client.acl_log()[0]["username"] == "zoe"
