"""What a client sees of an answer, read strictly: `Seen` is equal for equal answers, whoever gave them.

Reading asserts all that must be so of every answer: one id in our form, one `created`, the model's public
name, the keys of OpenAI's shapes and no others, the role in a choice's first delta alone, a reason once and
last, usage only where it was asked for and behind the last choice, `[DONE]` at the end and once.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["Choice", "Refused", "Seen", "observe"]

_HEAD = {"id", "object", "created", "model", "choices"}
_DELTA = {"role", "content", "reasoning_content", "tool_calls"}
_MESSAGE = {"role", "content", "refusal", "reasoning_content", "tool_calls"}


@dataclass
class Choice:
    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Name and arguments of each tool call."""
    reason: str | None = None
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    """Of each token."""


@dataclass
class Seen:
    """An answer, or the beginning of one."""

    choices: dict[int, Choice] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: dict[str, Any] | None = None
    """How it broke off."""

    @property
    def only(self) -> Choice:
        (choice,) = self.choices.values()
        return choice


@dataclass(frozen=True)
class Refused:
    """No answer."""

    status: int
    code: str
    param: str | None


async def observe(http: httpx.AsyncClient, body: dict[str, Any]) -> Seen | Refused:
    """Send `body` to the door that it is for, and read the answer."""
    chat = "messages" in body
    answer = await http.post("/v1/chat/completions" if chat else "/v1/completions", json=body)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return Refused(answer.status_code, error["code"], error["param"])
    if not body.get("stream"):
        assert answer.headers["content-type"] == "application/json"
        return _whole(answer.json(), body["model"], chat)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    with_usage = bool(body.get("stream_options", {}).get("include_usage"))
    return _Stream(body["model"], chat, with_usage).read(answer.text)


def _check_id(told: str, chat: bool) -> None:
    prefix, _, rest = told.partition("-")
    assert prefix == ("chatcmpl" if chat else "cmpl")
    assert len(rest) >= 16, told


def _whole(body: dict[str, Any], model: str, chat: bool) -> Seen:
    assert set(body) == {*_HEAD, "usage"}
    _check_id(body["id"], chat)
    assert (body["object"], body["model"]) == ("chat.completion" if chat else "text_completion", model)
    assert isinstance(body["created"], int)
    seen = Seen()
    assert [choice["index"] for choice in body["choices"]] == list(range(len(body["choices"])))
    for told in body["choices"]:
        choice = seen.choices[told["index"]] = Choice()
        shape = {"index", "message" if chat else "text", "logprobs", "finish_reason"}
        assert set(told) == shape
        if chat:
            message = told["message"]
            assert set(message) <= _MESSAGE, message
            assert message["role"] == "assistant"
            assert message["refusal"] is None
            assert isinstance(message["content"], str) or message["tool_calls"]
            choice.text = message["content"] or ""
            choice.reasoning = message.get("reasoning_content", "")
            for call in message.get("tool_calls", ()):
                assert set(call) == {"id", "type", "function"}, call
                assert call["id"]
                assert call["type"] == "function"
                choice.calls.append([call["function"]["name"], call["function"]["arguments"]])
        else:
            choice.text = told["text"]
        choice.reason = told["finish_reason"]
        choice.logprobs = _logprobs(told["logprobs"], chat)
    _read_usage(seen, body["usage"])
    return seen


def _read_usage(seen: Seen, usage: dict[str, Any]) -> None:
    assert set(usage) - {"prompt_tokens_details"} == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage.get("prompt_tokens_details", {"cached_tokens": 0}) == {"cached_tokens": 0}
    seen.prompt_tokens, seen.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


def _logprobs(told: Any, chat: bool) -> list[tuple[str, float]]:
    if told is None:
        return []
    if not chat:
        assert set(told) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
        return list(zip(told["tokens"], told["token_logprobs"], strict=True))
    assert set(told) == {"content", "refusal"}
    assert told["refusal"] is None
    for entry in told["content"]:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}, entry
        assert entry["bytes"] is None or entry["bytes"] == list(entry["token"].encode())
    return [(entry["token"], entry["logprob"]) for entry in told["content"]]


class _Stream:
    def __init__(self, model: str, chat: bool, with_usage: bool) -> None:
        self._model = model
        self._chat = chat
        self._with_usage = with_usage
        self._seen = Seen()
        self._head: tuple[Any, ...] | None = None
        self._usage_told = False

    def read(self, text: str) -> Seen:
        *blocks, rest = text.split("\n\n")
        assert rest == ""
        data = [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]
        assert data.pop() == "[DONE]"
        for each in data:
            assert self._seen.error is None, "an event behind the error"
            self._event(json.loads(each))
        if self._seen.error is None:
            assert self._usage_told is self._with_usage
            assert all(choice.reason for choice in self._seen.choices.values())
        return self._seen

    def _event(self, event: dict[str, Any]) -> None:
        if "error" in event:
            assert set(event) == {"error"}
            assert set(event["error"]) == {"message", "type", "param", "code"}
            self._seen.error = event["error"]
            return
        assert set(event) == _HEAD | ({"usage"} if self._with_usage else set()), event
        assert not self._usage_told, "an event behind the usage"
        head = (event["id"], event["created"])
        assert self._head in (None, head)
        self._head = head
        _check_id(event["id"], self._chat)
        assert event["object"] == ("chat.completion.chunk" if self._chat else "text_completion")
        assert event["model"] == self._model
        if not event["choices"]:
            assert self._with_usage
            _read_usage(self._seen, event["usage"])
            self._usage_told = True
            return
        assert event.get("usage") is None
        (told,) = event["choices"]
        assert set(told) == {"index", "delta" if self._chat else "text", "logprobs", "finish_reason"}
        self._choice(told)

    def _choice(self, told: dict[str, Any]) -> None:
        first = told["index"] not in self._seen.choices
        choice = self._seen.choices.setdefault(told["index"], Choice())
        assert choice.reason is None, "an event behind the reason"
        if self._chat:
            delta = told["delta"]
            assert set(delta) <= _DELTA, delta
            assert delta.get("role") == ("assistant" if first else None)
            assert ("role" in delta) is first
            choice.text += delta.get("content", "")
            choice.reasoning += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                self._call(choice, call)
        else:
            choice.text += told["text"]
        choice.logprobs += _logprobs(told["logprobs"], self._chat)
        choice.reason = told["finish_reason"]

    def _call(self, choice: Choice, call: dict[str, Any]) -> None:
        """Id, type and name are told once: the SDKs put strings of deltas together."""
        assert call["index"] <= len(choice.calls)
        if call["index"] == len(choice.calls):
            assert set(call) == {"index", "id", "type", "function"}, call
            assert call["id"]
            assert call["type"] == "function"
            choice.calls.append([call["function"]["name"], ""])
        else:
            assert set(call) == {"index", "function"}, call
            assert set(call["function"]) == {"arguments"}, call
        choice.calls[call["index"]][1] += call["function"].get("arguments", "")
