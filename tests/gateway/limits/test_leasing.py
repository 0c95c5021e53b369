"""LeasedStore: slices of limits, spent locally. test_leasing_machine.py has what several do to each other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import QuotaExceeded
from gateway.limits import leasing
from gateway.limits.arithmetic import wait_for
from gateway.limits.contract import (
    Account,
    Adjustment,
    Charge,
    LimitStore,
    Standing,
    StoreUnavailable,
    Verdict,
)
from gateway.limits.failover import FailoverStore
from gateway.limits.leasing import LeasedStore
from gateway.limits.limiter import Limiter
from gateway.limits.memory import MemoryStore
from gateway.limits.reservation import Reservation
from gateway.telemetry.metrics import Metrics
from tests.gateway.builders import Clock, a_call, a_limit, a_snapshot, an_estimate
from tests.gateway.limits.conformance import START, TO_MIDNIGHT, Bench, StoreConformance, an_account
from tests.gateway.limits.redis_bench import a_store, arrived
from tests.gateway.limits.test_memory import Milliseconds
from tests.gateway.limits.test_reservation import at_once
from tests.redis_server import RedisServer

STRAIGHT = 10**16
"""A share so small that there is no slice: everything goes straight through."""


class TestStraightThrough(StoreConformance):
    """Without slices it decides as its parent does."""

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Bench]:
        clock = Milliseconds(START)
        store = LeasedStore(MemoryStore(clock, clock), share=STRAIGHT, clock=clock, wall=clock)
        yield Bench(store, clock.tick)
        await store.aclose()


class TestWithSlices(StoreConformance):
    """With slices it answers the same, as long as nobody else asks."""

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Bench]:
        clock = Milliseconds(START)
        store = LeasedStore(MemoryStore(clock, clock), clock=clock, wall=clock)

        def advance(seconds: float) -> None:
            clock.tick(seconds)
            store.sweep()

        yield Bench(store, advance)
        await store.aclose()


class TestOverRedis(StoreConformance):
    """Slices of what a real Redis keeps."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer, namespace: str) -> None:
        self._url, self._namespace = redis_server.url, namespace

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Bench]:
        clock = Milliseconds(START)
        async with a_store(
            self._url, self._namespace, lease=10_000_000.0, clock=lambda: round(clock() * 1000)
        ) as redis:
            store = LeasedStore(redis, clock=clock, wall=clock)

            def advance(seconds: float) -> None:
                clock.tick(seconds)
                store.sweep()

            yield Bench(store, advance, lambda: arrived(redis))
            await store.aclose()


# ------------------------------------------------------------------------------------------ a small bench


class Parent(MemoryStore):
    """Counts, can be away, and can be slow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, clock)
        self.asked: list[Sequence[Charge]] = []
        self.away = False
        self.gate: asyncio.Event | None = None
        self.closed = False

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        self.asked.append(charges)
        if self.gate is not None:
            async with asyncio.timeout(5):
                await self.gate.wait()
        if self.away:
            raise StoreUnavailable("away")
        return await super().reserve(holding, charges)

    async def aclose(self) -> None:
        self.closed = True


class Leases:
    """Processes over one parent."""

    def __init__(self, processes: int = 1, **options: Any) -> None:
        self.clock = Milliseconds(START)
        self.parent = Parent(self.clock)
        self.count = processes
        self.stores = [
            LeasedStore(
                self.parent, processes=lambda: self.count, clock=self.clock, wall=self.clock, **options
            )
            for _ in range(processes)
        ]
        self.store = self.stores[0]
        self._made = 0

    async def take(
        self, account: Account, amount: int, least: int | None = None, store: LeasedStore | None = None
    ) -> tuple[str, Standing] | None:
        """A reservation's holding and standing; None where it is refused."""
        self._made += 1
        holding = f"request-{self._made}"
        verdict = await (store or self.store).reserve(
            holding, [Charge(account, amount, amount if least is None else least)]
        )
        return (holding, verdict.standings[0]) if verdict.granted else None

    async def granted(self, account: Account, amount: int, **options: Any) -> str:
        taken = await self.take(account, amount, **options)
        assert taken is not None
        return taken[0]

    def adjust(self, holding: str, account: Account, delta: int, *, final: bool) -> list[Sequence[Standing]]:
        heard: list[Sequence[Standing]] = []
        self.store.adjust(holding, [Adjustment(account, delta)], final=final, told=heard.append)
        return heard

    async def warm(self, account: Account, amount: int, store: LeasedStore | None = None) -> None:
        """Requests in quick succession, until there is a slice."""
        store = store or self.store
        for _ in range(20):
            taken = await self.take(account, amount, store=store)
            if taken is not None and account.limit.unit != "tokens_in_flight":
                store.adjust(taken[0], [], final=True)
            if store.free().get(account.key, 0) >= 4 * amount:
                return
            self.clock.tick(0.01)
        raise AssertionError("there is no slice")

    async def central(self, account: Account) -> int:
        (standing,) = await self.parent.look([account])
        return standing.used


