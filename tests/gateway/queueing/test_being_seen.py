"""What a pool's line tells: who waits in which lane, how long, and what was asked of the pool."""

import asyncio
import random

import pytest

from gateway.config.snapshot import Budget, Pace, Policy, PriorityClass
from gateway.errors import Unavailable
from gateway.fleet.step_model import REFERENCE, StepModel
from tests.gateway.builders import Clock, a_pool, a_queue
from tests.gateway.queueing.pools import Pool

INTERACTIVE, STANDARD, BATCH = PriorityClass.interactive, PriorityClass.standard, PriorityClass.batch


def test_waiting_by_class_and_lane_is_the_line():
    """Through joining, leaving, being served, and being put among `batch`."""
    pool = Pool("a", in_flight=1, settings={"overdue": "demote", "budget": 1.0, "long_prompt": 4096})
    first = pool.ask(10)
    pool.ask(10, priority=STANDARD)
    leaving = pool.ask(3000, priority=STANDARD)
    pool.ask(5000, priority=BATCH)
    pool.ask(10, priority=INTERACTIVE)
    told = pool.scheduler.waiting_by()
    assert sum(told.values()) == pool.scheduler.waiting == 4
    assert {where: number for where, number in told.items() if number} == {
        ("standard", "small"): 1,
        ("standard", "medium"): 1,
        ("batch", "long"): 1,
        ("interactive", "small"): 1,
    }
    assert set(told) == {(c.name, lane) for c in PriorityClass for lane in ("small", "medium", "long")}
    pool.scheduler.withdraw(leaving.item)
    pool.clock.tick(2.0)  # its budget is over: it waits as `batch` from now on
    pool.scheduler.dispatch()
    told = pool.scheduler.waiting_by()
    assert (told["standard", "medium"], told["interactive", "small"], told["batch", "small"]) == (0, 0, 1)
    first.slot.release()
    while any(client.slot is not None and client.slot._on_release for client in pool.clients):
        for client in pool.clients:
            if client.slot is not None:
                client.slot.release()
    assert not any(pool.scheduler.waiting_by().values())


