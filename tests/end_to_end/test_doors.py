"""The doors beside chat and completions, through the official SDKs and a real uvicorn."""

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.end_to_end.door_bench import ASK, ENGINE, claude, last
from tests.end_to_end.world import ADMIN_KEY, KEY, world

# ------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp", "triton-openai", "openai"])
async def test_embeddings(kind: str, tmp_path: Path) -> None:
    """One text and many, with the engine's usage, which is the gateway's count; nothing is generated."""
    async with world(tmp_path, {"pool": {"kind": kind, "served": "e"}}) as here, here.sdk() as sdk:
        one = await sdk.embeddings.create(model="m", input="The gate is open.")
        assert one.model == "m"
        assert len(one.data[0].embedding) == 8
        raw = await sdk.embeddings.with_raw_response.create(
            model="m", input=["The gate", "is open.", "The gate"]
        )
        many = raw.parse()
        assert [each.index for each in many.data] == [0, 1, 2]
        assert many.data[0].embedding == many.data[2].embedding != many.data[1].embedding
        assert raw.headers["x-headgate-prompt-tokens"] == str(many.usage.prompt_tokens)
        assert raw.headers["x-headgate-max-tokens"] == "0"
        sent = last(here)
        assert sent.body["model"] == "e"
        assert sent.body["encoding_format"] == "base64", "the SDK's own fields come through"


async def test_embeddings_count_against_limits_and_context(tmp_path: Path) -> None:
    limits = [{"name": "small", "tokens": 20, "per": "day"}]
    models = {"m": {"context": 30}}
    async with world(tmp_path, {"pool": ENGINE}, limits=limits, models=models) as here, here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as long:
            await sdk.embeddings.create(model="m", input="water " * 50)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
        used = (await sdk.embeddings.create(model="m", input="Open the gate.")).usage.total_tokens
        (account,) = (await here.limits()).values()
        assert account.used == used
        with pytest.raises(openai.RateLimitError):
            await sdk.embeddings.create(model="m", input=["Open the gate."] * 4)


async def test_a_prompt_of_the_whole_context_is_embedded(tmp_path: Path) -> None:
    """Nothing is generated, so nothing has to be left."""
    async with world(tmp_path, {"pool": ENGINE}, models={"m": {"context": 12}}) as here, here.sdk() as sdk:
        answer = await sdk.embeddings.create(model="m", input=[list(range(300, 312))])
        assert answer.usage.prompt_tokens == 12
        with pytest.raises(openai.BadRequestError):
            await sdk.embeddings.create(model="m", input=[list(range(300, 313))])


# -------------------------------------------------------------------------------------------- responses


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp", "trtllm", "openai"])
async def test_responses(kind: str, tmp_path: Path) -> None:
    """Streamed and whole say the same; the SDK's own state machine takes the stream for whole."""
    ask: dict[str, Any] = {"model": "m", "instructions": "Be brief.", "input": "What does a headgate do?"}
    async with world(tmp_path, {"pool": {"kind": kind, "served": "e"}}) as here, here.sdk() as sdk:
        whole = await sdk.responses.create(**ask, max_output_tokens=12)
        assert whole.model == "m"
        assert whole.usage is not None
        assert 0 < whole.usage.output_tokens <= 12
        async with sdk.responses.stream(**ask, max_output_tokens=12) as stream:
            events = [event async for event in stream]
        assert events[0].type == "response.created"
        assert events[0].response.model == "m"
        assert events[-1].type in ("response.completed", "response.incomplete")
        assert events[-1].response.model == "m"
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == whole.output_text != ""
        sent = last(here)
        assert sent.body["store"] is False, "nothing could fetch it"
        assert sent.body["max_output_tokens"] == 12
        row = (await sdk.responses.with_raw_response.create(**ask, max_output_tokens=12)).headers
        assert row["x-headgate-prompt-tokens"] == str(whole.usage.input_tokens)


async def test_a_response_is_bounded_by_policy(tmp_path: Path) -> None:
    """The ceiling is spliced in, whether the client asked for more or for nothing."""
    models = {"m": {"max_tokens": {"default": 5, "ceiling": 7}}}
    async with world(tmp_path, {"pool": ENGINE}, models=models) as here, here.sdk() as sdk:
        for asked, sent in ((100, 7), (None, 5), (3, 3)):
            more = {} if asked is None else {"max_output_tokens": asked}
            await sdk.responses.create(model="m", input="Go on.", **more)  # type: ignore[call-overload]
            assert last(here).body["max_output_tokens"] == sent


