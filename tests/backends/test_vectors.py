"""The wire vectors: recorded answers of real engines, and what a right adapter makes of them.

Each is decoded whole, byte by byte, cut in two at every place and at 50 seeded random splits. All ways must
give the same result, and the result must be the expected one (see README.md beside the vectors).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Decoder, GenerateRequest
from backends.openai.adapter import OpenAiAdapter
from backends.openai_dialect import choices_asked
from backends.registry import REGISTRY
from backends.tgi import wire as tgi
from backends.triton.adapter import TritonAdapter
from backends.trtllm.adapter import TrtllmAdapter
from tests.backends.folding import Result, cuts, decode, fold
from tests.conftest import REPO

VECTORS = Path(os.environ.get("HEADGATE_SHARED", REPO.parent / "shared")) / "engines" / "vectors"
ENGINES = ("trtllm", "triton", "tgi", "openai_compatible")

LEFT_OUT = {
    "triton/live_kserve_infer": "the KServe infer route, which no adapter uses: generate says the same",
}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _names(*kinds: str) -> list[str]:
    paths = sorted(path for engine in ENGINES for path in (VECTORS / engine).glob("*.json"))
    return [f"{p.parent.name}/{p.stem}" for p in paths if _read(p)["expect"]["kind"] in kinds]


def _body(response: dict[str, Any]) -> bytes:
    if "sse" in response:
        return "".join(response["sse"]).encode()
    if "sse_bytes_latin1" in response:
        return "".join(response["sse_bytes_latin1"]).encode("latin-1")
    body = response.get("body")
    if body is None:
        return b""
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    both = {**body, **(body.get("parameters") or {})}
    for key in ("stop", "stop_words", "sampling_param_stop"):
        if (value := both.get(key)) is not None:
            return tuple(stop for stop in ([value] if isinstance(value, str) else value) if stop)
    return ()


def _decoder(engine: str, path: str, body: dict[str, Any]) -> Decoder:
    """The decoder that the adapter for this engine and route would use."""
    both = {**body, **(body.get("parameters") or {})}
    max_tokens = both.get("max_tokens")
    is_chat = path.endswith("/chat/completions")
    request = GenerateRequest(
        request_id="vector",
        model=path.split("/")[3] if path.startswith("/v2/models/") else str(both.get("model")),
        stream=body.get("stream") is True or path.endswith("_stream"),
        messages=body.get("messages", []) if is_chat else None,
        prompt=None if is_chat else both.get("prompt", both.get("text_input", both.get("inputs", ""))),
        max_tokens=max_tokens if type(max_tokens) is int else None,
        n=both.get("n") or 1,
        stop=_stops(body),
    )
    if engine == "tgi" and path.startswith("/generate"):
        return tgi.TgiDecoder(stops=request.stop, echoes=both.get("return_full_text") is True)
    if engine == "tgi":
        return tgi.messages_decoder(choices_asked(request))
    if engine == "trtllm":
        return TrtllmAdapter().decoder(request)
    if engine == "triton" and path.startswith("/v2/"):
        return TritonAdapter().decoder(request)
    return OpenAiAdapter().decoder(request)


def _compare(result: Result, expect: dict[str, Any]) -> None:
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


TESTED = [name for name in _names("generation", "error", "unusable") if name not in LEFT_OUT]
"""An `unusable` record settles nothing, but must not crash a decoder either."""


def test_the_vectors_are_there(shared_dir: Path) -> None:
    """A missing folder would make this module pass without a check."""
    assert len([name for name in TESTED if not name.startswith("openai_compatible/")]) >= 40
    assert not set(LEFT_OUT) - set(_names("generation", "error"))


@pytest.mark.parametrize("name", TESTED)
def test_every_cut_gives_what_is_expected(name: str) -> None:
    """Wherever TCP cuts an answer, it means the same, and what the vector says."""
    vector = _read(VECTORS / f"{name}.json")
    request, response, expect = vector["request"], vector["response"], vector["expect"]
    whole: Result | None = None
    for pieces in cuts(_body(response), vector["name"]):
        decoder = _decoder(vector["engine"], request["path"], request["body"] or {})
        result = fold(decode(decoder, response["status"], response["headers"], pieces))
        if whole is None:
            whole = result
            _compare(result, expect)
        assert result.comparable() == whole.comparable(), pieces
    assert whole is not None


@pytest.mark.parametrize("name", _names("health"))
def test_health_answers_are_read(name: str) -> None:
    """Loading is alive; a dead executor is not."""
    vector = _read(VECTORS / f"{name}.json")
    kind = {"openai_compatible": "openai"}.get(vector["engine"], vector["engine"])
    health = REGISTRY.adapter(kind, {}).read_health(vector["response"]["status"], _body(vector["response"]))
    assert (health.ready, health.live) == (vector["expect"]["ready"], vector["expect"]["live"])
