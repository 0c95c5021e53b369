"""The attempt loop: in which order, how often, for which reasons; and no slot is ever left behind."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from backends.contract import Delta, Done, ErrorKind, Usage
from gateway.answer import Answer
from gateway.config.snapshot import Policy, PriorityClass, QueueBounds, Timeouts
from gateway.engine_errors import gateway_error_of
from gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineFailed,
    EngineTimeout,
    GatewayError,
    Unavailable,
    UnsupportedByEngine,
)
from gateway.fallbacks import (
    MAX_ATTEMPTS,
    STEP_BUDGET,
    Attempts,
    RetryBudget,
    pool_failed,
    streams_upstream,
)
from gateway.fleet.ledger import Slot
from gateway.limits.limiter import Limiter
from gateway.limits.memory import MemoryStore
from gateway.queueing.pool_queue import lend
from gateway.routing.router import choose_route
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from gateway.tokens.counting import Counting
from tests.gateway.builders import Clock, a_call, a_limit, a_pool, a_queue, a_rule, a_snapshot, an_estimate
from tests.gateway.engines import GOOD, ScriptedEngine, an_answer, an_error
from tests.gateway.suspensions import cancel_everywhere

BROKEN = an_error("engine")
REFUSED = an_error("engine", "refused", reached=False, retryable=True)
OVERLOADED = an_error("overloaded")
TOO_LONG = an_error("context_length", "too long", retryable=False)
CLIENT = an_error("client", "bad temperature", retryable=False, param="temperature")
FATAL = an_error("engine", retryable=False)


class Town:
    """Pools of scripted engines, one rule over all of them, and one request."""

    def __init__(
        self, pools: dict[str, dict[str, ScriptedEngine]], *, pool_fields=None, limits=(), **rule_fields
    ) -> None:
        fields = pool_fields or {}
        self.engines = {(pool, name): it for pool, engines in pools.items() for name, it in engines.items()}
        self.pools = {
            name: a_pool(name, replicas=engines, **{"in_flight": 1, **fields.get(name, {})})
            for name, engines in pools.items()
        }
        self.clock = Clock(100.0)
        self.snapshot = a_snapshot(
            pools=self.pools.values(), rules=[a_rule(pools=list(pools), **rule_fields)], limits=limits
        )
        self.queues = {
            name: a_queue(pool, self.clock, pools[name]) for name, pool in self.pools.items()
        }  # fmt: skip
        lend(self.queues)
        self.others: Slot | None = None
        """In the first pool, what others hold."""
        self.metrics, self.budget, self.book = Metrics(), RetryBudget(self.clock), RecordBook()
        counting = Counting.build(self.snapshot)  # its threads start with the first text that needs them
        self.attempts = Attempts(self.queues, counting, self.budget, self.metrics, self.clock)
        self.store = MemoryStore(self.clock)
        self.limiter = Limiter(self.snapshot, self.store, self.metrics, self.clock)
        self.record = self.book.open("id-1", "POST", "/", self.clock)

    async def ask(self, call=None, estimate=None) -> Answer:
        call = call or a_call(received=100.0)
        estimate = estimate or an_estimate()
        self.record = self.book.open("id-1", "POST", "/", self.clock)
        route = choose_route(self.snapshot, call, estimate)
        pools = [target.pool.name for target in route.chain if target.usable]
        with await self.limiter.reserve(call, estimate, pools[:1]) as reservation:
            return await self.attempts.first_answer(call, route, estimate, self.record, reservation)

    async def refusal(self, *args, **kwargs) -> GatewayError:
        with pytest.raises(GatewayError) as raised:
            await self.ask(*args, **kwargs)
        self.assert_at_rest()
        return raised.value

    @property
    def sent(self) -> dict[str, int]:
        """Requests per `pool/replica`, those without any left out."""
        return {f"{p}/{r}": len(it.requests) for (p, r), it in self.engines.items() if it.requests}

    def occupy(self, pool: str) -> list:
        """Take every slot of a pool, for somebody else."""
        queue = self.queues[pool]
        return [ledger.take(1, 1, queue.dispatch) for ledger in queue.ledgers]

    def assert_at_rest(self, *, held: int = 0) -> None:
        """I1, I4: slots, tokens and attempts balance."""
        for queue in self.queues.values():
            assert queue.statistics().in_flight == held
            assert queue.statistics().waiting == 0
            assert held or queue.statistics().outstanding_tokens == 0
        for engine in self.engines.values():
            assert all(generation.cancelled for generation in engine.generations)
        for pool in self.pools:
            outcomes = ("ok", "error", "cancelled", "preempted")
            counted = sum(self.metrics.attempts.labels(pool, each)._value.get() for each in outcomes)
            assert counted == sum(n for name, n in self.sent.items() if name.startswith(f"{pool}/"))


def good(*scripts) -> ScriptedEngine:
    return ScriptedEngine(*scripts, GOOD)


def bad(script=BROKEN) -> ScriptedEngine:
    return ScriptedEngine(script)


# --------------------------------------------------------------------------------------- the good way


async def test_the_first_pool_answers():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}})
    with await town.ask() as answer:
        assert answer.first == [Delta(text="hi", tokens=1)]
        assert answer.target.pool.name == "a"
        assert town.queues["a"].statistics().in_flight == 1
        assert town.queues["a"].statistics().outstanding_tokens == 15
    assert town.sent == {"a/r1": 1}
    record = town.record
    assert (record.pool, record.replica, record.attempts, record.stage) == ("a", "r1", 1, "waiting")
    town.assert_at_rest()


async def test_the_request_is_put_in_the_pools_words():
    """Its model name, its bound, whether it streams; the rest as it came."""
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"total": 30}}, fit="clamp")
    with await town.ask(
        a_call(stream=True, asked=50, received=100.0, n=2), an_estimate(10, asked=50)
    ) as answer:
        (request,) = town.engines["a", "r1"].requests
        assert (request.model, request.max_tokens, request.stream, request.n) == ("engine-llama", 20, True, 2)
        assert request.messages == answer.call.request.messages
        assert request.rendered is None
        assert answer.sent_max_tokens == 20
    assert (town.record.max_tokens, town.record.max_tokens_by) == (20, "pool a")


@pytest.mark.parametrize(
    ("bound", "total", "by"),
    [(None, None, None), (30, None, "model"), (30, 25, "pool a"), (30, 100, "model")],
)
async def test_what_cut_the_output_is_recorded(bound, total, by):
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"total": total}}, fit="clamp")
    estimate = an_estimate(10, asked=50, bound=50 if bound is None else bound)
    (await town.ask(a_call(asked=50, received=100.0), estimate)).release()
    assert town.record.max_tokens_by == by


async def test_all_output_of_all_prompts_is_in_the_books():
    """prompt + prompts x n x output: the ledger holds what the estimate says."""
    town = Town({"a": {"r1": good()}})
    with await town.ask(estimate=an_estimate(12, 5, prompts=3)):
        assert town.queues["a"].statistics().outstanding_tokens == 27


# ---------------------------------------------------------------------------------- replicas of a pool


async def test_replicas_are_tried_best_first_each_at_most_once():
    order = []

    class Noted(ScriptedEngine):
        def __init__(self, name: str) -> None:
            super().__init__(BROKEN)
            self.name = name

        async def generate(self, request):
            order.append(self.name)
            return await super().generate(request)

    town = Town({"a": {name: Noted(name) for name in ("x", "y", "z")}}, pool_fields={"a": {"in_flight": 5}})
    for name, tokens in (("x", 30), ("y", 10), ("z", 20)):
        ledger = next(each for each in town.queues["a"].ledgers if each.replica.id == name)
        ledger.outstanding_tokens = tokens
    with pytest.raises(EngineFailed):
        await town.ask()
    assert order == ["y", "z", "x"]
    assert town.record.attempts == 3


@pytest.mark.parametrize("error", [BROKEN, REFUSED, OVERLOADED])
async def test_the_next_replica_answers_where_one_failed(error):
    town = Town({"a": {"r1": bad(error), "r2": good()}})
    with await town.ask() as answer:
        assert answer.slot.ledger.replica.id == "r2"
        assert town.queues["a"].statistics().in_flight == 1
    assert town.record.attempts == 2
    assert town.queues["a"].ledgers[0].last_error is not None
    town.assert_at_rest()


@pytest.mark.parametrize("error", [CLIENT, FATAL, TOO_LONG])
async def test_what_no_replica_would_do_better_is_tried_once(error):
    town = Town({"a": {"r1": bad(error), "r2": good()}})
    await town.refusal()
    assert town.sent == {"a/r1": 1}


async def test_an_error_in_the_first_events_counts_like_one_before():
    """F16: a 200 whose first event is an error."""
    town = Town({"a": {"r1": bad([BROKEN]), "r2": good()}})
    with await town.ask():
        pass
    assert town.sent == {"a/r1": 1, "a/r2": 1}
    assert town.engines["a", "r1"].generations[0].cancelled
    town.assert_at_rest()


async def test_a_replica_that_cannot_be_reached_is_avoided_next_time():
    """F1; and one that answers is well again."""
    town = Town({"a": {"r1": bad(REFUSED), "r2": good()}})
    for _ in range(2):
        (await town.ask()).release()
    assert town.sent == {"a/r1": 1, "a/r2": 2}
    assert town.queues["a"].ledgers[0].cooling()
    assert town.record.attempts == 1


async def test_a_replica_that_answers_is_well_again():
    """Tried as the last resort, it ends its own cool-down."""
    town = Town({"a": {"r1": good(REFUSED)}})
    await town.refusal()
    assert town.queues["a"].ledgers[0].cooling()
    (await town.ask()).release()
    assert not town.queues["a"].ledgers[0].cooling()


async def test_a_replica_that_broke_but_was_reached_is_not_avoided():
    """4xx and backpressure are not death (vrouter#60, sglang#39464)."""
    for error in (BROKEN, OVERLOADED, CLIENT):
        town = Town({"a": {"r1": bad(error)}})
        await town.refusal()
        assert not town.queues["a"].ledgers[0].cooling()


async def test_at_most_four_sends():
    town = Town({"a": {f"r{i}": bad() for i in range(9)}, "b": {"r1": good()}})
    await town.refusal()
    assert town.record.attempts == MAX_ATTEMPTS
    assert sum(town.sent.values()) == MAX_ATTEMPTS
    assert "b/r1" not in town.sent


async def test_the_first_event_is_waited_for_so_long():
    """F7: 504, not sent again, the slot is free, the connection is dropped."""
    timeouts = Timeouts(first_token=0.01)
    for script in (None, [None]):
        town = Town(
            {"a": {"r1": ScriptedEngine(script), "r2": good()}},
            pool_fields={"a": {"timeouts": timeouts}},
            on=frozenset(),
        )
        error = await town.refusal(a_call(stream=True, received=100.0))
        assert isinstance(error, EngineTimeout)
        assert town.sent == {"a/r1": 1}


async def test_an_unstreamed_answer_may_take_as_long_as_the_request():
    """Its first event is its last: `first_token` does not apply."""
    timeouts = Timeouts(first_token=0.0, total=5.0)
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"timeouts": timeouts}})
    (await town.ask()).release()


