"""A batch request gives its slot up to an interactive one: what its client, the engine and the others see."""

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.world import World, world

ENGINES = {"pool": {"kind": "trtllm", "speed": 0.1}}
"""So slow that it reads a prompt of some thousand tokens for a second."""
ONE: dict[str, Any] = {"limits": {"in_flight": 1}}
LONG = "The water rises behind the gate. " * 500
PREEMPTED = 'headgate_attempts_total{outcome="preempted",pool="pool"}'


def ask(text: str = "Open!", tier: str = "priority", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "max_tokens": 3, "service_tier": tier, **more}


async def until(what: str, condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def reads(here: World) -> bool:
    return here.engine().statistics().running == 1


async def metric(here: World, name: str) -> float:
    async with here.admin() as admin:
        lines = (await admin.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("stream", [True, False])
async def test_batch_gives_way_and_is_answered_whole_later(stream: bool, tmp_path: Path) -> None:
    """Its upstream connection is closed in the middle of its prompt, and it is read again from the start."""
    pool = {"pool": {**ONE, "scheduler": {"preempt": 1}}}
    async with world(tmp_path, ENGINES, pools=pool) as here, here.sdk() as sdk:
        done: list[str] = []

        async def batch() -> str:
            answer = await sdk.chat.completions.create(**ask(LONG, "flex"), stream=stream)
            if stream:
                pieces = [c.delta.content or "" async for chunk in answer for c in chunk.choices]
                text = "".join(pieces)
            else:
                text = answer.choices[0].message.content
            done.append("batch")
            return text

        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(batch())
            await until("the prompt to be read", lambda: reads(here))
            urgent = await sdk.chat.completions.create(**ask())
            done.append("interactive")
            assert urgent.choices[0].message.content
        assert done == ["interactive", "batch"]
        alone = await sdk.chat.completions.create(**ask(LONG, "flex"))
        assert waiting.result() == alone.choices[0].message.content != "", "it is whole, and nothing is twice"
        statistics = here.engine().statistics()
        (close,) = statistics.closes
        assert (close.phase, close.events) == ("before_first_token", 0)
        assert close.noticed_at is not None
        assert (statistics.requests, statistics.engine.cancelled, statistics.engine.finished) == (4, 1, 3)
        assert here.gateway.book.outcomes == {"completed": 3}
        assert await metric(here, PREEMPTED) == 1


async def test_a_full_line_does_not_keep_out_who_need_not_wait(tmp_path: Path) -> None:
    """One batch request is read, one stands in line, and the line is full: a standard one is refused, an
    interactive one is answered."""
    pool = {"pool": {**ONE, "queue": {"max_requests": 1}, "scheduler": {"preempt": 1}}}
    async with world(tmp_path, ENGINES, pools=pool) as here, here.sdk() as sdk:
        async with asyncio.TaskGroup() as group:
            batch = [group.create_task(sdk.chat.completions.create(**ask(LONG, "flex"))) for _ in range(2)]
            queue = here.gateway.runtime.queues["pool"]
            await until("one to be read, one to wait", lambda: reads(here) and queue.statistics().waiting)
            with pytest.raises(openai.InternalServerError, match="full"):
                await sdk.chat.completions.create(**ask(tier="default"))
            await sdk.chat.completions.create(**ask())
            assert not any(task.done() for task in batch)
        assert here.gateway.book.outcomes == {"completed": 3, "failed": 1}


async def test_without_it_batch_is_read_to_its_end(tmp_path: Path) -> None:
    async with world(tmp_path, ENGINES, pools={"pool": ONE}) as here, here.sdk() as sdk:
        async with asyncio.TaskGroup() as group:
            batch = group.create_task(sdk.chat.completions.create(**ask(LONG, "flex")))
            await until("the prompt to be read", lambda: reads(here))
            asked = time.monotonic()
            await sdk.chat.completions.create(**ask())
            assert batch.done()
            assert time.monotonic() - asked > 0.2
        assert here.engine().statistics().closes == ()
