"""The wire vectors and how the adapters fare with them: one check for each, whatever its kind.

Each answer to a request is decoded whole, byte by byte, cut in two at every place and at 50 seeded random
splits; all ways must give the same result. Answers to questions are read whole, as the gateway reads them.
The result must be the expected one (see README.md beside the vectors).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Answer, Decoder, EngineAdapter, GenerateRequest, Load, Metadata
from backends.registry import REGISTRY
from backends.tgi.wire import TgiDecoder
from tests.backends.folding import Result, cuts, decode, fold
from tests.conftest import REPO

VECTORS = Path(os.environ.get("HEADGATE_SHARED", REPO.parent / "shared")) / "engines" / "vectors"
ENGINES = ("trtllm", "triton", "tgi", "openai_compatible")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def names(*kinds: str) -> list[str]:
    """The vectors whose `expect` is of one of these kinds; of all, if none is named."""
    paths = sorted(path for engine in ENGINES for path in (VECTORS / engine).glob("*.json"))
    return [f"{p.parent.name}/{p.stem}" for p in paths if not kinds or read(p)["expect"]["kind"] in kinds]


def load(name: str) -> Any:
    return read(VECTORS / f"{name}.json")


def body_of(response: Mapping[str, Any]) -> bytes:
    if "sse" in response:
        return "".join(response["sse"]).encode()
    if "sse_bytes_latin1" in response:
        return "".join(response["sse_bytes_latin1"]).encode("latin-1")
    body = response.get("body")
    if body is None:
        return b""
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def adapter_of(vector: Mapping[str, Any]) -> EngineAdapter:
    """The adapter that would have sent this request."""
    path, body, name = vector["request"]["path"], vector["request"]["body"] or {}, vector["name"]
    match vector["engine"]:
        case "openai_compatible":
            return REGISTRY.adapter(name.split("_")[0], {})
        case "tgi":
            return REGISTRY.adapter("tgi", {"api": "messages"} if path.startswith("/v1/") else {})
        case "triton" if path.startswith("/v1/"):
            return REGISTRY.adapter("triton-openai", {})
        case "triton":
            is_llmapi = any(key.startswith("sampling_param_") for key in body)
            return REGISTRY.adapter("triton", {"vocabulary": "llmapi"} if is_llmapi else {})
        case kind:
            return REGISTRY.adapter(kind, {})


def kind_of(vector: Mapping[str, Any]) -> str:
    """The engine as the table names it."""
    adapter = adapter_of(vector)
    options = getattr(adapter, "_options", None)
    for option, usual in (("api", "native"), ("vocabulary", "classic")):
        if (value := getattr(options, option, usual)) != usual:
            return f"{adapter.kind} ({value})"
    return adapter.kind


def check(name: str) -> None:
    """Raises AssertionError where an answer is read otherwise than expected."""
    vector = load(name)
    match vector["expect"]["kind"]:
        case "generation" | "error" | "unusable":
            _check_answer(vector)
        case "health":
            _check_health(vector)
        case "metadata":
            _check_metadata(vector)
        case "load":
            _check_load(vector)
        case "tokens":
            response = vector["response"]
            count = adapter_of(vector).read_token_count(response["status"], body_of(response))
            assert count == vector["expect"]["count"]
        case kind:
            raise AssertionError(f"an unknown kind of vector: {kind}")


# --------------------------------------------------------------------------------------------- answers


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    for key in ("stop", "stop_words", "sampling_param_stop"):
        if (value := body.get(key)) is not None:
            return tuple(stop for stop in ([value] if isinstance(value, str) else value) if stop)
    return ()


def decoder_of(vector: Mapping[str, Any]) -> Decoder:
    path, given = vector["request"]["path"], vector["request"]["body"] or {}
    body = {**given, **(given.get("parameters") or {})}
    max_tokens = body.get("max_tokens", body.get("sampling_param_max_tokens"))
    is_chat = path.endswith("/chat/completions")
    request = GenerateRequest(
        request_id="vector",
        model=path.split("/")[3] if path.startswith("/v2/models/") else str(body.get("model")),
        stream=given.get("stream") is True or path.endswith("_stream"),
        messages=given.get("messages", []) if is_chat else None,
        prompt=None if is_chat else body.get("prompt", body.get("text_input", body.get("inputs", ""))),
        max_tokens=max_tokens if type(max_tokens) is int else None,
        n=body.get("n") or 1,
        stop=_stops(body),
    )
    if body.get("return_full_text") is True:  # never asked for by the adapter
        return TgiDecoder(stops=request.stop, echoes=True)
    return adapter_of(vector).decoder(request)


def _check_answer(vector: Mapping[str, Any]) -> None:
    response = vector["response"]
    whole: Result | None = None
    for pieces in cuts(body_of(response), vector["name"]):
        result = fold(decode(decoder_of(vector), response["status"], response["headers"], pieces))
        if whole is None:
            whole = result
            _compare_answer(result, vector["expect"])
        assert result.comparable() == whole.comparable(), pieces
    assert whole is not None


def _compare_answer(result: Result, expect: Mapping[str, Any]) -> None:
    if expect["kind"] == "error":
        assert result.choices == {}
        assert not result.complete
        assert result.error is not None
    if expect.get("error") is not None:
        error = result.error
        assert error is not None
        assert error.kind in {expect["error"]["class"], *expect["error"].get("also", ())}
        assert error.retryable is expect["error"]["retryable"]
    elif "error" in expect:
        assert result.error is None
    if "complete" in expect:
        assert result.complete is expect["complete"]
    if "usage" in expect:
        if expect["usage"] is None:
            assert result.usage is None
        else:
            assert result.usage is not None
            assert {key: result.usage[key] for key in expect["usage"]} == expect["usage"]
    if "choices" in expect:
        assert set(result.choices) == {choice["index"] for choice in expect["choices"]}
        for expected in expect["choices"]:
            choice = result.choices[expected["index"]]
            assert choice.text == expected["text"]
            if "finish_reason" in expected:
                assert choice.finish_reason == expected["finish_reason"]
            if "tool_calls" in expected:
                calls = {call["index"]: (call["name"], call["arguments"]) for call in expected["tool_calls"]}
                assert {i: (c["name"], c["arguments"]) for i, c in choice.tool_calls.items()} == calls


# ------------------------------------------------------------------------------------ answers to questions


def _check_health(vector: Mapping[str, Any]) -> None:
    response, expect = vector["response"], vector["expect"]
    health = adapter_of(vector).read_health(response["status"], body_of(response))
    assert (health.ready, health.live) == (expect["ready"], expect["live"])


def _check_metadata(vector: Mapping[str, Any]) -> None:
    response, expect = vector["response"], vector["expect"]
    answers = {vector["request"]["path"]: Answer(response["status"], body_of(response))}
    metadata = adapter_of(vector).read_metadata(answers)
    for key, value in expect.items():
        if key in ("kind", "why", "note"):
            continue
        told = getattr(metadata, key)
        if key == "limits":
            assert {name: getattr(told, name) for name in value} == value
        elif isinstance(value, list):
            assert told is not None
            assert set(told) == set(value)
        else:
            assert told == value
    untold = Metadata()
    assert metadata != untold


def _check_load(vector: Mapping[str, Any]) -> None:
    response, expect = vector["response"], vector["expect"]
    told = adapter_of(vector).read_load(response["status"], body_of(response))
    assert told is not None
    _compare_load(told, expect)


def _compare_load(told: Load, expect: Mapping[str, Any]) -> None:
    for key, value in expect.items():
        if key in ("kind", "why", "note"):
            continue
        if key == "per_model":
            assert told.per_model is not None
            assert set(told.per_model) == set(value)
            for model, expected in value.items():
                _compare_load(told.per_model[model], expected)
        elif isinstance(value, float):
            assert getattr(told, key) == pytest.approx(value, rel=1e-6)
        else:
            assert getattr(told, key) == value
