"""How engines are put to sleep and woken: the adapters' words, and the simulated engines' answers to them."""

import httpx
import pytest

from backends.contract import Answer, HttpRequest, SleepControl
from backends.registry import REGISTRY
from backends.simulated.server import SimulatedServer, serve


def control(kind: str) -> SleepControl:
    found = REGISTRY.adapter(kind, {}).sleep
    assert found is not None
    return found


def test_who_can_sleep() -> None:
    able = {kind for kind in REGISTRY.kinds() if REGISTRY.adapter(kind, {}).sleep is not None}
    assert able == {"vllm", "triton"}


@pytest.mark.parametrize(
    ("answers", "awake"),
    [
        ({"/is_sleeping": Answer(200, b'{"is_sleeping":false}')}, True),
        ({"/is_sleeping": Answer(200, b'{"is_sleeping":true}')}, False),
        ({"/is_sleeping": Answer(200, b'{"is_sleeping":"no"}')}, None),
        ({"/is_sleeping": Answer(404, b'{"detail":"Not Found"}')}, None),
        ({"/is_sleeping": Answer(200, b"[]")}, None),
        ({}, None),
    ],
)
def test_vllm_tells(answers: dict[str, Answer], awake: bool | None) -> None:
    assert control("vllm").read_awake(answers) is awake


def test_triton_is_awake_when_every_model_is_loaded() -> None:
    one, other = "/v2/models/a/ready", "/v2/models/b%2Fc/ready"
    assert [request.path for request in control("triton").awake_requests(["a", "b/c"])] == [one, other]
    assert control("triton").read_awake({one: Answer(200), other: Answer(200)}) is True
    assert control("triton").read_awake({one: Answer(200), other: Answer(400)}) is False
    assert control("triton").read_awake({}) is None
    (load,) = control("triton").wake_requests(["b/c"])
    assert load.path == "/v2/repository/models/b%2Fc/load"


async def tell(server: SimulatedServer, request: HttpRequest) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(
            request.method, server.url + request.path, headers=dict(request.headers), content=request.body
        )


async def is_awake(server: SimulatedServer, kind: str, model: str) -> bool | None:
    questions = control(kind).awake_requests([model])
    answers = [await tell(server, each) for each in questions]
    told = {each.path: Answer(a.status_code, a.content) for each, a in zip(questions, answers, strict=True)}
    return control(kind).read_awake(told)


@pytest.mark.parametrize(("kind", "model"), [("vllm", "m"), ("triton", "ensemble")])
async def test_there_and_back_twice(kind: str, model: str) -> None:
    """Each thing may be said twice."""
    async with serve(kind, model=model, sleeps=True) as server:
        assert await is_awake(server, kind, model) is True
        for requests, awake in (
            (control(kind).sleep_requests([model]), False),
            (control(kind).wake_requests([model]), True),
        ):
            for _ in range(2):
                assert [(await tell(server, each)).status_code for each in requests] == [200]
                assert await is_awake(server, kind, model) is awake


@pytest.mark.parametrize(("kind", "model", "status"), [("vllm", "m", 404), ("triton", "ensemble", 503)])
async def test_one_that_was_not_started_for_it(kind: str, model: str, status: int) -> None:
    async with serve(kind, model=model) as server:
        for request in (*control(kind).wake_requests([model]), *control(kind).sleep_requests([model])):
            assert (await tell(server, request)).status_code == status


async def test_a_vllm_that_is_asked_in_its_sleep_dies() -> None:
    chat = HttpRequest(
        "POST",
        "/v1/chat/completions",
        {"content-type": "application/json"},
        b'{"model":"m","messages":[{"role":"user","content":"x"}]}',
    )
    async with serve("vllm", model="m", asleep=True) as server:
        health = HttpRequest("GET", "/health")
        assert (await tell(server, health)).status_code == 200, "its health tells nothing of sleep"
        assert (await tell(server, chat)).status_code == 500
        assert (await tell(server, health)).status_code == 503
        await tell(server, HttpRequest("POST", "/wake_up"))
        assert (await tell(server, chat)).status_code == 500


async def test_a_triton_without_its_model_refuses() -> None:
    async with serve("triton", asleep=True) as server:
        body = b'{"text_input":"x","max_tokens":2}'
        ask = HttpRequest("POST", "/v2/models/ensemble/generate", {"content-type": "application/json"}, body)
        answer = await tell(server, ask)
        assert (answer.status_code, "no available versions" in answer.text) == (404, True)
        assert (await tell(server, HttpRequest("GET", "/v2/health/ready"))).status_code == 200
        (load,) = control("triton").wake_requests(["none"])
        assert (await tell(server, load)).status_code == 500