def rate(amount: int, **fields: Any) -> Account:
    return an_account(a_limit(amount, **fields))


# ------------------------------------------------------------------------------------------ slices


async def test_most_requests_ask_nobody() -> None:
    """A thousand requests at 200 a second: a few dozen round trips, most of them in the background."""
    bench = Leases()
    account = rate(1_000_000)
    foreground = 0
    for _ in range(1000):
        before = bench.store.round_trips
        await bench.granted(account, 10)
        foreground += bench.store.round_trips - before
        await bench.store.refill()
        bench.clock.tick(0.005)
    assert foreground <= 5
    assert bench.store.round_trips <= 40
    assert bench.store.local >= 995


async def test_a_slice_is_at_most_its_part() -> None:
    """Four processes in a rush: all slices together are an eighth of the amount."""
    bench = Leases(4)
    account = rate(8000)
    for _ in range(30):
        for store in bench.stores:
            await bench.take(account, 5, store=store)
            assert store.free().get(account.key, 0) <= 8000 // 8 // 4
        bench.clock.tick(0.001)


async def test_small_limits_go_straight_through() -> None:
    bench = Leases(2)
    account = an_account(a_limit(15, "requests"))
    for number in range(15):
        assert await bench.take(account, 1, store=bench.stores[number % 2])
    assert len(bench.parent.asked) == 15
    assert bench.stores[0].free() == bench.stores[1].free() == {}


async def test_who_asks_now_and_then_keeps_nothing() -> None:
    """One request a second: each asks, none leaves a slice behind."""
    bench = Leases()
    account = rate(1_000_000)
    for _ in range(5):
        await bench.granted(account, 10)
        assert bench.store.free() == {}
        bench.clock.tick(1.0)
        bench.store.sweep()


async def test_idle_slices_go_back() -> None:
    """A second after the last request, the parent has all of it again; in the end nothing is remembered."""
    bench = Leases()
    account = an_account(a_limit(80_000, calendar="day"))
    await bench.warm(account, 10)
    spent = await bench.central(account) - bench.store.free()[account.key]
    for _ in range(4):
        bench.clock.tick(0.5)
        bench.store.sweep()
    assert bench.store.free() == {}
    assert await bench.central(account) == spent
    for _ in range(24):
        bench.clock.tick(0.5)
        bench.store.sweep()
    assert bench.store._slices == {}


async def test_what_nobody_touches_goes_back_from_under_a_trickle() -> None:
    """After a rush, a request each 200 ms needs no large slice."""
    bench = Leases()
    account = an_account(a_limit(800_000, calendar="day"))
    for _ in range(60):
        await bench.granted(account, 10)
        await bench.store.refill()
        bench.clock.tick(0.002)
    large = bench.store.free()[account.key]
    for _ in range(40):
        await bench.granted(account, 10)
        bench.clock.tick(0.2)
        bench.store.sweep()
    assert bench.store.free().get(account.key, 0) <= large // 16


