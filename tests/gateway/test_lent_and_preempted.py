"""Replicas of a later pool that answer who waits, and batch requests that give way."""

import asyncio

import pytest
from msgspec.structs import replace

from backends.contract import Delta
from gateway.answering.answer import Answer
from gateway.config.snapshot import Policy, PriorityClass
from tests.gateway.builders import a_call, a_limit, an_estimate
from tests.gateway.engines import GOOD, ScriptedEngine
from tests.gateway.suspensions import cancel_everywhere
from tests.gateway.town import Town, bad, lending


async def test_an_idle_replica_of_a_later_pool_answers_who_waits():
    """In that pool's words, under its limits, and everybody can see it."""
    town = lending(
        fields={"total": 300, "serves": {"llama": "ensemble"}},
        limits=[a_limit(1, "concurrent", name="b-only", pools=("b",))],
    )
    with await town.ask(a_call(received=100.0, stream=True), an_estimate(asked=50)) as answer:
        assert answer.target.pool.name == "b"
        assert town.engines["b", "b1"].requests[0].model == "ensemble"
        assert (town.record.pool, town.record.replica, town.record.queued_in) == ("b", "b1", "a")
        assert town.queues["b"].statistics().lent == 1
        assert town.metrics.lent.labels("b", "a")._value.get() == 1
    town.others.release()
    town.assert_at_rest()


async def test_the_limits_of_the_pool_that_serves_hold():
    """Where they refuse, the request waits on for its own pool."""
    town = lending(limits=[a_limit(1, "tokens", name="b-only", pools=("b",))])
    with await town.ask() as answer:
        assert answer.target.pool.name == "a"
        assert town.record.queued_in is None
    assert town.sent == {"a/a1": 1}
    town.assert_at_rest()


async def test_nobody_is_lent_what_the_chain_does_not_lead_to():
    for town in (
        lending(fields={"lends_to": ()}),
        lending(fields={"state": "cold"}),
        lending(fields={"total": 12}),
    ):
        with await town.ask(estimate=an_estimate(asked=500)) as answer:
            assert answer.target.pool.name == "a"
        assert town.sent == {"a/a1": 1}


async def test_where_the_lender_fails_the_pool_itself_answers():
    town = lending(bad())
    with await town.ask() as answer:
        assert answer.target.pool.name == "a"
        assert (town.record.pool, town.record.attempts, town.record.queued_in) == ("a", 2, None)
    assert town.sent == {"b/b1": 1, "a/a1": 1}
    town.assert_at_rest()


def contended(times: int = 1, **fields) -> Town:
    """One slot; the engine says nothing to the first request, and answers the others."""
    policy = Policy(preempt=times)
    return Town({"a": {"r1": ScriptedEngine([None], GOOD)}}, pool_fields={"a": {"policy": policy, **fields}})


def of_class(priority: PriorityClass, name: str):
    return replace(a_call(received=100.0, stream=True, priority_class=priority), id=name)


async def test_a_batch_request_gives_way_and_is_answered_all_the_same():
    town = contended()
    batch = asyncio.get_running_loop().create_task(town.ask(of_class(PriorityClass.batch, "batch")))
    while not town.engines["a", "r1"].generations:
        await asyncio.sleep(0)
    record = town.record
    with await town.ask(of_class(PriorityClass.interactive, "urgent")) as urgent:
        assert urgent.first == [Delta(text="hi", tokens=1)]
        assert not batch.done()
        assert town.engines["a", "r1"].generations[0].cancelled, "the engine is told to stop"
        assert town.queues["a"].statistics().in_flight == 1
        assert [each.request_id for each in town.queues["a"].line(9)] == ["batch"]
    with await batch as answer:
        assert answer.first == [Delta(text="hi", tokens=1)]
        assert (record.attempts, record.stage) == (1, "waiting"), "the client sees nothing of it"
    assert town.metrics.attempts.labels("a", "preempted")._value.get() == 1
    town.assert_at_rest()


async def test_it_gives_way_so_often_and_no_more():
    town = contended(1)
    town.engines["a", "r1"]._scripts[:] = [[None], GOOD, [None], GOOD]
    batch = asyncio.get_running_loop().create_task(town.ask(of_class(PriorityClass.batch, "batch")))
    while not town.engines["a", "r1"].generations:
        await asyncio.sleep(0)
    (await town.ask(of_class(PriorityClass.interactive, "urgent"))).release()
    while len(town.engines["a", "r1"].generations) < 3:
        await asyncio.sleep(0)
    second = asyncio.get_running_loop().create_task(
        town.ask(of_class(PriorityClass.interactive, "urgent too"))
    )
    for _ in range(10):
        await asyncio.sleep(0)
    assert town.queues["a"].statistics().waiting == 1
    batch.cancel()
    (await second).release()
    town.assert_at_rest()


@pytest.mark.parametrize("when", ["waiting", "as it ends"])
async def test_a_client_that_leaves_while_it_gives_way(when):
    """Every suspension point of the preempted request; the urgent one is answered whatever happens."""
    town = Town({})
    urgent: asyncio.Task[Answer] | None = None

    async def scenario():
        nonlocal town, urgent
        town = contended()
        loop = asyncio.get_running_loop()

        def come() -> None:
            nonlocal urgent
            urgent = loop.create_task(town.ask(of_class(PriorityClass.interactive, "urgent")))
            urgent.add_done_callback(lambda task: task.result().release())

        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(come)))
        return await town.ask(of_class(PriorityClass.batch, "batch"))

    async def check(outcome) -> None:
        if isinstance(outcome, Answer):
            outcome.release()
        while urgent is None:
            await asyncio.sleep(0)
        if len(town.engines["a", "r1"].requests) < 2 and not urgent.done():
            urgent.cancel()  # it has got the silence that was meant for the other
        await asyncio.wait([urgent], timeout=1)
        await asyncio.sleep(0)
        town.assert_at_rest()

    await cancel_everywhere(scenario, check, when)
