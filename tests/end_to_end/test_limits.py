"""Limits as clients meet them: through real sockets, with simulated engines and OpenAI's SDK."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.end_to_end.world import KEY, OTHER_KEY, World, world

PRICES = {"m": {"prices": {"input": 1.0, "output": 2.0, "cached_input": 0.5}}}


def ask(text: str = "Hello there!", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "max_tokens": 8, **fields}


async def status_of(here: World, key: str = KEY, **fields: Any) -> int:
    async with here.http(key) as http:
        return (await http.post("/v1/chat/completions", json=ask(**fields))).status_code


@pytest.mark.parametrize(
    "limit",
    [
        {"requests": 2, "per": "day"},
        {"input_tokens": 60, "per": "day"},
        {"output_tokens": 20, "per": "hour"},
        {"tokens": 80, "per": "day"},
        {"cost": 0.0001, "per": "day"},
        {"requests": 2, "per": "calendar_day"},
        {"tokens": 80, "per": "calendar_month"},
        {"cost": 0.0001, "per": "calendar_month"},
    ],
    ids=lambda limit: "-".join(map(str, limit.values())) + "-" + next(iter(limit)),
)
async def test_each_unit_says_no_and_is_named(limit: dict[str, Any], tmp_path: Path) -> None:
    """As many requests as fit, then 429 with the limit's name, until the end of it; other tenants go on."""
    tenants: dict[str, Any] = {"tenant": {"limits": [{"name": "mine", **limit}]}, "other": {}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, tenants=tenants, models=PRICES) as here:
        async with here.http() as http:
            answers = [await http.post("/v1/chat/completions", json=ask()) for _ in range(6)]
        statuses = [answer.status_code for answer in answers]
        passed = statuses.count(200)
        assert 1 <= passed < 6
        assert statuses == [200] * passed + [429] * (6 - passed)
        last = answers[-1]
        assert last.headers["x-headgate-limit"] == "mine"
        assert "'mine'" in last.json()["error"]["message"]
        if "calendar" in limit["per"]:
            assert last.json()["error"]["code"] == "insufficient_quota"
            assert "retry-after" not in last.headers
        assert last.headers["x-should-retry"] == "false"
        assert await status_of(here, OTHER_KEY) == 200
        (row,) = (await here.limits()).values()
        assert row.used <= row.amount


@pytest.mark.parametrize(
    ("limits", "others"),
    [
        ({"limits": [{"requests": 1, "per": "day"}]}, 429),
        ({"limits": [{"requests": 1, "per": "day", "each": "tenant"}]}, 200),
        ({"limits": [{"requests": 1, "per": "day", "each": "key"}]}, 200),
        ({"limits": [{"requests": 1, "per": "day", "each": "model"}]}, 429),
        ({"limits": [{"requests": 1, "per": "day", "each": "pool"}]}, 429),
        ({"limits": [{"requests": 1, "per": "day", "each": ["tenant", "model"]}]}, 200),
        ({"limits": [{"requests": 1, "per": "day", "tenant": "tenant"}]}, 200),
        ({"limits": [{"requests": 1, "per": "day", "pool": "pool"}]}, 429),
        ({"models": {"m": {"limits": [{"requests": 1, "per": "day"}]}}}, 429),
        (
            {"tenants": {"tenant": {"limits": [{"requests": 1, "per": "day", "model": "m"}]}, "other": {}}},
            200,
        ),
    ],
    ids=str,
)
async def test_each_scope(limits: dict[str, Any], others: int, tmp_path: Path) -> None:
    """The second request of the same is refused; whether somebody else's is depends on whose limit it is."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, **limits) as here:
        assert await status_of(here) == 200
        assert await status_of(here) == 429
        assert await status_of(here, OTHER_KEY) == others


async def test_a_limit_of_one_key(tmp_path: Path) -> None:
    """Of the file's keys, and of one made at run time: `each: key` tells them apart."""
    limits = [{"requests": 1, "per": "day", "each": "key"}]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, limits=limits) as here:
        async with here.admin() as admin:
            made = (await admin.post("/admin/keys", json={"tenant": "tenant"})).json()["key"]
        assert [await status_of(here), await status_of(here)] == [200, 429]
        assert [await status_of(here, made), await status_of(here, made)] == [200, 429]


async def test_without_authentication(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "server": {"authentication": "off"},
        "limits": [{"requests": 1, "per": "day", "each": ["tenant", "key"]}],
    }
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, **given) as here:
        assert [await status_of(here), await status_of(here)] == [200, 429]