async def test_a_request_past_its_deadline_is_not_waited_for():
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"timeouts": Timeouts(total=5.0)}})
    slots = town.occupy("a")
    with pytest.raises(EngineTimeout):
        async with asyncio.timeout(1):
            await town.ask(a_call(received=90.0))
    for slot in slots:
        slot.release()
    town.assert_at_rest()


# ------------------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize(
    ("error", "on", "hops"),
    [
        (FATAL, {"failed"}, True),
        (FATAL, {"unavailable", "overloaded", "too_long"}, False),
        (REFUSED, {"unavailable"}, True),
        (REFUSED, {"failed", "overloaded", "too_long"}, False),
        (OVERLOADED, {"overloaded"}, True),
        (OVERLOADED, {"failed", "unavailable", "too_long"}, False),
        (TOO_LONG, {"too_long"}, True),
        (TOO_LONG, {"failed", "unavailable", "overloaded"}, False),
        (CLIENT, {"failed", "unavailable", "overloaded", "too_long"}, False),
        (an_error("unsupported"), {"failed", "unavailable", "overloaded", "too_long"}, False),
        (an_error("timeout"), {"failed"}, True),
        (an_error("not_found"), {"failed"}, True),
        (an_error("auth"), {"failed"}, True),
    ],
)
async def test_a_hop_is_taken_only_for_a_reason_of_the_rule(error, on, hops):
    town = Town({"a": {"r1": bad(error)}, "b": {"r1": good()}}, on=frozenset(on))
    if hops:
        with await town.ask() as answer:
            assert answer.target.pool.name == "b"
        assert town.record.pool == "b"
        town.assert_at_rest()
    else:
        await town.refusal()
        assert town.sent == {"a/r1": 1}


