"""One request against a server that does what it is told, and the open loop around it."""

import asyncio
import itertools
import json
import time

import pytest

from gateway.config.snapshot import PriorityClass
from gateway.replay.requests import TraceRequest
from loadtest.arrivals import arrivals
from loadtest.running import Asking, WarmUpFailed, run
from loadtest.sending import Client, Sample
from loadtest.workloads import bounded, token_distribution, trace
from tests.backends.scripted_server import Peer, ScriptedServer, scripted_server

USER = [{"role": "user", "content": "Hi"}]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"w "}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def answering(*pieces: bytes | float):
    """Reads a request and sends the pieces; numbers are pauses in seconds."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                await peer.send(piece)

    return script


def whole(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
        status.encode(), len(body), body,
    )  # fmt: skip


async def send(script, *, stream: bool = True, timeout: float = 5.0) -> tuple[Sample, ScriptedServer]:
    async with scripted_server(script) as server:
        client = Client(
            f"http://127.0.0.1:{server.port}",
            "m",
            key="secret",
            timeout=timeout,
            stream=stream,
            extra={"ignore_eos": True},
        )
        async with client:
            return await client.send(USER, 7), server


async def test_a_stream_is_timed_and_counted():
    """The role alone is no token; comments and usage are none either."""
    pieces = (HEAD + ROLE, 0.03, TEXT, 0.05, b": alive\n\n" + TEXT, USAGE + DONE)
    sample, server = await send(answering(*pieces))
    assert sample.error is None
    assert (sample.input_tokens, sample.output_tokens, sample.counted) == (9, 2, False)
    assert sample.first - sample.sent >= 0.03
    assert len(sample.gaps) == 1
    assert sample.gaps[0] >= 0.045
    request = server.requests[0]
    assert request.target == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.body) == {
        "model": "m", "messages": USER, "max_tokens": 7, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


async def test_events_may_be_cut_anywhere():
    """Byte by byte, with CRLF, the same is read."""
    data = (TEXT + TEXT + USAGE + DONE).replace(b"\n", b"\r\n")
    sample, _ = await send(answering(HEAD, *(data[at : at + 1] for at in range(len(data)))))
    assert sample.error is None
    assert (sample.output_tokens, len(sample.gaps)) == (2, 1)


async def test_without_usage_pieces_are_counted():
    sample, _ = await send(answering(HEAD + TEXT + TEXT + TEXT + DONE))
    assert (sample.error, sample.output_tokens, sample.counted) == (None, 3, True)


async def test_a_whole_answer():
    body = b'{"choices":[{}],"usage":{"prompt_tokens":4,"completion_tokens":5}}'
    sample, _ = await send(answering(whole("200 OK", body)), stream=False)
    assert (sample.error, sample.input_tokens, sample.output_tokens) == (None, 4, 5)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (whole("429 Too Many", b'{"error":{"code":"rate_limit_exceeded"}}'), "429 rate_limit_exceeded"),
        (whole("503 X", b'{"error":{"code":null,"type":"server_error"}}'), "503 server_error"),
        (whole("502 Bad Gateway", b"<html>"), "502"),
        (whole("307 X", b""), "307"),
        (HEAD + TEXT + b'data: {"error":{"type":"server_error"}}\n\n' + DONE, "stream server_error"),
        (HEAD + TEXT, "stream ended without [DONE]"),
        (HEAD + b"data: {\n\n", "answer is not JSON"),
        (b"", "connection broken"),
        (
            HEAD[:-30].replace(b"close", b"x") + b"\r\ncontent-length: 99\r\n\r\n" + TEXT[:9],
            "connection broken",
        ),
    ],
)
async def test_errors_have_names(sent: bytes, error: str):
    """A status with its code, an error within a stream, a stream that was cut: none passes for an answer."""
    sample, _ = await send(answering(sent))
    assert sample.error == error
    assert sample.ended >= sample.sent


async def test_a_silent_server_times_out():
    sample, _ = await send(answering(HEAD, 5.0), timeout=0.1)
    assert sample.error == "timeout"


async def test_nobody_there():
    async with scripted_server(answering(b"")) as server:
        url = f"http://127.0.0.1:{server.port}"
    async with Client(url, "m", key=None, timeout=5, stream=True, extra={}) as client:
        assert (await client.send(USER, None)).error == "cannot connect"


def plan(rate: float, requests: int):
    lengths = token_distribution(
        arrivals("constant", rate, 0), input_mean=20, input_stdev=0, output_mean=2, output_stdev=0, seed=0
    )
    return bounded(lengths, requests=requests, seconds=None)


async def test_the_loop_does_not_wait_for_answers():
    """Answers take 0.5 s each; all twenty requests are on their way long before the first has come."""
    async with (
        scripted_server(answering(0.5, HEAD + TEXT + USAGE + DONE)) as server,
        Client(f"http://127.0.0.1:{server.port}", "m", key=None, timeout=5, stream=True, extra={}) as client,
    ):
        ran = await run(client, plan(200.0, 20), seed=0, warm_up_requests=0, max_in_flight=100)
    assert (ran.planned, ran.not_sent, len(ran.samples)) == (20, [], 20)
    assert all(sample.error is None for sample in ran.samples)
    sent = sorted(sample.sent for sample in ran.samples)
    assert sent[-1] < min(sample.ended for sample in ran.samples)
    assert all(b >= a for a, b in itertools.pairwise(sent))
    assert sent[-1] - ran.started >= 19 / 200 - 0.001
    assert len({request.body for request in server.requests}) == 20


async def test_latencies_count_from_the_scheduled_time():
    """A client that is held up for 0.3 s sends late; what its users would have waited is not left out."""
    async with (
        scripted_server(answering(HEAD + TEXT + USAGE + DONE)) as server,
        Client(f"http://127.0.0.1:{server.port}", "m", key=None, timeout=5, stream=True, extra={}) as client,
    ):
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.3)
        ran = await run(client, plan(50.0, 10), seed=0, warm_up_requests=0, max_in_flight=100)
    held_up = [sample for sample in ran.samples if sample.late > 0.1]
    assert len(held_up) >= 5
    assert all(sample.ttft >= sample.late for sample in held_up)
    due = sorted(sample.due - ran.started for sample in ran.samples)
    assert due == pytest.approx([number / 50 for number in range(10)], abs=1e-6)


async def test_a_request_carries_its_tenants_key_class_and_lengths():
    """Two tenants, one of them without a key of its own; the true length only where engines are simulated."""
    requests = [
        TraceRequest(0.0, "acme", 20, 7, 512, priority=PriorityClass.batch),
        TraceRequest(0.01, "other", 20, 8, 512, streamed=False),
    ]
    script = answering(HEAD + TEXT + USAGE + DONE)
    bodies = {}
    for hidden in (False, True):
        async with (
            scripted_server(script) as server,
            Client(
                f"http://127.0.0.1:{server.port}", "m", key="any", keys={"acme": "own"}, timeout=5,
                stream=True, extra={},
            ) as client,
        ):  # fmt: skip
            asking = Asking(tiers=True, simulated_lengths=hidden)
            await run(client, trace(requests), seed=0, warm_up_requests=0, max_in_flight=9, asking=asking)
            first, second = sorted(
                server.requests, key=lambda request: json.loads(request.body)["service_tier"]
            )
            assert first.headers["authorization"] == "Bearer own"
            assert second.headers["authorization"] == "Bearer any"
            bodies[hidden] = [json.loads(each.body) for each in (first, second)]
    assert [body["service_tier"] for body in bodies[False]] == ["flex", "priority"]
    assert [body.get("stream") for body in bodies[False]] == [True, None]
    assert [body["max_tokens"] for body in bodies[False]] == [7, 8]
    assert "simulated_tokens" not in bodies[False][0]
    assert [(body["max_tokens"], body["simulated_tokens"]) for body in bodies[True]] == [(512, 7), (512, 8)]


async def test_what_is_too_much_is_not_sent_and_told():
    async with (
        scripted_server(answering(0.3, HEAD + TEXT + USAGE + DONE)) as server,
        Client(f"http://127.0.0.1:{server.port}", "m", key=None, timeout=5, stream=True, extra={}) as client,
    ):
        ran = await run(client, plan(1000.0, 10), seed=0, warm_up_requests=0, max_in_flight=4)
    assert (ran.planned, len(ran.not_sent), len(ran.samples)) == (10, 6, 4)


async def test_a_server_that_refuses_all_ends_in_the_warm_up():
    async with (
        scripted_server(answering(whole("401 X", b'{"error":{"code":"invalid_api_key"}}'))) as server,
        Client(f"http://127.0.0.1:{server.port}", "m", key=None, timeout=5, stream=True, extra={}) as client,
    ):
        with pytest.raises(WarmUpFailed, match="401 invalid_api_key"):
            await run(client, plan(10.0, 10), seed=0, warm_up_requests=3, max_in_flight=4)
        assert len(server.requests) == 3