async def test_parallel_requests_do_not_all_pass(tmp_path: Path) -> None:
    """Five at once; one at a time is allowed. Its place is free again when it ends."""
    limits = [{"concurrent": 1, "name": "one"}]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, limits=limits) as here:
        statuses = await asyncio.gather(*(status_of(here, max_tokens=60) for _ in range(5)))
        assert sorted(statuses) == [200, 429, 429, 429, 429]
        assert await status_of(here) == 200


async def test_tokens_in_flight(tmp_path: Path) -> None:
    limits = [{"tokens_in_flight": 200}]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, limits=limits) as here:
        statuses = await asyncio.gather(*(status_of(here, max_tokens=60) for _ in range(6)))
        assert 200 in statuses
        assert 429 in statuses
        assert await status_of(here, text="word " * 300) == 429, "more than all of it"


async def test_headers_on_success_and_on_refusal(tmp_path: Path) -> None:
    tenants = {"tenant": {"limits": [{"requests": 2, "per": "minute"}, {"tokens": 1000, "per": "minute"}]}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, tenants=tenants) as here, here.http() as http:
        first = await http.post("/v1/chat/completions", json=ask())
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30s"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        assert 0 < int(first.headers["x-ratelimit-remaining-tokens"]) < 1000
        streamed = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        refused = await http.post("/v1/chat/completions", json=ask())
        assert refused.status_code == 429
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        milliseconds = int(refused.headers["retry-after-ms"])
        assert 0 < milliseconds <= 30_000
        assert int(refused.headers["retry-after"]) == -(-milliseconds // 1000)
        assert refused.headers.get_list("x-ratelimit-limit-tokens") == ["1000"], "once"


async def test_the_sdk_tells_and_obeys(tmp_path: Path) -> None:
    """A typed error with the limit's name; and the SDK's own retry, after `retry-after-ms`, succeeds."""
    tenants = {"tenant": {"limits": [{"requests": 2, "per": "second", "name": "rps"}]}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, tenants=tenants) as here:
        async with here.sdk() as sdk:
            await sdk.chat.completions.create(**ask())
            await sdk.chat.completions.create(**ask())
            with pytest.raises(openai.RateLimitError) as refused:
                for _ in range(3):
                    await sdk.chat.completions.create(**ask())
        error = refused.value
        assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
        assert error.response.headers["x-headgate-limit"] == "rps"
        assert 0 < int(error.response.headers["retry-after-ms"]) <= 500
        book = here.gateway.book
        async with here.sdk(max_retries=1) as sdk:
            for _ in range(4):
                before = book.accepted
                began = time.monotonic()
                await sdk.chat.completions.create(**ask())
                assert book.accepted - before <= 2, "one retry was enough"
                assert time.monotonic() - began < 1.5


async def test_a_budget_is_not_retried(tmp_path: Path) -> None:
    tenants = {"tenant": {"limits": [{"requests": 1, "per": "calendar_month"}]}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, tenants=tenants) as here:
        async with here.sdk(max_retries=5) as sdk:
            await sdk.chat.completions.create(**ask())
            before = here.gateway.book.accepted
            with pytest.raises(openai.RateLimitError) as refused:
                await sdk.chat.completions.create(**ask())
            assert refused.value.code == "insufficient_quota"
            assert here.gateway.book.accepted == before + 1


# ---------------------------------------------------------------------------------------- outrunning


LEARNED = {"m": {"max_tokens": {"default": 10, "ceiling": 8192}}}
"""An answer to a request without max_tokens is expected to have 10 tokens; more are asked for below."""


def outrunning(overrun: str) -> dict[str, Any]:
    limits = [{"tokens": 100, "per": "day", "name": "day", "overrun": overrun}]
    return {"models": LEARNED, "limits": limits, "server": {"limits": {"settle_tokens": 4}}}


def expect_little(here: World) -> None:
    """Teach the gateway that answers are short, so that this one outruns its reservation."""
    for _ in range(30):
        here.gateway._lengths.observe("tenant", "m", 20, 5)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["trtllm", "triton", "tgi"])
