"""Pools of scripted engines and the attempt loop over them, with books that must balance."""

import asyncio

import pytest

from gateway.answering.answer import Answer
from gateway.errors import (
    GatewayError,
)
from gateway.fallbacks import (
    Attempts,
    RetryBudget,
)
from gateway.fleet.ledger import Slot
from gateway.limits.limiter import Limiter
from gateway.limits.memory import MemoryStore
from gateway.queueing.pool_queue import lend
from gateway.routing.router import choose_route
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from gateway.tokens.counting import Counting
from tests.gateway.builders import Clock, a_call, a_pool, a_queue, a_rule, a_snapshot, an_estimate
from tests.gateway.engines import GOOD, ScriptedEngine, an_error

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
            outcomes = ("ok", "abandoned", "error", "shutdown", "cancelled", "preempted")
            counted = sum(self.metrics.attempts.labels(pool, each)._value.get() for each in outcomes)
            assert counted == sum(n for name, n in self.sent.items() if name.startswith(f"{pool}/"))


def good(*scripts) -> ScriptedEngine:
    return ScriptedEngine(*scripts, GOOD)


def bad(script=BROKEN) -> ScriptedEngine:
    return ScriptedEngine(script)


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
