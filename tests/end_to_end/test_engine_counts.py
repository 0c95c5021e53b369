"""Models whose prompts an engine counts: over the data path, beside the requests, and when it is gone."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.tokens import engine_counts
from tests.backends.scripted_server import Peer, scripted_server
from tests.end_to_end.test_command_line import headgate
from tests.end_to_end.test_counting_tiers import asking, metric, tier
from tests.end_to_end.world import World, tokenizer, world

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Открой шлюз, please 🚀"}], "max_tokens": 2}
TGI = {"kind": "tgi"}, {"options": {"api": "messages"}}
VLLM: tuple[dict[str, Any], dict[str, Any]] = ({"kind": "vllm"}, {})
APART = [{"name": "all", "pools": ["pool"]}, {"name": "never", "pools": ["counter"]}]
"""Requests go to one pool, questions to the other."""


def counted_by(pool: str, **tokenizer: Any) -> dict[str, dict[str, Any]]:
    return {
        "m": {
            "tokenizer": {"kind": "engine", "pool": pool, **tokenizer},
            "max_tokens": {"default": 8, "ceiling": 64},
        }
    }


def true_count(messages: list[dict[str, Any]]) -> int:
    return len(tokenizer().encode(tokenizer().render(messages), add_special_tokens=False))


async def ask(http: httpx.AsyncClient, content: str) -> httpx.Response:
    body = {**CHAT, "messages": [{"role": "user", "content": content}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize(("engine", "pool"), [VLLM, TGI], ids=["vllm", "tgi"])
async def test_the_engine_counts_prompts_and_chats(
    tmp_path: Path, engine: dict[str, Any], pool: dict[str, Any]
) -> None:
    """As its usage says afterwards; the second time it is remembered; all who ask are told the source."""
    source = f"{engine['kind']} of pool pool"
    async with (
        world(tmp_path, {"pool": engine}, pools={"pool": pool}, models=counted_by("pool")) as here,
        here.http() as http,
        here.admin() as admin,
    ):
        first, again = [await http.post("/v1/chat/completions", json=CHAT) for _ in range(2)]
        assert (tier(first), tier(again)) == ("exact", "cached")
        tokens = first.json()["usage"]["prompt_tokens"]
        assert tokens == true_count(CHAT["messages"])  # type: ignore[arg-type]
        assert first.headers["x-headgate-prompt-tokens"] == str(tokens)
        text = await http.post("/v1/completions", json={"model": "m", "prompt": "Water, 水", "max_tokens": 1})
        assert tier(text) == "exact"
        assert text.headers["x-headgate-prompt-tokens"] == str(text.json()["usage"]["prompt_tokens"])

        asked = {"model": "m", "messages": CHAT["messages"]}
        told = (await http.post("/tokenize", json=asked)).json()
        assert (told["count"], told["tokens"], told["source"]) == (tokens, None, source)
        explained = await admin.post("/admin/routes/explain", json={"tenant": "tenant", "request": CHAT})
        assert explained.json()["prompt"] | {"why": ""} == {
            "tokens": tokens, "exact": True, "source": source, "tier": "cached", "why": "",
        }  # fmt: skip
        assert here.engine().statistics().requests == 3  # questions generate nothing
        assert await metric(here, 'headgate_prompt_estimates_forced_total{reason="engine"}') == 0


async def test_far_from_boundaries_it_is_estimated_and_near_them_asked(tmp_path: Path) -> None:
    """`count: auto` learns from the engine's counts, as it does from a tokenizer's."""
    rules = [
        {"name": "few", "when": {"estimated_total_tokens": {"lte": 2000}}, "pools": ["pool"]},
        {"name": "many", "pools": ["pool"]},
    ]
    engines = {"pool": {"kind": "vllm", "speed": 50}}
    async with (
        world(tmp_path, engines, rules=rules, models=counted_by("pool")) as here,
        here.http() as http,
        here.admin() as admin,
    ):
        tiers = [tier(await http.post("/v1/chat/completions", json=asking(600))) for _ in range(66)]
        assert tiers == ["exact"] * 64 + ["estimate"] * 2
        for _ in range(64):
            last = await http.post("/v1/chat/completions", json=asking(1700))
        each = int(last.headers["x-headgate-prompt-tokens"]) / 1700
        asked = {"tenant": "tenant", "request": asking(round(1999 / each))}
        told = (await admin.post("/admin/routes/explain", json=asked)).json()["prompt"]
        assert (told["tier"], told["source"]) == ("exact", "vllm of pool pool")
        assert told["why"].startswith("rule few (2000) lies within the estimate, ")


async def test_a_dead_engine_costs_its_timeout_and_no_request(tmp_path: Path) -> None:
    """It hangs: the request goes on with an estimate when the time is up, the next one at once."""

    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.wait_closed()

    async with scripted_server(silent) as hung:
        engines = {
            "pool": VLLM[0],
            "counter": {"kind": "vllm", "url": f"http://127.0.0.1:{hung.port}", "served": "m"},
        }
        models = counted_by("counter", timeout_ms=150, bytes_per_token=3)
        async with world(tmp_path, engines, rules=APART, models=models) as here, here.http() as http:
            start = time.monotonic()
            answer = await ask(http, "Open the gate")
            assert 0.14 < time.monotonic() - start < 1.0
            assert (tier(answer), answer.headers["x-headgate-pool"]) == ("estimate", "pool")
            assert len(hung.requests) == 1
            assert tier(await ask(http, "Open it now")) == "estimate"
            assert len(hung.requests) == 1
            told = (await http.post("/tokenize", json={"model": "m", "prompt": "x"})).json()
            assert told["source"] == "estimate 3.0 bytes/token (engine)"
            assert await metric(here, 'headgate_prompt_estimates_forced_total{reason="engine"}') == 3


async def test_replicas_that_are_gone_drained_or_unwell_are_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two, the other one; of none, the estimate."""
    monkeypatch.setattr(engine_counts, "RESTING", 0.0)
    engines = {"pool": VLLM[0], "counter": {**TGI[0], "replicas": 2}}
    pools = {"counter": TGI[1]}
    async with (
        world(tmp_path, engines, pools=pools, rules=APART, models=counted_by("counter")) as here,
        here.http() as http,
        here.admin() as admin,
    ):
        here.engines["counter-1"].crash()
        assert [tier(await ask(http, f"one {number}")) for number in range(4)] == ["exact"] * 4
        await admin.post("/admin/replicas/counter-2/drain", json={})
        assert tier(await ask(http, "two")) == "estimate"
        await admin.post("/admin/replicas/counter-2/enable", json={})
        assert tier(await ask(http, "three")) == "exact"
        ledger = next(each for _, each in here.gateway.runtime.ledgers() if each.replica.id == "counter-2")
        ledger.ready = False
        assert tier(await ask(http, "four")) == "estimate"