async def test_an_answer_that_outruns_its_limit_is_cut(kind: str, stream: bool, tmp_path: Path) -> None:
    """It ends as if max_tokens had been reached: finish_reason, usage, [DONE]; and the engine stops."""
    async with world(tmp_path, {"pool": {"kind": kind, "speed": 2.0}}, **outrunning("cut")) as here:
        expect_little(here)
        async with here.sdk() as sdk:
            asked = ask(max_tokens=2000)
            if stream:
                chunks = [
                    chunk
                    async for chunk in await sdk.chat.completions.create(
                        **asked, stream=True, stream_options={"include_usage": True}
                    )
                ]
                assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
                usage = chunks[-1].usage
            else:
                answer = await sdk.chat.completions.create(**asked)
                assert answer.choices[0].finish_reason == "length"
                assert answer.choices[0].message.content
                usage = answer.usage
        assert usage is not None
        assert 100 < usage.total_tokens <= 100 + 2 * 4
        assert (await here.limits())["day"].used == usage.total_tokens
        await here.wait_at_rest()
        async with here.http() as http:
            metrics = (await http.get("/metrics")).text
        assert 'headgate_limit_cuts_total{limit="day"} 1.0' in metrics


async def test_the_raw_relay_is_cut_under_the_engines_own_id(tmp_path: Path) -> None:
    pools = {"pool": {"relay": "raw"}}
    engines = {"pool": {"kind": "openai", "speed": 2.0}}
    async with world(tmp_path, engines, pools=pools, **outrunning("cut")) as here, here.sdk() as sdk:
        expect_little(here)
        chunks = [
            chunk
            async for chunk in await sdk.chat.completions.create(
                **ask(max_tokens=2000), stream=True, stream_options={"include_usage": True}
            )
        ]
        assert len({chunk.id for chunk in chunks}) == 1
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].usage is not None


async def test_a_new_tenant_is_not_locked_out_by_what_is_expected_of_it(tmp_path: Path) -> None:
    """The model's 256 tokens are expected and 2000 are asked for, of a limit that holds 100: it is cut there,
    and comes in again when that has drained."""
    mine = {"name": "mine", "output_tokens": 100, "per": "hour", "overrun": "cut"}
    given: dict[str, Any] = {
        "tenants": {"tenant": {"limits": [mine]}, "other": {}},
        "models": {"m": {"max_tokens": {"default": 256, "ceiling": 8192}}},
        "server": {"limits": {"settle_tokens": 4}},
    }
    async with (
        world(tmp_path, {"pool": {"kind": "trtllm", "speed": 2.0}}, **given) as here,
        here.http() as http,
    ):
        first = await http.post("/v1/chat/completions", json=ask(max_tokens=2000))
        assert first.status_code == 200
        assert first.json()["choices"][0]["finish_reason"] == "length"
        assert 100 < first.json()["usage"]["completion_tokens"] <= 100 + 2 * 4
        second = await http.post("/v1/chat/completions", json=ask(max_tokens=2000))
        assert (second.status_code, second.headers["x-headgate-limit"]) == (429, "mine")
        assert "is reached" in second.json()["error"]["message"]
        assert int(second.headers["retry-after"]) <= 3900
        never = await http.post("/v1/chat/completions", json=ask(max_tokens=2000, n=16))
        assert "never" not in never.json()["error"]["message"]


async def test_several_choices_are_all_cut(tmp_path: Path) -> None:
    given = outrunning("cut")
    async with world(tmp_path, {"pool": {"kind": "vllm", "speed": 2.0}}, **given) as here, here.sdk() as sdk:
        expect_little(here)
        answer = await sdk.chat.completions.create(**ask(max_tokens=2000, n=3))
        assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3


async def test_an_answer_may_finish_and_others_see_the_debt_while_it_does(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm", "speed": 2.0}}, **outrunning("finish")) as here:
        expect_little(here)
        async with here.http() as http:
            async with http.stream(
                "POST", "/v1/chat/completions", json=ask(max_tokens=300, stream=True)
            ) as answer:
                seen = ""
                texts = answer.aiter_text()
                async for text in texts:
                    seen += text
                    if (await here.limits())["day"].used > 100:
                        break
                assert "[DONE]" not in seen, "it is still going on"
                assert await status_of(here) == 429
                async for text in texts:
                    seen += text
        assert seen.endswith("data: [DONE]\n\n")
        assert (await here.limits())["day"].used > 150


async def test_max_tokens_is_clamped_to_what_is_left(tmp_path: Path) -> None:
    limits = [{"tokens": 100, "per": "day", "name": "day", "clamp": True}]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, limits=limits) as here, here.http() as http:
        answer = await http.post("/v1/chat/completions", json=ask(max_tokens=5000))
        assert answer.status_code == 200
        assert answer.headers["x-headgate-max-tokens-bound-by"] == "limit day"
        usage = answer.json()["usage"]
        assert usage["total_tokens"] <= 100
        assert int(answer.headers["x-headgate-max-tokens"]) == 100 - usage["prompt_tokens"]
        sent = here.engine().statistics().recent[-1]
        assert sent.body["max_tokens"] == 100 - usage["prompt_tokens"]
        metrics = (await http.get("/metrics")).text
        assert 'headgate_max_tokens_clamped_total{by="limit day",model="m",pool="pool"} 1.0' in metrics
        assert (await here.limits())["day"].used <= 100


