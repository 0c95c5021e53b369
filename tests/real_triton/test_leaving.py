"""Who leaves a real Triton: what the model is told, when, and how many tokens it makes for nobody.

What the gateway does is what `EngineClient` does with the adapter; the matrix in docs/engines.md says the
same of the simulated one. A token takes `speaking.SLOW` seconds.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from backends.client import EngineClient
from backends.contract import Endpoint, EngineError, GenerateRequest
from backends.transport import AiohttpTransport
from backends.triton.adapter import TritonAdapter, TritonOptions
from tests.end_to_end.world import world
from tests.real_triton.asking import STREAM, ask, pool, until
from tests.real_triton.server import Servers, TritonServer

pytestmark = pytest.mark.triton

TOKENS = 60
"""That each answer would have."""
A_FEW = 25
"""That may be made while a busy machine closes a socket."""


class Case(NamedTuple):
    model: str
    stream: bool
    word: str = ""


class Left(NamedTuple):
    """What became of a request whose client left."""

    event: str
    """The last one in the journal."""
    after: int
    """Tokens made after the client had gone, those under way when it went among them."""


OVER = {"ended", "cancelled", "failed"}
NUMBERS = itertools.count()


@contextlib.asynccontextmanager
async def client(triton: TritonServer, model: str) -> AsyncIterator[EngineClient]:
    options = TritonOptions(vocabulary="llmapi" if model == "tensorrt_llm" else "classic", text_mode="auto")
    transport = AiohttpTransport()
    try:
        yield EngineClient(TritonAdapter(options), transport, Endpoint(triton.url))
    finally:
        await transport.aclose()


def request_for(case: Case) -> tuple[str, GenerateRequest]:
    """The prompt that the journal knows it by, and the request."""
    prompt = f"{case.word} !slow leaving {next(NUMBERS)}".ljust(TOKENS * 4, ".")
    return prompt, GenerateRequest(
        request_id=f"leaving-{next(NUMBERS)}", model=case.model, stream=case.stream, prompt=prompt,
        max_tokens=TOKENS,
    )  # fmt: skip


async def generate(engine: EngineClient, request: GenerateRequest) -> None:
    """Until it is told to leave."""
    generation = None
    try:
        generation = await engine.generate(request)
        while True:
            await generation.events()
    finally:
        if generation is not None:
            generation.cancel()


async def leave(triton: TritonServer, case: Case) -> Left:
    """Ask, leave when the model has begun, and wait for the model's last word."""
    prompt, request = request_for(case)
    async with client(triton, case.model) as engine:
        asking = asyncio.get_running_loop().create_task(generate(engine, request))
        await until(f"{case} to begin", lambda: asking.done() or "started" in triton.events(prompt))
        await asyncio.sleep(0.2)  # some tokens, or some of the prefill
        assert not asking.done(), f"{case} ended before its client left: {asking.exception()}"
        asking.cancel()
        await asyncio.wait([asking])
        at = triton.journal(prompt)[0]["at"] + 0.2
        await until(f"the last word of {case}", lambda: bool(OVER & set(triton.events(prompt))))
    last = triton.journal(prompt)[-1]
    made = 0 if case.word else round((at - triton.journal(prompt)[0]["at"]) / 0.05)
    return Left(last["event"], last["tokens"] - made)


DIRECT = "tensorrt_llm_bls"
CASES = {
    # A model that looks whether its request was cancelled: Triton tells it after its next write.
    Case(DIRECT, True): ("cancelled", A_FEW),
    Case(DIRECT, True, "!prefill"): ("cancelled", A_FEW),
    Case(DIRECT, False): ("ended", TOKENS),
    Case(DIRECT, False, "!prefill"): ("ended", TOKENS),
    # The step of an ensemble is not told at all; TensorRT-LLM's BLS, as it is shipped, does not look.
    Case("ensemble", True): ("ended", TOKENS),
    Case("shipped_bls", True): ("ended", TOKENS),
    # With the lines of backends/triton/README.md it does, and tells the inner model.
    Case("attentive_bls", True): ("cancelled", A_FEW),
    # llmapi is told by the second request, whatever its front end knows.
    Case("tensorrt_llm", True): ("cancelled", A_FEW),
    Case("tensorrt_llm", True, "!prefill"): ("cancelled", A_FEW),
    Case("tensorrt_llm", False): ("cancelled", A_FEW),
    Case("tensorrt_llm", False, "!prefill"): ("cancelled", A_FEW),
}


async def leave_all(triton: TritonServer) -> dict[Case, Left]:
    """At once, for it takes seconds."""
    async with asyncio.TaskGroup() as group:
        leaving = {case: group.create_task(leave(triton, case)) for case in CASES}
    return {case: task.result() for case, task in leaving.items()}


