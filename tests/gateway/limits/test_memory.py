"""The store of one process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.limits import memory
from gateway.limits.memory import MemoryStore
from tests.gateway.builders import Clock, a_limit
from tests.gateway.limits.conformance import START, Bench, StoreConformance, an_account


class Milliseconds(Clock):
    """Steps that are whole milliseconds stay so, however many."""

    def tick(self, seconds: float) -> None:
        self.now = (round(self.now * 1000) + round(seconds * 1000)) / 1000


class TestMemoryStore(StoreConformance):
    """The whole suite, on a clock of the test's own."""

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Bench]:
        clock = Milliseconds(START)
        store = MemoryStore(clock, clock)
        yield Bench(store, clock.tick)
        await store.aclose()


async def test_monotonic_time_is_apart_from_the_date() -> None:
    """Rates go by one clock, budgets by the other."""
    monotonic, wall = Clock(5.0), Clock(START)
    bench = Bench(MemoryStore(monotonic, wall), wall.tick)
    rate, budget = an_account(a_limit(60)), an_account(a_limit(60, calendar="day", name="daily"))
    _, verdict = await bench.take_all((rate, 60), (budget, 60))
    assert [s.now for s in verdict.standings] == [5000, int(START * 1000)]
    wall.tick(86400.0)
    assert await bench.used(rate) == 60
    assert await bench.used(budget) == 0
    monotonic.tick(30.0)
    assert await bench.used(rate) == 30


async def test_empty_accounts_are_dropped() -> None:
    """Keys come and go: what holds nothing takes no room for ever; what holds something stays."""
    clock = Clock(START)
    store = MemoryStore(clock, clock)
    bench = Bench(store, clock.tick)
    limit, held = a_limit(60, each=("key",)), an_account(a_limit(5, "concurrent"))
    holding, _ = await bench.take(held, 1)
    for number in range(memory.TIDY_AFTER + 10):
        await bench.take(an_account(limit, f"key-{number}"), 1)
        clock.tick(0.01)
    assert len(store._states) < memory.TIDY_AFTER // 2
    assert await bench.used(held) == 1
    await bench.adjust(holding, final=True)
    assert store.held() == {}


async def test_a_level_that_was_dropped_and_made_anew_is_one() -> None:
    """Tidying happens before a decision, never in the middle of it."""
    clock = Clock(START)
    store = MemoryStore(clock, clock)
    bench = Bench(store, clock.tick)
    store._tidy_at = 0
    limit = a_limit(1, "concurrent")
    for _ in range(3):
        holding, verdict = await bench.take_all((an_account(limit), 1), (an_account(a_limit(5)), 1))
        assert verdict.granted
        _, verdict = await bench.take(an_account(limit), 1)
        assert not verdict.granted
        store._tidy_at = 0
        await bench.adjust(holding, final=True)
        assert store.held() == {}
    assert store.open == 0