async def test_the_default_reasons():
    town = Town({"a": {"r1": bad(REFUSED)}, "b": {"r1": bad(FATAL)}, "c": {"r1": good()}})
    with await town.ask() as answer:
        assert answer.target.pool.name == "c"


async def test_all_replicas_are_tried_before_the_next_pool():
    town = Town({"a": {"r1": bad(), "r2": bad()}, "b": {"r1": good()}})
    with await town.ask():
        assert town.sent == {"a/r1": 1, "a/r2": 1, "b/r1": 1}


async def test_the_last_failure_is_told():
    town = Town({"a": {"r1": bad(FATAL)}, "b": {"r1": bad(an_error("timeout"))}})
    assert isinstance(await town.refusal(), EngineTimeout)
    town = Town({"a": {"r1": bad(an_error("timeout"))}, "b": {"r1": bad(FATAL)}})
    assert isinstance(await town.refusal(), EngineFailed)


FULL = {"overloaded", "unavailable", "failed"}


async def test_a_full_pool_is_left_after_so_long():
    """`after_ms` in the queue of the first pool, then the next one."""
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, on=frozenset(FULL), after=0.01)
    slots = town.occupy("a")
    with await town.ask() as answer:
        assert answer.target.pool.name == "b"
    assert town.sent == {"b/r1": 1}
    for slot in slots:
        slot.release()
    town.assert_at_rest()


