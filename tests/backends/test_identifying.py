"""Recognising an engine from what it answers: recorded shapes, hostile ones, and the simulated engines."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Answer, HttpRequest, Identified
from backends.registry import REGISTRY


def _models(owner: str, **card: Any) -> Answer:
    return _json({"object": "list", "data": [{"id": "org/m", "owned_by": owner, **card}]})


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode())


def _triton(models: Mapping[str, list[str]]) -> dict[str, Answer]:
    answers = {
        "/v2": _json({"name": "triton", "version": "2.51.0", "extensions": ["parameters"]}),
        "/v2/repository/index": _json([{"name": name, "state": "READY"} for name in models]),
    }
    for name, inputs in models.items():
        answers[f"/v2/models/{name}"] = _json(
            {
                "name": name,
                "inputs": [{"name": tensor} for tensor in inputs],
                "outputs": [{"name": "text_output"}],
            }
        )
    return answers


def _asked(upstream: Mapping[str, Answer]) -> tuple[Identified | None, int]:
    """What the upstream with these answers is taken for, and after how many rounds."""
    answers: dict[str, Answer] = {}
    rounds = 0
    while questions := REGISTRY.questions(answers):
        rounds += 1
        assert rounds < 9
        assert len({question.path for question in questions}) == len(questions)
        for question in questions:
            assert question.path not in answers
            answers[question.path] = upstream.get(question.path, Answer(404))
    return REGISTRY.identify(answers), rounds


def test_engines_are_known_by_their_owners() -> None:
    for owner, kind in {
        "tensorrt_llm": "trtllm", "sglang": "sglang", "vllm": "vllm", "llamacpp": "llamacpp",
        "Triton Inference Server": "triton-openai", "somebody": "openai",
    }.items():  # fmt: skip
        found, _ = _asked({"/v1/models": _models(owner)})
        assert found is not None
        assert (found.kind, found.models) == (kind, {"org/m": "org/m"})
        assert found.how.isascii()


def test_limits_and_versions_come_along() -> None:
    found, _ = _asked(
        {"/v1/models": _models("vllm", max_model_len=8192), "/version": _json({"version": "0.33"})}
    )
    assert found is not None
    assert (found.limits.context_tokens, found.version) == (8192, "0.33")


def test_sglang_is_asked_for_its_limits_once_it_is_known() -> None:
    """Nobody else is asked for /server_info, which holds secrets."""
    upstream = {"/v1/models": _models("sglang"), "/server_info": _json({"max_running_requests": 4})}
    found, rounds = _asked(upstream)
    assert found is not None
    assert (found.limits.in_flight, rounds) == (4, 2)
    answers = {"/v1/models": _models("vllm")}
    assert "/server_info" not in [question.path for question in REGISTRY.questions(answers)]


def test_tgi_keeps_its_template_and_its_base_models_name() -> None:
    """Its /v1/models is owned by nobody in particular; /info decides."""
    info = {"model_id": "org/m", "max_total_tokens": 2048, "max_concurrent_requests": 9, "version": "3.3.7"}
    found, _ = _asked({"/info": _json(info), "/v1/models": _models("org/m")})
    assert found is not None
    assert (found.kind, found.options, found.models) == ("tgi", {"api": "messages"}, {"org/m": "tgi"})
    assert found.limits.context_tokens == 2048


def test_tritons_models_tell_their_vocabulary() -> None:
    """In three rounds; parts of models are left out."""
    parts = {"preprocessing": ["QUERY"], "ensemble": ["text_input", "max_tokens"]}
    found, rounds = _asked(_triton(parts))
    assert found is not None
    assert (found.kind, found.options, found.models) == ("triton", {}, {"ensemble": "ensemble"})
    assert (found.version, rounds) == ("2.51.0", 3)
    found, _ = _asked(_triton({"tensorrt_llm": ["text_input", "sampling_param_max_tokens"]}))
    assert found is not None
    assert found.options == {"vocabulary": "llmapi"}
    REGISTRY.adapter(found.kind, found.options)


def test_a_triton_without_such_models_is_still_a_triton() -> None:
    found, _ = _asked(_triton({"resnet": ["pixels"]}))
    assert found is not None
    assert (found.kind, found.models) == ("triton", {})
    assert "none of its ready models" in found.how


def test_names_of_hostile_upstreams_are_printable() -> None:
    found, _ = _asked({"/v1/models": _models("evil\x1b[2J\u202e")})
    assert found is not None
    assert found.how.isprintable()


@pytest.mark.parametrize("status", [0, 200, 401, 404, 500, 503])
def test_nothing_is_not_an_engine(status: int) -> None:
    """Unreachable, locked, loading, a web page."""
    answers: dict[str, Answer] = {}
    while questions := REGISTRY.questions(answers):
        answers |= {question.path: Answer(status, b"<html>") for question in questions}
    assert REGISTRY.identify(answers) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "id", "owned_by", "name", "extensions", "model_id", "max_total_tokens", "inputs",
                 "outputs", "meta", "max_model_len", "version", "default_generation_settings", "loads",
                 "model_stats", "kvCacheStats", "tokens", "count", "model_path", "is_generation"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.data())
def test_no_answer_crashes_a_reader(data: st.DataObject) -> None:
    """Any JSON under any path: an engine or none, metadata, load and counts or none."""
    answers: dict[str, Answer] = {}
    for _ in range(4):
        for question in REGISTRY.questions(answers):
            answers[question.path] = _json(data.draw(VALUES))
    REGISTRY.identify(answers)
    body = answers["/v1/models"].body
    for kind in REGISTRY.kinds():
        adapter = REGISTRY.adapter(kind, {})
        adapter.read_metadata(answers)
        adapter.read_load(200, body)
        adapter.read_token_count(200, body)
        adapter.read_health(200, body)


SIMULATED = [
    ("trtllm", {}, "trtllm", {}),
    ("tgi", {}, "tgi", {"api": "messages"}),
    ("triton", {}, "triton", {}),
    ("triton", {"vocabulary": "llmapi"}, "triton", {"vocabulary": "llmapi"}),
    ("triton-openai", {}, "triton-openai", {}),
    ("vllm", {}, "vllm", {}),
    ("sglang", {}, "sglang", {}),
    ("llamacpp", {}, "llamacpp", {}),
    ("openai", {}, "openai", {}),
]


@pytest.mark.parametrize(("served", "server", "kind", "options"), SIMULATED)
async def test_the_simulated_engines_are_recognised(
    served: str, server: dict[str, Any], kind: str, options: dict[str, Any]
) -> None:
    """Over real HTTP, asked as the gateway would."""
    from backends.simulated.server import serve  # slow to import

    async with (
        serve(served, **server) as engine,
        httpx.AsyncClient(base_url=engine.url, trust_env=False) as client,
    ):
        answers: dict[str, Answer] = {}
        while questions := REGISTRY.questions(answers):
            for question in questions:
                answer = await client.request(question.method, question.path)
                answers[question.path] = Answer(answer.status_code, answer.content)
        found = REGISTRY.identify(answers)
    assert found is not None
    assert (found.kind, found.options) == (kind, options)
    assert found.models


@pytest.mark.parametrize(("served", "server", "kind", "options"), SIMULATED)
async def test_the_simulated_engines_answers_are_read(
    served: str, server: dict[str, Any], kind: str, options: dict[str, Any]
) -> None:
    """Health, metadata, load and token counts, each where the kind has it."""
    from backends.simulated.server import serve  # slow to import

    adapter = REGISTRY.adapter(kind, options)
    async with serve(served, **server) as engine, httpx.AsyncClient(trust_env=False) as client:

        async def ask(question: HttpRequest | None) -> Answer | None:
            if question is None:
                return None
            url = engine.url + question.path
            answer = await client.request(
                question.method, url, headers=dict(question.headers), content=question.body
            )
            return Answer(answer.status_code, answer.content)

        health = await ask(adapter.health_request())
        assert health is not None
        assert adapter.read_health(health.status, health.body).ready
        answers = {question.path: await ask(question) for question in adapter.metadata_requests()}
        told = adapter.read_metadata({path: answer for path, answer in answers.items() if answer})
        assert told.models
        if (answer := await ask(adapter.load_request())) is not None:
            load = adapter.read_load(answer.status, answer.body)
            assert load is not None
            assert load.running in (None, 0)
        counts = []
        for text in ("hello", "hello hello hello hello"):
            if (answer := await ask(adapter.tokenize_request(told.models[0], text=text))) is not None:
                count = adapter.read_token_count(answer.status, answer.body)
                assert count is not None
                counts.append(count)
        assert counts == sorted(set(counts))
        messages = [{"role": "user", "content": "hello"}]
        if (answer := await ask(adapter.tokenize_request(told.models[0], messages=messages))) is not None:
            count = adapter.read_token_count(answer.status, answer.body)
            assert count is not None
            assert count > counts[0]
