"""`POST /tokenize`, and `headgate tokenizers verify` before simulated engines."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.simulated.server import serve
from gateway.api import questions
from tests.end_to_end.test_command_line import headgate
from tests.end_to_end.world import TOKENIZER, routes, tokenizer, world

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Открой шлюз, please 🚀"}]}
ESTIMATED = {"tokenizer": {"kind": "estimate"}}


async def test_a_prompt_and_a_chat_are_tokenized_as_the_engine_does(tmp_path: Path) -> None:
    """The very ids that vLLM answers on the same route, and the count that the answer's header names."""
    async with world(tmp_path, {"pool": {"kind": "vllm"}}) as here, here.http() as http:
        engine = here.engine().url
        for body in (
            {"model": "m", "prompt": "Water, 水, вода"},
            {"model": "m", "prompt": "Water", "add_special_tokens": False},
            CHAT,
            {**CHAT, "add_generation_prompt": False},
        ):
            ours = await http.post("/tokenize", json=body)
            assert ours.status_code == 200, ours.text
            theirs = (await http.post(f"{engine}/tokenize", json=body)).json()
            names = ("count", "tokens", "max_model_len")
            assert [ours.json()[name] for name in names] == [theirs.get(name) for name in names], body
            assert ours.json()["count"] == len(ours.json()["tokens"])
            assert ours.json()["token_strs"] is None
        body = {"model": "m", "prompt": "Water", "return_token_strs": True}
        told = (await http.post("/tokenize", json=body)).json()
        assert told["token_strs"] == ["<|begin_of_text|>", "Water"]
        answered = await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1})
        asked = await http.post("/tokenize", json=CHAT)
        assert int(answered.headers["x-headgate-prompt-tokens"]) == asked.json()["count"]
        assert here.engine().statistics().requests == 1


