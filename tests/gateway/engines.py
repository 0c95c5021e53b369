"""Engines that do as the test says, behind the real contract; and what they were asked."""

import asyncio
from collections.abc import Iterable

from backends.contract import Delta, Done, EngineAdapter, EngineError, ErrorKind, Event, GenerateRequest
from backends.registry import REGISTRY
from gateway.answering.answer import Answer
from gateway.call import Call, PromptCount
from gateway.config.snapshot import Pool
from gateway.fleet.ledger import ReplicaLedger
from gateway.routing.router import Target
from gateway.tokens.bounding import PoolFit
from tests.gateway.builders import Clock, a_model

Batch = list[Event] | EngineError | None
"""What one call of `events` gives: events, an error, or nothing, ever."""

GOOD: tuple[Batch, ...] = ([Delta(text="hi", tokens=1)], [Delta(finish_reason="stop"), Done()])


def an_error(kind: str = "engine", message: str = "it broke", **fields) -> EngineError:
    fields.setdefault("retryable", kind in ("engine", "overloaded"))
    return EngineError(ErrorKind(kind), message, **fields)


async def _a_turn() -> None:
    """Wait as for a socket: on a future that is done in the next turn of the loop."""
    loop = asyncio.get_running_loop()
    data = loop.create_future()
    loop.call_soon(lambda: data.done() or data.set_result(None))
    await data


class ScriptedGeneration:
    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = list(batches)
        self.cancelled = 0

    async def events(self) -> list[Event]:
        await _a_turn()
        batch = self._batches.pop(0)
        if batch is None:
            await asyncio.get_running_loop().create_future()
            raise AssertionError
        if isinstance(batch, EngineError):
            raise batch
        return batch

    def cancel(self) -> None:
        self.cancelled += 1


class ScriptedEngine:
    """Answers each request with the next script: an error, or batches of events. The last one stays."""

    def __init__(self, *scripts: EngineError | Iterable[Batch] | None, engine: str = "trtllm") -> None:
        self.adapter: EngineAdapter = REGISTRY.adapter(engine, {})
        self._scripts = list(scripts) or [GOOD]
        self.requests: list[GenerateRequest] = []
        self.generations: list[ScriptedGeneration] = []

    async def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        self.requests.append(request)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        await _a_turn()
        if script is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(script, EngineError):
            raise script
        assert script is not None
        generation = ScriptedGeneration(script)
        self.generations.append(generation)
        return generation


COUNT = PromptCount(tokens=10, exact=True, source="test", longest=10)


def an_answer(call: Call, pool: Pool, batches: Iterable[Batch] = (), *, model=None) -> Answer:
    """An answer under way on the pool's first replica, outside of any queue."""
    ledger = ReplicaLedger(pool.replicas[0], ScriptedEngine(), Clock())
    target = Target(pool, model or a_model(), "engine-llama", PoolFit(None, True, False, ""), None)
    slot = ledger.take(10, 5, lambda: None)
    return Answer(call, target, slot, ScriptedGeneration(batches), None, COUNT, lambda _: None)