async def test_a_dry_run_refuses_nobody_and_counts(tmp_path: Path) -> None:
    limits = [{"requests": 1, "per": "day", "name": "trial", "enforce": False}]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, limits=limits) as here, here.http() as http:
        for _ in range(3):
            answer = await http.post("/v1/chat/completions", json=ask())
            assert answer.status_code == 200
            assert "x-ratelimit-limit-requests" not in answer.headers
        metrics = (await http.get("/metrics")).text
        assert 'headgate_limit_refusals_total{enforced="false",limit="trial",unit="requests"} 2.0' in metrics


# ------------------------------------------------------------------------------------- who pays what


EVERYTHING = [
    {"requests": 100, "per": "calendar_month", "name": "requests"},
    {"tokens": 100_000, "per": "calendar_month", "name": "tokens"},
    {"concurrent": 5, "name": "slots"},
]


async def used(here: World) -> tuple[float, float]:
    rows = await here.limits()
    return rows["requests"].used, rows["tokens"].used


async def test_an_answer_costs_what_the_engine_says(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, limits=EVERYTHING) as here, here.sdk() as sdk:
        usage = (await sdk.chat.completions.create(**ask())).usage
        assert usage is not None
        assert await used(here) == (1, usage.total_tokens)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", ["error_after=0", "close", "overload"])
async def test_an_error_costs_nothing(fault: str, stream: bool, tmp_path: Path) -> None:
    engines = {"pool": {"kind": "tgi", "faults": [fault]}}
    async with world(tmp_path, engines, limits=EVERYTHING) as here:
        assert await status_of(here, stream=stream) >= 500
        assert await used(here) == (0, 0)


