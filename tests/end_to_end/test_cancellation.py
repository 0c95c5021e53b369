"""A client that leaves: the engine sees the connection close at once and every counter returns to zero.

For each dialect, streamed and not, before and after the first byte, and while waiting in the queue. The
order of events is asserted; the delay is measured by `loadtest` benchmarks, not here.
"""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.world import World, world

DIALECTS = ["trtllm", "triton", "tgi", "openai"]
SECONDS = 5
"""A generous bound on everything that is waited for."""


def body(stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "Tell me everything about canals."}]
    return {"model": "m", "messages": messages, "max_tokens": 4000, "stream": stream}


async def until(what: str, condition: object) -> None:
    """Wait for `condition()` to hold."""
    assert callable(condition)
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


async def leave_after_headers(http: httpx.AsyncClient) -> None:
    """Read the first bytes of a stream, then close the connection."""
    async with http.stream("POST", "/v1/chat/completions", json=body(True)) as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_raw():
            assert chunk
            return


async def leave_when(http: httpx.AsyncClient, stream: bool, ready: object) -> None:
    """Send a request, and close its connection once `ready()` holds and before any answer."""
    assert callable(ready)

    async def send() -> None:
        await http.post("/v1/chat/completions", json=body(stream))

    task = asyncio.get_running_loop().create_task(send())
    await until("the request to arrive", ready)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def check_close(here: World, phase: str, streamed: bool) -> None:
    """The engine saw exactly one close, in that phase, and the request never got a second life."""
    statistics = here.engine().statistics()
    (close,) = statistics.closes
    assert (close.phase, close.streamed) == (phase, streamed)
    assert close.noticed_at is not None
    assert close.noticed_at >= close.closed_at
    assert statistics.requests == 1
    assert here.gateway.book.outcomes["cancelled"] == 1