async def test_within_that_time_the_first_pool_may_still_answer():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, on=frozenset(FULL), after=5.0)
    (slot,) = town.occupy("a")
    asyncio.get_running_loop().call_later(0.01, slot.release)
    with await town.ask() as answer:
        assert answer.target.pool.name == "a"


async def test_the_last_usable_pool_is_waited_for_as_long_as_its_queue_says():
    """`after_ms` would only lead to a refusal there; a pool that cannot take the request is no way out."""
    bounds = {"queue": QueueBounds(max_wait=0.02)}
    town = Town(
        {"a": {"r1": good()}, "b": {"r1": good()}},
        pool_fields={"a": bounds, "b": {"state": "cold"}},
        on=frozenset(FULL),
        after=0.0,
    )
    (slot,) = town.occupy("a")
    asyncio.get_running_loop().call_later(0.005, slot.release)
    with await town.ask() as answer:
        assert answer.target.pool.name == "a"


async def test_without_the_reason_a_full_pool_is_waited_for():
    town = Town(
        {"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields={"a": {"queue": QueueBounds(max_wait=0.01)}}
    )
    slots = town.occupy("a")
    with pytest.raises(Unavailable) as refused:
        await town.ask()
    assert refused.value.reason == "queue_timeout"
    assert town.sent == {}
    for slot in slots:
        slot.release()


async def test_a_failure_is_told_rather_than_the_wait_for_another_replica():
    """r1 broke, r2 stays full: the engine's failure is the news."""
    town = Town({"a": {"r1": bad(), "r2": good()}}, pool_fields={"a": {"queue": QueueBounds(max_wait=0.01)}})
    slot = town.queues["a"].ledgers[1].take(1, 1, town.queues["a"].dispatch)
    with pytest.raises(EngineFailed):
        await town.ask()
    slot.release()
    town.assert_at_rest()


# ------------------------------------------------------------------------------------------------- fit

SHORT = {"a": {"total": 20}}


def asks(tokens: int = 50):
    return a_call(asked=tokens, received=100.0), an_estimate(10, asked=tokens)


async def test_next_passes_over_the_pool_that_is_too_small():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields=SHORT, fit="next")
    with await town.ask(*asks()) as answer:
        assert answer.target.pool.name == "b"
        assert answer.sent_max_tokens == 50
    assert town.record.max_tokens_by is None


async def test_clamp_sends_less():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields=SHORT, fit="clamp")
    with await town.ask(*asks()) as answer:
        assert answer.target.pool.name == "a"
        assert answer.sent_max_tokens == 10


