"""Several LeasedStores over one parent, under every order of steps that Hypothesis thinks of.

The clock is common. A `reserve` that reaches the parent stops before and after the parent decides, and there
it may be overtaken by anything, be cancelled, or find the parent away. What must hold:

    conservation   what the parent counts as used is what lies in slices, and what requests were charged
    the bound      over any interval: amount + amount * t / period + all slices, for what was spent in it
    at rest        everything was given back, and no lease is left open
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.limits.contract import Account, Adjustment, Charge, Standing, StoreUnavailable, Verdict
from gateway.limits.leasing import LeasedStore
from gateway.limits.memory import MemoryStore
from tests.gateway.builders import Clock, a_limit
from tests.gateway.limits.conformance import START

PROCESSES = 3
SHARE = 2
"""Slices of half the amount, so that they show."""

RATE = Account("rate", a_limit(600, per=60, name="rate"))
TRIAL = Account("trial", a_limit(90, per=1, name="trial", enforce=False))
BUDGET = Account("budget", a_limit(1000, calendar="month", name="budget"))
LEVEL = Account("level", a_limit(40, "concurrent", name="level"))
ACCOUNTS = (RATE, TRIAL, BUDGET, LEVEL)


@types.coroutine
def stop() -> Generator[None, None, None]:
    yield


class Halting:
    """A parent that lets others go first. What it decided for a caller that left, it takes back."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        await stop()
        verdict = await self.store.reserve(holding, charges)
        try:
            await stop()
        except BaseException:
            if verdict.granted:
                back = [Adjustment(s.account, -(s.granted or 0), s.window) for s in verdict.standings]
                self.store.adjust(holding, back, final=True)
            raise
        return verdict

    def adjust(
        self,
        holding: str,
        adjustments: Sequence[Adjustment],
        *,
        final: bool,
        told: Callable[[Sequence[Standing]], None] | None = None,
    ) -> None:
        assert holding in self.store._open, "a correction that has no effect is lost"
        self.store.adjust(holding, adjustments, final=final, told=told)

    async def look(self, accounts: Sequence[Account]) -> Sequence[Standing]:
        return await self.store.look(accounts)

    async def aclose(self) -> None:
        await self.store.aclose()


class Open:
    """A reservation as its owner knows it."""

    def __init__(self, process: int, holding: str, charges: Sequence[Charge]) -> None:
        self.process, self.holding, self.charges = process, holding, charges
        self.charged: dict[Account, int] = {}