async def test_idle_processes_do_not_starve_a_busy_one() -> None:
    """Fifteen had a rush and fell asleep; the one that goes on gets all that drains, and their slices."""
    bench = Leases(16)
    account = rate(60_000)  # 1,000 a second
    for store in bench.stores:
        await bench.warm(account, 10, store)
    while await bench.take(account, 10):
        pass
    before = bench.clock.now
    got = 0
    while bench.clock.now < before + 3.0:
        got += 10 if await bench.take(account, 10) else 0
        await bench.store.refill()
        bench.clock.tick(0.004)
        for store in bench.stores:
            store.sweep()
    assert got >= 0.97 * 3000


async def test_parallel_requests_do_not_hoard() -> None:
    """Fifty at once that find nothing: one of them asks for a slice, the others for what they need."""
    bench = Leases()
    bench.parent.gate = asyncio.Event()
    account = rate(1_000_000)
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(bench.granted(account, 10))
        await asyncio.sleep(0)
        bench.parent.gate.set()
    assert sum(charge.amount for charges in bench.parent.asked for charge in charges) <= 50 * 10 + 8 * 10


async def test_the_parts_of_a_shortage_are_joined() -> None:
    """What the slice has and what the parent still has make one grant."""
    bench = Leases()
    account = rate(8000)
    await bench.warm(account, 10)
    here = bench.store.free()[account.key]
    other = await bench.parent.reserve("other", [Charge(account, 8000, 0)])
    assert other.granted
    assert await bench.take(account, here + 1) is None
    assert bench.store.free()[account.key] == here
    taken = await bench.take(account, here + 1, least=here - 5)
    assert taken is not None
    assert taken[1].granted == here


async def test_a_refusal_tells_a_wait_that_is_right_here() -> None:
    """What lies in the slice is not used, as far as this process's requests go."""
    bench = Leases()
    account = rate(6000)
    await bench.warm(account, 10)
    here = bench.store.free()[account.key]
    await bench.parent.reserve("other", [Charge(account, 6000, 0)])
    verdict = await bench.store.reserve("r", [Charge(account, here + 50, here + 50)])
    assert not verdict.granted
    (standing,) = verdict.standings
    assert standing.free == here
    bench.clock.tick(0.5)  # 50 units
    assert await bench.take(account, here + 50)


async def test_a_flood_of_refused_requests_does_not_reach_the_parent() -> None:
    """Two thousand a second, at most forty questions; each is told a wait that is right."""
    bench = Leases()
    account = rate(600)
    await bench.granted(account, 600)
    asked = len(bench.parent.asked)
    for step in range(2000):
        verdict = await bench.store.reserve(f"r{step}", [Charge(account, 50, 50)])
        assert not verdict.granted
        assert verdict.refused == (account,)
        (standing,) = verdict.standings
        left = 5000 - (step * 0.5)
        wait = wait_for(account.limit, 50, standing.used, standing.credit, standing.now)
        assert wait is not None
        assert left <= wait + 0.5 <= left + 1
        bench.clock.now = START + (step + 1) / 2000
    assert len(bench.parent.asked) - asked <= 41
    bench.clock.now = START + 4.999
    assert await bench.take(account, 50) is None
    bench.clock.tick(0.001)
    assert await bench.take(account, 50)


async def test_what_comes_back_here_is_granted_at_once() -> None:
    """A remembered refusal does not outlive this process's own refunds; a smaller request asks anyway."""
    bench = Leases(share=STRAIGHT)
    account = rate(600)
    holding = await bench.granted(account, 580)
    assert await bench.take(account, 50) is None
    assert await bench.take(account, 20)
    assert await bench.take(account, 50) is None
    bench.adjust(holding, account, -100, final=True)
    assert await bench.take(account, 50)


