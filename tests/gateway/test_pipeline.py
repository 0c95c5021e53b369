"""The whole way with scripted engines: whatever happens, slots and reservations come back. (What clients see
is tested end to end, with simulated engines.)"""

import asyncio
from collections.abc import Sequence

import pytest

from backends.contract import Delta, Done, Event, Usage
from gateway.answering.answer import Answer
from gateway.config.snapshot import Timeouts
from gateway.errors import ClientGone, EngineFailed, EngineTimeout, GatewayError
from gateway.fallbacks import Attempts, RetryBudget
from gateway.limits.limiter import Limiter
from gateway.limits.memory import MemoryStore
from gateway.mirroring import Mirroring
from gateway.pipeline import Pipeline
from gateway.routing.degrading import Brownout
from gateway.runtime import Leases
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from gateway.telemetry.tracing import NoTracing
from gateway.tokens.counting import Counting
from gateway.tokens.estimating import OutputLengths
from tests.gateway.builders import Clock, a_call, a_limit, a_pool, a_queue, a_rule, a_snapshot, a_tenant
from tests.gateway.engines import ScriptedEngine, an_error
from tests.gateway.suspensions import cancel_everywhere

LIMIT = 10_000


class Paper:
    """A reply that keeps what it was told; a `whole` one starts with the end. After `stuck` events no
    write ends."""

    def __init__(self, stuck: int | None = None, whole: bool = False) -> None:
        self._whole = whole
        self.started = self.answered = False
        self.comments: list[str] = []
        self.events: list[Event] = []
        self.failed: GatewayError | None = None
        self._stuck = stuck

    def begin(self, answer: Answer) -> None:
        pass

    async def write(self, events: Sequence[Event]) -> None:
        await asyncio.sleep(0)
        if self._stuck is not None and len(self.events) >= self._stuck:
            await asyncio.get_running_loop().create_future()
        self.started = self.answered = self.answered or not self._whole or isinstance(events[-1], Done)
        self.events += events

    async def comment(self, text: str) -> None:
        if not self._whole:
            self.started = True
            self.comments.append(text)

    async def fail(self, error: GatewayError) -> None:
        if self._stuck is not None:
            await asyncio.get_running_loop().create_future()
        self.failed = error


class House:
    def __init__(
        self,
        *scripts,
        stuck: int | None = None,
        whole: bool = False,
        comments: float | None = None,
        **timeouts: float,
    ) -> None:
        self.clock = Clock(100.0)
        self.engine = ScriptedEngine(*scripts)
        pool = a_pool(in_flight=1, timeouts=Timeouts(**timeouts))
        self.tenant = a_tenant()
        limits = (
            a_limit(LIMIT),
            a_limit(10, "requests"),
            a_limit(10, "concurrent"),
            a_limit(LIMIT, "tokens_in_flight"),
        )
        self.snapshot = snapshot = a_snapshot(
            pools=[pool], tenants=[self.tenant], limits=limits, rules=[a_rule(queue_comments=comments)]
        )
        self.queue = a_queue(pool, self.clock, {"r1": self.engine})
        counting, metrics = Counting.build(snapshot), Metrics()
        self.store = MemoryStore(self.clock)
        self.limiter = Limiter(snapshot, self.store, metrics, self.clock)
        attempts = Attempts({"pool": self.queue}, counting, RetryBudget(self.clock), metrics, self.clock)
        queues = {"pool": self.queue}
        self.lengths = OutputLengths()
        self.pipeline = Pipeline(
            snapshot=snapshot,
            counting=counting,
            lengths=self.lengths,
            brownout=Brownout({"pool": self.queue.scheduler}, self.clock),
            limiter=self.limiter,
            attempts=attempts,
            mirroring=Mirroring(queues, attempts, TaskSet(), Leases(), metrics, self.clock),
            metrics=metrics,
            tracing=NoTracing(),
            clock=self.clock,
        )
        self.reply = Paper(stuck, whole)
        self.record = RecordBook().open("call-1", "POST", "/", self.clock)

    async def serve(self) -> None:
        call = a_call(stream=True, tenant=self.tenant, received=100.0)
        await self.pipeline.serve(call, self.reply, self.record)

    async def charged(self) -> tuple[float, float]:
        """(tokens, requests) that the tenant has paid."""
        tokens, requests, *_ = await self.limiter.rows(self.snapshot)
        return tokens.used, requests.used

    def assert_at_rest(self) -> None:
        statistics = self.queue.statistics()
        assert (statistics.in_flight, statistics.waiting, statistics.outstanding_tokens) == (0, 0, 0)
        assert all(generation.cancelled for generation in self.engine.generations)
        assert (self.store.open, self.store.held()) == (0, {})


def text(count: int) -> list[list[Event]]:
    return [[Delta(text="x", tokens=1)] for _ in range(count)]


END: list[Event] = [Usage(prompt_tokens=7, completion_tokens=3), Done()]


async def test_a_good_answer_is_charged_as_the_engine_says():
    house = House([*text(3), END])
    await house.serve()
    assert len(house.reply.events) == 5
    assert await house.charged() == (10, 1)
    assert (house.record.completion_tokens, house.record.usage_source) == (3, "engine")
    house.assert_at_rest()


async def test_without_usage_it_is_charged_as_counted():
    house = House([*text(3), [Done()]])
    await house.serve()
    assert await house.charged() == (house.record.prompt_tokens + 3, 1)
    assert house.record.usage_source == "counted"


async def test_nothing_sent_is_nothing_paid():
    """The engine broke before the first event."""
    house = House(an_error("engine", retryable=False))
    with pytest.raises(EngineFailed):
        await house.serve()
    assert await house.charged() == (0, 0)
    house.assert_at_rest()


