"""The doors beside chat and completions, through the official SDKs and a real uvicorn."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from backends.simulated.records import Received
from tests.end_to_end.world import ADMIN_KEY, KEY, World, world

ENGINE = {"kind": "vllm", "served": "org/engine-name"}
"""Its own name for the model must never reach a client."""

ASK = {"model": "m", "max_tokens": 12, "messages": [{"role": "user", "content": "What does a headgate do?"}]}


def claude(here: World, **options: Any) -> anthropic.AsyncAnthropic:
    """The official SDK, pointed at this gateway. No retries unless asked for."""
    return anthropic.AsyncAnthropic(
        base_url=here.addresses.data, **{"api_key": KEY, "max_retries": 0, "timeout": 20, **options}
    )


def events_of(stream: str) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of each event of an SSE answer."""
    blocks = [block.split("\n") for block in stream.strip().split("\n\n") if not block.startswith(":")]
    return [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks
    ]


def last(here: World) -> Received:
    """What the engine was sent last."""
    return here.engine().statistics().recent[-1]


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


@pytest.mark.parametrize("fault", ["die_after=3", "fin_after=3", "error_after=3"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_a_stream_that_breaks_ends_with_an_error_event(path: str, fault: str, tmp_path: Path) -> None:
    """Never as a success: no last event of a good answer, and an `error` event of that dialect."""
    body = (
        {"stream": True, **ASK}
        if path == "/v1/messages"
        else {"stream": True, "model": "m", "input": "Hello"}
    )
    async with world(tmp_path, {"pool": ENGINE}) as here, here.http() as http:
        here.engine().arm(fault)
        answer = await http.post(path, json=body)
        assert answer.status_code == 200
        events = events_of(answer.text)
        kinds = [kind for kind, _ in events]
        assert all(kind == data["type"] for kind, data in events)
        assert kinds[-1] == "error"
        assert not {"message_stop", "message_delta", "response.completed"} & set(kinds)
        assert "org/engine-name" not in answer.text
        if path == "/v1/messages":
            assert events[-1][1]["error"]["type"] == "api_error"
        else:
            numbers = [data["sequence_number"] for _, data in events]
            assert numbers == list(range(len(numbers)))
        row = await here.limits()
        assert row == {}
    async with world(tmp_path, {"pool": ENGINE}) as here, claude(here) as sdk:
        here.engine().arm(fault)
        with pytest.raises(anthropic.APIStatusError):
            async with sdk.messages.stream(**ASK) as stream:
                await stream.get_final_message()


async def test_what_fails_before_the_first_piece_goes_to_another_replica(tmp_path: Path) -> None:
    """Events before the first piece (`message_start`) do not commit the answer."""
    async with world(tmp_path, {"pool": {**ENGINE, "replicas": 2}}) as here, claude(here) as sdk:
        attempts = set()
        for engine in here.engines.values():
            engine.arm("die_after=0*1")
            async with sdk.messages.stream(**ASK) as stream:
                assert (await stream.get_final_message()).content
            attempts.add(stream.response.headers["x-headgate-attempts"])
        assert "2" in attempts


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_a_client_that_leaves_stops_the_engine(path: str, tmp_path: Path) -> None:
    """The send is counted as abandoned: begun well, and nobody waited for its end."""
    async with world(tmp_path, {"pool": {**ENGINE, "speed": 2.0}}) as here, here.http() as http:
        body = {**ASK, "stream": True, "max_tokens": 2000, "ignore_eos": True}
        async with http.stream("POST", path, json=body) as answer:
            async for _ in answer.aiter_bytes():
                break
        await here.wait_at_rest()
        (close,) = here.engine().statistics().closes
        assert close.streamed
        assert (await sends(here)) == {"abandoned": 1}
        here.engine().arm("die_after=3*1")
        await http.post(path, json=body)
        assert (await http.post(path, json={**body, "max_tokens": 3})).status_code == 200
        await here.wait_at_rest()
        assert (await sends(here)) == {"abandoned": 1, "error": 1, "ok": 1}


@contextlib.asynccontextmanager
async def always(content_type: str, body: bytes) -> AsyncIterator[str]:
    """An engine that gives one answer to everything; yields its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % content_type.encode())
        writer.write(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("headers", [{}, {"x-headgate-stop-after-ms": "60000"}], ids=["free", "timed"])
async def test_events_that_make_no_sense_are_passed_on(headers: dict[str, str], tmp_path: Path) -> None:
    """And over, by what follows the stream for an end of our own."""
    begun = {"type": "text", "text": 1, "citations": 5}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "model": "own", "usage": 5}},
        {"type": "content_block_start", "index": "0", "content_block": begun},
        {"type": "content_block_delta", "index": None, "delta": {"type": "citations_delta", "citation": 1}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Water"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    stream = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    async with always("text/event-stream", stream) as url:
        engines = {"pool": {"kind": "openai", "url": url, "served": "own"}}
        pools = {"pool": {"doors": ["messages"]}}
        async with world(tmp_path, engines, pools=pools) as here, here.http() as http:
            answer = await http.post("/v1/messages", json={**ASK, "stream": True}, headers=headers)
            assert answer.status_code == 200
            told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            assert told[1:] == events[1:]
            assert told[0]["message"] == {"id": "m", "model": "m", "usage": 5}
            await here.wait_at_rest()
            assert (await sends(here)) == {"ok": 1}
            if headers:
                whole = await http.post("/v1/messages", json=ASK, headers=headers)
                assert whole.json()["content"][0]["citations"] == [1]


@pytest.mark.parametrize("by", ["stop-after", "max-generation", "limit"])
async def test_an_engine_that_knows_no_streams_answers_under_a_budget(by: str, tmp_path: Path) -> None:
    """It is asked for a stream, so that its answer could be cut, and sends the whole. To a client that wants
    a stream that is none."""
    document = {"object": "response", "model": "own", "status": "completed", "output": [], "odd": 1.5}
    headers = {"x-headgate-stop-after-ms": "60000"} if by == "stop-after" else {}
    limits = [{"tokens": 10_000, "per": "day", "overrun": "cut"}] if by == "limit" else []
    body = {"model": "m", "input": "Tell all."}
    async with always("application/json", json.dumps(document).encode()) as url:
        engines = {"pool": {"kind": "openai", "url": url, "served": "own"}}
        pools = {"pool": {"max_generation_ms": 60_000} if by == "max-generation" else {}}
        async with world(tmp_path, engines, pools=pools, limits=limits) as here, here.http() as http:
            answer = await http.post("/v1/responses", json=body, headers=headers)
            assert (answer.status_code, answer.json()) == (200, {**document, "model": "m"})
            streamed = await http.post("/v1/responses", json={**body, "stream": True}, headers=headers)
            assert streamed.status_code == 502


async def sends(here: World) -> dict[str, int]:
    """Sends to engines by how they ended."""
    (family,) = here.gateway.metrics.attempts.collect()
    samples = (each for each in family.samples if each.name == "headgate_attempts_total" and each.value)
    return {each.labels["outcome"]: int(each.value) for each in samples}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_a_time_budget_ends_a_stream_as_cut(path: str, tmp_path: Path) -> None:
    """The SDKs take it for an answer that reached its bound, whole in shape."""
    engine = {**ENGINE, "speed": 1.0}
    async with world(tmp_path, {"pool": engine}) as here, here.http() as http:
        more = (
            {"max_tokens": 4000}
            if path == "/v1/messages"
            else {"input": "Tell all.", "max_output_tokens": 4000}
        )
        body = {**ASK, **more} if path == "/v1/messages" else {"model": "m", **more}
        answer = await http.post(
            path,
            json={**body, "stream": True, "ignore_eos": True},
            headers={"x-headgate-stop-after-ms": "700"},
        )
        events = events_of(answer.text)
        kinds = [kind for kind, _ in events]
        if path == "/v1/messages":
            assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
            assert events[-2][1]["delta"]["stop_reason"] == "max_tokens"
            assert events[-2][1]["usage"]["output_tokens"] == kinds.count("content_block_delta")
        else:
            assert kinds[-1] == "response.incomplete"
            ended = events[-1][1]["response"]
            assert ended["incomplete_details"] == {"reason": "max_output_tokens"}
            text = "".join(data["delta"] for kind, data in events if kind == "response.output_text.delta")
            assert ended["output"][0]["content"][0]["text"] == text
            assert ended["model"] == "m"


def generating(path: str, **more: Any) -> dict[str, Any]:
    """A body that asks this door for as much as it may have; the engine does not end it by itself."""
    if path == "/v1/messages":
        return {**ASK, "max_tokens": 4000, "ignore_eos": True, **more}
    return {"model": "m", "input": "Tell all.", "max_output_tokens": 4000, "ignore_eos": True, **more}


GENERATING = ["/v1/messages", "/v1/responses"]
SLOW = {**ENGINE, "speed": 1.0}


@pytest.mark.parametrize("by", ["stop-after", "max-generation"])
@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_a_time_budget_ends_a_whole_answer(kind: str, by: str, tmp_path: Path) -> None:
    """It was asked for as a stream, and is told as one document, with what there is: no error."""
    pools = {"pool": {"max_generation_ms": 400}} if by == "max-generation" else {}
    headers = {"x-headgate-stop-after-ms": "400"} if by == "stop-after" else {}
    engines = {"pool": {**SLOW, "kind": kind}}
    async with world(tmp_path, engines, pools=pools) as here, here.sdk() as sdk, claude(here) as other:
        raw = await sdk.responses.with_raw_response.create(
            model="m", input="Tell all.", max_output_tokens=4000, extra_headers=headers,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        response = raw.parse()
        assert (response.status, response.model) == ("incomplete", "m")
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output_text
        assert response.usage is not None
        assert 0 < response.usage.output_tokens < 400
        assert raw.headers["x-headgate-cut-by"] == by
        assert raw.headers["content-type"] == "application/json"
        asked = generating("/v1/messages")
        asked.pop("ignore_eos")
        answer = await other.messages.with_raw_response.create(
            **asked, extra_headers=headers, extra_body={"ignore_eos": True}
        )
        message = await answer.parse()
        assert (message.stop_reason, message.model, message.type) == ("max_tokens", "m", "message")
        assert message.content[0].text  # type: ignore[union-attr]
        assert 0 < message.usage.output_tokens < 400
        assert message.usage.input_tokens == int(answer.headers["x-headgate-prompt-tokens"])
        assert answer.headers["x-headgate-cut-by"] == by
        await here.wait_at_rest()
        assert here.engine().statistics().engine.output_tokens < 1000, "it was told to stop"


@pytest.mark.parametrize("path", GENERATING)
async def test_a_whole_answer_that_ends_in_time_says_what_its_engine_says(path: str, tmp_path: Path) -> None:
    """Asked for as a stream or not: the same document, but for what is made anew each time."""
    async with world(tmp_path, {"pool": ENGINE}) as here, here.http() as http:
        body = generating(path)
        body |= {"max_tokens": 9} if path == "/v1/messages" else {"max_output_tokens": 9}
        plain = await http.post(path, json=body)
        assert "stream" not in last(here).body
        timed = await http.post(path, json=body, headers={"x-headgate-stop-after-ms": "60000"})
        assert last(here).body["stream"] is True
        assert "x-headgate-cut-by" not in timed.headers
        one, two = plain.json(), timed.json()
        for told in (one, two):
            for item in (told, *told.get("output", ())):
                item.pop("id")
            told.pop("created_at", None)
        assert one == two


@pytest.mark.parametrize("path", GENERATING)
async def test_a_whole_answer_whose_engine_breaks_is_an_error(path: str, tmp_path: Path) -> None:
    """Half an answer is none, however it was asked for; before its first piece another replica is asked."""
    engines = {"pool": {**ENGINE, "replicas": 2}}
    async with world(tmp_path, engines) as here, here.http() as http:
        headers = {"x-headgate-stop-after-ms": "60000"}
        for engine in here.engines.values():
            engine.arm("die_after=3")
        broken = await http.post(path, json=generating(path), headers=headers)
        assert (broken.status_code, broken.headers["content-type"]) == (502, "application/json")
    async with world(tmp_path, engines) as here, here.http() as http:
        attempts = set()
        for engine in here.engines.values():
            engine.arm("die_after=0*1")
            answer = await http.post(path, json={**generating(path), "ignore_eos": False}, headers=headers)
            assert answer.status_code == 200
            attempts.add(answer.headers["x-headgate-attempts"])
        assert "2" in attempts


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", GENERATING)
async def test_an_answer_that_outruns_its_limit_is_cut(path: str, stream: bool, tmp_path: Path) -> None:
    limits = [{"tokens": 100, "per": "day", "name": "day", "overrun": "cut"}]
    models = {"m": {"max_tokens": {"default": 10, "ceiling": 8192}}}
    server = {"limits": {"settle_tokens": 4}}
    async with (
        world(
            tmp_path, {"pool": {**ENGINE, "speed": 2.0}}, models=models, limits=limits, server=server
        ) as here,
        here.http() as http,
    ):
        for _ in range(30):
            here.gateway._lengths.observe("tenant", "m", 20, 5)
        answer = await http.post(path, json=generating(path, stream=stream))
        assert answer.status_code == 200, answer.text
        if stream:
            _, told = events_of(answer.text)[-1 if path == "/v1/responses" else -2]
            told = told.get("response", told)
        else:
            told = answer.json()
            assert answer.headers["x-headgate-cut-by"] == "day"
        if path == "/v1/messages":
            assert told.get("delta", told)["stop_reason"] == "max_tokens"
        else:
            assert (told["status"], told["incomplete_details"]["reason"]) == (
                "incomplete",
                "max_output_tokens",
            )
        assert told["usage"]["output_tokens"] < 200


@pytest.mark.parametrize("path", GENERATING)
async def test_rules_tenants_and_pools_bound_what_a_door_may_generate(path: str, tmp_path: Path) -> None:
    """Whoever is the strictest: its figure stands in the body, and the header says whose it is."""
    field = "max_tokens" if path == "/v1/messages" else "max_output_tokens"
    tenants = {"tenant": {"max_tokens": 30}, "other": {}}
    when = {"estimated_total_tokens": {"lte": 60, "if_clamped": 8}}
    rules = [
        {"name": "short", "when": {**when, "class": "batch"}, "pools": ["pool"]},
        {"name": "all", "pools": ["pool"], "fit": "clamp"},
    ]
    async with world(tmp_path, {"pool": ENGINE}, tenants=tenants, rules=rules) as here, here.http() as http:
        answer = await http.post(path, json=generating(path))
        assert (last(here).body[field], answer.headers["x-headgate-max-tokens-bound-by"]) == (30, "tenant")
        answer = await http.post(path, json=generating(path, service_tier="flex"))
        assert answer.headers["x-headgate-rule"] == "short"
    pools = {"pool": {"limits": {"total": 40}}}
    async with world(tmp_path, {"pool": ENGINE}, pools=pools, rules=rules) as here, here.http() as http:
        answer = await http.post(path, json=generating(path))
        assert answer.headers["x-headgate-max-tokens-bound-by"] == "pool pool"
        assert last(here).body[field] == 40 - int(answer.headers["x-headgate-prompt-tokens"])


async def test_what_generates_nothing_has_no_time_budget(tmp_path: Path) -> None:
    """There is no half of an embedding: it comes whole, and `x-headgate-timeout-ms` bounds the wait."""
    engines = {"pool": {**ENGINE, "faults": ["slow_first=0.2"]}}
    pools = {"pool": {"max_generation_ms": 10, "upstream_stream": "always"}}
    async with world(tmp_path, engines, pools=pools) as here, here.http() as http:
        body = {"model": "m", "input": "Hello"}
        answer = await http.post("/v1/embeddings", json=body, headers={"x-headgate-stop-after-ms": "50"})
        assert answer.status_code == 200
        assert len(answer.json()["data"]) == 1
        assert "stream" not in last(here).body
        late = await http.post("/v1/embeddings", json=body, headers={"x-headgate-timeout-ms": "50"})
        assert late.status_code == 504


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
