"""Replies: the status line leaves with the first bytes; a stream that failed never looks complete."""

import json

import pytest

from backends.contract import Delta, Done, Event, Usage
from gateway.api.receiving import DisconnectWatch
from gateway.api.replies import StreamReply, WholeReply
from gateway.errors import EngineFailed, Unavailable
from gateway.telemetry.records import RecordBook, RequestRecord
from tests.gateway.api.asgi import Client, a_scope
from tests.gateway.builders import Clock, a_call, a_model, a_pool
from tests.gateway.engines import an_answer


class Stage:
    """One reply, its client and its answer."""

    def __init__(self, *, pool=None, model=None, prompt_tokens=10, **call_fields) -> None:
        self.client, self.clock = Client(), Clock(5.0)
        self.record: RequestRecord = RecordBook().open("id-1", "POST", "/", Clock(1.0))
        self.record.pool, self.record.replica, self.record.rule = "pool", "r1", "short"
        self.record.attempts, self.record.prompt_tokens = 1, prompt_tokens
        self.call = a_call(**call_fields)  # for `llama`; `model` is the one that answers
        self.watch = DisconnectWatch(self.client.receive)
        kind = StreamReply if self.call.stream else WholeReply
        self.reply = kind(self.call, self.record, a_scope(), self.client.send, self.watch, self.clock)
        self.answer = an_answer(self.call, pool or a_pool(), model=model or self.call.model)
        self.reply.begin(self.answer)

    async def write(self, *events: Event) -> None:
        self.answer.note(list(events))
        await self.reply.write(events)

    @property
    def events(self) -> list[bytes]:
        return self.client.body.split(b"\n\n")[:-1]


# ----------------------------------------------------------------------------------------------- streams


async def test_a_stream_from_start_to_done():
    stage = Stage(stream=True)
    assert stage.client.messages == []
    assert not stage.reply.started
    await stage.write(Delta(text="hi"))
    assert stage.reply.started
    assert (stage.client.status, stage.client.complete) == (200, False)
    assert stage.client.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert stage.client.headers[b"cache-control"] == b"no-cache"
    await stage.write(Delta(finish_reason="stop"), Done())
    assert stage.client.complete
    assert stage.events[-1] == b"data: [DONE]"
    assert len([m for m in stage.client.messages if m["type"] == "http.response.start"]) == 1


async def test_each_batch_is_one_write():
    """And one that means nothing to the client is none."""
    stage = Stage(stream=True)
    await stage.write(Delta(text="a"), Delta(text="b"), Delta(text="c"))
    assert len(stage.client.messages) == 2
    await stage.write(Usage(completion_tokens=3))
    assert len(stage.client.messages) == 2


async def test_nothing_to_say_is_no_start():
    """As long as no byte has left, an honest status is still possible."""
    stage = Stage(stream=True)
    await stage.write(Usage(prompt_tokens=3))
    assert not stage.reply.started
    assert stage.client.messages == []


async def test_usage_is_the_engines_where_it_told_one():
    stage = Stage(stream=True, include_usage=True)
    await stage.write(
        Delta(text="a", tokens=1), Usage(prompt_tokens=12, completion_tokens=34, cached_tokens=0)
    )
    await stage.write(Done())
    usage = json.loads(stage.events[-2].removeprefix(b"data: "))["usage"]
    assert usage == {
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "total_tokens": 46,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(("told", "expected"), [(None, 3), (0, 0), (7, 7)])
async def test_usage_is_counted_where_the_engine_told_none(told, expected):
    """litellm#37992: zero is a figure, not an absence."""
    stage = Stage(stream=True, include_usage=True)
    await stage.write(Delta(text="abc", tokens=3), Usage(completion_tokens=told))
    await stage.write(Done())
    usage = json.loads(stage.events[-2].removeprefix(b"data: "))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, expected)


