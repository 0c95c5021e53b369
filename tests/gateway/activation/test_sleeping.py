"""The shell around a pool that may sleep: the clock is passed in, the activator does as it is told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from backends.contract import Endpoint
from gateway.activation.activators import ActivationFailed
from gateway.activation.prefixes import Prefixes
from gateway.activation.sleeping import LOST, Sleeper, StillAsleep
from gateway.activation.warming import Warming
from gateway.config.snapshot import Activation, EngineWake, Replica
from gateway.errors import Conflict
from gateway.fleet.probing import Target
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics
from tests.gateway.builders import Clock, a_pool, a_queue


class Activator:
    """Does what it is told when `let` is set."""

    can_cool = True

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.told: list[str] = []
        self.fails: str | None = None
        self.is_awake: bool | None = None

    async def wake(self) -> None:
        await self._do("wake")

    async def wake_replica(self, replica: Replica) -> None:
        pass

    async def cool(self) -> None:
        await self._do("cool")

    async def awake(self, replica: Replica) -> bool | None:
        return self.is_awake

    async def _do(self, what: str) -> None:
        self.told.append(what)
        await self.let.wait()
        if self.fails is not None:
            raise ActivationFailed(self.fails)


class Bed:
    """A sleeper over one replica; `well` is what its readiness probe says."""

    def __init__(self, state: str = "warm", **settings: Any) -> None:
        self.clock = Clock(1000.0)
        activation = Activation(EngineWake(), **{"timeout": 60.0, "idle_after": 300.0, **settings})
        self.pool = a_pool(engine="vllm", state=state, activation=activation)
        self.queue = a_queue(self.pool, self.clock)
        self.ledger = self.queue.ledgers[0]
        self.activator = Activator()
        self.tasks = TaskSet()
        self.metrics = Metrics()
        self.well = True
        self.learned: list[float] = []
        target = Target(self.ledger, Endpoint("http://127.0.0.1:9"), ("m",), lambda: None, lambda: None)
        warming = Warming(self.pool, {}, _no_rendering, Prefixes(), self.tasks, self.metrics)
        self.sleeper = Sleeper(
            self.pool,
            (target,),
            self.queue,
            warming,
            self.activator,
            clock=self.clock,
            tasks=self.tasks,
            metrics=self.metrics,
            learned=self.learned.append,
        )
        self.sleeper._prober.probe = self._probe  # type: ignore[method-assign]  # no socket is of interest here

    async def _probe(self, client: object, target: Target) -> bool:
        target.ledger.ready = self.well
        return self.well

    @property
    def state(self) -> str:
        return self.sleeper.machine.state

    async def come_to_rest(self) -> None:
        await self.tasks.wait(seconds=2)

    async def wake(self) -> None:
        self.activator.let.set()
        await self.sleeper.admit(5.0)
        await self.come_to_rest()


async def _no_rendering(*_: object) -> str:
    raise AssertionError("vLLM takes chats")


@pytest.fixture
async def bed():
    bed = Bed()
    yield bed
    await bed.tasks.aclose()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not holds():
            await asyncio.sleep(0.001)


async def test_the_learned_time_is_on_the_clock_that_is_passed_in(bed: Bed):
    task = asyncio.get_running_loop().create_task(bed.sleeper.admit(5.0))
    await until(lambda: bed.activator.told == ["wake"])
    bed.clock.tick(42.0)
    bed.activator.let.set()
    await task
    assert bed.learned == [42.0]
    assert bed.sleeper.statistics().wake_seconds == 42.0
    assert bed.ledger.hold is None


async def test_it_sleeps_when_its_time_has_come_and_not_before(bed: Bed):
    await bed.wake()
    bed.clock.tick(299.0)
    bed.sleeper.tick()
    assert bed.state == "awake"
    slot = bed.ledger.take(10, 10, lambda: None)
    bed.clock.tick(1000.0)
    bed.sleeper.tick()
    assert bed.state == "awake", "a request is in flight"
    slot.release()
    bed.clock.tick(300.0)
    bed.sleeper.tick()
    assert bed.ledger.hold == "asleep", "from this moment on nothing is sent there"
    await bed.come_to_rest()
    assert (bed.state, bed.activator.told) == ("asleep", ["wake", "cool"])


async def test_a_failed_wake_ends_every_wait_at_once(bed: Bed):
    bed.activator.fails = "no GPU left"
    bed.activator.let.set()
    results = await asyncio.gather(*(bed.sleeper.admit(5.0) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [StillAsleep] * 5
    assert bed.activator.told == ["wake"]
    assert bed.sleeper.statistics().held == 0
    assert all("GPU" not in str(result) for result in results)
    assert {result.final for result in results} == {False}  # type: ignore[union-attr]
    with pytest.raises(StillAsleep):
        await bed.sleeper.admit(5.0)
    bed.clock.tick(2.1)
    bed.activator.fails = None
    await bed.sleeper.admit(5.0)


async def test_awake_is_who_is_awake_and_well(bed: Bed):
    """Its activator has done its work; that alone is not enough."""
    bed.well = False
    bed.activator.let.set()
    with pytest.raises(StillAsleep):
        await bed.sleeper.admit(0.1)
    assert bed.state == "waking"
    bed.well, bed.activator.is_awake = True, False
    with pytest.raises(StillAsleep):
        await bed.sleeper.admit(0.1)
    bed.activator.is_awake = True
    await bed.sleeper.admit(5.0)


async def test_no_more_are_held_than_may_wait(bed: Bed):
    object.__setattr__(bed.pool.queue, "max_requests", 2)
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(bed.sleeper.admit(5.0))
        await until(lambda: bed.sleeper.statistics().held == 2)
        with pytest.raises(StillAsleep, match="too many"):
            await bed.sleeper.admit(5.0)
        bed.activator.let.set()


async def test_cooling_that_fails_leaves_it_in_service(bed: Bed):
    await bed.wake()
    bed.activator.fails = "its own mind"
    bed.sleeper.cool()
    await bed.come_to_rest()
    assert (bed.state, bed.ledger.hold) == ("awake", None)
    assert bed.sleeper.statistics().problem == "its own mind"


async def test_cooling_that_fails_half_way_leaves_it_asleep(bed: Bed):
    """Nothing is well any more: it is taken for asleep, and the next request wakes it."""
    await bed.wake()
    bed.activator.fails, bed.well = "half way", False
    bed.sleeper.cool()
    await bed.come_to_rest()
    assert (bed.state, bed.ledger.hold) == ("asleep", "asleep")
    bed.activator.fails, bed.well = None, True
    await bed.sleeper.admit(5.0)


async def test_by_hand_only_where_nobody_is_hurt(bed: Bed):
    bed.sleeper.wake()
    await until(lambda: bed.activator.told == ["wake"])
    with pytest.raises(Conflict):
        bed.sleeper.cool()
    bed.activator.let.set()
    await bed.sleeper.admit(5.0)
    slot = bed.ledger.take(1, 1, lambda: None)
    with pytest.raises(Conflict):
        bed.sleeper.cool()
    slot.release()
    bed.activator.can_cool = False
    with pytest.raises(Conflict, match="says no `cool`"):
        bed.sleeper.cool()


async def test_one_that_is_gone_for_several_looks_is_asleep(bed: Bed):
    await bed.wake()
    bed.ledger.ready = False
    for _ in range(LOST - 1):
        await bed.sleeper.look()
    assert bed.state == "awake"
    await bed.sleeper.look()
    assert (bed.state, bed.ledger.hold) == ("asleep", "asleep")


@pytest.mark.parametrize(("state", "found"), [("cold", True), ("warm", False)])
async def test_who_is_well_without_our_doing(state: str, found: bool):
    """An engine that cannot be asked whether it sleeps: where sleep means not to be there, it does not."""
    bed = Bed(state)
    await bed.sleeper.look()
    assert (bed.state == "awake") is found
    await bed.tasks.aclose()


async def test_pods_that_are_to_end_are_not_taken_for_woken():
    """They are well for a while after they were told; they must have been down in between."""
    bed = Bed("cold")
    await bed.wake()
    bed.sleeper.cool()
    await bed.come_to_rest()
    for _ in range(3):
        await bed.sleeper.look()
        assert bed.state == "asleep"
    bed.well = False
    await bed.sleeper.look()
    bed.well = True
    await bed.sleeper.look()
    assert bed.state == "awake"
    await bed.tasks.aclose()


async def test_a_hot_one_is_kept_awake_unless_it_was_put_to_sleep():
    bed = Bed("hot", idle_after=None)
    bed.activator.let.set()
    bed.activator.fails = "not yet"
    bed.sleeper.tick()
    await bed.come_to_rest()
    bed.sleeper.tick()
    assert bed.activator.told == ["wake"], "it failed a moment ago"
    bed.clock.tick(3.0)
    bed.activator.fails = None
    bed.sleeper.tick()
    await bed.come_to_rest()
    assert bed.state == "awake"
    bed.sleeper.cool()
    await bed.come_to_rest()
    bed.clock.tick(100.0)
    bed.sleeper.tick()
    assert bed.state == "asleep"
    await bed.tasks.aclose()


async def test_who_is_retired_puts_nobody_to_sleep(bed: Bed):
    await bed.wake()
    bed.sleeper.retire()
    bed.clock.tick(10_000.0)
    bed.sleeper.tick()
    assert bed.state == "awake"


def test_a_question_for_the_load_goes_to_its_own_port():
    from gateway.activation.sleeping import _at_port

    endpoint = Endpoint("http://[::1]:8000", {"a": "b"})
    assert _at_port(endpoint, 8002) == Endpoint("http://[::1]:8002", {"a": "b"})
    assert _at_port(endpoint, None) is endpoint