async def test_refuse_refuses_and_sends_nothing():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields=SHORT, fit="refuse")
    error = await town.refusal(*asks())
    assert isinstance(error, ContextLengthExceeded)
    assert error.param == "max_tokens"
    assert town.sent == {}
    assert town.record.attempts == 0


async def test_refuse_speaks_of_output_a_pool_too_small_for_the_prompt_is_skipped():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields={"a": {"prompt": 5}}, fit="refuse")
    with await town.ask(*asks()) as answer:
        assert answer.target.pool.name == "b"


async def test_a_pool_that_failed_is_told_rather_than_one_behind_it_that_is_too_small():
    """The request was good for the first pool: a 400 would tell the client never to try again."""
    town = Town({"a": {"r1": bad()}, "b": {"r1": good()}}, pool_fields={"b": {"total": 20}}, fit="refuse")
    assert isinstance(await town.refusal(*asks()), EngineFailed)


async def test_no_usable_pool_at_all():
    town = Town({"a": {"r1": good()}}, pool_fields=SHORT)
    assert isinstance(await town.refusal(*asks()), ContextLengthExceeded)
    assert town.sent == {}


# -------------------------------------------------------------------------------------------- budgets


async def test_an_exhausted_budget_ends_the_retries():
    town = Town({"a": {"r1": bad(), "r2": good()}})
    while town.budget.withdraw():
        pass
    await town.refusal()
    assert town.sent == {"a/r1": 1}


async def test_where_no_replica_is_left_no_retry_is_charged():
    town = Town({"a": {"r1": bad()}})
    for _ in range(300):
        await town.refusal()
    assert town.budget.withdraw()
    assert town.budget._balance == pytest.approx(RetryBudget.CAP - 1)


def test_a_budget_is_a_fifth_of_the_requests_and_ten_a_second():
    clock = Clock()
    budget = RetryBudget(clock)
    assert sum(budget.withdraw() for _ in range(1000)) == 100, "the balance at the start"
    for _ in range(11):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    clock.tick(0.5)
    assert sum(budget.withdraw() for _ in range(100)) == 5
    clock.tick(3600)
    assert sum(budget.withdraw() for _ in range(1000)) == 100, "capped"


def test_a_clock_that_steps_back_gives_no_retries():
    clock = Clock(100.0)
    budget = RetryBudget(clock)
    while budget.withdraw():
        pass
    for now in (0.0, 100.0, 50.0, 100.0):
        clock.now = now
        assert not budget.withdraw()


@given(st.lists(st.one_of(st.just("request"), st.just("retry"), st.floats(0, 3)), max_size=200))
def test_retries_never_pass_the_budget(trace):
    """P9, over any trace: start + a fifth of the requests + ten a second."""
    clock = Clock()
    budget = RetryBudget(clock)
    requests = retries = 0
    for step in trace:
        if step == "request":
            requests += 1
            budget.deposit()
        elif step == "retry":
            retries += budget.withdraw()
        else:
            clock.tick(step)
        assert retries <= 100 + 0.2 * requests + 10 * clock.now + 1e-6


# ---------------------------------------------------------------------------------------------- cancel

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


# ------------------------------------------------------------------------------------ lent replicas


def lending(engine: ScriptedEngine | None = None, *, fields=None, **rule_fields) -> Town:
    """Pool a is full, and b (of another kind) lends to it."""
    town = Town(
        {"a": {"a1": good()}, "b": {"b1": engine or ScriptedEngine(engine="vllm")}},
        pool_fields={"b": {"engine": "vllm", "lends_to": ("a",), "in_flight": 4, **(fields or {})}},
        **rule_fields,
    )
    (town.others,) = town.occupy("a")
    asyncio.get_running_loop().call_later(0.01, town.others.release)
    return town


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


# ---------------------------------------------------------------------------------------- preempted


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


# ------------------------------------------------------------------------------------------- the answer


def test_an_answer_is_released_once():
    answer = an_answer(a_call(), a_pool(), GOOD)
    ledger = answer.slot.ledger
    with answer:
        answer.note([Delta(text="a", tokens=3)])
        assert ledger.outstanding_tokens == 2
    answer.release()
    assert (ledger.in_flight, ledger.outstanding_tokens) == (0, 0)
    assert answer.generation.cancelled