async def test_a_failed_stream_ends_with_an_error_and_done():
    stage = Stage(stream=True)
    await stage.write(Delta(text="hi"))
    await stage.reply.fail(EngineFailed("The engine failed."))
    assert stage.client.complete
    error = json.loads(stage.events[-2].removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("The engine failed.", "upstream_error")
    assert stage.events[-1] == b"data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_the_watch_is_disarmed_before_the_last_message(stream):
    """Servers report a disconnect right after it."""
    stage = Stage(stream=stream)
    armed = []

    async def send(message):
        armed.append((stage.watch._armed, message.get("more_body", False)))

    stage.reply._send = send
    await stage.write(Delta(text="hi"))
    await stage.write(Delta(finish_reason="stop"), Done())
    assert [more for was_armed, more in armed if not was_armed][-1] is False
    assert all(was_armed for was_armed, more in armed if more)


# ----------------------------------------------------------------------------------------------- raw

RAW = [b'data: {"choices":[{"delta":{"content":"\xd1\x8f"}}],"x": 1}\r\n\r\n', b"data:{}\n\n"]


async def test_raw_bytes_pass_untouched():
    """Not one byte is changed, whatever the JSON's spelling; only the end is ours."""
    stage = Stage(stream=True, pool=a_pool(relay="raw"))
    await stage.write(Delta(text="я", raw=RAW[0]), Delta(text="again", raw=None))
    await stage.write(Delta(finish_reason="stop", raw=RAW[1]), Done(raw=b"data: [DONE]\r\n\r\n"))
    assert stage.client.body == RAW[0] + RAW[1] + b"data: [DONE]\n\n"


@pytest.mark.parametrize("asked", [True, False])
async def test_raw_usage_goes_to_those_who_asked(asked):
    stage = Stage(stream=True, include_usage=asked, pool=a_pool(relay="raw"))
    await stage.write(Delta(text="a", raw=RAW[0]), Usage(completion_tokens=1, raw=RAW[1]))
    await stage.write(Done())
    assert stage.client.body == RAW[0] + (RAW[1] if asked else b"") + b"data: [DONE]\n\n"
    assert stage.answer.completion_tokens == 1


async def test_a_raw_stream_fails_like_any_other():
    stage = Stage(stream=True, pool=a_pool(relay="raw"))
    await stage.write(Delta(text="a", raw=RAW[0]))
    await stage.reply.fail(EngineFailed("x"))
    assert stage.client.body.startswith(RAW[0] + b'data: {"error":')
    assert stage.client.body.endswith(b"\n\ndata: [DONE]\n\n")


# ----------------------------------------------------------------------------------------------- whole


async def test_a_whole_answer_is_sent_once_and_at_the_end():
    stage = Stage()
    await stage.write(Delta(text="Hel", tokens=1))
    assert not stage.reply.started
    assert stage.client.messages == []
    await stage.write(Delta(text="lo", tokens=1, finish_reason="stop"), Done())
    assert stage.client.complete
    assert int(stage.client.headers[b"content-length"]) == len(stage.client.body)
    body = json.loads(stage.client.body)
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


# --------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("stream", [True, False])
async def test_who_answered_and_what_it_took(stream):
    stage = Stage(stream=stream)
    record = stage.record
    record.queued, record.upstream_wait, record.first_byte = 0.5, 2.0, 4.0
    record.max_tokens, record.max_tokens_by = 100, "pool short"
    await stage.write(Delta(text="hi"), Done())
    ours = {k: v for k, v in stage.client.headers.items() if k.startswith(b"x-headgate-")}
    assert ours == {
        b"x-headgate-pool": b"pool",
        b"x-headgate-replica": b"r1",
        b"x-headgate-rule": b"short",
        b"x-headgate-attempts": b"1",
        b"x-headgate-prompt-tokens": b"10",
        b"x-headgate-max-tokens": b"100",
        b"x-headgate-max-tokens-bound-by": b"pool short",
        b"x-headgate-queue-ms": b"500.0",
        b"x-headgate-overhead-ms": b"500.0",
    }


async def test_another_model_is_disclosed():
    stage = Stage(model=a_model("small"))
    await stage.write(Delta(text="hi"), Done())
    assert stage.client.headers[b"x-headgate-model"] == b"small"
    assert json.loads(stage.client.body)["model"] == "small"


async def test_behind_the_wildcard_the_asked_name_is_the_models():
    stage = Stage(model=a_model("*"), asked_model="llama-9")
    await stage.write(Delta(text="hi"), Done())
    assert json.loads(stage.client.body)["model"] == "llama-9"


async def test_an_alias_answers_with_the_models_name():
    stage = Stage(asked_model="llm")
    await stage.write(Delta(text="hi"), Done())
    assert json.loads(stage.client.body)["model"] == "llama"


# --------------------------------------------------------------------------------------------- comments


async def test_a_comment_before_the_first_event_takes_only_what_is_known_by_then():
    """The rest of the headers follows as comments, before the first event and once."""
    stage = Stage(stream=True)
    await stage.reply.comment("headgate queue position=2 expected_wait_ms=900")
    assert (stage.client.status, stage.reply.started, stage.reply.answered) == (200, True, False)
    assert stage.client.headers[b"x-headgate-rule"] == b"short"
    assert stage.client.headers[b"x-headgate-prompt-tokens"] == b"10"
    assert not any(name in stage.client.headers for name in (b"x-headgate-pool", b"x-headgate-queue-ms"))
    await stage.write(Delta(text="hi"))
    await stage.write(Delta(text=" there"))
    assert stage.reply.answered
    said, disclosed, first, *_ = stage.events
    assert said == b": headgate queue position=2 expected_wait_ms=900"
    lines = disclosed.split(b"\n")
    assert all(line.startswith(b": ") for line in lines[:3])
    assert {b": x-headgate-pool: pool", b": x-headgate-replica: r1"} <= set(lines)
    assert not any(b"x-headgate-rule" in line for line in lines)
    assert first.split(b"\n")[-1].startswith(b"data: {")


async def test_a_failure_after_a_comment_says_when_to_come_back():
    stage = Stage(stream=True)
    await stage.reply.comment("headgate queue position=2 expected_wait_ms=900")
    await stage.reply.fail(Unavailable("full", reason="queue_timeout", retry_after=2.5))
    assert stage.client.complete
    text = stage.client.body.decode()
    assert ": retry-after-ms: 2500\n" in text
    assert text.index("retry-after-ms") < text.index("data: {")
    assert stage.events[-1] == b"data: [DONE]"


async def test_a_comment_in_a_stream_is_only_that():
    stage = Stage(stream=True)
    await stage.write(Delta(text="a"))
    await stage.reply.comment("headgate keep-alive")
    assert stage.client.messages[-1]["body"] == b": headgate keep-alive\n\n"
    assert stage.client.messages[-1]["more_body"]
    assert stage.client.headers[b"x-headgate-pool"] == b"pool"


async def test_json_has_no_comments():
    stage = Stage()
    await stage.reply.comment("headgate keep-alive")
    assert (stage.reply.started, stage.client.messages) == (False, [])
