"""Running a real Triton: is it well, how busy is it, what does it serve, may it sleep."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest

from backends.contract import Endpoint, Health, HttpRequest, Metadata
from backends.triton.adapter import TritonAdapter
from gateway.asking import ask_all, client_for
from gateway.fleet.load_polling import with_port
from tests.end_to_end.world import world
from tests.real_triton.asking import answer_of, ask, pool, until
from tests.real_triton.server import TritonServer

pytestmark = pytest.mark.triton

ADAPTER = TritonAdapter()


@asynccontextmanager
async def plain(triton: TritonServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=triton.url, trust_env=False, timeout=20) as http:
        yield http


async def send(http: httpx.AsyncClient, request: HttpRequest) -> httpx.Response:
    return await http.request(
        request.method, request.path, content=request.body, headers=dict(request.headers)
    )


async def test_health(triton: TritonServer) -> None:
    """The question that the prober asks, and the answer as the adapter reads it."""
    async with plain(triton) as http:
        answer = await send(http, ADAPTER.health_request())
        assert ADAPTER.read_health(answer.status_code, answer.content) == Health(ready=True, live=True)


async def described(triton: TritonServer, model: str) -> Metadata:
    endpoint = Endpoint(triton.url)
    async with client_for(endpoint) as client:
        questions = ADAPTER.metadata_requests(model)
        return ADAPTER.read_metadata(await ask_all(client, endpoint, questions, seconds=10, most=1 << 20))


async def test_what_it_tells_of_its_models(triton: TritonServer) -> None:
    """Which vocabulary, whether it streams: enough for `headgate init --upstream`."""
    classic, llmapi = await described(triton, "tensorrt_llm_bls"), await described(triton, "tensorrt_llm")
    ensemble = await described(triton, "ensemble")
    assert (classic.server, classic.version) == ("triton", "2.51.0")
    assert (classic.vocabulary, classic.decoupled, classic.limits.max_batch_size) == ("classic", True, 1)
    assert (llmapi.vocabulary, llmapi.decoupled) == ("llmapi", True)
    # Its step streams, and so does it; Triton says so though its config.pbtxt does not.
    assert (ensemble.vocabulary, ensemble.decoupled) == ("classic", True)
    assert classic.ready is not None
    assert classic.ready["ensemble"]


async def test_load(triton: TritonServer, tmp_path: Path) -> None:
    """Its own queue by model, from its own port; without TensorRT-LLM's C++ backend nothing of what runs.
    A decoupled model is counted as a success when it has begun, even one that fails."""
    question = ADAPTER.load_request()
    assert question is not None

    async def load() -> tuple[int | None, int | None, int | None]:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(triton.metrics_url)
        told = ADAPTER.read_load(answer.status_code, answer.content)
        assert told is not None
        assert (told.running, told.kv_usage) == (None, None)
        of = told.per_model["small_queue"]
        return of.waiting, of.requests_total, of.failures_total

    assert triton.metrics_url.endswith(question.path)
    port = int(triton.metrics_url.split(":")[2].split("/")[0])
    assert with_port(Endpoint(triton.url), port).base_url + question.path == triton.metrics_url
    waiting, began, failed = await load()
    assert (waiting, failed) == (0, 0)
    async with world(tmp_path, {"pool": pool(triton, "small_queue")}) as here, here.http() as http:
        async with asyncio.TaskGroup() as group:
            for text in ("!slow in front of the load", "!raise 0 behind it"):
                group.create_task(http.post("/v1/chat/completions", json=ask(text)))
                await until("it to begin, or to wait", lambda: bool(triton.journal("in front of the load")))
            await until("one to wait", lambda: triton.pending("small_queue") == 1)
            assert (await load())[0] == 1
    assert await load() == (0, began + 2, 0)


async def test_a_model_is_unloaded_and_loaded(triton: TritonServer, tmp_path: Path) -> None:
    """The way that a pool sleeps. While a model is on its way out or in, the whole server says that it is not
    ready; afterwards it is, for a model that was unloaded on purpose counts no more."""
    sleep = ADAPTER.sleep
    assert sleep is not None
    (asleep,), (awake,) = sleep.sleep_requests(["sleepy"]), sleep.wake_requests(["sleepy"])
    (question,) = sleep.awake_requests(["sleepy"])
    async with (
        world(tmp_path, {"pool": pool(triton, "sleepy")}) as here,
        here.sdk() as sdk,
        plain(triton) as http,
    ):
        assert (await answer_of(sdk, False, **ask("olleh")))[0] == "hello"
        assert (await send(http, asleep)).status_code == 200
        assert (await send(http, asleep)).status_code == 200
        assert (await send(http, question)).status_code == 400
        async with asyncio.timeout(20):
            while not ADAPTER.read_health(
                (await send(http, ADAPTER.health_request())).status_code, b""
            ).ready:
                await asyncio.sleep(0.02)
        with pytest.raises(openai.InternalServerError) as broken:
            await answer_of(sdk, False, **ask("olleh"))
        assert broken.value.status_code == 502
        assert (await send(http, awake)).status_code == 200
        assert (await send(http, awake)).status_code == 200
        assert (await send(http, question)).status_code == 200
        assert (await answer_of(sdk, True, **ask("olleh")))[0] == "hello"


async def test_a_pool_that_sleeps(triton: TritonServer, tmp_path: Path) -> None:
    """Woken by the first request, through the whole gateway."""
    sleep = ADAPTER.sleep
    assert sleep is not None
    async with plain(triton) as http:
        await send(http, *sleep.sleep_requests(["sleepy"]))
    warm = {"pool": {"state": "warm", "wake": "engine"}}
    async with world(tmp_path, {"pool": pool(triton, "sleepy")}, pools=warm) as here, here.http() as http:
        answer = await http.post("/v1/chat/completions", json=ask("olleh"))
        assert answer.status_code == 200, answer.text
        assert float(answer.headers["x-headgate-wake-ms"]) > 0
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
