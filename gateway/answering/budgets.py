"""Time budgets: a generation that ends with what there is when its time is over.

    stop-after        the client's `x-headgate-stop-after-ms`, from the receipt of its request
    max-generation    the pool's `max_generation_ms`, from the moment at which a replica gets the request

The end is no error: the engine is told to stop, the choices that still run end with `length`, what was made
is charged. A time to the first token (`x-headgate-timeout-ms`, `timeouts`) is something else: there, a client
that waited in vain gets an error, since another gateway or another model may still answer it.

What is not seen as it is made cannot be cut. So a request with a budget goes upstream as a stream, and where
the pool never asks for one (`upstream_stream: client`), an answer that is not streamed has no budget.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from backends.contract import Engine, Event, GenerateRequest, Generation
from gateway.call import Call
from gateway.config.snapshot import Pool

STOP_AFTER = "stop-after"
MAX_GENERATION = "max-generation"


@dataclass(frozen=True, slots=True)
class Budget:
    """Until when a generation may go on (loop time, seconds), and who says so."""

    ends: float
    by: str


def is_budgeted(call: Call, pool: Pool) -> bool:
    """Whether an answer of this pool may have to be cut."""
    return call.stop_at is not None or pool.max_generation is not None


def budget_of(call: Call, pool: Pool, request: GenerateRequest, sent: float) -> Budget | None:
    """The budget of a request that goes out at `sent`; of two, the one that ends first."""
    if not request.stream:
        return None
    budgets = []
    if call.stop_at is not None:
        budgets.append(Budget(call.stop_at, STOP_AFTER))
    if pool.max_generation is not None:
        budgets.append(Budget(sent + pool.max_generation, MAX_GENERATION))
    return min(budgets, key=lambda budget: budget.ends, default=None)


async def generate(
    engine: Engine, request: GenerateRequest, budget: Budget | None, clock: Callable[[], float]
) -> Generation:
    """`engine.generate(request)`, within `budget`. Raises EngineError."""
    if budget is None:
        return await engine.generate(request)
    try:
        async with asyncio.timeout(max(0.0, budget.ends - clock())):
            return Timed(await engine.generate(request), budget, clock)
    except TimeoutError:
        return Timed(None, budget, clock)


class Timed:
    """A generation whose `events` returns none at all once its time is over, also where the engine is silent.

    `asyncio.timeout` costs some microseconds an event: only requests with a budget pay them.
    """

    def __init__(self, generation: Generation | None, budget: Budget, clock: Callable[[], float]) -> None:
        """No `generation`: its time was over before the head of the answer came."""
        self._generation = generation
        self._budget = budget
        self._clock = clock

    async def events(self) -> list[Event]:
        if self._generation is None or (left := self._budget.ends - self._clock()) <= 0:
            return []
        try:
            async with asyncio.timeout(left):
                return await self._generation.events()
        except TimeoutError:
            return []

    def cancel(self) -> None:
        if self._generation is not None:
            self._generation.cancel()
