"""Chains and faults, before and after the first byte, through real sockets."""

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.world import World, world

TRTLLM_TGI = {"first": {"kind": "trtllm"}, "second": {"kind": "tgi"}}


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, **more}


async def answered_by(here: World, **more: Any) -> tuple[str, int]:
    """(pool that answered, attempts)."""
    async with here.sdk() as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(**ask(**more))
        return raw.headers["x-headgate-pool"], int(raw.headers["x-headgate-attempts"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault", ["refuse=0", "close", "garbage", "gzip", "redirect", "die_after=0", "fin_after=0"]
)
async def test_the_next_pool_answers_where_the_first_fails(fault: str, stream: bool, tmp_path: Path) -> None:
    async with world(tmp_path, TRTLLM_TGI) as here:
        here.engines["first-1"].arm(fault)
        assert await answered_by(here, stream=stream) == ("second", 2)
        assert here.engines["first-1"].statistics().faults[0]["fired"] >= 1


async def test_the_next_replica_comes_before_the_next_pool(tmp_path: Path) -> None:
    engines = {"first": {"kind": "trtllm", "replicas": 2}, "second": {"kind": "tgi"}}
    async with world(tmp_path, engines) as here:
        here.engines["first-1"].arm("close")
        for _ in range(4):
            pool, attempts = await answered_by(here)
            assert pool == "first"
            assert attempts <= 2
        assert here.engines["second-1"].statistics().requests == 0


async def test_refused_connections_are_avoided_for_a_while(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm", "replicas": 2}}) as here:
        here.engines["pool-1"].arm("refuse=0")
        attempts = [(await answered_by(here))[1] for _ in range(5)]
        assert sum(attempts) == 6, "only the first request met the dead replica"


async def test_nobody_left_is_503_at_once(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm", "replicas": 2}}) as here, here.sdk() as sdk:
        for engine in here.engines.values():
            engine.arm("refuse=0")
        asked = time.monotonic()
        with pytest.raises(openai.InternalServerError) as error:
            await sdk.chat.completions.create(**ask())
        assert error.value.status_code == 503
        assert time.monotonic() - asked < 2
        assert error.value.response.headers["retry-after"] == "1"


async def test_overload_hops_only_where_the_rule_says_so(tmp_path: Path) -> None:
    engines = {"first": {"kind": "tgi"}, "second": {"kind": "trtllm"}}
    rule = {"name": "all", "pools": ["first", "second"]}
    async with world(tmp_path, engines, rules=[rule]) as here, here.sdk() as sdk:
        here.engines["first-1"].arm("overload")
        with pytest.raises(openai.InternalServerError) as error:
            await sdk.chat.completions.create(**ask(stream=True))
        assert error.value.status_code == 503
        assert error.value.code == "server_is_overloaded"
    rule["on"] = ["unavailable", "failed", "overloaded"]
    async with world(tmp_path, engines, rules=[rule]) as here:
        here.engines["first-1"].arm("overload")
        assert (await answered_by(here, stream=True))[0] == "second"


async def test_a_full_pool_is_left_after_a_while(tmp_path: Path) -> None:
    engines = {"first": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}, "second": {"kind": "tgi"}}
    rule = {"name": "all", "pools": ["first", "second"], "on": ["overloaded"], "after_ms": 50}
    limits = {"first": {"limits": {"in_flight": 1}}}
    async with world(tmp_path, engines, rules=[rule], pools=limits) as here, here.sdk() as sdk:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)
        raw = await sdk.chat.completions.with_raw_response.create(**ask())
        assert raw.headers["x-headgate-pool"] == "second"
        assert float(raw.headers["x-headgate-queue-ms"]) >= 50
        await held.close()


async def test_without_another_pool_requests_wait_in_line(tmp_path: Path) -> None:
    limits = {"pool": {"limits": {"in_flight": 1}}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=limits) as here:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered_by(here)) for _ in range(10)]
        assert {task.result() for task in tasks} == {("pool", 1)}
        assert here.engine().statistics().requests == 10