async def test_who_leaves_early_pays_for_the_prompt(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm", "faults": ["hang"]}}, limits=EVERYTHING) as here:
        async with here.http() as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/chat/completions", json=ask(), timeout=0.3)
        await here.wait_at_rest()
        requests, tokens = await used(here)
        assert requests == 1
        assert 5 < tokens < 30


async def test_who_leaves_in_the_middle_pays_for_what_came(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm", "speed": 1.0}}, limits=EVERYTHING) as here:
        async with here.http() as http:
            async with http.stream(
                "POST", "/v1/chat/completions", json=ask(max_tokens=500, stream=True)
            ) as answer:
                async for text in answer.aiter_text():
                    if text.count("data:") or text:
                        break
        await here.wait_at_rest()
        requests, tokens = await used(here)
        assert requests == 1
        assert 5 < tokens < 300


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("speed", [0.2, 2.0])
async def test_who_is_told_503_at_the_end_of_the_drain_pays_nothing(
    speed: float, stream: bool, tmp_path: Path
) -> None:
    """Whether an engine has begun, or had half answered a request that is not streamed. A stream that had
    begun is told in the stream, and is paid."""
    faults = ["hang"] if speed < 1 else []
    engines = {"pool": {"kind": "trtllm", "speed": speed, "faults": faults}}
    pools = {"pool": {"upstream_stream": "always"}}
    async with world(tmp_path, engines, pools=pools, limits=EVERYTHING, at_rest=False) as here:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(status_of(here, max_tokens=2000, stream=stream))
            async with asyncio.timeout(5):
                while not here.engine().statistics().running and not here.engine().statistics().in_flight:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            here.gateway.drain()
            here.gateway.cut()
        status = asking.result()
        await here.wait_at_rest()
        requests, tokens = await used(here)
        if status == 503:
            assert (requests, tokens) == (0, 0)
        else:
            assert (status, stream, requests) == (200, True, 1)
            assert tokens > 5


# ------------------------------------------------------------------------------------------- operating


async def test_a_reload_keeps_what_was_used(tmp_path: Path) -> None:
    """Another amount, another order: the same use. What is in flight settles where it reserved."""
    tenants = {
        "tenant": {"limits": [{"requests": 5, "per": "day"}, {"tokens": 10_000, "per": "day"}]},
        "other": {},
    }
    async with world(tmp_path, {"pool": {"kind": "trtllm", "speed": 1.0}}, tenants=tenants) as here:
        assert await status_of(here) == 200
        async with here.http() as http:
            async with http.stream(
                "POST", "/v1/chat/completions", json=ask(max_tokens=40, stream=True)
            ) as answer:
                chunks = answer.aiter_text()
                await anext(chunks)
                written = yaml.safe_load(here.file.read_text())
                written["tenants"]["tenant"]["limits"] = [
                    {"tokens": 20_000, "per": "day"},
                    {"requests": 2, "per": "day"},
                ]
                here.file.write_text(yaml.safe_dump(written, sort_keys=False))
                async with here.admin() as admin:
                    assert (await admin.post("/admin/config/reload")).json()["ok"]
                rows = await here.limits()
                assert rows["tenant.requests-per-day"].used == 2
                assert rows["tenant.tokens-per-day"].amount == 20_000
                before = rows["tenant.tokens-per-day"].used
                assert before > 0
                assert await status_of(here) == 429
                async for _ in chunks:
                    pass
        await here.wait_at_rest()
        assert (await here.limits())["tenant.tokens-per-day"].used <= before


async def test_the_pool_that_answers_is_charged(tmp_path: Path) -> None:
    """The first pool fails: its limits are given back, the second one's are held."""
    engines = {"first": {"kind": "trtllm", "faults": ["close"]}, "second": {"kind": "tgi"}}
    limits = [{"requests": 10, "per": "calendar_day", "each": "pool", "name": "per-pool"}]
    async with world(tmp_path, engines, limits=limits) as here:
        assert await status_of(here) == 200
        rows = await here.limits()
        assert (rows["per-pool/first"].used, rows["per-pool/second"].used) == (0, 1)


@pytest.mark.parametrize("on", [["overloaded"], []], ids=["leaves", "stays"])
async def test_a_pool_whose_limit_is_reached_is_overloaded(on: list[str], tmp_path: Path) -> None:
    engines = {"first": {"kind": "trtllm"}, "second": {"kind": "tgi"}}
    limits = [{"requests": 1, "per": "day", "pool": "first"}]
    rules = [{"name": "all", "pools": ["first", "second"], "on": ["failed", *on]}]
    async with world(tmp_path, engines, limits=limits, rules=rules) as here, here.http() as http:
        answers = [await http.post("/v1/chat/completions", json=ask()) for _ in range(2)]
        assert answers[0].headers["x-headgate-pool"] == "first"
        if on:
            assert answers[1].headers["x-headgate-pool"] == "second"
        else:
            assert answers[1].status_code == 429


async def test_the_admin_api_shows_and_tries(tmp_path: Path) -> None:
    tenants = {"tenant": {"limits": [{"tokens": 100, "per": "day", "name": "mine"}]}, "other": {}}
    limits = [{"requests": 10, "per": "minute", "each": "tenant", "name": "each"}]
    given: dict[str, Any] = {"tenants": tenants, "limits": limits}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, **given) as here, here.admin() as admin:
        assert await status_of(here) == 200
        rows = (await admin.get("/admin/limits")).json()["limits"]
        assert {row["account"]: row["used"] for row in rows}["each/other"] == 0
        rows = (await admin.get("/admin/limits", params={"tenant": "tenant"})).json()["limits"]
        assert [row["account"] for row in rows] == ["each/tenant", "mine"]
        assert rows[0] == {
            "limit": "each", "account": "each/tenant", "unit": "requests", "per": "minute", "amount": 10,
            "used": 1, "free": 9, "reset": pytest.approx(6, abs=2), "enforce": True,
        }  # fmt: skip
        asked = {"tenant": "tenant", "tokens": 5000}
        tried = (await admin.post("/admin/limits/try", json=asked)).json()
        assert not tried["granted"]
        assert {row["limit"]: row["answer"] for row in tried["limits"]} == {"each": "grant", "mine": "never"}
        for wrong in (
            {"tenant": "nobody"}, {}, {"tenant": "tenant", "tokens": -1}, {"tenant": "tenant", "pool": "x"},
            {"tenant": "tenant", "tokens": 1, "prompt": 1}, {"tenant": "tenant", "odd": 1},
            {"tenant": "tenant", "model": "x"}, {"tenant": "tenant", "key": "x"}, {"tenant": 5},
        ):  # fmt: skip
            assert (await admin.post("/admin/limits/try", json=wrong)).status_code == 400, wrong
        assert (await admin.get("/admin/limits", params={"tenant": "nobody"})).status_code == 400