class Leasing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(START)
        self.parent = MemoryStore(self.clock, self.clock)
        self.stores = [
            LeasedStore(
                Halting(self.parent),
                processes=lambda: PROCESSES,
                share=SHARE,
                clock=self.clock,
                wall=self.clock,
            )
            for _ in range(PROCESSES)
        ]
        self.under_way: list[tuple[Coroutine[Any, Any, Any], Open | None]] = []
        self.opened: list[Open] = []
        self.made = 0
        self.charged = dict.fromkeys(ACCOUNTS, 0)
        """What requests were charged, and not given back."""
        self.busy = Fraction(0)
        """The most that was spent of the rate in an interval that ends now, less what drained in it."""

    # ------------------------------------------------------------------------------------------- steps

    def step(self, at: int, error: BaseException | None = None) -> None:
        """Let one that is under way go on, or fail with `error`, up to where it stops again."""
        coroutine, it = self.under_way.pop(at)
        try:
            if error is None:
                coroutine.send(None)
            else:
                coroutine.throw(error)
        except StopIteration as done:
            if it is not None:
                self.done(it, done.value)
        except (asyncio.CancelledError, StoreUnavailable):
            pass
        else:
            self.under_way.append((coroutine, it))

    def done(self, it: Open, verdict: Verdict) -> None:
        assert [s.account for s in verdict.standings] == [c.account for c in it.charges]
        if not verdict.granted:
            assert any(account.limit.enforce for account in verdict.refused)
            assert all(s.granted is None for s in verdict.standings)
            return
        for charge, standing in zip(it.charges, verdict.standings, strict=True):
            if standing.granted is None:
                assert not charge.account.limit.enforce
                assert charge.account in verdict.refused
            else:
                assert charge.least <= standing.granted <= charge.amount
                it.charged[charge.account] = standing.granted
                self.charged[charge.account] += standing.granted
                if charge.account == RATE:
                    self.busy += standing.granted
        self.opened.append(it)

    @rule(
        process=st.integers(0, PROCESSES - 1),
        rate=st.integers(0, 60),
        trial=st.integers(0, 12),
        budget=st.integers(0, 30),
        slack=st.integers(0, 20),
        which=st.integers(1, 15),
    )
    def reserve(self, process: int, rate: int, trial: int, budget: int, slack: int, which: int) -> None:
        amounts = ((RATE, rate), (TRIAL, trial), (BUDGET, budget), (LEVEL, 1))
        charges = [
            Charge(account, amount, max(0, amount - slack) if account == RATE else amount)
            for bit, (account, amount) in enumerate(amounts)
            if which & (1 << bit)
        ]
        self.made += 1
        it = Open(process, f"request-{self.made}", charges)
        self.under_way.append((self.stores[process].reserve(it.holding, charges), it))
        self.step(-1)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.step(data.draw(st.integers(0, len(self.under_way) - 1)))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), error=st.sampled_from([asyncio.CancelledError, StoreUnavailable]))
    def fail(self, data: st.DataObject, error: type[BaseException]) -> None:
        self.step(data.draw(st.integers(0, len(self.under_way) - 1)), error())

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), more=st.integers(1, 40))
    def outrun(self, data: st.DataObject, more: int) -> None:
        """An answer goes beyond what was reserved."""
        it = self.opened[data.draw(st.integers(0, len(self.opened) - 1))]
        changes = [Adjustment(account, more) for account in it.charged if account in (RATE, LEVEL)]
        for change in changes:
            it.charged[change.account] += more
            self.charged[change.account] += more
        store, before = self.stores[it.process], self.used(RATE)
        heard: list[Sequence[Standing]] = []
        store.adjust(it.holding, changes, final=False, told=heard.append)
        if any(mine.due for mine in store._slices.values()):
            return  # it is charged, and told, once there is a lease
        assert [s.account for s in heard[0]] == [c.account for c in changes]
        assert len(heard) == 1
        for standing in heard[0]:
            if standing.account == RATE and (after := self.used(RATE)) != before:
                assert standing.used == max(0, after - store.free().get(RATE.key, 0))

    def used(self, account: Account) -> int:
        """What the parent counts at the moment."""
        look = self.parent.look([account])
        try:
            look.send(None)
        except StopIteration as done:
            used: int = done.value[0].used
            return used
        raise AssertionError("it waits")

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), delta=st.integers(-60, 20))
    def settle(self, data: st.DataObject, delta: int) -> None:
        it = self.opened.pop(data.draw(st.integers(0, len(self.opened) - 1)))
        self.end(it, delta)

    def end(self, it: Open, delta: int) -> None:
        changes = []
        for account, charged in it.charged.items():
            self.charged[account] -= charged
            if account != LEVEL:
                change = max(-charged, delta)
                self.charged[account] += charged + change
                changes.append(Adjustment(account, change))
                if account == RATE and change < 0:
                    self.busy = max(Fraction(0), self.busy + change)
        for _ in range(2):
            self.stores[it.process].adjust(it.holding, changes, final=True)

    @rule(ms=st.sampled_from([1, 30, 250, 1000, 5000, 100_000]))
    def tick(self, ms: int) -> None:
        self.clock.tick(ms / 1000)
        assert RATE.limit.per is not None
        self.busy = max(Fraction(0), self.busy - Fraction(RATE.limit.amount * ms, RATE.limit.per * 1000))

    @rule(process=st.integers(0, PROCESSES - 1))
    def tend(self, process: int) -> None:
        self.stores[process].sweep()
        self.under_way.append((self.stores[process].refill(), None))
        self.step(-1)

    # ------------------------------------------------------------------------------------------- what holds

    @invariant()
    def bounded(self) -> None:
        slices = PROCESSES * (RATE.limit.amount // (SHARE * PROCESSES))
        assert self.busy <= RATE.limit.amount + slices + 1
        for store in self.stores:
            for mine in store._slices.values():
                assert mine.free >= 0
                assert mine.free + mine.ahead <= mine.full
                assert mine.full == mine.limit.amount // (SHARE * PROCESSES)

    @invariant()
    def conserved(self) -> None:
        if self.under_way:
            return
        for account in (BUDGET, LEVEL):
            in_slices = sum(store.free().get(account.key, 0) for store in self.stores)
            due = sum(mine.due for store in self.stores if (mine := store._slices.get(account.key)))
            state = self.parent._states.get(account.key)
            assert (state.used if state else 0) == self.charged[account] + in_slices - due
        for store in self.stores:
            for mine in store._slices.values():
                assert sum(lease.levels[mine] for lease in mine.lots) == (
                    mine.held + mine.free - mine.due if mine.account == LEVEL else 0
                )
                assert not (mine.ahead or mine.coming)

    def teardown(self) -> None:
        while self.under_way:
            self.step(0)
        for it in self.opened:
            self.end(it, 0)
        self.opened.clear()
        for store in self.stores:
            for _ in range(3):  # send what waits for a lease
                self.under_way.append((store.refill(), None))
                while self.under_way:
                    self.step(0)
        self.conserved()
        for store in self.stores:
            assert store.open == 0
            self.under_way.append((store.aclose(), None))
            while self.under_way:
                self.step(0)
        assert self.parent.held() == {}
        assert self.parent.open == 0
        state = self.parent._states.get(BUDGET.key)
        assert (state.used if state else 0) == self.charged[BUDGET]


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