async def test_what_is_computed_for_nobody(servers: Servers) -> None:
    """Asked anew, once, if the server itself has died meanwhile: that tells nothing of who leaves."""
    triton = servers.alive()
    try:
        seen = await leave_all(triton)
    except BaseExceptionGroup:
        if triton.lives():
            raise
        seen = await leave_all(servers.alive())
    wrong = {
        case: left
        for case, left in seen.items()
        if left.event != CASES[case][0] or (left.event == "cancelled" and left.after > A_FEW)
    }
    assert not wrong, seen


@STREAM
async def test_who_leaves_while_queued_stays_in_the_queue(triton: TritonServer, stream: bool) -> None:
    """Triton does not look at a socket that it does not write to: the request is taken up in its turn, and
    streamed to its first token, whole to its end."""
    before, ahead = request_for(Case("small_queue", True))
    behind, queued = request_for(Case("small_queue", stream))
    async with client(triton, "small_queue") as engine, asyncio.TaskGroup() as group:
        first = group.create_task(generate(engine, ahead))
        await until("the first to run", lambda: triton.events(before) == ["started"])
        second = group.create_task(generate(engine, queued))
        await until("the second to wait", lambda: triton.pending("small_queue") == 1)
        second.cancel()
        await asyncio.wait([second])
        assert triton.pending("small_queue") == 1
        first.cancel()
        await until("the second's last word", lambda: bool(OVER & set(triton.events(behind))))
    last = triton.journal(behind)[-1]
    if stream:
        assert (last["event"], last["tokens"] < A_FEW) == ("cancelled", True)
    else:
        assert (last["event"], last["tokens"]) == ("ended", TOKENS)


async def test_a_stopped_answer_that_is_not_streamed_never_comes(triton: TritonServer) -> None:
    """By another client that knows the id: the model is stopped, and the first client waits for ever."""
    prompt, request = request_for(Case("tensorrt_llm", False))
    async with client(triton, "tensorrt_llm") as engine, httpx.AsyncClient(trust_env=False) as http:
        asking = asyncio.get_running_loop().create_task(generate(engine, request))
        await until("the model to begin", lambda: triton.events(prompt) == ["started"])
        stop = engine.adapter.cancel_request(request)
        assert stop is not None
        answer = await http.post(triton.url + stop.path, content=stop.body, headers=dict(stop.headers))
        assert (answer.status_code, answer.json()) == (400, {"error": "Request cancelled by client"})
        await until("it to stop", lambda: "cancelled" in triton.events(prompt))
        done, _ = await asyncio.wait([asking], timeout=0.5)
        assert not done
        asking.cancel()
        await asyncio.wait([asking])


async def test_a_stopped_stream_ends_as_an_error(triton: TritonServer) -> None:
    """`cancelled`, by somebody else, is no good end of an answer."""
    prompt, request = request_for(Case("tensorrt_llm", True))
    async with client(triton, "tensorrt_llm") as engine, httpx.AsyncClient(trust_env=False) as http:
        asking = asyncio.get_running_loop().create_task(generate(engine, request))
        await until("the model to begin", lambda: triton.events(prompt) == ["started"])
        stop = engine.adapter.cancel_request(request)
        assert stop is not None
        await http.post(triton.url + stop.path, content=stop.body, headers=dict(stop.headers))
        with pytest.raises(EngineError, match="cancelled"):
            await asking


@STREAM
async def test_the_model_learns_that_the_client_left(
    triton: TritonServer, stream: bool, tmp_path: Path
) -> None:
    """Through the whole gateway. Triton notices when it writes next, so a whole answer is streamed to the
    gateway too."""
    text = f"!slow gone {stream=}" + " canal" * 200
    pools = {"pool": {"upstream_stream": "always"}}
    async with world(tmp_path, {"pool": pool(triton)}, pools=pools) as here:
        async with here.http() as http, asyncio.TaskGroup() as group:
            gone = group.create_task(leave_after_first_bytes(http, text, stream))
            await until("the model to start", lambda: "started" in triton.events(text))
            if not stream:  # the client of a whole answer gets no bytes that it could leave after
                gone.cancel()
        await until("the model to learn it", lambda: "cancelled" in triton.events(text))
        await here.wait_at_rest()
        assert here.gateway.book.outcomes == {"cancelled": 1}


async def leave_after_first_bytes(http: httpx.AsyncClient, text: str, stream: bool) -> None:
    asked = ask(text, max_tokens=1000, stream=stream)
    async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        async for chunk in answer.aiter_raw():
            assert chunk
            return
