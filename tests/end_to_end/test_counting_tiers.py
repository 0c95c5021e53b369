"""Counted, learned and estimated, from the client to the engine's usage and back."""

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.world import TOKENIZER, World, world

CHANCE = random.Random(3)
WORDS = (  # noqa: SIM905  # each in quotes they are not read
    "the gate at head of canal opens slowly and water finds its way into every field that needs it before "
    "summer comes with heat while people on both banks wait for what they were promised long ago"
).split()

MODEL: dict[str, Any] = {"max_tokens": {"default": 8, "ceiling": 64}}
POOLS: dict[str, dict[str, Any]] = {
    "short": {"kind": "vllm", "speed": 50},
    "long": {"kind": "trtllm", "speed": 50},
}
RULES = [
    {"name": "few", "when": {"estimated_total_tokens": {"lte": 2000}}, "pools": ["short"]},
    {"name": "many", "pools": ["long"]},
]


def prose(words: int) -> str:
    return " ".join(CHANCE.choices(WORDS, k=words)) + "."


def asking(words: int) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": prose(words)}]}


async def ask(http: httpx.AsyncClient, words: int = 600) -> httpx.Response:
    answer = await http.post("/v1/chat/completions", json=asking(words))
    assert answer.status_code == 200, answer.text
    return answer


def tier(answer: httpx.Response) -> str:
    return answer.headers["x-headgate-prompt-count"]


async def metric(here: World, name: str) -> float:
    """The value of one sample, labels and all; 0 where it is absent."""
    async with here.admin() as admin:
        lines = (await admin.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


async def test_a_kind_of_text_is_learned_and_then_estimated(tmp_path: Path) -> None:
    """64 counts, then estimates, of which the engine's usage says that they hold; near the rule's threshold
    it is counted again; explain says why."""
    async with (
        world(tmp_path, POOLS, rules=RULES, models={"m": MODEL}) as here,
        here.http() as http,
        here.admin() as admin,
    ):
        tiers = [tier(await ask(http)) for _ in range(84)]
        assert tiers == ["exact"] * 64 + ["estimate"] * 20
        assert (
            await metric(here, 'headgate_prompt_counts_total{exact="false",model="m",tier="estimate"}') == 20
        )
        verified = 'headgate_prompt_estimates_verified_total{model="m",result="%s"}'
        assert await metric(here, verified % "within") >= 19
        assert await metric(here, verified % "crossed") == 0
        drift = 'headgate_prompt_count_drift_ratio_%s{count="%s",%smodel="m"}'
        assert await metric(here, drift % ("count", "estimated", "")) == 20
        assert await metric(here, drift % ("bucket", "exact", 'le="1.0",')) == 64
        assert await metric(here, drift % ("bucket", "exact", 'le="0.9999",')) == 0

        told = (
            await admin.post("/admin/routes/explain", json={"tenant": "tenant", "request": asking(600)})
        ).json()
        assert told["prompt"]["tier"] == "estimate"
        assert told["prompt"]["why"].startswith("estimate ")
        assert told["prompt"]["why"].endswith("from the nearest boundary, rule few (2000)")

        for _ in range(64):
            await ask(http, 1700)
        each = int((await ask(http, 1700)).headers["x-headgate-prompt-tokens"]) / 1700
        near = asking(round(1999 / each))
        told = (await admin.post("/admin/routes/explain", json={"tenant": "tenant", "request": near})).json()
        assert told["prompt"]["tier"] == "exact"
        assert told["prompt"]["why"].startswith("rule few (2000) lies within the estimate, ")


async def test_without_a_tokenizer_the_ratio_is_learned_from_usage(tmp_path: Path) -> None:
    """From four bytes per token to what the engine's tokenizer makes of it."""
    models = {"m": {**MODEL, "tokenizer": {"kind": "estimate"}}}
    async with (
        world(tmp_path, {"pool": {"kind": "vllm", "speed": 50}}, models=models) as here,
        here.http() as http,
    ):
        for _ in range(64):
            first = await ask(http)
        last = await ask(http)
    far, near = (
        abs(int(answer.headers["x-headgate-prompt-tokens"]) / answer.json()["usage"]["prompt_tokens"] - 1)
        for answer in (first, last)
    )
    assert tier(first) == tier(last) == "estimate"
    assert near < 0.06 < far


async def test_a_policy_of_exact_counts_everything(tmp_path: Path) -> None:
    models = {"m": {**MODEL, "count": "exact"}}
    async with (
        world(tmp_path, {"pool": {"kind": "vllm", "speed": 50}}, models=models) as here,
        here.http() as http,
    ):
        assert {tier(await ask(http)) for _ in range(70)} == {"exact"}


async def test_a_wrong_template_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A template that leaves out its one BOS: each prompt is one token shorter here than there."""
    directory = tmp_path / "wrong"
    shutil.copytree(TOKENIZER, directory)
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{- bos_token }}", "", 1))
    models = {"m": {**MODEL, "tokenizer": {"kind": "huggingface", "path": str(directory)}, "count": "exact"}}
    async with (
        world(tmp_path, {"pool": {"kind": "vllm", "speed": 50}}, models=models) as here,
        here.http() as http,
    ):
        with caplog.at_level(logging.WARNING, logger="gateway.tokens.drift"):
            for _ in range(30):
                await ask(http, 50)
    told = [record.getMessage() for record in caplog.records if record.name == "gateway.tokens.drift"]
    assert len(told) == 1
    assert told[0].startswith("model m in pool pool: ")
    assert "headgate tokenizers verify --live" in told[0]