async def test_what_engines_would_keep_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": ENGINE}) as here, here.sdk() as sdk:
        for field, value in (("previous_response_id", "resp_1"), ("background", True)):
            with pytest.raises(openai.BadRequestError) as refused:
                await sdk.responses.create(model="m", input="Hello", **{field: value})  # type: ignore[call-overload]
            assert refused.value.param == field
        with pytest.raises(openai.InternalServerError) as stored:
            await sdk.responses.retrieve("resp_1")
        assert (stored.value.status_code, stored.value.code) == (501, "not_implemented")
        with pytest.raises(openai.InternalServerError):
            await sdk.responses.delete("resp_1")
        assert here.gateway.book.outcomes == {"rejected": 4}, "they ask for what nobody here does"
        assert here.engine().statistics().recent == ()


# --------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_messages(kind: str, tmp_path: Path) -> None:
    """Streamed and whole say the same, and so does the chat that they are."""
    async with world(tmp_path, {"pool": {"kind": kind, "served": "e"}}) as here, claude(here) as sdk:
        whole = await sdk.messages.create(**ASK, system="Be brief.")
        assert (whole.model, whole.type, whole.role) == ("m", "message", "assistant")
        async with sdk.messages.stream(**ASK, system="Be brief.") as stream:
            final = await stream.get_final_message()
        assert final.model == "m"
        assert final.content[0].text == whole.content[0].text != ""  # type: ignore[union-attr]
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens > 0
        counted = await sdk.messages.count_tokens(
            model="m",
            messages=ASK["messages"],
            system="Be brief.",  # type: ignore[arg-type]
        )
        assert counted.input_tokens == whole.usage.input_tokens
        async with here.sdk() as chats:
            turns = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]  # type: ignore[misc]
            chat = await chats.chat.completions.create(model="m", messages=turns, max_tokens=12)  # type: ignore[arg-type]
        assert chat.choices[0].message.content == whole.content[0].text  # type: ignore[union-attr]