async def test_a_place_in_line_is_told_by_its_id():
    clock = Clock(100.0)
    queue = a_queue(a_pool(in_flight=1), clock)
    held = await queue.acquire(10, 10, wait=0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(queue.acquire(100, 100, wait=50, name=name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        assert queue.standing("one")[0] == 1
        position, wait = queue.standing("two")
        assert position == 2
        assert wait > queue.standing("one")[1] == 0
        assert queue.standing("nobody") is None
        tasks.append(group.create_task(queue.acquire(1, 1, wait=50, name="three")))
        await asyncio.sleep(0)
        assert queue.standing("three") is None, "the picture of the line is shared for half a second"
        clock.tick(0.6)
        assert queue.standing("three")[0] == 1, "the shortest goes first"
        held.release()
        for task in (tasks[2], tasks[0], tasks[1]):
            (await task).release()
    clock.tick(1)
    assert queue.standing("one") is None


async def test_what_is_asked_of_a_pool_is_counted_once_served_or_not():
    clock = Clock(100.0)
    queue = a_queue(a_pool(replicas=("a", "b"), in_flight=1), clock)
    slot = await queue.acquire(1000, 100, wait=0)
    await queue.acquire(1000, 100, wait=0, exclude={"a"})  # the same request, tried again
    with pytest.raises(Unavailable):
        await queue.acquire(2000, 100, wait=0)
    requests, work = queue.demand()
    assert requests == 2
    assert work == pytest.approx(REFERENCE.work(1000, 1000, 100) + REFERENCE.work(2000, 2000, 100))
    clock.tick(700)
    assert queue.demand() == (0, 0.0), "of ten minutes"
    slot.release()


def test_work_is_counted_in_seconds_of_the_pools_own_engine():
    """A profile that reads slowly and speaks fast turns the order of two requests round."""
    reader = Pool("a", in_flight=1)
    pace = Pace(token_s=200e-6, attention_s=0.78e-9, step_s=1e-3, sequence_s=1e-6, kv_s=1e-9)
    speaker = Pool("a", in_flight=1, pace=StepModel(pace))
    for pool, first in ((reader, 3000), (speaker, 10)):
        pool.ask(10)
        pool.ask(3000, 10)
        pool.ask(10, 1200)
        assert pool.scheduler.standings()[0].item.prompt_tokens == first
    assert speaker.scheduler.views[0].slowness == pytest.approx(REFERENCE.slowness / StepModel(pace).slowness)


def test_a_promise_is_the_budget_of_its_class():
    """Shed when the promised time is over; or its client's deadline, if that is earlier."""
    settings = {"budgets": {INTERACTIVE: Budget(ttft=2.0), STANDARD: Budget(queue=0.5)},
                "shed": frozenset({INTERACTIVE, STANDARD})}  # fmt: skip
    pool = Pool("a", in_flight=1, settings=settings)
    pool.ask(10)
    inter = pool.ask(10, priority=INTERACTIVE)
    standard = pool.ask(10, priority=STANDARD)
    own = pool.ask(10, priority=INTERACTIVE, deadline=pool.clock.now + 1)
    for seconds, refused in (
        (0.4, []),
        (0.2, [standard]),
        (0.6, [standard, own]),
        (0.9, [standard, inter, own]),
    ):
        pool.clock.tick(seconds)
        pool.scheduler.dispatch()
        assert [client for client in (standard, inter, own) if client.refusal is not None] == refused
    assert Policy().time_to_first(INTERACTIVE, long=False, bare=0) == 10.0


class Watch:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.places: list[tuple[str, str, int]] = []
        self.waits: list[tuple[str, str, float, float]] = []

    def note_standing(self, pool: str, priority: str, position: int) -> None:
        self.places.append((pool, priority, position))

    def note_foretold(self, pool: str, priority: str, expected: float, waited: float) -> None:
        self.waits.append((pool, priority, expected, waited))


async def test_places_and_waits_of_those_who_stand_in_line_are_told():
    """Not of those who are served at once, and no wait of those who leave; what was expected when they came
    beside what it took."""
    clock, watch = Clock(100.0), Watch()
    queue = a_queue(a_pool(in_flight=1), clock, watch=watch)
    held = await queue.acquire(10, 10, wait=0)
    assert watch.places == []
    async with asyncio.TaskGroup() as group:
        one = group.create_task(queue.acquire(100, 100, wait=50, priority=INTERACTIVE))
        await asyncio.sleep(0)
        clock.tick(1.0)
        two = group.create_task(queue.acquire(100, 100, wait=50, priority=STANDARD))
        await asyncio.sleep(0)
        gone = group.create_task(queue.acquire(100, 100, wait=50, priority=BATCH))
        await asyncio.sleep(0)
        assert watch.places == [("pool", "interactive", 1), ("pool", "standard", 2), ("pool", "batch", 3)]
        gone.cancel()
        clock.tick(2.0)
        held.release()
        (await one).release()
        (await two).release()
    assert [(pool, priority, waited) for pool, priority, _, waited in watch.waits] == [
        ("pool", "interactive", 3.0),
        ("pool", "standard", 2.0),
    ]
    assert 0 == watch.waits[0][2] < watch.waits[1][2]


@pytest.mark.parametrize("seed", range(5))
def test_a_glance_agrees_with_a_walk_through_the_line(seed):
    """To half a second of key: never fewer than stand before it, and never anybody of a later half second."""
    pool = Pool("a", in_flight=1)
    rng = random.Random(seed)
    pool.ask(10)
    for _ in range(200):
        pool.clock.tick(rng.expovariate(20))
        pool.ask(rng.randrange(10, 20_000), priority=rng.choice([INTERACTIVE, STANDARD, BATCH]))
    scheduler = pool.scheduler
    standings = scheduler.standings()
    for standing in standings:
        place, wait = scheduler.foreseen(standing.item)
        half = int(standing.item.key / 0.5)
        assert standing.position <= place
        assert place == sum(int(other.item.key / 0.5) <= half for other in standings)
        assert wait <= standing.expected_wait + 1e-9
    while scheduler.waiting:
        pool.clock.tick(0.1)
        for client in pool.clients:
            if client.slot is not None and client.slot._on_release:
                client.slot.release()
    assert not any(scheduler._backlog._counts)