async def test_a_cold_pool_is_not_asked(tmp_path: Path) -> None:
    engines = {"pool": VLLM[0], "counter": VLLM[0]}
    pools = {"counter": {"state": "cold"}}
    async with (
        world(tmp_path, engines, pools=pools, rules=APART, models=counted_by("counter")) as here,
        here.http() as http,
    ):
        assert tier(await ask(http, "Open the gate")) == "estimate"


async def test_a_prompt_does_not_leave_the_pools_of_its_tenant(tmp_path: Path) -> None:
    engines = {"pool": VLLM[0], "counter": VLLM[0]}
    pools = {"pool": {"labels": {"region": "eu"}}, "counter": {"labels": {"region": "us"}}}
    tenants = {"tenant": {"allow": {"region": ["eu"]}}, "other": {}}
    models = counted_by("counter")
    async with world(tmp_path, engines, pools=pools, rules=APART, models=models, tenants=tenants) as here:
        async with here.http() as http:
            assert tier(await ask(http, "ours alone")) == "estimate"
            told = (await http.post("/tokenize", json={"model": "m", "prompt": "ours"})).json()
            assert told["source"].endswith("(engine)")
        async with here.http(key="hg-test-other-0123456789abcdef0123456789") as http:
            assert tier(await ask(http, "anywhere")) == "exact"


async def test_a_reload_may_change_who_counts(tmp_path: Path) -> None:
    engines = {"pool": VLLM[0], "counter": VLLM[0]}
    async with (
        world(tmp_path, engines, rules=APART, models=counted_by("counter")) as here,
        here.http() as http,
    ):
        assert tier(await ask(http, "one")) == "exact"
        here.engines["counter-1"].crash()
        assert tier(await ask(http, "two")) == "estimate"
        _rewrite(here, counted_by("pool"))
        assert (await here.gateway.reloader.reload("test")).ok
        assert tier(await ask(http, "three")) == "exact"


def _rewrite(here: World, models: dict[str, Any]) -> None:
    written = yaml.safe_load(here.file.read_text())
    written["models"] = models
    here.file.write_text(yaml.safe_dump(written))


async def test_verify_says_who_counts_and_asks_with_live(tmp_path: Path) -> None:
    """The counting engine's figures are held against those of every other replica."""
    engines: dict[str, dict[str, Any]] = {
        "pool": {"kind": "sglang"},
        "counter": {"kind": "vllm", "replicas": 2},
    }
    async with world(tmp_path, engines, models=counted_by("counter")) as here:
        done = await asyncio.to_thread(headgate, "tokenizers", "verify", "--live", "-c", here.file)
        assert done.returncode == 0, done.stdout + done.stderr
        first, *lines = done.stdout.splitlines()
        assert first == (
            "m: exact, engine: a replica of pool counter is asked, for 500 ms at most; "
            "else estimate, 4 bytes per token"
        )
        assert len(lines) == 3
        assert all("0 of 40 counts differ" in line for line in lines)
        explained = await asyncio.to_thread(headgate, "explain", "-c", here.file, "-m", "m", "-t", "tenant")
        assert ", exact: vllm of pool counter" in explained.stdout, explained.stdout + explained.stderr