@pytest.mark.parametrize("kind", DIALECTS)
async def test_client_leaves_during_the_stream(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": kind, "mean_tokens": 4000.0}}) as here:
        async with here.http() as http:
            await leave_after_headers(http)
        await until("the engine to see it", lambda: here.engine().statistics().closes)
        await here.wait_at_rest()
        check_close(here, "during_stream", True)
        assert here.engine().statistics().closes[0].events < 4000


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", DIALECTS)
async def test_client_leaves_before_the_first_byte(kind: str, stream: bool, tmp_path: Path) -> None:
    """The watch on the client is on while the engine still thinks."""
    async with world(tmp_path, {"pool": {"kind": kind, "faults": ["slow_first=30"]}}) as here:
        async with here.http() as http:
            await leave_when(http, stream, lambda: here.engine().statistics().requests == 1)
        await until("the engine to see it", lambda: here.engine().statistics().closes)
        await here.wait_at_rest()
        (close,) = here.engine().statistics().closes
        assert close.streamed is stream
        assert close.events == 0


@pytest.mark.parametrize("kind", DIALECTS)
async def test_client_leaves_a_whole_answer_in_the_making(kind: str, tmp_path: Path) -> None:
    """Not streamed, and tokens are being made: the engine still stops."""
    engines = {"pool": {"kind": kind, "mean_tokens": 4000.0, "speed": 2.0}}
    async with world(tmp_path, engines) as here:
        async with here.http() as http:
            await leave_when(http, False, lambda: here.engine().statistics().engine.output_tokens > 3)
        await until("the engine to see it", lambda: here.engine().statistics().closes)
        await here.wait_at_rest()
        assert here.engine().statistics().engine.output_tokens < 4000


LLMAPI = {"kind": "triton", "served": "tensorrt_llm", "vocabulary": "llmapi", "notice": "realistic"}
CLASSIC = {"kind": "triton", "notice": "realistic"}


async def test_triton_stops_an_unstreamed_request_by_its_id(tmp_path: Path) -> None:
    """Triton would notice the closed connection only when it writes, at the end: so it is told, by the id, on
    a connection of its own. First the close, then the request that says stop, and by that the end."""
    engines = {"pool": {**LLMAPI, "mean_tokens": 4000.0, "speed": 2.0}}
    pools = {"pool": {"options": {"vocabulary": "llmapi"}}}
    async with world(tmp_path, engines, pools=pools) as here:
        async with here.http() as http:
            await leave_when(http, False, lambda: here.engine().statistics().engine.output_tokens > 3)
        await here.wait_at_rest()
        statistics = here.engine().statistics()
        asked, told = statistics.recent
        assert asked.body["streaming"] is False
        assert told.path == asked.path == "/v2/models/tensorrt_llm/generate"
        assert told.body == {"id": asked.body["id"], "text_input": "", "stop": True}
        (close,) = statistics.closes
        assert (close.streamed, close.phase) == (False, "during_stream")
        assert close.noticed_at is not None
        assert asked.at < close.closed_at <= told.at <= close.noticed_at
        assert statistics.engine.output_tokens < 4000
        assert statistics.engine.cancelled == 1


async def test_triton_computes_to_the_end_what_it_cannot_be_told_to_stop(tmp_path: Path) -> None:
    """The control of the test above: the classic models know no such request."""
    async with world(tmp_path, {"pool": {**CLASSIC, "mean_tokens": 4000.0, "speed": 20.0}}) as here:
        leaving = {**body(False), "max_tokens": 100}
        async with here.http() as http:
            task = asyncio.get_running_loop().create_task(http.post("/v1/chat/completions", json=leaving))
            await until("tokens", lambda: here.engine().statistics().engine.output_tokens > 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until("the close", lambda: here.engine().statistics().closes)
        await here.wait_at_rest(SECONDS)
        statistics = here.engine().statistics()
        (close,) = statistics.closes
        assert (close.noticed_at, statistics.requests) == (None, 1)
        assert (statistics.engine.output_tokens, statistics.engine.cancelled) == (100, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_leaves_the_queue(stream: bool, tmp_path: Path) -> None:
    """A request that waits for a slot and loses its client never reaches an engine."""
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
    async with world(tmp_path, engines, pools={"pool": {"limits": {"in_flight": 1}}}) as here:
        queue = here.gateway.runtime.queues["pool"]
        async with here.http() as first, here.http() as second:
            async with first.stream("POST", "/v1/chat/completions", json=body(True)) as answer:
                assert answer.status_code == 200
                await leave_when(second, stream, lambda: queue.statistics().waiting == 1)
                await until("the queue to empty", lambda: queue.statistics().waiting == 0)
                assert here.engine().statistics().requests == 1
        await here.wait_at_rest()
        assert here.engine().statistics().requests == 1
        assert here.gateway.book.outcomes["cancelled"] == 2


async def test_client_leaves_while_sending_its_body(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        host, port = here.addresses.data.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer hg-test-tenant-0123456789abcdef0123456789\r\ncontent-length: 100\r\n\r\n{"
        )
        await writer.drain()
        await until("the request to arrive", lambda: len(here.gateway.book) == 1)
        writer.close()
        await writer.wait_closed()
        await until("the record to end", lambda: here.gateway.book.outcomes["cancelled"] == 1)
        assert here.engine().statistics().requests == 0


@pytest.mark.parametrize("kind", DIALECTS)
async def test_a_hundred_clients_leave_at_random_and_nothing_leaks(kind: str, tmp_path: Path) -> None:
    """Churn: half of the clients leave somewhere; afterwards every slot works."""
    engines = {"pool": {"kind": kind, "mean_tokens": 40.0, "speed": 10.0}}
    async with world(tmp_path, engines, pools={"pool": {"limits": {"in_flight": 8}}}) as here:
        async with here.http() as http:

            async def visit(number: int) -> None:
                patience = 0.004 * (number % 25) if number % 2 else SECONDS
                try:
                    async with asyncio.timeout(patience):
                        await http.post("/v1/chat/completions", json=body(number % 3 == 0))
                except TimeoutError:
                    pass

            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(visit(number))
            await here.wait_at_rest(SECONDS)
            answers = [await http.post("/v1/chat/completions", json=body(False)) for _ in range(10)]
            assert {answer.status_code for answer in answers} == {200}