async def test_standings_follow_what_is_spent_here() -> None:
    """Remaining figures of local admissions: the parent's last word, drained, less what was spent since."""
    bench = Leases()
    account = rate(60_000)
    await bench.warm(account, 10)
    trips = bench.store.round_trips
    taken = await bench.take(account, 10)
    assert taken is not None
    assert bench.store.round_trips == trips
    (exact,) = await bench.store.look([account])
    assert abs(taken[1].used - exact.used) <= 1


# ------------------------------------------------------------------------------------------ settlement


async def test_refunds_stay_here_and_the_surplus_goes_back() -> None:
    bench = Leases()
    account = an_account(a_limit(8000, calendar="day"))
    holding = await bench.granted(account, 500)
    bench.adjust(holding, account, -400, final=True)
    assert bench.store.free() == {account.key: 400}
    holding = await bench.granted(account, 4000)
    bench.adjust(holding, account, -3000, final=True)
    assert bench.store.free().get(account.key, 0) <= 1000
    assert await bench.central(account) - bench.store.free().get(account.key, 0) == 100 + 1000


async def test_an_overrun_is_taken_here_first() -> None:
    """And the parent hears of what is missing, at once."""
    bench = Leases()
    account = rate(8000)
    await bench.warm(account, 10)
    holding = await bench.granted(account, 10)
    here, central = bench.store.free()[account.key], await bench.central(account)
    (standings,) = bench.adjust(holding, account, here, final=False)
    assert await bench.central(account) == central
    (standings,) = bench.adjust(holding, account, 70, final=False)
    assert await bench.central(account) == central + 70
    assert standings[0].used == central + 70


async def test_a_debt_is_seen_at_once() -> None:
    """By who made it, for the cut, and by new requests, here and elsewhere."""
    bench = Leases(2)
    account = rate(800, overrun="cut")
    holding = await bench.granted(account, 800)
    (standings,) = bench.adjust(holding, account, 32, final=False)
    assert standings[0].used == 832
    for store in bench.stores:
        assert await bench.take(account, 1, store=store) is None


async def test_the_parent_tells_whether_an_answer_must_end() -> None:
    """Others used the account since it was last heard of here."""
    bench = Leases(2)
    account = rate(300, overrun="cut")
    holding = await bench.granted(account, 40)
    elsewhere = await bench.granted(account, 240, store=bench.stores[1])
    (standings,) = bench.adjust(holding, account, 10, final=False)
    assert standings[0].used == 290
    bench.stores[1].adjust(elsewhere, [Adjustment(account, 20)], final=False)
    (standings,) = bench.adjust(holding, account, 1, final=False)
    assert standings[0].used == 311


