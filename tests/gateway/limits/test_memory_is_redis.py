"""The same trace, the same decisions: the store in Redis against the one in memory (P3 of the invariants)."""

import asyncio
import os
import uuid
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.snapshot import Limit
from gateway.limits.contract import Account, Adjustment, Charge, Standing, Verdict
from gateway.limits.memory import MemoryStore
from tests.gateway.limits.redis_bench import a_store, arrived
from tests.redis_server import RedisServer

START = 1_700_000_000_000
"""2023-11-14T22:13:20Z."""
HOUR = 3_600_000
MANY = int(os.environ.get("HEADGATE_EXAMPLES", "150"))
MOST_COST, MOST = 5 * 10**15, 10**12

AMOUNTS = st.one_of(
    st.integers(1, 12),
    st.integers(1, MOST),
    st.sampled_from([1, 7, 86_399, MOST_COST, MOST_COST - 1, 10**10]),
)
UNITS = st.one_of(
    st.integers(0, 12), st.integers(0, MOST), st.sampled_from([0, 1, MOST_COST, MOST_COST // 3])
)
KINDS = st.sampled_from(
    [(1, None), (60, None), (3600, None), (86_400, None), (None, "day"), (None, "month"), (None, None)]
)

LIMITS = st.lists(
    st.builds(
        lambda kind, amount, enforce: Limit(
            "",
            "concurrent" if kind == (None, None) else "cost",
            amount,
            per=kind[0],
            calendar=kind[1],
            enforce=enforce,
        ),
        KINDS,
        AMOUNTS,
        st.booleans() | st.just(True),
    ),
    min_size=1,
    max_size=5,
)

STEPS = st.lists(
    st.one_of(
        # Time: a step on, far on, or back.
        st.tuples(
            st.just("wait"),
            st.one_of(
                st.integers(0, 1500),
                st.integers(0, 3 * 86_400_000),
                st.sampled_from([1, 999, 1000, 59_999, HOUR, 31 * 24 * HOUR, 366 * 24 * HOUR]),
                st.integers(-5000, -1),
                st.sampled_from([-HOUR, -26 * HOUR]),
            ),
        ),
        # (account, units wanted, units that do) of each charge.
        st.tuples(
            st.just("reserve"),
            st.integers(0, 5),
            st.lists(
                st.tuples(st.integers(0, 4), UNITS, UNITS), min_size=1, max_size=4, unique_by=lambda c: c[0]
            ),
        ),
        st.tuples(
            st.just("adjust"),
            st.integers(0, 5),
            st.lists(
                st.tuples(st.integers(0, 4), UNITS | UNITS.map(lambda n: -n), st.booleans()),
                max_size=4,
                unique_by=lambda c: c[0],
            ),
            st.booleans(),
        ),
        st.tuples(st.just("look")),
        st.tuples(st.just("change"), st.integers(0, 4), AMOUNTS),
        st.tuples(st.just("beat")),
    ),
    min_size=1,
    max_size=25,
)


def plain(standing: Standing) -> tuple[Any, ...]:
    return (
        standing.account.key,
        standing.granted,
        standing.used,
        standing.credit,
        standing.now,
        standing.window,
    )


def decided(verdict: Verdict) -> tuple[Any, ...]:
    return (
        verdict.granted,
        [plain(s) for s in verdict.standings],
        [account.key for account in verdict.refused],
    )


async def run(url: str, limits: list[Limit], steps: list[tuple[Any, ...]]) -> None:
    namespace = uuid.uuid4().hex
    now = [START]
    memory = MemoryStore(lambda: now[0] / 1000, lambda: now[0] / 1000)
    async with a_store(url, namespace, clock=lambda: now[0], lease=10.0**10, beat=1000.0) as redis:
        accounts = [Account(f"account-{n}", limit) for n, limit in enumerate(limits)]
        opened: dict[str, int] = {}
        windows: dict[tuple[str, str], int | None] = {}

        def each(numbers: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
            return [(accounts[number], *rest) for number, *rest in numbers if number < len(accounts)]

        async def touch() -> None:
            """Memory notes the time of each look, Redis only that of each charge: that tells where time goes
            back, and where an amount changes."""
            charges = [Charge(account, 0, 0) for account in accounts]
            expected = await memory.reserve("touch", charges)
            assert decided(await redis.reserve("touch", charges)) == decided(expected)
            memory.adjust("touch", [], final=True)
            redis.adjust("touch", [], final=True)
            await arrived(redis)

        for what, *given in steps:
            if what == "wait":
                back = given[0] < 0
                if back:
                    await touch()
                now[0] = max(START - 40 * 24 * HOUR, now[0] + given[0])
                if back:
                    await touch()
            elif what == "change":
                await touch()
                number, amount = given
                if number < len(accounts):
                    old = accounts[number]
                    accounts[number] = Account(
                        old.key,
                        Limit("", old.limit.unit, amount, per=old.limit.per, calendar=old.limit.calendar),
                    )
            elif what == "reserve":
                holding, charges = f"h{given[0]}", each(given[1])
                asked = [Charge(account, max(a, b), min(a, b)) for account, a, b in charges]
                expected = await memory.reserve(holding, asked)
                assert decided(await redis.reserve(holding, asked)) == decided(expected)
                opened.setdefault(holding, now[0])
                windows.update({(holding, s.account.key): s.window for s in expected.standings})
            elif what == "adjust":
                holding, final = f"h{given[0]}", given[2]
                asked_for = [
                    Adjustment(account, delta, windows.get((holding, account.key)) if dated else None)
                    for account, delta, dated in each(given[1])
                    # A reservation that ends gives back what it holds of levels: a correction is beside the
                    # point.
                    if not final or account.limit.per or account.limit.calendar
                ]
                told: list[list[tuple[Any, ...]]] = [[], []]
                for store, heard in ((memory, told[0]), (redis, told[1])):
                    store.adjust(  # type: ignore[attr-defined]  # both are stores
                        holding,
                        asked_for,
                        final=final,
                        told=lambda them, to=heard: to.extend(map(plain, them)),
                    )
                await arrived(redis)
                assert told[1] == told[0]
                if final:  # a duplicate has no effect
                    opened.pop(holding, None)
                    memory.adjust(holding, asked_for, final=True)
                    redis.adjust(holding, asked_for, final=True)
            elif what == "beat" and all(abs(now[0] - at) < 12 * HOUR for at in opened.values()):
                redis.beat()  # it also forgets those that are open for more than a day
            await arrived(redis)
            assert [*map(plain, await redis.look(accounts))] == [*map(plain, await memory.look(accounts))]


@settings(max_examples=MANY, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LIMITS, STEPS)
def test_memory_and_redis_decide_alike(
    redis_server: RedisServer, limits: list[Limit], steps: list[Any]
) -> None:
    """Reserve, correct, end, look; with huge amounts, clocks that step back, and limits that are changed."""
    asyncio.run(run(redis_server.url, limits, steps))