async def test_a_whole_answer_that_broke_is_not_paid():
    """Tokens came, but the client sees none of them: it gets a status, and everything back."""
    house = House([*text(2), an_error("engine")], whole=True)
    with pytest.raises(EngineFailed):
        await house.serve()
    assert await house.charged() == (0, 0)
    assert house.record.outcome is None, "the rings outside decide"
    house.assert_at_rest()


async def test_what_was_sent_of_a_broken_answer_is_paid_and_the_client_is_told():
    """F4."""
    house = House([*text(2), an_error("engine")])
    await house.serve()
    assert isinstance(house.reply.failed, EngineFailed)
    assert house.record.outcome == "failed"
    assert await house.charged() == (house.record.prompt_tokens + 2, 1)
    house.assert_at_rest()


async def test_an_engine_that_falls_silent():
    """F8: told, paid as far as it came, and stopped."""
    house = House([*text(1), None], idle=0.01)
    await house.serve()
    assert isinstance(house.reply.failed, EngineTimeout)
    house.assert_at_rest()


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param(text(3), id="in the middle"),
        pytest.param([*text(1), an_error("engine")], id="while it is told of a failure"),
    ],
)
async def test_a_client_that_reads_nothing_is_left(scripts):
    """I12: every write is bounded, the last one too; the slot is not kept for somebody who sleeps."""
    house = House(scripts, stuck=1, send=0.01)
    with pytest.raises(ClientGone):
        async with asyncio.timeout(5):
            await house.serve()
    house.assert_at_rest()


SCENARIOS = {
    "good": lambda: House([*text(3), END]),
    "broken in the middle": lambda: House([*text(2), an_error("engine")]),
    "broken before": lambda: House(an_error("engine", retryable=False)),
}


@pytest.mark.parametrize("when", ["waiting", "as it ends"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_cancelled_at_any_point_nothing_is_left_and_only_what_was_sent_is_paid(name, when):
    """Technique 1, from counting to settling: I1, I2."""
    house: House | None = None

    async def scenario() -> None:
        nonlocal house
        house = SCENARIOS[name]()
        await house.serve()

    async def check(outcome) -> None:
        assert house is not None
        house.assert_at_rest()
        tokens, requests = await house.charged()
        answered = bool(house.engine.generations) and house.record.stage == "streaming"
        if not house.record.attempts:
            assert (tokens, requests) == (0, 0)
        elif not house.reply.events and not answered:
            # Whoever leaves while an engine reads the prompt pays for the prompt; a failure is free.
            assert (tokens, requests) in ((0, 0), (house.record.prompt_tokens, 1))
        else:
            assert requests in (0, 1)
            assert 0 <= tokens <= house.record.prompt_tokens + 3
        assert asyncio.all_tasks() == {asyncio.current_task()}

    assert await cancel_everywhere(scenario, check, when) >= 1


# ------------------------------------------------------------------------------- comments while it waits


async def test_who_waits_is_told_and_then_answered():
    house = House([*text(3), END], comments=0.005)
    other = house.queue.acquire_nowait(10, 10)
    assert other is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(house.serve())
        async with asyncio.timeout(5):
            while not house.reply.comments:
                await asyncio.sleep(0.001)
        assert house.reply.started
        assert not house.reply.answered
        other.release()
    assert house.reply.comments[-1].startswith("headgate queue position=1 expected_wait_ms=")
    assert len(house.reply.events) == 5
    assert await house.charged() == (10, 1)
    house.assert_at_rest()


async def test_what_fails_after_a_comment_is_told_in_the_stream_and_costs_nothing():
    house = House(an_error("engine", retryable=False), comments=0.005)
    other = house.queue.acquire_nowait(10, 10)
    assert other is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(house.serve())
        async with asyncio.timeout(5):
            while not house.reply.comments:
                await asyncio.sleep(0.001)
        other.release()
    assert isinstance(house.reply.failed, EngineFailed)
    assert (house.record.outcome, house.record.error_code) == ("failed", "upstream_error")
    assert await house.charged() == (0, 0)
    house.assert_at_rest()


async def test_an_answer_that_breaks_before_its_first_event_left_costs_nothing():
    """The status has gone with a comment, but nothing of the answer."""
    house = House([[Delta(index=7, text="x", tokens=1)]], comments=0.005)  # nobody asked for eight
    other = house.queue.acquire_nowait(10, 10)
    assert other is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(house.serve())
        async with asyncio.timeout(5):
            while not house.reply.comments:
                await asyncio.sleep(0.001)
        other.release()
    assert isinstance(house.reply.failed, EngineFailed)
    assert not house.reply.answered
    assert await house.charged() == (0, 0)
    house.assert_at_rest()


async def test_a_whole_answer_waits_in_silence():
    """There is no stream that could be told."""
    house = House(an_error("engine", retryable=False), comments=0.005, whole=True)
    call = a_call(stream=False, tenant=house.tenant, received=100.0)
    other = house.queue.acquire_nowait(10, 10)
    assert other is not None
    asyncio.get_running_loop().call_later(0.03, other.release)
    with pytest.raises(EngineFailed):
        await house.pipeline.serve(call, house.reply, house.record)
    assert house.reply.comments == []
    house.assert_at_rest()


async def test_silence_in_a_stream_gets_comments_until_it_is_too_long():
    house = House([*text(1), None], idle=0.1, keepalive=0.02)
    await house.serve()
    assert 2 <= len(house.reply.comments) <= 5
    assert set(house.reply.comments) == {"headgate keep-alive"}
    assert isinstance(house.reply.failed, EngineTimeout)
    house.assert_at_rest()
