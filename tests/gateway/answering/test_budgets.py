"""Time budgets: which one counts, and what a generation says when its time is over."""

import asyncio

import pytest
from msgspec.structs import replace

from backends.contract import Delta, EngineError, GenerateRequest
from gateway.answering.budgets import MAX_GENERATION, STOP_AFTER, Budget, budget_of, generate, is_budgeted
from gateway.fallbacks import streams_upstream
from tests.gateway.builders import Clock, a_call, a_pool, an_estimate
from tests.gateway.engines import GOOD, ScriptedEngine, an_error

STREAMED = GenerateRequest(request_id="r", model="m", stream=True, prompt="x")
WHOLE = GenerateRequest(request_id="r", model="m", stream=False, prompt="x")


@pytest.mark.parametrize(
    ("stop_at", "most", "budget"),
    [
        (None, None, None),
        (105.0, None, Budget(105.0, STOP_AFTER)),
        (None, 3.0, Budget(104.0, MAX_GENERATION)),  # from 101.0, when it was sent
        (105.0, 3.0, Budget(104.0, MAX_GENERATION)),
        (103.0, 3.0, Budget(103.0, STOP_AFTER)),
    ],
)
def test_the_sooner_one_counts(stop_at, most, budget):
    call, pool = replace(a_call(received=100.0), stop_at=stop_at), a_pool(max_generation=most)
    assert budget_of(call, pool, STREAMED, 101.0) == budget
    assert is_budgeted(call, pool) is (budget is not None)
    assert budget_of(call, pool, WHOLE, 101.0) is None


@pytest.mark.parametrize(("setting", "streams"), [("auto", True), ("always", True), ("client", False)])
def test_what_may_be_cut_is_asked_for_as_a_stream(setting, streams):
    for call, pool in (
        (replace(a_call(), stop_at=1.0), a_pool(upstream_stream=setting)),
        (a_call(), a_pool(upstream_stream=setting, max_generation=1.0)),
    ):
        assert streams_upstream(pool, call, an_estimate()) is streams


async def events_of(engine: ScriptedEngine, seconds: float, clock: Clock | None = None) -> list:
    clock = clock or Clock(100.0)
    generation = await generate(engine, STREAMED, Budget(clock() + seconds, STOP_AFTER), clock)
    async with asyncio.timeout(5):
        return [await generation.events() for _ in range(2)]


async def test_in_time_it_changes_nothing():
    assert await events_of(ScriptedEngine(GOOD), 60.0) == list(GOOD)
    with pytest.raises(EngineError):
        await events_of(ScriptedEngine([an_error()]), 60.0)


async def test_silence_ends_with_no_events():
    first = [Delta(text="x", tokens=1)]
    assert await events_of(ScriptedEngine([first, None]), 0.01) == [first, []]


async def test_an_engine_that_does_not_even_answer_ends_with_no_events():
    assert await events_of(ScriptedEngine(None), 0.01) == [[], []]


async def test_time_that_is_over_is_not_waited_for():
    engine = ScriptedEngine([[Delta(text="x")], [Delta(text="y")]])
    clock = Clock(100.0)
    generation = await generate(engine, STREAMED, Budget(101.0, STOP_AFTER), clock)
    assert await generation.events()
    clock.tick(2.0)
    assert await generation.events() == []
    generation.cancel()
    assert engine.generations[0].cancelled == 1


async def test_a_cancellation_from_elsewhere_is_not_the_budgets():
    generation = await generate(ScriptedEngine([None]), STREAMED, Budget(160.0, STOP_AFTER), Clock(100.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await generation.events()