async def test_a_message_carries_its_ids_headers_and_unknown_fields(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": ENGINE}) as here, claude(here) as sdk:
        raw = await sdk.messages.with_raw_response.create(
            **ASK,
            extra_headers={"x-request-id": "mine-7", "anthropic-beta": "b-1"},
            extra_body={"odd": {"a": [1.0]}},
        )
        assert raw.headers["request-id"] == raw.headers["x-request-id"] == "mine-7"
        assert raw.headers["x-headgate-pool"] == "pool"
        sent = last(here)
        assert sent.body["odd"] == {"a": [1.0]}
        assert sent.headers["anthropic-version"] == sdk.default_headers["anthropic-version"]
        assert sent.headers["anthropic-beta"] == "b-1"
        assert "x-api-key" not in sent.headers
        assert KEY not in json.dumps(dict(sent.headers))


async def test_errors_have_anthropics_shape(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": ENGINE}) as here:
        async with claude(here, api_key="hg-wrong") as sdk:
            with pytest.raises(anthropic.AuthenticationError) as unknown:
                await sdk.messages.create(**ASK)
            assert unknown.value.type == "authentication_error"
            assert unknown.value.request_id
        async with claude(here) as sdk:
            with pytest.raises(anthropic.NotFoundError) as missing:
                await sdk.messages.create(**{**ASK, "model": "nope"})
            assert (missing.value.type, missing.value.error_code) == ("not_found_error", "model_not_found")
            with pytest.raises(anthropic.BadRequestError) as fetched:
                source = {"type": "url", "url": "http://169.254.169.254/"}
                image = {"role": "user", "content": [{"type": "image", "source": source}]}
                await sdk.messages.create(**{**ASK, "messages": [image]})
            assert fetched.value.type == "invalid_request_error"
            with pytest.raises(anthropic.BadRequestError) as long:
                turns = [{"role": "user", "content": "water " * 20000}]
                await sdk.messages.create(**{**ASK, "messages": turns})
            assert long.value.error_code == "context_length_exceeded"
            assert here.engine().statistics().recent == ()
            here.engine().arm("overload*1")
            with pytest.raises(anthropic.APIStatusError) as busy:
                await sdk.messages.create(**ASK)
            assert (busy.value.status_code, busy.value.type) == (503, "overloaded_error")
            assert busy.value.response.headers["retry-after"]
        async with claude(here, api_key=None, auth_token=KEY) as sdk:
            assert (await sdk.messages.create(**ASK)).content
        async with claude(here, api_key=ADMIN_KEY) as sdk:
            with pytest.raises(anthropic.PermissionDeniedError) as admin:
                await sdk.messages.create(**ASK)
            assert admin.value.type == "permission_error"


# ---------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    ("kind", "path", "asks"),
    [
        ("vllm", "/v1/messages", {"model": "french"}),
        ("vllm", "/v1/responses", {"model": "french"}),
        ("vllm", "/v1/embeddings", {"model": "french"}),
        ("openai", "/v1/responses", {"model": "french"}),
        ("sglang", "/v1/messages", {"model": "m:french"}),
        ("llamacpp", "/v1/responses", {"model": "m", "lora": [{"id": 0, "scale": 0.5}]}),
    ],
)
async def test_an_adapter_is_reached_by_other_doors(
    kind: str, path: str, asks: dict[str, Any], tmp_path: Path
) -> None:
    """In the engine's own form, and under its public name."""
    adapter = {"name": "french", "id": 0, "scale": 0.5} if kind == "llamacpp" else "french"
    pools = {"pool": {"serves": {"m": "m", "fr": {"model": "m", "adapter": adapter}}}}
    engines = {"pool": {"kind": kind, "adapters": ("french",)}}
    async with world(tmp_path, engines, pools=pools, models={"m": {}, "fr": {}}) as here, here.http() as http:
        said = []
        for model in ("m", "fr"):
            body = {**ASK, "input": "Hello"} if path == "/v1/messages" else {"input": "Hello"}
            body.pop("input") if path == "/v1/messages" else None
            answer = await http.post(path, json={**body, "model": model})
            assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text
            said.append(json.dumps(answer.json().get("content") or answer.json().get("output")))
        assert asks.items() <= last(here).body.items()
        if path != "/v1/embeddings":
            texts = [json.loads(each)[0] for each in said]
            assert texts[0].get("text", texts[0].get("content")) != texts[1].get(
                "text", texts[1].get("content")
            )


async def test_an_adapter_that_an_engine_has_no_form_for_is_refused(tmp_path: Path) -> None:
    adapter = {"name": "french", "id": 0, "path": "/loras/french"}
    pools = {"pool": {"serves": {"m": "m", "fr": {"model": "m", "adapter": adapter}}}}
    engines = {"pool": {"kind": "trtllm", "adapters": ("french",)}}
    async with world(tmp_path, engines, pools=pools, models={"m": {}, "fr": {}}) as here, here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.responses.create(model="fr", input="Hello")
        assert (refused.value.param, refused.value.code) == ("model", "unsupported_parameter")
        assert here.engine().statistics().recent == ()


# ------------------------------------------------------------------------------------ rerank and score


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rerank(kind: str, path: str, tmp_path: Path) -> None:
    body = {
        "model": "m",
        "query": "gates",
        "documents": ["a gate", "a canal", {"text": "a lock"}],
        "top_n": 2,
    }
    async with world(tmp_path, {"pool": {"kind": kind, "served": "e"}}) as here, here.http() as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        ranked = told if kind == "sglang" else told["results"]
        assert len(ranked) == 2
        assert {each["index"] for each in ranked} <= {0, 1, 2}
        if kind != "sglang":
            assert told["model"] == "m"
            assert answer.headers["x-headgate-prompt-tokens"] == str(told["usage"]["prompt_tokens"])
        assert last(here).path == "/v1/rerank"


@pytest.mark.parametrize(("kind", "sent"), [("vllm", "/score"), ("sglang", "/v1/score")])
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_score(kind: str, sent: str, path: str, tmp_path: Path) -> None:
    body = {"model": "m", "text_1": "What is a gate?", "text_2": ["A gate holds water.", "A fish swims."]}
    async with world(tmp_path, {"pool": {"kind": kind, "served": "e"}}) as here, here.http() as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert [each["index"] for each in answer.json()["data"]] == [0, 1]
        assert answer.headers["x-headgate-prompt-tokens"] == str(answer.json()["usage"]["prompt_tokens"])
        assert last(here).path == sent


# --------------------------------------------------------------------------------------- where it goes


async def test_an_endpoint_that_no_engine_serves(tmp_path: Path) -> None:
    """404 in the shape of the route, before anything is sent; chats go on."""
    async with world(tmp_path, {"pool": {"kind": "tgi"}}) as here, here.sdk() as sdk:
        with pytest.raises(openai.NotFoundError) as vectors:
            await sdk.embeddings.create(model="m", input="Hello")
        assert (vectors.value.code, vectors.value.param) == ("unsupported_endpoint", "model")
        async with claude(here) as other:
            with pytest.raises(anthropic.NotFoundError) as message:
                await other.messages.create(**ASK)
            assert message.value.error_code == "unsupported_endpoint"
            with pytest.raises(anthropic.NotFoundError):
                await other.messages.count_tokens(model="m", messages=ASK["messages"])  # type: ignore[arg-type]
        assert (await sdk.chat.completions.create(**ASK)).choices  # type: ignore[call-overload]


async def test_a_chain_is_walked_to_the_pool_that_serves_it(tmp_path: Path) -> None:
    engines = {"texts": {"kind": "tgi"}, "vectors": ENGINE}
    pools = {"vectors": {"doors": ["embeddings"]}}
    async with world(tmp_path, engines, pools=pools) as here, here.sdk() as sdk:
        raw = await sdk.embeddings.with_raw_response.create(model="m", input="Hello")
        assert raw.headers["x-headgate-pool"] == "vectors"
        chat = await sdk.chat.completions.with_raw_response.create(**ASK)  # type: ignore[call-overload]
        assert chat.headers["x-headgate-pool"] == "texts"
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.create(model="m", input="Hello")
        async with here.admin() as admin:
            asked = {"tenant": "tenant", "dialect": "embeddings", "request": {"model": "m", "input": "Hello"}}
            told = (await admin.post("/admin/routes/explain", json=asked)).json()
            assert (told["dialect"], told["goes_to"]) == ("embeddings", "vectors")
            assert told["chain"][0]["why"] == "This model is not served at /v1/embeddings."
            rows = (await admin.get("/admin/pools")).json()["pools"]
            assert rows[1]["doors"] == ["embeddings"]


async def test_explain_takes_a_door_and_a_session(tmp_path: Path) -> None:
    """Where a conversation at this door would go, and how much of it is held there."""
    engines = {"pool": {**ENGINE, "replicas": 2, "prefix_cache": 100_000}}
    turns = [{"role": "user", "content": "Tell me of canals, locks and weirs. " * 100}]
    async with world(tmp_path, engines) as here, here.http() as http, here.admin() as admin:
        body = {**ASK, "messages": turns}
        answer = await http.post("/v1/messages", json=body, headers={"x-session-id": "talk-7"})
        asked = {"tenant": "tenant", "dialect": "messages", "session": "talk-7", "request": body}
        told = (await admin.post("/admin/routes/explain", json=asked)).json()
        assert (told["dialect"], told["session"], told["goes_to"]) == ("messages", "talk-7", "pool")
        held = {each["replica"]: each["cached_tokens"] for each in told["chain"][0]["candidates"]}
        assert held[answer.headers["x-headgate-replica"]] > 500
        assert sorted(held.values())[0] == 0
        for odd in (7, "", "é", "x" * 201):
            refused = await admin.post("/admin/routes/explain", json={**asked, "session": odd})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "session")


