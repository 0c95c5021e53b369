"""What a client gets wrong never reaches a real Triton, which would call it a server's error.

And what Triton says to such requests, word for word, is what the simulated one says.
"""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.simulated.server import serve
from tests.end_to_end.world import tokenizer, world
from tests.real_triton.asking import ask, pool
from tests.real_triton.server import TritonServer

pytestmark = pytest.mark.triton

BAD: list[dict[str, Any]] = [
    {"temperature": "hot"}, {"temperature": 1e39}, {"temperature": True}, {"temperature": [1]},
    {"top_p": "0.5"}, {"top_p": {}}, {"top_k": 2**31}, {"top_k": -5}, {"top_k": 1.5},
    {"top_k": 16.0}, {"top_k": "10"},
    {"seed": 2**64}, {"seed": 1.5}, {"seed": "7"}, {"presence_penalty": 1e39}, {"frequency_penalty": False},
    {"max_tokens": -1}, {"max_tokens": 0}, {"max_tokens": "10"}, {"max_tokens": 1.5}, {"max_tokens": 16.0},
    {"stop": 7},
    {"stop": [1]}, {"stop": [["x"]]}, {"n": -1}, {"repetition_penalty": 0}, {"repetition_penalty": 1e39},
    {"logprobs": True}, {"logit_bias": {"5": 1}}, {"beam_width": 4}, {"return_context_logits": True},
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"lora_task_id": 3}, {"text_input": "x"},
    {"streaming": "x"}, {"id": 5}, {"parameters": {"max_tokens": 5}}, {"user": {"a": 1}},
]  # fmt: skip
CLASSIC_BAD: list[dict[str, Any]] = [
    {"min_tokens": -1},
    {"min_tokens": 2**31},
    {"bad_words": [1]},
]
GOOD: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 1}, {"top_p": 0}, {"top_p": 1}, {"top_k": -1},
    {"seed": -1}, {"seed": 2**63 - 1}, {"stop": []}, {"stop": [""]},
    {"stop": ["1", "2", "3", "4"]},
    {"user": "somebody"}, {"seed": None, "temperature": None, "max_tokens": None, "stop": None},
    {"metadata": {"a": "b"}}, {"presence_penalty": -2, "frequency_penalty": 2},
]  # fmt: skip


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "tensorrt_llm"])
async def test_a_clients_faults_are_400_here(triton: TritonServer, model: str, tmp_path: Path) -> None:
    """Refused before an engine is tried, naming the parameter; what is good in OpenAI's eyes gets through."""
    llmapi = model == "tensorrt_llm"
    pools = {"pool": {"options": {"vocabulary": "llmapi"}}} if llmapi else None
    async with world(tmp_path, {"pool": pool(triton, model)}, pools=pools) as here, here.http() as http:
        let_through = []
        for bad in BAD if llmapi else BAD + CLASSIC_BAD:
            answer = await http.post("/v1/chat/completions", json=ask(f"at fault, {model}:", **bad))
            param = answer.json().get("error", {}).get("param")
            refused = (answer.status_code, param) == (400, next(iter(bad)))
            if not refused or "x-headgate-attempts" in answer.headers:
                let_through.append((bad, answer.status_code, param))
        assert not let_through
        assert triton.journal(f"at fault, {model}:") == []
        for good in GOOD:
            answer = await http.post("/v1/chat/completions", json=ask("olleh", **good))
            assert answer.status_code == 200, (good, answer.text)
            assert answer.json()["choices"][0]["message"]["content"] == "hello", good


STRANGE = [
    "nul \0 byte", "half a pair, replaced: \ufffd", "\u2028 \u202e \ufeff", "\U0010ffff", "a\\u0000b",
    "\r\n\r\ndata: x\n\n", "\x1b[31m", "é" * 3,
]  # fmt: skip


async def test_strange_text_survives(triton: TritonServer, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": pool(triton)}) as here, here.http() as http:
        for text in STRANGE:
            for stream in (False, True):
                body = {"model": "m", "prompt": text, "max_tokens": 200, "stream": stream}
                answer = await http.post("/v1/completions", json=body)
                assert answer.status_code == 200, (text, answer.text)
                said = (
                    "".join(
                        choice["text"]
                        for line in answer.text.split("\n")
                        if line.startswith("data: {")
                        for choice in json.loads(line[6:])["choices"]
                    )
                    if stream
                    else answer.json()["choices"][0]["text"]
                )
                assert said == text[::-1], (text, stream)


GIVEN = {"text_input": "hi", "max_tokens": 3}
RAW: dict[str, tuple[int, dict[str, Any] | bytes]] = {
    "null for a tensor": (500, {**GIVEN, "top_k": None}),
    "16.0 for an INT32": (500, {**GIVEN, "max_tokens": 16.0}),
    "text for an INT32": (500, {**GIVEN, "max_tokens": "10"}),
    "true for an INT32": (500, {**GIVEN, "max_tokens": True}),
    "1 for a BOOL": (500, {**GIVEN, "stream": 1}),
    "-1 for a UINT64": (500, {**GIVEN, "seed": -1}),
    "text for an FP32": (500, {**GIVEN, "temperature": "hot"}),
    "a number for BYTES": (500, {**GIVEN, "text_input": 5}),
    "an id that is no text": (500, {**GIVEN, "id": 7}),
    "no JSON": (500, b"{"),
    "no object": (500, b"[1]"),
    "an empty body": (500, b""),
    "a list for a parameter": (400, {**GIVEN, "user": ["x"]}),
    "null for a parameter": (400, {**GIVEN, "user": None}),
    "no required tensor": (400, {"text_input": "hi"}),
    "two elements for one": (400, {**GIVEN, "top_k": [1, 2]}),
    "an unknown parameter": (200, {**GIVEN, "temprature": 1}),
    "an INT32 that wraps": (200, {**GIVEN, "max_tokens": 3_000_000_000}),
}


async def test_the_simulated_triton_says_the_same(triton: TritonServer) -> None:
    """The status of each, and whether it is an error; words differ in lengths and offsets alone."""
    async with (
        serve("triton", speed=20.0, tokenizer=tokenizer()) as simulated,
        httpx.AsyncClient(trust_env=False, timeout=20) as http,
    ):
        seen: dict[str, Any] = {}
        for what, (_, body) in RAW.items():
            content = body if isinstance(body, bytes) else json.dumps(body)
            answers = []
            for url in (triton.url, simulated.url):
                path = "/v2/models/tensorrt_llm_bls/generate_stream"
                answer = await http.post(url + path, content=content)
                words = answer.json()["error"][:24] if answer.status_code >= 400 else ""
                answers.append((answer.status_code, words, what == "an INT32 that wraps" and answer.text))
            seen[what] = answers
    differ = {what: both for what, both in seen.items() if both[0] != both[1]}
    assert not differ
    assert {what: both[0][0] for what, both in seen.items()} == {
        what: status for what, (status, _) in RAW.items()
    }
