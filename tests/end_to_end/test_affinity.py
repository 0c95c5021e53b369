"""Requests go where what they need is: a prompt's beginning, a LoRA adapter; and engines hear how urgent they
are."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.world import OTHER_KEY, World, world

SYSTEM = "You answer questions about canals, locks, weirs and headgates, at length and with figures. " * 120
"""Some thousands of tokens: far more than what is new in a turn, whatever the machine does meanwhile."""
TURNS = 5


def two(kind: str = "trtllm", **options: Any) -> dict[str, Any]:
    return {"pool": {"kind": kind, "replicas": 2, "prefix_cache": 100_000, **options}}


async def says(here: World, messages: list[dict[str, str]], key: str | None = None, **more: Any) -> Any:
    """The raw response to a chat of at most eight tokens."""
    async with here.sdk(key) if key else here.sdk() as sdk:
        return await sdk.chat.completions.with_raw_response.create(
            model=more.pop("model", "m"), messages=messages, max_tokens=8, **more
        )


async def conversation(here: World, about: str, **more: Any) -> list[str]:
    """Replicas that answered the turns of a chat that grows."""
    messages = [{"role": "system", "content": f"{about}. {SYSTEM}"}]
    places = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Question {turn}: how wide is it?"})
        answer = await says(here, messages, **more)
        places.append(answer.headers["x-headgate-replica"])
        messages.append({"role": "assistant", "content": answer.parse().choices[0].message.content})
    return places


@pytest.mark.parametrize("kind", ["trtllm", "vllm", "sglang", "llamacpp", "tgi"])
async def test_a_conversation_stays_where_its_text_is(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, two(kind)) as here:
        for about in ("Locks", "Weirs"):
            assert len(set(await conversation(here, about))) == 1, "where it was computed"


async def test_without_the_picture_it_does_not(tmp_path: Path) -> None:
    pools = {"pool": {"placement": {"kind": "least_requests", "prefix_tokens": 0}}}
    async with world(tmp_path, two(), pools=pools) as here:
        assert len(set(await conversation(here, "Locks"))) == 2


async def test_what_engines_had_is_held_against_what_was_expected(tmp_path: Path) -> None:
    async with world(tmp_path, two("vllm", tells_cached=True)) as here, here.admin() as admin:
        await conversation(here, "Locks")
        (pool,) = (await admin.get("/admin/pools")).json()["pools"]
        metrics = (await admin.get("/metrics")).text
    assert pool["prefixes"]["tokens"] == 128
    assert pool["prefixes"]["remembered"] >= 3
    assert all(trust > 0.8 for trust in pool["prefixes"]["trust"].values())
    told = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    expected = float(told['headgate_prefix_tokens_total{by="expected",pool="pool"}'])
    cached = float(told['headgate_prefix_tokens_total{by="cached",pool="pool"}'])
    assert 1000 < expected <= cached, "blocks of 128 tokens say a little less than the engine's of 16"


async def test_an_engine_without_a_cache_is_not_believed_to_have_one(tmp_path: Path) -> None:
    """trtllm-serve with reuse switched off: it tells zero, and the picture of it fades."""
    async with world(tmp_path, two(prefix_cache=0)) as here, here.admin() as admin:
        for about in ("Locks", "Weirs"):
            await conversation(here, about)
        (pool,) = (await admin.get("/admin/pools")).json()["pools"]
    assert min(pool["prefixes"]["trust"].values()) < 0.6


async def test_explain_says_who_holds_what(tmp_path: Path) -> None:
    async with world(tmp_path, two()) as here, here.admin() as admin:
        (home,) = set(await conversation(here, "Locks"))
        body = {"model": "m", "messages": [{"role": "system", "content": f"Locks. {SYSTEM}"}]}
        asked = {"tenant": "tenant", "request": body}
        told = (await admin.post("/admin/routes/explain", json=asked)).json()
    (target,) = told["chain"]
    held = {row["replica"]: row["cached_tokens"] for row in target["candidates"]}
    assert target["prefix_blocks"] >= 3
    assert held[home] > 300
    assert sum(held.values()) == held[home]


@pytest.mark.parametrize(
    "more",
    [{"extra_headers": {"x-session-id": "s-1"}}, {"extra_body": {"prompt_cache_key": "s-1"}}],
)
async def test_a_session_too_short_for_blocks_stays_together(more: dict[str, Any], tmp_path: Path) -> None:
    pools = {"pool": {"placement": "prefix"}}
    async with world(tmp_path, two(), pools=pools) as here:
        short = [{"role": "user", "content": "Hello there, how are you?"}]
        places = {(await says(here, short, **more)).headers["x-headgate-replica"] for _ in range(6)}
        others = {(await says(here, short)).headers["x-headgate-replica"] for _ in range(9)}
    assert len(places) == 1
    assert len(others) == 2


@pytest.mark.parametrize("share", [True, False])
async def test_tenants_share_what_engines_know_unless_they_must_not(share: bool, tmp_path: Path) -> None:
    pools = {"pool": {"placement": {"kind": "predicted_ttft", "share_prefixes": share}}}
    async with world(tmp_path, two("vllm", tells_cached=True), pools=pools) as here:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "How wide is it?"}]
        usages, places, salts = [], [], []
        for key in (None, OTHER_KEY):
            answer = await says(here, messages, key)
            places.append(answer.headers["x-headgate-replica"])
            usages.append(answer.parse().usage)
        for engine in here.engines.values():
            salts += [request.body.get("cache_salt") for request in engine.statistics().recent]
    details = usages[1].prompt_tokens_details
    if share:
        assert places[0] == places[1]
        assert details.cached_tokens > 500
        assert salts == [None, None]
    else:
        assert details is None or not details.cached_tokens
        assert len(set(salts)) == 2
        assert not any("tenant" in salt or "other" in salt for salt in salts)


# --------------------------------------------------------------------------------------------- adapters

ADAPTERS = ("french", "greek")
FORMS = {
    "vllm": ({}, {}),
    "sglang": ({}, {}),
    "openai": ({}, {}),
    "tgi": ({}, {}),
    "trtllm": ({"id": 0, "path": "/loras/french"}, {"id": 1, "path": "/loras/greek"}),
    "llamacpp": ({"id": 0}, {"id": 1}),
    "triton": ({"id": 0}, {"id": 1}),
}


def adapted(kind: str) -> dict[str, Any]:
    """A pool that serves `m`, and `fr` and `el` over it."""
    base = {"triton": "ensemble", "tgi": "tgi"}.get(kind, "m")
    french, greek = FORMS[kind]
    return {
        "m": base,
        "fr": {"model": base, "adapter": {"name": "french", **french} if french else "french"},
        "el": {"model": base, "adapter": {"name": "greek", **greek}},
    }


@pytest.mark.parametrize("kind", FORMS)
async def test_an_adapter_is_asked_for_in_the_engines_own_form(kind: str, tmp_path: Path) -> None:
    """Its answers are its own, the base model's are not touched, and each stays where it was loaded."""
    engines = {"pool": {"kind": kind, "replicas": 2, "adapters": ADAPTERS}}
    pools = {"pool": {"serves": adapted(kind)}}
    hello = [{"role": "user", "content": "Hello!"}]
    async with world(tmp_path, engines, pools=pools, models={"m": {}, "fr": {}, "el": {}}) as here:
        said, places = {}, {}
        for model in ("m", "fr", "el"):
            answers = [await says(here, hello, model=model) for _ in range(4)]
            said[model] = {answer.parse().choices[0].message.content for answer in answers}
            places[model] = {answer.headers["x-headgate-replica"] for answer in answers}
            assert {answer.parse().model for answer in answers} == {model}
    assert all(len(texts) == 1 for texts in said.values())
    assert len(set.union(*said.values())) == 3, "three voices"
    assert len(places["fr"]) == len(places["el"]) == 1
    assert len(places["m"]) == 2


