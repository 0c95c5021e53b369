"""Roll-outs through real sockets: splits that stick, and mirrors that cost nobody anything."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end.test_fallbacks import answered_by, ask
from tests.end_to_end.world import KEY, OTHER_KEY, World, world

POOLS = {"stable": {"kind": "trtllm"}, "staging": {"kind": "tgi"}}


def splitting(**more: Any) -> list[dict[str, Any]]:
    return [{"name": "all", "pools": [{"stable": 95}, {"staging": 5}], **more}]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def mirrored(here: World, outcome: str) -> float:
    return sum(
        sample.value
        for metric in here.gateway.metrics.mirrored.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == outcome
    )


async def test_sessions_stick_to_what_they_drew(tmp_path: Path) -> None:
    """And explain says for each where it goes before it goes there."""
    rules = [{"name": "all", "pools": [{"stable": 1, "staging": 1}], "sticky": "session"}]
    async with world(tmp_path, POOLS, rules=rules) as here, here.admin() as admin:
        drew: dict[str, set[str]] = {}
        for session in ("a", "b", "c", "d", "e", "f"):
            body = {**ask(), "prompt_cache_key": session}
            told = await admin.post("/admin/routes/explain", json={"tenant": "tenant", "request": body})
            (split,) = told.json()["split"]
            assert (split["of"], split["by"]) == (2, "session")
            for _ in range(3):
                pool, _ = await answered_by(here, extra_body={"prompt_cache_key": session})
                drew.setdefault(session, set()).add(pool)
            assert drew[session] == {split["pool"]}
        assert {pool for pools in drew.values() for pool in pools} == {"stable", "staging"}


async def test_staging_falls_back_to_stable_and_not_the_reverse(tmp_path: Path) -> None:
    async with world(tmp_path, POOLS, rules=splitting(sticky="request")) as here, here.http() as http:
        here.engines["stable-1"].arm("close")
        answers = [await http.post("/v1/chat/completions", json=ask()) for _ in range(12)]
        assert {answer.status_code for answer in answers} <= {200, 502}
        assert all(answer.headers["x-headgate-pool"] == "staging" for answer in answers if answer.is_success)
        assert sum(not answer.is_success for answer in answers) >= 6
        assert here.engines["staging-1"].statistics().requests == sum(a.is_success for a in answers)


async def test_staging_is_for_those_who_may_use_it(tmp_path: Path) -> None:
    """Whatever a key draws, a pool that its tenant may not use is passed over."""
    pools = {"stable": {"labels": {"env": "prod"}}, "staging": {"labels": {"env": "staging"}}}
    rules = [{"name": "all", "pools": [{"stable": 1}, {"staging": 1}], "sticky": "request"}]
    tenants: dict[str, Any] = {"tenant": {"allow": {"env": ["prod"]}}, "other": {}}
    async with world(tmp_path, POOLS, pools=pools, rules=rules, tenants=tenants) as here:
        got: dict[str, set[str]] = {}
        for key in (KEY, OTHER_KEY):
            async with here.http(key) as http:
                answers = [await http.post("/v1/chat/completions", json=ask()) for _ in range(16)]
            got[key] = {answer.headers["x-headgate-pool"] for answer in answers}
        assert got == {KEY: {"stable"}, OTHER_KEY: {"stable", "staging"}}


async def test_a_mirror_gets_copies_and_nobody_pays(tmp_path: Path) -> None:
    rules = [{"name": "all", "pools": ["stable"], "mirror": {"pool": "staging", "share": 1}}]
    limits = [{"tokens": 100_000, "per": "minute", "name": "all"}]
    async with world(tmp_path, POOLS, rules=rules, limits=limits) as here:
        for stream in (False, True):
            assert await answered_by(here, stream=stream) == ("stable", 1)
        await until(lambda: mirrored(here, "ok") == 2)
        await here.wait_at_rest()
        metrics = here.gateway.metrics.registry
        labels = {"pool": "staging", "outcome": "ok"}
        assert metrics.get_sample_value("headgate_mirror_attempts_total", labels) == 2
        assert metrics.get_sample_value("headgate_attempts_total", labels) is None
        one, two = (here.engines[name].statistics() for name in ("stable-1", "staging-1"))
        assert (one.requests, two.requests) == (2, 2)
        (row,) = (await here.limits()).values()
        assert row.used < 100, "twice a prompt and eight tokens, not four times"
        assert here.gateway.book.accepted == 2


async def test_a_mirror_that_fails_or_hangs_is_not_noticed(tmp_path: Path) -> None:
    """Beyond its requests at a time, copies are left out; when the gateway stops, they end."""
    mirror = {"pool": "staging", "share": 1, "in_flight": 1}
    rules = [{"name": "all", "pools": ["stable"], "mirror": mirror}]
    async with world(tmp_path, POOLS, rules=rules) as here:
        here.engines["staging-1"].arm("close")
        assert await answered_by(here) == ("stable", 1)
        await until(lambda: mirrored(here, "failed") == 1)
        labels = {"pool": "staging", "outcome": "error"}
        metrics = here.gateway.metrics.registry
        assert metrics.get_sample_value("headgate_mirror_attempts_total", labels) == 1
    pools = {"staging": {"timeouts": {"total_s": 0.2}}}
    async with world(tmp_path, POOLS, pools=pools, rules=rules) as here:
        here.engines["staging-1"].arm("hang")
        assert await answered_by(here) == ("stable", 1)
        await until(lambda: mirrored(here, "failed") == 1)
        metrics = here.gateway.metrics.registry
        assert metrics.get_sample_value("headgate_mirror_attempts_total", labels) == 1, "its time was over"
    async with world(tmp_path, POOLS, rules=rules, at_rest=False) as here:
        here.engines["staging-1"].arm("hang")
        for _ in range(3):
            assert await answered_by(here) == ("stable", 1)
        assert mirrored(here, "left_out") == 2
        assert here.in_flight() == 1


async def test_a_mirror_has_a_budget_of_tokens(tmp_path: Path) -> None:
    mirror = {"pool": "staging", "share": 1, "tokens_per_minute": 60, "in_flight": 100}
    rules = [{"name": "all", "pools": ["stable"], "mirror": mirror}]
    async with world(tmp_path, POOLS, rules=rules) as here:
        for _ in range(6):
            await answered_by(here)
        await until(lambda: mirrored(here, "ok") + mirrored(here, "left_out") == 6)
        assert 1 <= mirrored(here, "ok") < 6


async def test_a_share_of_nothing_mirrors_nothing(tmp_path: Path) -> None:
    rules = [{"name": "all", "pools": ["stable"], "mirror": {"pool": "staging", "share": 0}}]
    async with world(tmp_path, POOLS, rules=rules) as here:
        for _ in range(3):
            await answered_by(here)
        assert here.engines["staging-1"].statistics().requests == 0
