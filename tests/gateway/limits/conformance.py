"""What every LimitStore must do, whichever way it keeps accounts: one suite for all.

A store's test module makes a class of it and says how to build one:

    class TestMemoryStore(StoreConformance):
        @asynccontextmanager
        async def bench(self) -> AsyncIterator[Bench]:
            clock = Clock()
            yield Bench(MemoryStore(clock, clock), clock.tick)

`Bench.advance` moves the store's time by seconds, monotonic and wall alike; `Bench.settled` waits until
adjustments have arrived, which `adjust` itself does not. Stores that spend slices locally
(leased mode) answer the same here as long as nobody else asks.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.config.snapshot import Limit
from gateway.limits.arithmetic import DAY, wait_for
from gateway.limits.contract import Account, Adjustment, Charge, LimitStore, Standing, Verdict
from tests.gateway.builders import a_limit

START = 1_700_000_000.0
"""Seconds since 1970 at which benches start: 2023-11-14T22:13:20Z, 1 h 46 min 40 s before midnight."""

TO_MIDNIGHT = 6400.0
"""Seconds from START."""

TO_DECEMBER = 16 * 86400.0 + TO_MIDNIGHT


def an_account(limit: Limit, share: str = "") -> Account:
    return Account(f"{limit.name}/{share}" if share else limit.name, limit)


async def at_once() -> None:
    """For stores whose adjustments are in force when `adjust` returns."""


@dataclass
class Bench:
    """A store, and a hand on its clock."""

    store: LimitStore
    advance: Callable[[float], None]
    """Seconds that pass for the store."""
    settled: Callable[[], Awaitable[None]] = at_once
    _holdings: Any = field(default_factory=lambda: map("holding-{}".format, itertools.count(1)))

    async def take(
        self, account: Account, amount: int, least: int | None = None, holding: str | None = None
    ) -> tuple[str, Verdict]:
        """Charge one account; returns the holding too."""
        holding = next(self._holdings) if holding is None else holding
        return holding, await self.store.reserve(
            holding, [Charge(account, amount, amount if least is None else least)]
        )

    async def take_all(self, *charges: tuple[Account, int]) -> tuple[str, Verdict]:
        holding = next(self._holdings)
        return holding, await self.store.reserve(holding, [Charge(a, n, n) for a, n in charges])

    async def adjust(
        self, holding: str, *deltas: tuple[Account, int], final: bool, window: int | None = None
    ) -> None:
        self.store.adjust(holding, [Adjustment(a, n, window) for a, n in deltas], final=final)
        await self.settled()

    async def used(self, account: Account) -> int:
        (standing,) = await self.store.look([account])
        assert standing.account == account
        assert standing.granted is None
        return standing.used


class StoreConformance:
    """Subclass it, and say in `bench` how to build the store."""

    def bench(self) -> AbstractAsyncContextManager[Bench]:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------- rates

    async def test_a_new_account_is_whole(self) -> None:
        """Nothing is used of an account that nobody charged, and looking at it leaves it so."""
        async with self.bench() as bench:
            account = an_account(a_limit(100))
            for _ in range(2):
                (standing,) = await bench.store.look([account])
                assert (standing.used, standing.free, standing.granted) == (0, 100, None)

    async def test_grants_up_to_the_amount_and_no_further(self) -> None:
        """100 units are granted, the 101st is not."""
        async with self.bench() as bench:
            account = an_account(a_limit(100))
            _, verdict = await bench.take(account, 60)
            assert verdict.granted
            assert [(s.granted, s.used, s.free) for s in verdict.standings] == [(60, 60, 40)]
            _, verdict = await bench.take(account, 41)
            assert not verdict.granted
            assert verdict.refused == (account,)
            assert [(s.granted, s.used, s.free) for s in verdict.standings] == [(None, 60, 40)]
            _, verdict = await bench.take(account, 40)
            assert verdict.granted
            assert await bench.used(account) == 100

    async def test_refills_evenly(self) -> None:
        """6,000 a minute are 100 a second, and one each 10 ms."""
        async with self.bench() as bench:
            account = an_account(a_limit(6000))
            await bench.take(account, 6000)
            bench.advance(0.009)
            assert await bench.used(account) == 6000
            bench.advance(0.001)
            assert await bench.used(account) == 5999
            bench.advance(1.0)
            assert await bench.used(account) == 5899
            bench.advance(3600.0)
            assert await bench.used(account) == 0

    async def test_parts_of_units_are_not_lost(self) -> None:
        """Seven a minute, looked at each 100 ms: after a minute exactly seven have drained."""
        async with self.bench() as bench:
            account = an_account(a_limit(7))
            await bench.take(account, 7)
            for step in range(1, 601):
                bench.advance(0.1)
                if step % 7 == 0:
                    await bench.take(account, 8)  # refused, but it looks
            assert await bench.used(account) == 0

    async def test_does_not_save_up(self) -> None:
        """However long nobody asks, there is no more than the amount."""
        async with self.bench() as bench:
            account = an_account(a_limit(10))
            await bench.take(account, 1)
            bench.advance(86400.0)
            _, verdict = await bench.take(account, 11)
            assert not verdict.granted
            _, verdict = await bench.take(account, 10)
            assert verdict.granted

    @pytest.mark.parametrize(
        ("amount", "per"), [(3, 1), (1000, 60), (7, 3600), (10**12, 86400), (5 * 10**15, 1)]
    )
    async def test_the_wait_is_sufficient_and_tight(self, amount: int, per: int) -> None:
        """After `wait_for` milliseconds the units are there, one earlier they are not."""
        async with self.bench() as bench:
            account = an_account(a_limit(amount, per=per))
            await bench.take(account, amount)
            need = max(1, amount // 3)
            _, verdict = await bench.take(account, need)
            assert not verdict.granted
            wait = _wait(verdict.standings[0], need)
            assert wait is not None
            if wait > 1:
                bench.advance((wait - 1) / 1000)
                _, verdict = await bench.take(account, need)
                assert not verdict.granted
                assert _wait(verdict.standings[0], need) == 1
                bench.advance(0.001)
            else:
                bench.advance(wait / 1000)
            _, verdict = await bench.take(account, need)
            assert verdict.granted

    async def test_a_clock_that_steps_back_gives_nothing(self) -> None:
        async with self.bench() as bench:
            account = an_account(a_limit(60))
            await bench.take(account, 60)
            bench.advance(10.0)
            assert await bench.used(account) == 50
            bench.advance(-5.0)
            _, verdict = await bench.take(account, 11)
            assert not verdict.granted
            bench.advance(5.0)
            assert await bench.used(account) == 50
            bench.advance(1.0)
            assert await bench.used(account) == 49

    async def test_grants_less_where_less_will_do(self) -> None:
        """Between `least` and `amount`: what is free."""
        async with self.bench() as bench:
            account = an_account(a_limit(100))
            await bench.take(account, 70)
            _, verdict = await bench.take(account, 50, least=31)
            assert not verdict.granted
            _, verdict = await bench.take(account, 50, least=30)
            assert [s.granted for s in verdict.standings] == [30]
            assert await bench.used(account) == 100
            _, verdict = await bench.take(account, 0, least=0)
            assert [s.granted for s in verdict.standings] == [0]

    # ------------------------------------------------------------------------------------- all or none

    async def test_all_or_none(self) -> None:
        """One limit of three refuses: nothing is charged anywhere, and it is named."""
        async with self.bench() as bench:
            wide, narrow, held = (
                an_account(a_limit(100)),
                an_account(a_limit(1, "requests")),
                an_account(a_limit(5, "concurrent")),
            )
            _, verdict = await bench.take_all((wide, 10), (narrow, 1), (held, 1))
            assert verdict.granted
            _, verdict = await bench.take_all((wide, 10), (narrow, 1), (held, 1))
            assert not verdict.granted
            assert verdict.refused == (narrow,)
            assert [s.granted for s in verdict.standings] == [None, None, None]
            assert [await bench.used(a) for a in (wide, narrow, held)] == [10, 1, 1]

    async def test_everyone_who_refuses_is_named(self) -> None:
        async with self.bench() as bench:
            accounts = [an_account(a_limit(1, "requests", name=f"limit-{i}")) for i in range(4)]
            await bench.take_all(*((a, 1) for a in accounts[:3]))
            _, verdict = await bench.take_all(*((a, 1) for a in accounts))
            assert not verdict.granted
            assert set(verdict.refused) == set(accounts[:3])

    async def test_no_limits_at_all(self) -> None:
        async with self.bench() as bench:
            _, verdict = await bench.take_all()
            assert verdict == Verdict(True, ())

    async def test_a_limit_that_is_not_enforced_never_refuses(self) -> None:
        """It is charged as long as it would grant, and named when it would not."""
        async with self.bench() as bench:
            trial = an_account(a_limit(10, name="trial", enforce=False))
            real = an_account(a_limit(100, name="real"))
            _, verdict = await bench.take_all((trial, 8), (real, 8))
            assert verdict.granted
            assert verdict.refused == ()
            _, verdict = await bench.take_all((trial, 8), (real, 8))
            assert verdict.granted
            assert verdict.refused == (trial,)
            assert [s.granted for s in verdict.standings] == [None, 8]
            assert [await bench.used(a) for a in (trial, real)] == [8, 16]
            _, verdict = await bench.take_all((trial, 8), (real, 100))
            assert not verdict.granted
            assert set(verdict.refused) == {trial, real}

    async def test_parallel_requests_do_not_all_pass(self) -> None:
        """Five at once against a limit that holds one."""
        async with self.bench() as bench:
            account = an_account(a_limit(1, "concurrent"))
            taken = await asyncio.gather(*(bench.take(account, 1) for _ in range(5)))
            assert sum(verdict.granted for _, verdict in taken) == 1

    async def test_accounts_of_one_limit_are_apart(self) -> None:
        async with self.bench() as bench:
            limit = a_limit(10, each=("tenant",))
            acme, globex = an_account(limit, "acme"), an_account(limit, "globex")
            await bench.take(acme, 10)
            assert await bench.used(globex) == 0
            _, verdict = await bench.take(globex, 10)
            assert verdict.granted

    async def test_a_hundred_limits_at_once(self) -> None:
        async with self.bench() as bench:
            accounts = [an_account(a_limit(10 + i, name=f"limit-{i}")) for i in range(100)]
            holding, verdict = await bench.take_all(*((a, 10) for a in accounts))
            assert verdict.granted
            assert [s.account for s in verdict.standings] == accounts
            _, verdict = await bench.take_all(*((a, 10) for a in accounts))
            assert not verdict.granted
            assert set(verdict.refused) == set(accounts[:10])
            await bench.adjust(holding, *((a, -10) for a in accounts), final=True)
            assert {await bench.used(a) for a in accounts} == {0}

    # -------------------------------------------------------------------------------------- settlement

    async def test_a_final_adjustment_counts_once(self) -> None:
        """However often it is sent; the same after it, as if nothing had come."""
        async with self.bench() as bench:
            account = an_account(a_limit(100))
            await bench.take(account, 50)
            holding, _ = await bench.take(account, 40)
            for _ in range(3):
                await bench.adjust(holding, (account, -30), final=True)
                assert await bench.used(account) == 60
            await bench.adjust(holding, (account, 7), final=False)
            assert await bench.used(account) == 60

    async def test_what_was_never_reserved_is_not_adjusted(self) -> None:
        """Nor what was refused."""
        async with self.bench() as bench:
            account = an_account(a_limit(100))
            await bench.take(account, 50)
            await bench.adjust("unheard-of", (account, -50), final=True)
            holding, verdict = await bench.take(account, 60)
            assert not verdict.granted
            await bench.adjust(holding, (account, -50), final=True)
            assert await bench.used(account) == 50

    async def test_an_adjustment_may_go_beyond_the_amount(self) -> None:
        """An answer that outran its reservation is a debt, which drains like all use."""
        async with self.bench() as bench:
            account = an_account(a_limit(60))
            holding, _ = await bench.take(account, 60)
            await bench.adjust(holding, (account, 30), final=False)
            (standing,) = await bench.store.look([account])
            assert (standing.used, standing.free) == (90, 0)
            bench.advance(30.0)
            _, verdict = await bench.take(account, 1)
            assert not verdict.granted
            assert await bench.used(account) == 60
            await bench.adjust(holding, (account, -20), final=True)
            assert await bench.used(account) == 40

    async def test_giving_back_stops_at_zero(self) -> None:
        """What has drained meanwhile is not given back a second time."""
        async with self.bench() as bench:
            account = an_account(a_limit(60))
            holding, _ = await bench.take(account, 30)
            bench.advance(20.0)
            await bench.adjust(holding, (account, -30), final=True)
            assert await bench.used(account) == 0
            _, verdict = await bench.take(account, 61)
            assert not verdict.granted

    async def test_an_empty_account_keeps_no_part_of_a_unit(self) -> None:
        """The drop that has drained of a unit is forgotten where the unit is given back."""
        async with self.bench() as bench:
            account = an_account(a_limit(60))
            holding, _ = await bench.take(account, 30)
            bench.advance(0.9)
            await bench.adjust(holding, (account, -30), final=True)
            await bench.take(account, 60)
            bench.advance(0.9)
            assert await bench.used(account) == 60

    async def test_those_who_ask_are_told(self) -> None:
        """`told` hears how the accounts stand after the adjustment, in its order."""
        async with self.bench() as bench:
            rate, held = an_account(a_limit(60)), an_account(a_limit(100, "tokens_in_flight"))
            holding, _ = await bench.take_all((rate, 10), (held, 10))
            heard: list[tuple[str, int]] = []

            def told(standings: Sequence[Standing]) -> None:
                heard.extend((s.account.key, s.used) for s in standings)

            bench.store.adjust(holding, [Adjustment(rate, 55), Adjustment(held, 5)], final=False, told=told)
            await bench.settled()
            assert heard == [(rate.key, 65), (held.key, 15)]

    async def test_charges_under_an_open_reservation_add_to_it(self) -> None:
        """A request that moves to another pool takes that pool's limits; one end ends all."""
        async with self.bench() as bench:
            first, second = (an_account(a_limit(1, "concurrent", name=name)) for name in ("first", "second"))
            holding, _ = await bench.take(first, 1)
            _, verdict = await bench.take(second, 1, holding=holding)
            assert verdict.granted
            await bench.adjust(holding, (first, -1), final=False)
            assert [await bench.used(a) for a in (first, second)] == [0, 1]
            await bench.adjust(holding, final=True)
            assert [await bench.used(a) for a in (first, second)] == [0, 0]

    async def test_a_refused_addition_leaves_the_reservation_open(self) -> None:
        async with self.bench() as bench:
            first, second = (an_account(a_limit(1, "concurrent", name=name)) for name in ("first", "second"))
            other, _ = await bench.take(second, 1)
            holding, _ = await bench.take(first, 1)
            _, verdict = await bench.take(second, 1, holding=holding)
            assert not verdict.granted
            assert await bench.used(first) == 1
            await bench.adjust(holding, final=True)
            assert [await bench.used(a) for a in (first, second)] == [0, 1]
            await bench.adjust(other, final=True)
            assert await bench.used(second) == 0

    # ------------------------------------------------------------------------------------------ levels

    async def test_a_level_is_held_until_the_end(self) -> None:
        """Time alone gives nothing back."""
        async with self.bench() as bench:
            account = an_account(a_limit(2, "concurrent"))
            first, _ = await bench.take(account, 1)
            second, _ = await bench.take(account, 1)
            bench.advance(15.0)
            _, verdict = await bench.take(account, 1)
            assert not verdict.granted
            assert _wait(verdict.standings[0], 1) is None
            await bench.adjust(first, final=True)
            await bench.adjust(first, final=True)
            _, verdict = await bench.take(account, 1)
            assert verdict.granted
            _, verdict = await bench.take(account, 1)
            assert not verdict.granted
            await bench.adjust(second, final=True)
            assert await bench.used(account) == 1

    async def test_what_a_holder_holds_can_change(self) -> None:
        """Tokens in flight grow with the stream and are all given back at its end."""
        async with self.bench() as bench:
            account = an_account(a_limit(100, "tokens_in_flight"))
            first, _ = await bench.take(account, 30)
            second, _ = await bench.take(account, 30)
            await bench.adjust(first, (account, 50), final=False)
            assert await bench.used(account) == 110
            await bench.adjust(first, (account, -60), final=False)
            assert await bench.used(account) == 50
            await bench.adjust(first, final=True)
            assert await bench.used(account) == 30
            await bench.adjust(second, (account, 12), final=True)
            assert await bench.used(account) == 0

    # ----------------------------------------------------------------------------------------- budgets

    async def test_a_budget_starts_anew_with_each_day(self) -> None:
        """At midnight UTC, not 24 hours after it was used."""
        async with self.bench() as bench:
            account = an_account(a_limit(100, calendar="day"))
            _, verdict = await bench.take(account, 100)
            assert [s.window for s in verdict.standings] == [19675]
            bench.advance(TO_MIDNIGHT - 0.001)
            _, verdict = await bench.take(account, 1)
            assert not verdict.granted
            assert _wait(verdict.standings[0], 1) == 1
            bench.advance(0.001)
            _, verdict = await bench.take(account, 100)
            assert verdict.granted
            assert [s.window for s in verdict.standings] == [19676]

    async def test_a_budget_starts_anew_with_each_month(self) -> None:
        async with self.bench() as bench:
            account = an_account(a_limit(100, calendar="month"))
            _, verdict = await bench.take(account, 100)
            assert [s.window for s in verdict.standings] == [53 * 12 + 10]
            bench.advance(TO_DECEMBER - 1.0)
            _, verdict = await bench.take(account, 1)
            assert not verdict.granted
            assert _wait(verdict.standings[0], 1) == 1000
            bench.advance(1.0)
            _, verdict = await bench.take(account, 100)
            assert verdict.granted

    async def test_a_budget_does_not_refill_within_its_window(self) -> None:
        async with self.bench() as bench:
            account = an_account(a_limit(100, calendar="day"))
            await bench.take(account, 100)
            bench.advance(3600.0)
            assert await bench.used(account) == 100

    async def test_a_budget_is_given_back_within_its_window_only(self) -> None:
        """What yesterday's request did not use is not today's; what it used beyond is."""
        async with self.bench() as bench:
            account = an_account(a_limit(100, calendar="day"))
            holding, verdict = await bench.take(account, 60)
            window = verdict.standings[0].window
            late, _ = await bench.take(account, 10)
            more, _ = await bench.take(account, 10)
            await bench.adjust(more, (account, -10), final=True, window=window)
            assert await bench.used(account) == 70
            bench.advance(TO_MIDNIGHT)
            await bench.take(account, 20)
            await bench.adjust(holding, (account, -60), final=True, window=window)
            assert await bench.used(account) == 20
            await bench.adjust(late, (account, 5), final=True, window=window)
            assert await bench.used(account) == 25

    async def test_a_date_that_steps_back_does_not_open_an_old_window(self) -> None:
        async with self.bench() as bench:
            account = an_account(a_limit(100, calendar="day"))
            bench.advance(TO_MIDNIGHT)
            await bench.take(account, 100)
            bench.advance(-10.0)
            _, verdict = await bench.take(account, 1)
            assert not verdict.granted
            assert [s.window for s in verdict.standings] == [19676]
            wait = _wait(verdict.standings[0], 1)
            assert wait == DAY + 10_000

    # ----------------------------------------------------------------------------------------- reloads

    async def test_another_amount_keeps_what_is_used(self) -> None:
        """A reload neither refills nor drains: `used` stays."""
        async with self.bench() as bench:
            await bench.take(an_account(a_limit(100, name="limit")), 60)
            wider = an_account(a_limit(200, name="limit"))
            assert await bench.used(wider) == 60
            narrower = an_account(a_limit(50, name="limit"))
            _, verdict = await bench.take(narrower, 1)
            assert not verdict.granted
            assert await bench.used(narrower) == 60

    async def test_a_name_that_changes_its_kind_starts_anew(self) -> None:
        """What the old configuration's requests settle does not disturb the new account."""
        async with self.bench() as bench:
            rate = an_account(a_limit(100, name="limit"))
            holding, _ = await bench.take(rate, 60)
            level = an_account(a_limit(100, "tokens_in_flight", name="limit"))
            _, verdict = await bench.take(level, 100)
            assert verdict.granted
            await bench.adjust(holding, (rate, -10), final=True)
            assert await bench.used(level) == 100

    async def test_closing_twice_is_fine(self) -> None:
        async with self.bench() as bench:
            await bench.store.aclose()
            await bench.store.aclose()


def _wait(standing: Standing, need: int) -> int | None:
    return wait_for(
        standing.account.limit, need, standing.used, standing.credit, standing.now, standing.window
    )
