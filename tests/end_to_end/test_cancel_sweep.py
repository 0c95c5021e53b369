"""The cancel sweep: every scenario is cancelled at every point at which it suspends.

Through real sockets to simulated engines. After each run every lease must be back: slots, tokens,
reservation, upstream connection, waiters. This is the field's commonest class of bugs. (The same over
scripted engines, which is quicker, is in `tests/gateway/test_pipeline.py` and `test_fallbacks.py`.)
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.api.reading import read_call
from gateway.api.receiving import DisconnectWatch
from gateway.api.replies import StreamReply, WholeReply
from gateway.errors import GatewayError
from tests.end_to_end.world import World, world
from tests.gateway.suspensions import When, cancel_everywhere


async def one_request(here: World, body: dict[str, Any]) -> None:
    """What the chat endpoint does after reading a body, without the socket."""
    runtime, clock = here.gateway.runtime, here.gateway.clock
    record = here.gateway.book.open(f"sweep{here.gateway.book.accepted}", "POST", "/sweep", clock)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Any) -> None:
        await asyncio.sleep(0)  # a socket's write may suspend

    try:
        call = read_call(
            body,
            dialect="chat",
            call_id=record.request_id,
            snapshot=runtime.snapshot,
            tenant=runtime.snapshot.tenants["tenant"],
            key_id=None,
            received=clock(),
        )
        async with DisconnectWatch(receive) as watch:
            kind = StreamReply if call.stream else WholeReply
            scope = {"method": "POST"}
            await runtime.pipeline.serve(call, kind(call, record, scope, send, watch, clock), record)
        record.finish("completed")
    except GatewayError:
        record.finish("failed")
    finally:
        record.finish("cancelled")


async def sweep(here: World, body: dict[str, Any], when: When, before: Callable[[], None] = bool) -> int:
    """Cancel a request at each of its suspension points; returns how many there were."""

    def scenario() -> Any:
        before()
        # A prompt that was counted before is not counted again: each one is new.
        messages = [{"role": "user", "content": f"Hello, number {here.gateway.book.accepted}!"}]
        return one_request(here, {**body, "messages": messages})

    async def check(outcome: object) -> None:
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        await here.wait_at_rest()

    return await cancel_everywhere(scenario, check, when)


def body(stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello!"}]
    return {"model": "m", "messages": messages, "max_tokens": 3, "stream": stream}


@pytest.mark.parametrize("when", ["waiting", "as it ends", "twice"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["trtllm", "triton", "tgi"])
async def test_sweep_of_an_answer(kind: str, stream: bool, when: When, tmp_path: Path) -> None:
    """Count, admit, connect, headers, first event, relay, settle."""
    limits = [
        {"tokens": 1_000_000, "per": "day", "each": "tenant", "overrun": "cut", "clamp": True},
        {"cost": 5, "per": "calendar_month"},
        {"concurrent": 1},
        {"tokens_in_flight": 1000, "each": ["tenant", "key", "model", "pool"]},
    ]
    given: dict[str, Any] = {"limits": limits, "models": {"m": {"prices": {"input": 1.0, "output": 2.0}}}}
    async with world(tmp_path, {"pool": {"kind": kind, "speed": 100.0}}, **given) as here:
        points = await sweep(here, body(stream), when)
        assert points >= 5


@pytest.mark.parametrize("when", ["waiting", "as it ends", "twice"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_sweep_of_an_answer_in_parts(stream: bool, when: When, tmp_path: Path) -> None:
    """Three calls to the engine, each with a task of its own."""
    limits = [{"concurrent": 1}, {"tokens_in_flight": 1000}]
    async with world(tmp_path, {"pool": {"kind": "tgi", "speed": 100.0}}, limits=limits) as here:
        points = await sweep(here, {**body(stream), "n": 3}, when)
        assert points >= 4


@pytest.mark.parametrize("when", ["waiting", "as it ends", "twice"])
async def test_sweep_of_a_fail_over(when: When, tmp_path: Path) -> None:
    """The first pool dies before its answer, the second answers."""
    engines = {
        "first": {"kind": "trtllm", "speed": 100.0, "faults": ["close"]},
        "second": {"kind": "tgi", "speed": 100.0},
    }
    limits = [{"concurrent": 1, "each": "pool"}, {"tokens_in_flight": 500, "pool": ["first"]}]
    async with world(tmp_path, engines, limits=limits) as here:
        points = await sweep(here, body(True), when)
        assert points > 8
        assert here.engines["second-1"].statistics().requests > 0


@pytest.mark.parametrize("when", ["waiting", "as it ends", "twice"])
async def test_sweep_of_a_wait_in_the_queue(when: When, tmp_path: Path) -> None:
    """The slot is given to the waiter while it may be cancelled."""
    engines = {"pool": {"kind": "trtllm", "speed": 100.0}}
    async with world(tmp_path, engines, pools={"pool": {"limits": {"in_flight": 1}}}) as here:
        queue = here.gateway.runtime.queues["pool"]
        held: list[Any] = []

        def occupy() -> None:
            while held:
                held.pop().release()
            slot = queue.acquire_nowait(1, 1)
            assert slot is not None
            held.append(slot)
            asyncio.get_running_loop().call_later(0.01, slot.release)

        await sweep(here, body(True), when, occupy)


@pytest.mark.parametrize("fault", ["die_after=1", "error_after=1", "overload", "error_after=0"])
async def test_sweep_of_a_failure(fault: str, tmp_path: Path) -> None:
    """The engine breaks, first or half-way; the client is told, everything comes back."""
    async with world(tmp_path, {"pool": {"kind": "tgi", "speed": 100.0, "faults": [fault]}}) as here:
        await sweep(here, body(True), "waiting")