async def test_what_was_charged_without_a_lease_is_told_by_the_parent() -> None:
    """An answer that outlived all leases: it is told once what it cost was charged, and only then."""
    bench = Leases(2)
    account = an_account(a_limit(80_000, calendar="month", overrun="cut"))
    await bench.warm(account, 10)
    holding = await bench.granted(account, 10)
    for _ in range(70):
        bench.clock.tick(1.0)
        bench.store.sweep()
    await bench.granted(account, 79_000, store=bench.stores[1])
    heard = bench.adjust(holding, account, 2000, final=False)
    bench.parent.away = True
    await bench.store.refill()
    assert not heard, "it is not known yet"
    bench.parent.away = False
    heard = bench.adjust(holding, account, 32, final=False)
    await bench.store.refill()
    central = await bench.central(account)
    assert central > 81_000
    assert [standing.used for (standing,) in heard] == [central]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_answers_are_cut_within_one_interval_each(data: st.DataObject) -> None:
    """Two processes with slices and one without: what all answers make is at most the limit, and one
    settlement interval of each, in whichever order their tokens come."""
    amount, interval = data.draw(st.sampled_from([300, 2000]), "amount"), 32
    bench = Leases(2)
    limit = a_limit(amount, "output_tokens", calendar="month", overrun="cut", name="cutter")
    snapshot = a_snapshot(limits=[limit])
    stores: list[LimitStore] = [*bench.stores, bench.parent]
    metrics = Metrics()
    limiters = [Limiter(snapshot, store, metrics, bench.clock) for store in stores]

    def in_the_background() -> None:
        for store in bench.stores:
            at_once(store.refill())

    made: dict[Reservation, int] = {}
    for _ in range(data.draw(st.integers(20, 120), "steps")):
        step = data.draw(st.sampled_from(["ask", *["go on"] * 4, "end", "refill", "rest"]))
        going = [it for it in made if it.open]
        if step == "ask":
            expected = data.draw(st.integers(1, 60))
            limiter = data.draw(st.sampled_from(limiters))
            with suppress(QuotaExceeded):
                it = at_once(limiter.reserve(a_call(), an_estimate(10, expected), ("pool",)))
                made[it] = 0
        elif step == "refill":
            in_the_background()
        elif step == "rest":
            bench.clock.tick(61.0)
            for store in bench.stores:
                store.sweep()
        elif going:
            it = data.draw(st.sampled_from(going))
            if step == "go on":
                for _ in range(data.draw(st.integers(1, 100))):
                    if it.cut is None:
                        made[it] += 1
                        it.streamed(made[it], bench.clock)
                        if any(store._due for store in bench.stores):
                            in_the_background()
            if step == "end" or it.cut is not None:
                it.settle(10, made[it])
    assert sum(made.values()) <= amount + interval * len(made)
    for it in made:
        it.settle(10, made[it])
    in_the_background()
    free = sum(sum(store.free().values()) for store in bench.stores)
    (standing,) = at_once(bench.parent.look([an_account(limit)]))
    assert standing.used == sum(made.values()) + free


async def test_a_correction_without_a_lease_waits_for_one() -> None:
    """All leases have ended, and an old answer costs more: the background opens one to tell."""
    bench = Leases()
    account = an_account(a_limit(80_000, calendar="month"))
    await bench.warm(account, 10)
    holding = await bench.granted(account, 10)
    for _ in range(70):
        bench.clock.tick(1.0)
        bench.store.sweep()
    central = await bench.central(account)
    bench.adjust(holding, account, 5, final=True)
    assert await bench.central(account) == central
    (standing,) = await bench.store.look([account])
    assert standing.used == central + 5
    await bench.store.refill()
    assert await bench.central(account) == central + 5


async def test_levels_are_leased_slots() -> None:
    """Slots come back to the slice, and to the parent when nobody wants them."""
    bench = Leases()
    account = an_account(a_limit(400, "concurrent"))
    held = []
    for _ in range(40):
        held.append(await bench.granted(account, 1))
        await bench.store.refill()
        bench.clock.tick(0.001)
    assert bench.store.round_trips < 15
    assert await bench.central(account) == 40 + bench.store.free().get(account.key, 0)
    for holding in held:
        bench.store.adjust(holding, [], final=True)
        assert await bench.central(account) <= 40 + 50
    for _ in range(3):
        bench.clock.tick(1.0)
        bench.store.sweep()
    assert bench.parent.held() == {}


async def test_a_level_that_grows_while_it_streams() -> None:
    bench = Leases()
    account = an_account(a_limit(8000, "tokens_in_flight"))
    await bench.warm(account, 10)
    holding = await bench.granted(account, 100)
    before = await bench.central(account) - bench.store.free().get(account.key, 0)
    bench.adjust(holding, account, 2000, final=False)
    assert await bench.central(account) - bench.store.free().get(account.key, 0) == before + 2000
    bench.store.adjust(holding, [], final=True)
    assert await bench.central(account) - bench.store.free().get(account.key, 0) == before - 100


async def test_many_slices_go_back_together() -> None:
    """More accounts than one call takes."""
    bench = Leases()
    limit = a_limit(80_000, calendar="day", each=("key",))
    accounts = [an_account(limit, f"key-{n}") for n in range(2 * leasing.BATCH + 10)]
    charges = [Charge(account, 10, 10) for account in accounts]
    for number in range(3):
        await bench.store.reserve(f"r{number}", charges)
        bench.clock.tick(0.01)
    assert len(bench.store.free()) == len(accounts)
    bench.clock.tick(1.5)
    bench.store.sweep()
    bench.clock.tick(1.5)
    bench.store.sweep()
    assert bench.store.free() == {}
    assert {await bench.central(account) for account in accounts} == {30}


