"""Answers at the native doors that do not end by themselves: broken, left, out of time, over a bound."""

import json
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.end_to_end.door_bench import ASK, ENGINE, always, claude, events_of, generating, last, sends
from tests.end_to_end.world import world

GENERATING = ["/v1/messages", "/v1/responses"]
SLOW = {**ENGINE, "speed": 1.0}


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