async def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    """An estimate has no ids; a long text is counted without listing them."""
    models: dict[str, dict[str, Any]] = {"m": ESTIMATED}
    async with world(tmp_path, {"pool": {"kind": "vllm"}}, models=models) as here, here.http() as http:
        told = (await http.post("/tokenize", json=CHAT)).json()
        assert told["count"] > 0
        assert told["tokens"] is None
    long = "water " * 12_000
    async with world(tmp_path, {"pool": {"kind": "vllm"}}) as here, here.http() as http:
        for added, body in ((1, {}), (0, {"add_special_tokens": False})):
            told = (await http.post("/tokenize", json={"model": "m", "prompt": long, **body})).json()
            assert told["tokens"] is None
            assert told["count"] == len(tokenizer().encode(long, add_special_tokens=False)) + added


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"prompt": "a"}, 400, "prompt"),
        ({"messages": None}, 400, "prompt"),
        ({"messages": None, "prompt": ["a", "b"]}, 400, "prompt"),
        ({"messages": [{"role": "nobody", "content": ""}]}, 400, "messages[0].role"),
        ({"add_special_tokens": "yes"}, 400, "add_special_tokens"),
        ({"add_generation_prompt": 1}, 400, "add_generation_prompt"),
        ({"return_token_strs": "no"}, 400, "return_token_strs"),
        ({"chat_template": "{{ 1 }}"}, 400, "chat_template"),
        ({"model": "nobody"}, 404, "model"),
    ],
)
async def test_a_wrong_body_is_refused(
    tmp_path: Path, change: dict[str, Any], status: int, param: str
) -> None:
    async with world(tmp_path, {"pool": {"kind": "tgi"}}) as here, here.http() as http:
        answer = await http.post("/tokenize", json={**CHAT, **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_few_are_answered_at_a_time(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a few are told to come back; a place is given back, also by one that was refused."""
    async with world(tmp_path, {"pool": {"kind": "vllm"}}) as here, here.http() as http:
        monkeypatch.setattr(questions, "MOST_AT_ONCE", 1)
        for body, status in ((CHAT, 200), ({**CHAT, "messages": []}, 400), (CHAT, 200), (CHAT, 200)):
            assert (await http.post(path, json=body)).status_code == status
        monkeypatch.setattr(questions, "MOST_AT_ONCE", 0)
        answer = await http.post(path, json=CHAT)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


KINDS = ("trtllm", "triton", "tgi", "vllm", "sglang", "llamacpp", "openai")


async def test_verify_holds_our_counts_against_every_engine(tmp_path: Path) -> None:
    """The same tokenizer: nothing differs, and each engine is asked in its own way."""
    async with world(tmp_path, {kind: {"kind": kind} for kind in KINDS}) as here:
        done = await asyncio.to_thread(headgate, "tokenizers", "verify", "--live", "-c", here.file)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"m: exact, huggingface from {TOKENIZER}, 4096 tokens, chat template")
        ways = {line.split(",")[0].removeprefix("pool "): line.split("(")[1] for line in lines[1:]}
        assert ways == {
            "trtllm": "20 by tokenize route, 20 by usage)",
            "triton": "40 by usage)",
            "tgi": "40 by tokenize route)",
            "vllm": "40 by tokenize route)",
            "sglang": "20 by tokenize route, 20 by usage)",
            "llamacpp": "40 by tokenize route)",
            "openai": "40 by usage)",
        }
        assert all("0 of 40 counts differ" in line for line in lines[1:])


async def test_verify_names_what_differs(tmp_path: Path) -> None:
    """Another template: the texts agree, every chat differs, and the exit code says so."""
    other = tmp_path / "other"
    shutil.copytree(TOKENIZER, other)
    template = other / "chat_template.jinja"
    template.write_text("Be good. " + template.read_text())
    engines = {"vllm": {"kind": "vllm"}, "sglang": {"kind": "sglang"}}
    async with world(tmp_path, engines) as here:
        written = yaml.safe_load(here.file.read_text())
        written["models"]["m"]["tokenizer"]["path"] = str(other)
        changed = tmp_path / "changed.yaml"
        changed.write_text(yaml.safe_dump(written))
        done = await asyncio.to_thread(headgate, "tokenizers", "verify", "--live", "-c", changed)
    assert done.returncode == 1
    assert done.stdout.count("20 of 40 counts differ") == 2
    assert done.stdout.count(" as chat: ") == 40
    assert " as text: " not in done.stdout


async def test_verify_names_the_replica_that_differs(tmp_path: Path) -> None:
    """Three replicas, one of them started with another template; and one that is gone."""
    other = tmp_path / "other"
    shutil.copytree(TOKENIZER, other)
    template = other / "chat_template.jinja"
    template.write_text("Be good. " + template.read_text())
    async with (
        world(tmp_path, {"pool": {"kind": "vllm", "replicas": 2}}) as here,
        serve("vllm", speed=20.0, model="m", tokenizer=other) as odd,
    ):
        written = yaml.safe_load(here.file.read_text())
        written["pools"]["pool"]["replicas"].insert(1, {"id": "odd", "url": odd.url})
        changed = tmp_path / "changed.yaml"
        changed.write_text(yaml.safe_dump(written))
        done = await asyncio.to_thread(headgate, "tokenizers", "verify", "--live", "-c", changed)
        assert done.returncode == 1
        lines = [line for line in done.stdout.splitlines() if line.startswith("pool ")]
        assert [line.split(" replica ")[1].split(" counts")[0] for line in lines[:3]] == [
            "pool-1: 0 of 40",
            "odd: 20 of 40",
            "pool-2: 0 of 40",
        ]
        assert lines[3] == (
            "pool pool, model m: the replicas do not count alike: odd differs, pool-1, pool-2 not"
        )
        here.engines["pool-2"].crash()
        done = await asyncio.to_thread(headgate, "tokenizers", "verify", "--live", "-c", here.file)
        assert (done.returncode, "0 of 40" in done.stdout) == (1, True)
        assert done.stderr == "pool pool: replica pool-2 does not answer that it is well\n"


def test_verify_without_engines(tmp_path: Path) -> None:
    """Not asked: fine. Asked and silent: a problem. A tokenizer that is not there: a problem."""
    done = headgate("tokenizers", "verify")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4), done.stderr
    assert "loaded already" in done.stdout
    pool = {"engine": "vllm", "serves": ["m"], "replicas": [{"id": "r", "url": "http://127.0.0.1:9"}]}
    config = tmp_path / "routes.yaml"
    config.write_text(yaml.safe_dump(routes({"pool": pool}, models={"m": ESTIMATED})))
    done = headgate("tokenizers", "verify", "--live", "-c", config)
    assert (done.returncode, done.stdout) == (1, "m: estimate, 4 bytes per token\n")
    assert "replica r does not" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "tokenizer.json").write_text("{}")
    model = {"tokenizer": {"kind": "huggingface", "path": str(empty)}}
    config.write_text(yaml.safe_dump(routes({"pool": pool}, models={"m": model})))
    done = headgate("tokenizers", "verify", "-c", config)
    assert done.returncode == 1
    assert "cannot be loaded" in done.stdout
