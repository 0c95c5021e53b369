"""Engines that hold less than the file says: the smaller is used, and whoever looks sees both."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.simulated.server import SimulatedServer
from gateway.fleet import probing
from tests.end_to_end.test_counting_tiers import asking, tier
from tests.end_to_end.test_reload import rewrite
from tests.end_to_end.world import World, world

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
ENGINES: dict[str, dict[str, Any]] = {
    "small": {"kind": "vllm", "max_total_tokens": 4096},
    "large": {"kind": "trtllm"},
}
SAYS_8192 = {"small": {"limits": {"total": 8192, "in_flight": 7}}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "INTERVAL", 0.01)


def in_force(here: World, pool: str = "small") -> int | None:
    """Of the snapshot that requests are routed by; there is one for all."""
    runtime = here.gateway.runtime
    assert runtime.pipeline.snapshot is runtime.snapshot
    return runtime.snapshot.pools[pool].limits.total


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def restarted(engine: SimulatedServer, here: World, **options: Any) -> None:
    """The engine's process goes, and comes back with other limits."""
    engine.crash()
    ledger = next(each for _, each in here.gateway.runtime.ledgers() if each.replica.url == engine.url)
    await until(lambda: ledger.ready is False)
    engine.options = engine.dialect.options = replace(engine.options, **options)
    await engine.listen()
    await until(lambda: ledger.ready is True)


async def test_requests_go_by_the_smaller_and_both_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A request between the two limits is never sent to the engine that would refuse it."""
    caplog.set_level(logging.INFO, "headgate.app")
    async with world(tmp_path, ENGINES, pools=SAYS_8192, probe=True) as here, here.http() as http:
        await until(lambda: in_force(here) == 4096)
        answer = await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5000, "stream": True})
        assert (answer.status_code, answer.headers["x-headgate-pool"]) == (200, "large")
        assert here.engines["small-1"].statistics().requests == 0
        fits = await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3})
        assert fits.headers["x-headgate-pool"] == "small"

        async with here.admin() as admin:
            small, large = (await admin.get("/admin/pools")).json()["pools"]
            asked = {"tenant": "tenant", "request": {**CHAT, "max_tokens": 5000}}
            explained = (await admin.post("/admin/routes/explain", json=asked)).json()
            config = (await admin.get("/admin/config")).json()
            metrics = (await admin.get("/metrics")).text
        limits = {"prompt": None, "total": 4096, "in_flight": 7, "kv_tokens": None, "adapters": None}
        assert small["limits"] == limits
        assert small["configured_limits"] == {**small["limits"], "total": 8192}
        assert small["replicas"][0]["told"]["context_tokens"] == 4096
        assert large["limits"] == large["configured_limits"]
        assert explained["goes_to"] == "large"
        first = explained["chain"][0]
        assert (first["usable"], first["limits"]["total"], first["configured_limits"]["total"]) == (
            False,
            4096,
            8192,
        )
        assert "of 4096" in first["why"]
        assert config["summary"]["pools"]["small"]["limits"]["total"] == 8192
        assert 'headgate_pool_limit_tokens{limit="total",pool="small"} 4096.0' in metrics
        assert 'headgate_pool_configured_limit_tokens{limit="total",pool="small"} 8192.0' in metrics
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["pools.small.limits.total is 8192, but replica small-1 takes 4096: the smaller is used"]


async def test_near_an_engine_s_limit_a_prompt_is_counted(tmp_path: Path) -> None:
    """Boundaries are those in force: what was learned of a kind of text stays when an engine tells less."""
    models = {"m": {"max_tokens": {"default": 8, "ceiling": 64}}}
    async with world(tmp_path, ENGINES, pools=SAYS_8192, models=models, probe=True) as here:
        engine = here.engines["small-1"]
        await until(lambda: in_force(here) == 4096)
        async with here.http() as http:
            answers = [await http.post("/v1/chat/completions", json=asking(600)) for _ in range(70)]
            assert [tier(answer) for answer in answers] == ["exact"] * 64 + ["estimate"] * 6
            each = int(answers[-1].headers["x-headgate-prompt-tokens"]) / 600
            await restarted(engine, here, max_total_tokens=round(600 * each))
            await until(lambda: in_force(here) == round(600 * each))
            near = await http.post("/v1/chat/completions", json=asking(599))
            assert tier(near) == "exact"
            far = await http.post("/v1/chat/completions", json=asking(450))
            assert (tier(far), far.headers["x-headgate-pool"]) == ("estimate", "small")


async def test_a_restarted_engine_may_take_less_or_more_and_never_more_than_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headgate.app")
    async with world(tmp_path, ENGINES, pools=SAYS_8192, probe=True) as here:
        engine = here.engines["small-1"]
        await until(lambda: in_force(here) == 4096)
        await restarted(engine, here, max_total_tokens=2048)
        await until(lambda: in_force(here) == 2048)
        await restarted(engine, here, max_total_tokens=16384)
        await until(lambda: in_force(here) == 8192)
        ledger = next(each for pool, each in here.gateway.runtime.ledgers() if pool == "small")
        assert ledger.told.context_tokens == 16384
    told = [record.getMessage() for record in caplog.records if record.name == "headgate.app"]
    assert [text.rpartition("takes ")[2] for text in told[:2]] == [
        "4096: the smaller is used",
        "2048: the smaller is used",
    ]
    assert told[2] == "the engines of pool small hold its limits.total again"


async def test_a_reload_and_an_overlay_keep_what_engines_told(tmp_path: Path) -> None:
    """Not a moment with the file's limit alone: what was told is in the replica's books."""
    async with world(tmp_path, ENGINES, pools=SAYS_8192, probe=True) as here, here.admin() as admin:
        await until(lambda: in_force(here) == 4096)
        made = await admin.post("/admin/keys", json={"tenant": "tenant"})
        assert (made.status_code, in_force(here)) == (201, 4096)
        for limit, effective in ((10_000, 4096), (1000, 1000), (None, 4096)):
            rewrite(here.file, lambda routes: routes["pools"]["small"].update(limits={"total": limit}))  # noqa: B023  # called at once
            assert (await here.gateway.reloader.reload("test")).ok
            assert in_force(here) == effective
            async with here.http(made.json()["key"]) as http:
                assert (await http.get("/v1/models")).status_code == 200


async def test_the_smallest_of_several_replicas_holds(tmp_path: Path) -> None:
    engines = {"small": {"kind": "tgi", "replicas": 2, "max_total_tokens": 6000, "max_input_tokens": 5000}}
    async with world(tmp_path, engines, probe=True) as here:
        await until(lambda: in_force(here) == 6000)
        await restarted(here.engines["small-2"], here, max_total_tokens=3000)
        await until(lambda: in_force(here) == 3000)
        assert here.gateway.runtime.snapshot.pools["small"].limits.prompt == 5000


async def test_an_engine_that_tells_nothing_changes_nothing(tmp_path: Path) -> None:
    pools = {"large": {"limits": {"total": 8192}}}
    async with world(tmp_path, {"large": ENGINES["large"]}, pools=pools, probe=True) as here:
        ((_, ledger),) = here.gateway.runtime.ledgers()
        await until(lambda: ledger.ready is True)
        await asyncio.sleep(0.05)
        assert in_force(here, "large") == 8192
