"""The official OpenAI SDK through a real uvicorn: what an application sees. Which engine answers makes no
difference, as `tests/backends/conformance` shows."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.world import OTHER_KEY, world

TEXTS = {
    "English": "What does a headgate do?",
    "Russian": "Что делает шлюз на канале?",
    "Chinese": "水闸有什么用?",
    "code": "def open_gate(level):\n    return level > ",
}


def ask(text: str = "Hello!", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 24, **more}


async def test_streamed_and_whole_answers_are_the_same(tmp_path: Path) -> None:
    """The SDK reads equal text, finish reason and usage from both, in four languages."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.sdk() as sdk:
        for text in TEXTS.values():
            whole = await sdk.chat.completions.create(**ask(text))
            pieces, roles, reasons, usage, ids = [], [], [], None, set()
            stream = await sdk.chat.completions.create(
                **ask(text), stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                ids.add(chunk.id)
                assert chunk.model == "m"
                assert chunk.object == "chat.completion.chunk"
                if chunk.usage is not None:
                    assert chunk.choices == []
                    usage = chunk.usage
                for choice in chunk.choices:
                    pieces.append(choice.delta.content or "")
                    roles.append(choice.delta.role)
                    reasons.append(choice.finish_reason)
            assert "".join(pieces) == whole.choices[0].message.content != ""
            assert roles[0] == "assistant"
            assert set(roles[1:]) == {None}
            assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
            assert whole.choices[0].finish_reason in ("stop", "length")
            assert usage == whole.usage
            assert usage is not None
            assert 0 < usage.completion_tokens <= 24
            assert len(ids) == 1
            assert whole.id.startswith("chatcmpl-")
            assert whole.model == "m"
            assert len(pieces) > 3, "the stream came in pieces"


async def test_raw_headers_say_who_answered(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.sdk() as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            **ask(), extra_headers={"x-request-id": "mine-42"}
        )
        headers = raw.headers
        assert headers["x-request-id"] == "mine-42"
        assert headers["x-headgate-pool"] == "pool"
        assert headers["x-headgate-replica"] == "pool-1"
        assert headers["x-headgate-rule"] == "all"
        assert headers["x-headgate-attempts"] == "1"
        assert headers["x-headgate-max-tokens"] == "24"
        usage = raw.parse().usage
        assert usage is not None
        assert int(headers["x-headgate-prompt-tokens"]) == usage.prompt_tokens
        assert float(headers["x-headgate-queue-ms"]) >= 0
        assert float(headers["x-headgate-overhead-ms"]) >= 0


async def test_our_count_is_the_engines_count(tmp_path: Path) -> None:
    """The gateway's tokenizer and template agree with the engine's usage on text in four languages."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.sdk() as sdk:
        for text in TEXTS.values():
            raw = await sdk.chat.completions.with_raw_response.create(**ask(text * 5))
            usage = raw.parse().usage
            assert usage is not None
            assert int(raw.headers["x-headgate-prompt-tokens"]) == usage.prompt_tokens


async def test_part_list_content_and_stop_and_n(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.sdk() as sdk:
        parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "!"}]
        messages = [{"role": "user", "content": parts}]
        two = await sdk.chat.completions.create(model="m", messages=messages, max_tokens=24, n=2)
        assert sorted(choice.index for choice in two.choices) == [0, 1]
        text = two.choices[0].message.content or ""
        stop = text[len(text) // 2 : len(text) // 2 + 3]
        cut = await sdk.chat.completions.create(model="m", messages=messages, max_tokens=24, stop=[stop])
        assert cut.choices[0].message.content == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"


async def test_errors_arrive_as_typed_exceptions(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "tgi"}}) as here:
        async with here.sdk(key="hg-wrong") as sdk:
            with pytest.raises(openai.AuthenticationError) as unknown:
                await sdk.chat.completions.create(**ask())
            assert unknown.value.code == "invalid_api_key"
        async with here.sdk() as sdk:
            with pytest.raises(openai.NotFoundError) as missing:
                await sdk.chat.completions.create(**{**ask(), "model": "nope"})
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.BadRequestError) as routed:
                await sdk.chat.completions.create(**ask(), extra_body={"api_base": "http://evil"})
            assert routed.value.param == "api_base"
            with pytest.raises(openai.BadRequestError) as hot:
                await sdk.chat.completions.create(**ask(temperature=3))
            assert hot.value.param == "temperature"
            with pytest.raises(openai.BadRequestError) as unknown_here:
                await sdk.chat.completions.create(**ask(), extra_body={"use_beam_search": True})
            assert unknown_here.value.param == "use_beam_search"
            with pytest.raises(openai.BadRequestError) as long:
                await sdk.chat.completions.create(**ask("water " * 20_000))
            assert long.value.code == "context_length_exceeded"
            assert long.value.param == "messages"
        here.engine().arm("close")
        async with here.sdk() as sdk:
            with pytest.raises(openai.InternalServerError) as broken:
                await sdk.chat.completions.create(**ask())
            assert broken.value.status_code == 502
            assert broken.value.code == "upstream_error"
            assert broken.value.request_id


async def test_a_stream_that_breaks_is_an_error_for_the_sdk(tmp_path: Path) -> None:
    """After the first byte there is no status left: an error event, then [DONE]."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.sdk() as sdk:
        here.engine().arm("die_after=3*1")
        got = []
        with pytest.raises(openai.APIError) as broken:
            async for chunk in await sdk.chat.completions.create(**ask(), stream=True):
                got += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        assert len(got) >= 1
        assert broken.value.code == "upstream_error"
        assert here.engine().statistics().faults[0]["fired"] == 1


async def test_models(tmp_path: Path) -> None:
    given = {"models": {"m": {"aliases": ["alias"]}, "hidden": {}}, "tenants": {"tenant": {}, "other": {}}}
    given["tenants"]["other"] = {"allow": {"models": ["hid*"]}}
    pools = {"pool": {"serves": {"m": "m", "hidden": "m"}}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=pools, **given) as here:
        async with here.sdk() as sdk:
            assert [model.id async for model in sdk.models.list()] == ["m", "hidden", "alias"]
            assert (await sdk.models.retrieve("alias")).id == "alias"
            answer = await sdk.chat.completions.create(**{**ask(), "model": "alias"})
            assert answer.model == "m"
        async with here.sdk(key=OTHER_KEY) as sdk:
            assert [model.id async for model in sdk.models.list()] == ["hidden"]
            with pytest.raises(openai.NotFoundError):
                await sdk.models.retrieve("m")
            with pytest.raises(openai.NotFoundError):
                await sdk.chat.completions.create(**ask())