def test_an_answer_keeps_the_latest_usage():
    """aigw#1633: a later event that tells less takes nothing away. Zero is a figure."""
    answer = an_answer(a_call(), a_pool())
    answer.note([Delta(text="a", tokens=2), Usage(prompt_tokens=5, completion_tokens=1)])
    answer.note([Usage(completion_tokens=2), Usage(cached_tokens=0)])
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (5, 2, 0)
    assert not answer.ended
    answer.note([Usage(completion_tokens=0), Done()])
    assert (answer.completion_tokens, answer.counted_tokens, answer.ended) == (0, 2, True)


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        (Usage(prompt_tokens=16, cached_tokens=16), 16),
        (Usage(prompt_tokens=16, cached_tokens=17), None),
        (Usage(prompt_tokens=16, cached_tokens=10**9), None),
        (Usage(prompt_tokens=10**9, cached_tokens=10**9), None),
        (Usage(cached_tokens=10**9), None),
        (Usage(cached_tokens=3), 3),
    ],
)
def test_no_more_of_a_prompt_is_cached_than_there_is(usage: Usage, cached: int | None):
    answer = an_answer(a_call(), a_pool())
    answer.note([usage])
    assert answer.cached_tokens == cached


# ------------------------------------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("error", "kind", "reason", "status"),
    [
        (CLIENT, BadRequest, None, 400),
        (an_error("unsupported"), UnsupportedByEngine, None, 400),
        (TOO_LONG, ContextLengthExceeded, "too_long", 400),
        (OVERLOADED, Unavailable, "overloaded", 503),
        (an_error("timeout"), EngineTimeout, "failed", 504),
        (an_error("not_found"), EngineFailed, "failed", 502),
        (an_error("auth"), EngineFailed, "failed", 502),
        (BROKEN, EngineFailed, "failed", 502),
        (REFUSED, Unavailable, "unavailable", 503),
    ],
)
def test_engine_errors_in_the_clients_vocabulary(error, kind, reason, status):
    failed = pool_failed(error, a_call())
    assert type(failed.error) is kind
    assert (failed.reason, failed.error.status) == (reason, status)


@pytest.mark.parametrize("kind", ErrorKind)
@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize(
    "message", ["", "Traceback: secret", "at http://secret:8000", "secret \x00\n/opt/secret/x"]
)
def test_no_engine_error_is_a_500_or_tells_a_secret(kind, reached, message):
    """For every kind there is, S8."""
    error = gateway_error_of(an_error(kind.value, message, reached=reached, retryable=False), a_call())
    assert error.status in (400, 502, 503, 504)
    assert error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("kind", ["timeout", "not_found", "auth", "engine", "overloaded"])
def test_only_a_clients_own_fault_is_told_in_the_engines_words(kind):
    assert "plain words" not in gateway_error_of(an_error(kind, "plain words"), a_call()).message
    assert gateway_error_of(an_error("client", "plain words"), a_call()).message == "plain words"


def test_the_field_at_fault_is_named():
    assert gateway_error_of(CLIENT, a_call()).param == "temperature"
    assert gateway_error_of(TOO_LONG, a_call()).param == "messages"
    assert gateway_error_of(TOO_LONG, a_call(dialect="completions")).param == "prompt"


@pytest.mark.parametrize(("told", "expected"), [(None, 1.0), (7.0, 7.0), (900.0, 60.0)])
def test_an_overloaded_engine_may_say_when(told, expected):
    error = an_error("overloaded", retry_after=told)
    assert gateway_error_of(error, a_call()).retry_after == expected


@pytest.mark.parametrize(
    ("setting", "client", "total", "streams"),
    [
        ("auto", True, 1, True),
        ("auto", False, STEP_BUDGET, False),
        ("auto", False, STEP_BUDGET + 1, True),
        ("always", False, 1, True),
        ("client", False, 10 * STEP_BUDGET, False),
        ("client", True, 1, True),
    ],
)
def test_whether_the_engine_is_asked_to_stream(setting, client, total, streams):
    estimate = replace(an_estimate(), total=total)
    assert streams_upstream(a_pool(upstream_stream=setting), a_call(stream=client), estimate) is streams