# ------------------------------------------------------------------------------------------ change


async def test_a_changed_amount_changes_the_slice() -> None:
    """After a reload with a smaller amount, what the slice may no longer keep goes back."""
    bench = Leases()
    large = a_limit(80_000, calendar="day")
    account = an_account(large)
    for _ in range(30):
        await bench.granted(account, 10)
        await bench.store.refill()
        bench.clock.tick(0.002)
    assert bench.store.free()[account.key] > 100
    small = an_account(a_limit(800, calendar="day"))
    await bench.granted(small, 1)
    assert bench.store.free().get(account.key, 0) <= 100
    assert await bench.central(account) == 301 + bench.store.free().get(account.key, 0)


async def test_another_kind_under_the_same_name() -> None:
    """What was left of the old one goes back; requests of the old one settle harmlessly."""
    bench = Leases()
    old = an_account(a_limit(8000, "tokens_in_flight", name="it"))
    await bench.warm(old, 10)
    holding = await bench.granted(old, 10)
    new = an_account(a_limit(8000, name="it"))
    await bench.granted(new, 100)
    assert await bench.central(new) == 100
    bench.adjust(holding, old, -10, final=True)
    assert await bench.central(new) == 100
    assert bench.store.open > 0


async def test_a_new_day_starts_anew() -> None:
    """Yesterday's slice is dropped, and yesterday's refunds are."""
    bench = Leases()
    account = an_account(a_limit(8000, calendar="day"))
    await bench.warm(account, 10)
    taken = await bench.take(account, 500)
    assert taken is not None
    holding, standing = taken
    bench.clock.tick(TO_MIDNIGHT)
    (now,) = await bench.store.look([account])
    assert now.used == 0
    await bench.granted(account, 20)
    assert await bench.central(account) == 20 + bench.store.free().get(account.key, 0)
    bench.store.adjust(holding, [Adjustment(account, -500, standing.window)], final=True)
    assert await bench.central(account) == 20 + bench.store.free().get(account.key, 0)
    (now,) = await bench.store.look([account])
    assert now.used == 20


async def test_more_processes_smaller_slices() -> None:
    bench = Leases()
    account = rate(8000)
    for _ in range(20):
        await bench.granted(account, 10)
        await bench.store.refill()
        bench.clock.tick(0.002)
    assert bench.store.free()[account.key] > 125
    bench.count = 8
    bench.clock.tick(1.0)
    bench.store.sweep()
    assert bench.store.free().get(account.key, 0) <= 125


# ------------------------------------------------------------------------------------------ trouble


async def test_without_the_parent_what_is_here_may_be_spent() -> None:
    """What is short raises, and takes nothing."""
    bench = Leases()
    account, other = rate(8000), an_account(a_limit(10, "requests"))
    await bench.warm(account, 10)
    bench.parent.away = True
    here = bench.store.free()[account.key]
    await bench.granted(account, 10)
    with pytest.raises(StoreUnavailable):
        await bench.store.reserve("r", [Charge(account, 10, 10), Charge(other, 1, 1)])
    assert bench.store.free()[account.key] == here - 10
    await bench.store.refill()  # fails without a word
    bench.parent.away = False
    verdict = await bench.store.reserve("r", [Charge(account, 10, 10), Charge(other, 1, 1)])
    assert verdict.granted


async def test_a_caller_that_leaves_takes_nothing_along() -> None:
    bench = Leases()
    account, held = rate(8000), an_account(a_limit(4, "concurrent"))
    await bench.warm(account, 10)
    here = bench.store.free()[account.key]
    bench.parent.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.store.reserve("r", [Charge(account, 10, 10), Charge(held, 1, 1)]))
        await asyncio.sleep(0)
        assert bench.store.free()[account.key] == here - 10
        task.cancel()
    assert bench.store.free()[account.key] == here
    assert bench.parent.held() == {}
    assert not any(mine.ahead or mine.coming for mine in bench.store._slices.values())


