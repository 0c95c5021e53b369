"""What a pool's line tells: who waits in which lane, how long, and what was asked of the pool."""

import asyncio

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
