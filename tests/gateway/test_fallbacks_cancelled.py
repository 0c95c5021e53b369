"""Wherever a client leaves the attempt loop: no slot is ever left behind."""

import asyncio

import pytest

from gateway.answering.answer import Answer
from gateway.config.snapshot import Timeouts
from gateway.errors import (
    GatewayError,
)
from tests.gateway.builders import a_call
from tests.gateway.engines import ScriptedEngine
from tests.gateway.suspensions import cancel_everywhere
from tests.gateway.town import BROKEN, CLIENT, FATAL, REFUSED, Town, bad, good, lending

SCENARIOS = {
    "answer": lambda: Town({"a": {"r1": good()}}),
    "retry": lambda: Town({"a": {"r1": bad(), "r2": good()}}),
    "error in the first events": lambda: Town({"a": {"r1": bad([BROKEN]), "r2": good()}}),
    "hop": lambda: Town({"a": {"r1": bad(REFUSED), "r2": bad(FATAL)}, "b": {"r1": good()}}),
    "refused": lambda: Town({"a": {"r1": bad(CLIENT)}}),
    "all fail": lambda: Town({"a": {"r1": bad(), "r2": bad(REFUSED)}, "b": {"r1": bad()}}),
    "lent": lambda: lending(),
    "lent, and failed": lambda: lending(bad()),
    "silence": lambda: Town(
        {"a": {"r1": ScriptedEngine([None])}}, pool_fields={"a": {"timeouts": Timeouts(first_token=0.001)}}
    ),
}


@pytest.mark.parametrize("when", ["waiting", "as it ends"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_cancelled_at_any_point_nothing_is_left(name, when):
    """Technique 1 of the reliability sheet: every suspension point, two ways to be cancelled there."""
    town: Town | None = None

    async def scenario():
        nonlocal town
        town = SCENARIOS[name]()
        return await town.ask(a_call(stream=True, received=100.0))

    async def check(outcome) -> None:
        assert town is not None
        if isinstance(outcome, Answer):
            outcome.release()
        else:
            assert isinstance(outcome, (asyncio.CancelledError, GatewayError))
        if town.others is not None:
            town.others.release()
        town.assert_at_rest()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    assert await cancel_everywhere(scenario, check, when) >= 1


@pytest.mark.parametrize("when", ["waiting", "as it ends"])
async def test_cancelled_at_any_point_of_a_wait_in_the_queue(when):
    """The slot is released in the meantime; whoever comes next must find it."""
    town = Town({})

    async def scenario():
        nonlocal town
        town = Town({"a": {"r1": good()}})
        (slot,) = town.occupy("a")
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(slot.release)))
        return await town.ask()

    async def check(outcome) -> None:
        if isinstance(outcome, Answer):
            outcome.release()
        for _ in range(5):
            await asyncio.sleep(0)
        town.assert_at_rest()
        (await town.ask()).release()

    assert await cancel_everywhere(scenario, check, when) >= 3