async def test_a_refusal_charges_nothing_anywhere() -> None:
    bench = Leases()
    account, other = rate(8000), an_account(a_limit(1, "requests"))
    await bench.warm(account, 10)
    here, central = bench.store.free()[account.key], await bench.central(account)
    await bench.granted(other, 1)
    verdict = await bench.store.reserve("r", [Charge(account, 10, 10), Charge(other, 1, 1)])
    assert not verdict.granted
    assert verdict.refused == (other,)
    assert [s.granted for s in verdict.standings] == [None, None]
    assert bench.store.free()[account.key] == here
    assert await bench.central(account) == central


async def test_a_trial_limit_gives_back_what_it_had() -> None:
    """A limit that is not enforced has a part here and no more there: it is not charged, and named."""
    bench = Leases()
    trial = an_account(a_limit(8000, name="trial", enforce=False))
    await bench.warm(trial, 10)
    here = bench.store.free()[trial.key]
    await bench.parent.reserve("other", [Charge(trial, 8000, 0)])
    verdict = await bench.store.reserve("r", [Charge(trial, here + 5, here + 5)])
    assert verdict.granted
    assert verdict.refused == (trial,)
    assert verdict.standings[0].granted is None
    assert bench.store.free()[trial.key] == here


async def test_closing_gives_everything_back() -> None:
    bench = Leases()
    account, held = an_account(a_limit(8000, calendar="day")), an_account(a_limit(80, "concurrent"))
    for _ in range(10):
        await bench.store.reserve(f"r{bench._made}", [Charge(account, 10, 10), Charge(held, 1, 1)])
        bench._made += 1
        bench.clock.tick(0.01)
    await bench.store.aclose()
    assert bench.parent.held() == {}
    assert bench.parent.open == 0
    assert await bench.central(account) == 100
    assert bench.parent.closed


async def test_the_background_refills_and_gives_back() -> None:
    """`run`, on the loop's own time: requests find their slices full; idle ones are gone a second later."""
    clock = Clock(START)
    parent = Parent(clock)
    store = LeasedStore(parent, clock=clock, wall=clock)
    account = rate(1_000_000)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(store.run())
        for number in range(200):
            assert (await store.reserve(f"r{number}", [Charge(account, 10, 10)])).granted
            clock.tick(0.002)
            await asyncio.sleep(0)
        assert store.local >= 195
        assert store.free()
        clock.tick(2.0)
        async with asyncio.timeout(5):
            while store.free():
                await asyncio.sleep(0.01)
                clock.tick(0.1)
        await store.aclose()
        async with asyncio.timeout(5):
            await running
    assert parent.open == 0


async def test_an_outage_gives_nothing_away() -> None:
    """What to do without the store is decided above slices, not below: so what nobody charged at the parent
    never lies in a slice, and is not given back to it."""
    bench = Leases()
    budget = an_account(a_limit(80_000, calendar="month", store_down="open"))
    store = FailoverStore(bench.store, MemoryStore(bench.clock, bench.clock), lambda: 1)
    for number in range(5):
        await store.reserve(f"before-{number}", [Charge(budget, 50, 50)])
        store.adjust(f"before-{number}", [], final=True)
        bench.clock.tick(0.01)
    bench.parent.away = True
    for number in range(40):
        verdict = await store.reserve(f"away-{number}", [Charge(budget, 50, 50)])
        assert verdict.granted
        await bench.store.refill()
        bench.clock.tick(0.02)
    bench.parent.away = False
    for number in range(40):
        store.adjust(f"away-{number}", [Adjustment(budget, -50)], final=True)
    for _ in range(4):
        bench.clock.tick(1.0)
        bench.store.sweep()
    assert bench.store.free() == {}
    assert await bench.central(budget) == 250