async def test_an_engine_that_lacks_the_route_is_named(tmp_path: Path) -> None:
    """`doors` promises what this engine's release does not hold."""
    pools = {"pool": {"doors": ["chat", "score"]}}
    async with world(tmp_path, {"pool": {"kind": "llamacpp"}}, pools=pools) as here, here.http() as http:
        answer = await http.post("/score", json={"model": "m", "text_1": "a", "text_2": "b"})
        assert answer.status_code == 501
        assert answer.json()["error"]["message"] == "The engines of this model do not serve this route."


async def test_where_one_pool_lacks_the_route_the_next_may_have_it(tmp_path: Path) -> None:
    pools = {"pool": {"doors": ["chat", "score"]}}
    engines = {"pool": {"kind": "llamacpp"}, "next": {"kind": "vllm"}}
    rules = [{"name": "both", "pools": ["pool", "next"], "on": ["unavailable"]}]
    async with world(tmp_path, engines, pools=pools, rules=rules) as here, here.http() as http:
        answer = await http.post("/score", json={"model": "m", "text_1": "a", "text_2": "b"})
        assert (answer.status_code, answer.headers["x-headgate-pool"]) == (200, "next")


async def test_retries_and_metrics_hold_for_all_doors(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {**ENGINE, "replicas": 2}}) as here, here.sdk() as sdk:
        here.engines["pool-1"].arm("close*1")
        here.engines["pool-2"].arm("close*1")
        results = await asyncio.gather(
            *(sdk.embeddings.create(model="m", input=f"Text {number}") for number in range(6)),
            return_exceptions=True,
        )
        assert sum(not isinstance(each, BaseException) for each in results) >= 5
        async with here.admin() as admin:
            told = (await admin.get("/metrics")).text
        assert 'headgate_tokens_total{kind="prompt",model="m",pool="pool",tenant="tenant"}' in told