async def test_the_gateway_knows_how_few_adapters_an_engine_holds(tmp_path: Path) -> None:
    """With room for one, the two adapters part: one on each replica."""
    engines = {"pool": {"kind": "vllm", "replicas": 2, "adapters": ADAPTERS}}
    pools = {"pool": {"serves": adapted("vllm"), "limits": {"adapters": 1}}}
    hello = [{"role": "user", "content": "Hello!"}]
    async with world(tmp_path, engines, pools=pools, models={"m": {}, "fr": {}, "el": {}}) as here:
        places: dict[str, set[str]] = {"fr": set(), "el": set()}
        for _ in range(5):
            for model, seen in places.items():
                seen.add((await says(here, hello, model=model)).headers["x-headgate-replica"])
    assert all(len(seen) == 1 for seen in places.values())
    assert places["fr"] != places["el"]


# ------------------------------------------------------------------------------------------- priorities


@pytest.mark.parametrize(
    ("kind", "options", "sent"),
    [
        ("vllm", {}, [0, 10_007, 20_000]),
        ("sglang", {}, [20_000, 10_007, 0]),
        ("sglang", {"low_priority_values_first": True}, [0, 10_007, 20_000]),
        ("trtllm", {}, [0.833333, 0.501166, 0.166667]),
    ],
)
async def test_the_class_reaches_the_engine_in_its_own_scale(
    kind: str, options: dict[str, Any], sent: list[float], tmp_path: Path
) -> None:
    engines = {"pool": {"kind": kind, "priorities": True}}
    pools = {"pool": {"engine_priority": True, "options": options}}
    hello = [{"role": "user", "content": "Hello!"}]
    async with world(tmp_path, engines, pools=pools) as here:
        await says(here, hello, service_tier="priority")
        await says(here, hello, extra_body={"priority": 7})
        await says(here, hello, service_tier="flex")
        told = [request.body.get("priority") for request in here.engine().statistics().recent]
    assert told == sent


async def test_nothing_is_said_of_priorities_unless_the_pool_allows(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "vllm"}}) as here:
        await says(here, [{"role": "user", "content": "Hello!"}], extra_body={"priority": -900})
        assert "priority" not in here.engine().statistics().recent[0].body


async def test_an_engine_that_was_not_started_for_priorities_is_at_fault_not_the_client(
    tmp_path: Path,
) -> None:
    pools = {"pool": {"engine_priority": True}}
    async with world(tmp_path, {"pool": {"kind": "vllm"}}, pools=pools) as here, here.http() as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 502


# ------------------------------------------------------------------------------------------------ bytes


async def test_the_line_holds_no_more_bytes_than_it_may(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
    pools = {"pool": {"limits": {"in_flight": 1}, "queue": {"max_mb": 0.01, "max_wait_s": 0.3}}}
    async with world(tmp_path, engines, pools=pools) as here, here.sdk() as sdk, here.http() as http:
        hello = [{"role": "user", "content": "Hello!"}]
        ask: dict[str, Any] = {"model": "m", "messages": hello, "max_tokens": 4000}
        held = await sdk.chat.completions.create(**ask, stream=True)
        large = {**ask, "messages": [{"role": "user", "content": "canal " * 1000}]}
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(http.post("/v1/chat/completions", json=large)) for _ in range(4)]
        told = sorted(task.result().json()["error"]["message"] for task in asked)
        await held.close()
    late = "no replica of pool pool became free in 0.3 s"
    assert told == [late, *["the queue of pool pool is full"] * 3], "two bodies of 6 KB are more than 10 KB"