async def test_queue_full_and_queue_timeout(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
    limits = {"pool": {"limits": {"in_flight": 1}, "queue": {"max_requests": 1, "max_wait_s": 0.3}}}
    async with world(tmp_path, engines, pools=limits) as here, here.sdk() as sdk:
        held = await sdk.chat.completions.create(**ask(max_tokens=4000), stream=True)

        async def refusal() -> str:
            with pytest.raises(openai.InternalServerError) as error:
                await sdk.chat.completions.create(**ask())
            assert error.value.status_code == 503
            assert "retry-after-ms" in error.value.response.headers
            return str(error.value)

        async with asyncio.TaskGroup() as group:
            both = [group.create_task(refusal()) for _ in range(2)]
        texts = sorted(task.result() for task in both)
        assert "is full" in texts[1]
        assert "became free" in texts[0]
        await held.close()


async def test_the_clients_fault_is_not_tried_twice(tmp_path: Path) -> None:
    """A 400 of the engine goes to the client; neither another replica nor another pool sees it."""
    engines = {"first": {"kind": "tgi", "max_input_tokens": 10}, "second": {"kind": "trtllm"}}
    async with world(tmp_path, engines) as here, here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as error:
            await sdk.chat.completions.create(**ask())
        assert error.value.code == "context_length_exceeded"
        assert here.engines["second-1"].statistics().requests == 0
    rule = {"name": "all", "pools": ["first", "second"], "on": ["too_long"]}
    async with world(tmp_path, engines, rules=[rule]) as here:
        assert (await answered_by(here))[0] == "second"


@pytest.mark.parametrize("kind", ["trtllm", "triton", "tgi", "openai"])
@pytest.mark.parametrize("fault", ["die_after=3", "fin_after=3", "error_after=3"])
async def test_half_an_answer_is_never_passed_as_whole(kind: str, fault: str, tmp_path: Path) -> None:
    """F4 to F6: an error event and [DONE], no retry, although another pool is there."""
    engines = {"first": {"kind": kind}, "second": {"kind": "tgi"}}
    async with world(tmp_path, engines) as here, here.http() as http:
        here.engines["first-1"].arm(fault)
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert answer.status_code == 200
        events = answer.text.strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        assert '"error"' in events[-2]
        assert "content" in events[1]
        assert "Traceback" not in answer.text
        assert here.engines["second-1"].statistics().requests == 0
        assert here.engines["first-1"].statistics().faults[0]["fired"] == 1
        await here.wait_at_rest()
        assert here.gateway.book.outcomes["failed"] == 1


@pytest.mark.parametrize("fault", ["die_after=3", "error_after=3"])
async def test_half_an_answer_is_502_where_nothing_was_sent(fault: str, tmp_path: Path) -> None:
    pools = {"pool": {"upstream_stream": "always"}}
    async with world(tmp_path, {"pool": {"kind": "tgi"}}, pools=pools) as here, here.sdk() as sdk:
        here.engine().arm(fault)
        with pytest.raises(openai.InternalServerError) as error:
            await sdk.chat.completions.create(**ask())
        assert error.value.status_code == 502


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hanging_engine_is_504(stream: bool, tmp_path: Path) -> None:
    pools = {"pool": {"timeouts": {"first_token_s": 0.2, "total_s": 0.3}}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=pools) as here, here.sdk() as sdk:
        here.engine().arm("hang")
        with pytest.raises(openai.InternalServerError) as error:
            await sdk.chat.completions.create(**ask(stream=stream))
        assert error.value.status_code == 504
        assert error.value.code == "upstream_timeout"
        async with asyncio.timeout(2):
            while not here.engine().statistics().closes:
                await asyncio.sleep(0.005)


async def test_an_unstreamed_answer_is_not_waited_for_for_an_hour(tmp_path: Path) -> None:
    """`first_token_s` and 0.1 s for each token allowed: then 504, and the replica is avoided."""
    pools = {"pool": {"timeouts": {"first_token_s": 0.2}}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=pools) as here, here.sdk() as sdk:
        here.engine().arm("hang")
        async with asyncio.timeout(5):
            with pytest.raises(openai.InternalServerError) as error:
                await sdk.chat.completions.create(**ask(max_tokens=2))
        assert error.value.status_code == 504
        (row,) = [ledger.statistics() for _, ledger in here.gateway.runtime.ledgers()]
        assert row.cooling_for > 0
        assert (row.last_error or "").startswith("timeout: ")


async def test_best_of_is_part_of_the_estimate(tmp_path: Path) -> None:
    """The engine computes them all, so the tenant reserves them all."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.admin() as admin:
        totals = []
        for best_of in (1, 8):
            request = {"model": "m", "prompt": "Hi", "max_tokens": 10, "best_of": best_of}
            answer = await admin.post("/admin/routes/explain", json={"tenant": "tenant", "request": request})
            totals.append(answer.json()["estimate"]["total"])
        assert totals[1] - totals[0] == 7 * 10


async def test_silence_in_the_middle_ends_the_stream(tmp_path: Path) -> None:
    """F8: the idle timeout makes an error event and frees the slot."""
    pools = {"pool": {"timeouts": {"idle_s": 0.2}}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=pools) as here, here.sdk() as sdk:
        here.engine().arm("silent_after=2")
        with pytest.raises(openai.APIError) as error:
            async for _ in await sdk.chat.completions.create(**ask(), stream=True):
                pass
        assert error.value.code == "upstream_timeout"


async def test_assembled_answers_equal_plain_ones(tmp_path: Path) -> None:
    """`upstream_stream: always` changes how the engine is asked, not what the client gets."""
    answers = []
    for mode in ("client", "always"):
        pools = {"pool": {"upstream_stream": mode}}
        async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=pools) as here, here.sdk() as sdk:
            answer = await sdk.chat.completions.create(**ask(n=2))
            assert here.engine().statistics().recent[0].body.get("stream", False) is (mode == "always")
            answers.append(answer.model_dump(exclude={"id", "created"}))
    assert answers[0] == answers[1]


async def test_fit_next_clamp_refuse(tmp_path: Path) -> None:
    """The client asks for more output than the first pool leaves: the rule's `fit` decides."""
    engines = {"small": {"kind": "trtllm"}, "large": {"kind": "tgi"}}
    pools = {"small": {"limits": {"total": 64}}}
    rule = {"name": "all", "pools": ["small", "large"]}
    async with world(tmp_path, engines, pools=pools, rules=[{**rule, "fit": "next"}]) as here:
        assert await answered_by(here, max_tokens=100) == ("large", 1)
        assert await answered_by(here, max_tokens=8) == ("small", 1)
    async with world(tmp_path, engines, pools=pools, rules=[{**rule, "fit": "clamp"}]) as here:
        async with here.sdk() as sdk:
            raw = await sdk.chat.completions.with_raw_response.create(**ask(max_tokens=100))
        assert raw.headers["x-headgate-pool"] == "small"
        sent = int(raw.headers["x-headgate-max-tokens"])
        assert sent + int(raw.headers["x-headgate-prompt-tokens"]) == 64
        assert raw.headers["x-headgate-max-tokens-bound-by"] == "pool small"
        assert here.engines["small-1"].statistics().recent[0].body.get("max_tokens") in (sent, None)
    async with world(tmp_path, engines, pools=pools, rules=[{**rule, "fit": "refuse"}]) as here:
        async with here.sdk() as sdk:
            with pytest.raises(openai.BadRequestError) as error:
                await sdk.chat.completions.create(**ask(max_tokens=100))
        assert error.value.param == "max_tokens"
        assert here.engines["large-1"].statistics().requests == 0


async def test_another_model_of_the_chain_is_disclosed(tmp_path: Path) -> None:
    engines = {"first": {"kind": "trtllm"}, "second": {"kind": "tgi"}}
    given = {
        "models": {"m": {}, "small": {}},
        "pools": {"second": {"serves": {"small": "tgi"}}},
        "rules": [
            {
                "name": "all",
                "when": {"model": "m"},
                "pools": ["first", {"model": "small", "pools": ["second"]}],
            },
            {"name": "else", "pools": ["second"]},
        ],
    }
    async with world(tmp_path, engines, **given) as here, here.sdk() as sdk:
        here.engines["first-1"].arm("close")
        raw = await sdk.chat.completions.with_raw_response.create(**ask())
        assert raw.headers["x-headgate-model"] == "small"
        assert raw.parse().model == "small"


async def test_a_limit_is_429_with_when_to_come_back(tmp_path: Path) -> None:
    tenants = {"tenant": {"limits": [{"tokens": 60, "per": "minute"}]}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, tenants=tenants) as here, here.sdk() as sdk:
        used = (await sdk.chat.completions.create(**ask())).usage
        assert used is not None
        (limit,) = (await here.limits()).values()
        assert limit.free == pytest.approx(60 - used.total_tokens, abs=1)
        with pytest.raises(openai.RateLimitError) as soon:
            await sdk.chat.completions.create(**ask(max_tokens=40))
        assert 0 < int(soon.value.response.headers["retry-after"]) <= 60
        assert soon.value.code == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError) as never:
            long = [{"role": "user", "content": "water " * 200}]  # an answer may be short; this prompt is not
            await sdk.chat.completions.create(**ask(messages=long))
        assert never.value.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in never.value.response.headers
