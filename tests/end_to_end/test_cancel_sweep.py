"""The cancel sweep: every scenario is cancelled at every point at which it suspends.

The pipeline's coroutine is run by a proxy that counts its suspensions and cancels the task at the k-th, for
k = 1, 2, ... until the scenario ends by itself. After each run every lease must be back: slots, tokens,
reservation, upstream connection, waiters. This is the field's commonest class of bugs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.reading import read_call
from gateway.api.receiving import DisconnectWatch
from gateway.api.replies import StreamReply, WholeReply
from gateway.errors import GatewayError
from tests.end_to_end.world import World, world

MAX_SUSPENSIONS = 400


class CancelAt:
    """Awaits `coroutine`, cancelling the running task when it suspends for the k-th time.

    With `again`, the cancellation is repeated at the next suspension too: whatever cleans up is cancelled
    as well.
    """

    def __init__(self, coroutine: Any, k: int, *, again: bool) -> None:
        self._coroutine = coroutine
        self._points = {k, k + 1} if again else {k}
        self.suspensions = 0

    def __await__(self) -> Generator[Any, None, Any]:
        inner = self._coroutine.__await__()
        value, error = None, None
        while True:
            try:
                future = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as ended:
                return ended.value
            self.suspensions += 1
            if self.suspensions in self._points:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value, error = (yield future), None
            except BaseException as thrown:
                value, error = None, thrown


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


async def sweep(
    here: World, scenario: Callable[[], Awaitable[None]], *, again: bool, before: Callable[[], None]
) -> int:
    """Run `scenario` once for each of its suspension points; returns how many there were."""
    for k in range(1, MAX_SUSPENSIONS):
        before()
        run = CancelAt(scenario(), k, again=again)

        async def drive(run: CancelAt = run) -> None:
            await run

        task = asyncio.get_running_loop().create_task(drive())
        async with asyncio.timeout(10):
            await asyncio.wait([task])
        await here.wait_at_rest()
        if run.suspensions < k:
            assert task.exception() is None
            return k - 1
        assert task.cancelled() or task.exception() is None
    raise AssertionError("the scenario never ended by itself")


def body(stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello!"}]
    return {"model": "m", "messages": messages, "max_tokens": 3, "stream": stream}


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["trtllm", "triton", "tgi"])
async def test_sweep_of_an_answer(kind: str, stream: bool, again: bool, tmp_path: Path) -> None:
    """Count, admit, connect, headers, first event, relay, settle."""
    limits = {"tenants": {"tenant": {"limits": [{"tokens": 1_000_000, "per": "day"}]}}}
    async with world(tmp_path, {"pool": {"kind": kind, "speed": 100.0}}, **limits) as here:
        points = await sweep(here, lambda: one_request(here, body(stream)), again=again, before=lambda: None)
        assert points >= 5


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_sweep_of_a_fail_over(again: bool, tmp_path: Path) -> None:
    """The first pool dies before its answer, the second answers."""
    engines = {
        "first": {"kind": "trtllm", "speed": 100.0, "faults": ["close"]},
        "second": {"kind": "tgi", "speed": 100.0},
    }
    async with world(tmp_path, engines) as here:
        points = await sweep(here, lambda: one_request(here, body(True)), again=again, before=lambda: None)
        assert points > 8
        assert here.engines["second-1"].statistics().requests > 0


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_sweep_of_a_wait_in_the_queue(again: bool, tmp_path: Path) -> None:
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

        await sweep(here, lambda: one_request(here, body(True)), again=again, before=occupy)


@pytest.mark.parametrize("fault", ["die_after=1", "error_after=1", "overload", "error_after=0"])
async def test_sweep_of_a_failure(fault: str, tmp_path: Path) -> None:
    """The engine breaks, first or half-way; the client is told, everything comes back."""
    async with world(tmp_path, {"pool": {"kind": "tgi", "speed": 100.0, "faults": [fault]}}) as here:
        await sweep(here, lambda: one_request(here, body(True)), again=False, before=lambda: None)
