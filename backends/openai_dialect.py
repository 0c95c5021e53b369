"""The OpenAI wire shapes that several engines share: request bodies, streams and whole answers.

`openai_request` writes a body for /v1/chat/completions or /v1/completions. `OpenAiDecoder` reads the answers
of both endpoints by their shape: `chat.completion.chunk` and streamed `text_completion` (with `raw` set, so
that they can be relayed as they came), `chat.completion` and whole `text_completion`.

How a stream ends: `[DONE]` is the good end, and what follows it is dropped. A clean end of the body without
`[DONE]` is good only if every choice that was asked for has its finish reason: then nothing of the answer is
missing. Else it is a failure. So is `[DONE]` after nothing that a client can use: no answer is not an empty
answer.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.contract import Delta, ErrorKind, FinishReason, GenerateRequest, HttpRequest, Usage
from backends.decoding import (
    AnswerDecoder,
    Classify,
    engine_words,
    token_count,
)
from backends.headers import json_headers
from backends.openai_errors import BROKEN, OPENAI

__all__ = ["OpenAiDecoder", "choices_asked", "openai_request"]

# ---------------------------------------------------------------------------------------------- requests


def openai_request(
    request: GenerateRequest, parameters: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> HttpRequest:
    """`request` in OpenAI's own shape, with the `parameters` that its engine's table wrote.

    Usage is asked for in streams, where it is not sent otherwise. `headers` come on top of those of every
    request. An adapter is asked for as a model; engines with another way name the base model in `parameters`.
    """
    body: dict[str, Any] = {"model": request.model if request.lora is None else request.lora.name}
    if request.messages is not None:
        path = "/v1/chat/completions"
        body["messages"] = request.messages
    else:
        path = "/v1/completions"
        body["prompt"] = request.prompt
    body.update(parameters)
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return HttpRequest("POST", path, {**json_headers(request), **(headers or {})}, msgspec.json.encode(body))


def choices_asked(request: GenerateRequest) -> int:
    """How many choices a whole answer has: n for each prompt."""
    prompts = len(request.prompt) if isinstance(request.prompt, list) else 1
    if isinstance(request.prompt, list) and request.prompt and isinstance(request.prompt[0], int):
        prompts = 1  # one prompt, as token ids
    return request.n * max(1, prompts)


# ----------------------------------------------------------------------------------------------- answers

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos_token": "stop",  # TGI
    "stop_sequence": "stop",  # TGI
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",  # OpenAI's old name
    "content_filter": "content_filter",
}
_MESSAGE_FIELDS = frozenset({"role", "content", "tool_calls"})
_DONE = b"[DONE]"


class _Answer(msgspec.Struct):
    """What counts of a chunk or an answer. All Any: a bad `usage` must not cost the text beside it."""

    choices: Any = None
    usage: Any = None
    error: Any = None
    object: Any = None
    detail: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)


class _ChoiceError(Exception):
    """The engine says of a choice that it did not end well, or the answer has no sound shape."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class OpenAiDecoder(AnswerDecoder):
    """Answers of both OpenAI endpoints, streamed or whole."""

    def __init__(self, choices: int = 1, classify: Classify = OPENAI) -> None:
        super().__init__(classify)
        self._choices = choices
        self._finished: set[int] = set()
        self._spoken: set[int] = set()  # choices of which anything came
        self._calls: dict[int, set[int]] = {}  # by choice: its tool calls that have begun
        self._held = b""  # events that mean nothing by themselves, such as the role, travel with the next one

    def read_event(self, data: bytes, raw: bytes) -> None:
        if data.startswith(_DONE) and data.strip() == _DONE:
            self._done(raw)
            return
        answer = self._parse(data)
        if answer is None:
            return
        usage = _usage(answer.usage)
        carried = False
        raw, self._held = self._held + raw, b""
        try:
            for position, choice in enumerate(_choices(answer)):
                delta = self.delta_of(choice, position, streamed=True)
                if delta is not None:
                    if not carried:
                        delta.raw, carried = raw, True
                    self.emit(delta)
        except _ChoiceError as broken:
            self.fail(broken.kind, broken.message)
            return
        if usage is not None:
            if not carried and answer.choices == []:
                usage.raw, carried = raw, True
            self.emit(usage)
        if not carried:
            self._held = raw

    def read_document(self, data: bytes) -> None:
        answer = self._parse(data)
        if answer is None:
            return
        usage = _usage(answer.usage)
        try:
            deltas = [self.delta_of(choice, at, streamed=False) for at, choice in enumerate(_choices(answer))]
        except _ChoiceError as broken:
            self.fail(broken.kind, broken.message)
            return
        told = [delta for delta in deltas if delta is not None]
        if not told:
            self.fail(ErrorKind.ENGINE, "an answer without a choice")
            return
        if len(told) == 1 and usage is not None and usage.completion_tokens is not None:
            told[0].tokens = usage.completion_tokens
        for delta in told:
            self.emit(delta)
        if usage is not None:
            self.emit(usage)
        self._done(None)

    def stream_ended(self) -> None:
        if len(self._finished) >= self._choices:
            self.before_end()
            self.finish()
        else:
            self.fail(ErrorKind.ENGINE, "the stream ended without its end marker")

    def before_end(self) -> None:
        """A chance to emit what was held back, ahead of the good end."""

    def _done(self, raw: bytes | None) -> None:
        self.before_end()
        if not self.delivered:
            self.fail(ErrorKind.ENGINE, "an answer without content")
            return
        for index in sorted(self._spoken - self._finished):
            self.emit(Delta(index=index, finish_reason="tool_calls" if index in self._calls else "stop"))
        self.finish(raw)

    def _parse(self, data: bytes) -> _Answer | None:
        """The answer or chunk in `data`; None if it was none, which has been told as a failure."""
        try:
            if not data.isascii():
                data.decode()  # msgspec does not look into the fields that it skips
            answer = _ANSWER.decode(data)
            if answer.error or answer.object == "error" or (answer.detail and answer.choices is None):
                words = engine_words(msgspec.json.decode(data))
                if words is not None:
                    self.fail_with(words)
                    return None
        except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
            self.fail(ErrorKind.ENGINE, f"not a JSON answer: {data[:200]!r}")
            return None
        return answer

    def delta_of(self, choice: Any, position: int, *, streamed: bool) -> Delta | None:
        """A choice of a chunk or an answer; None if there is nothing in it for a client."""
        if not isinstance(choice, dict):
            raise _ChoiceError(ErrorKind.ENGINE, f"a choice that is no object: {choice!r:.100}")
        told_index = token_count(choice.get("index"))
        index = position if told_index is None else told_index
        message = choice.get("delta" if streamed else "message")
        if not isinstance(message, dict):
            message = {}
        text = _content(message.get("content")) or _content(choice.get("text"))
        tool_calls = self._tool_calls(message.get("tool_calls"), index, streamed=streamed)
        extra = None if message.keys() <= _MESSAGE_FIELDS else _extra(message)
        logprobs = _logprobs(choice.get("logprobs"))
        try:
            finish = self._finish_reason(choice.get("finish_reason"), index)
        except _ChoiceError:
            if streamed and text:  # it came before the end, though in the same event
                self.emit(Delta(index=index, text=text, tokens=1))
            raise
        if not (text or tool_calls or extra or finish or logprobs):
            return None
        self._spoken.add(index)
        if finish:
            self._finished.add(index)
        tokens = _tokens_told(choice, logprobs)
        if not tokens and streamed and (text or tool_calls or extra):
            tokens = 1
        return Delta(
            index=index,
            text=text,
            finish_reason=finish,
            tool_calls=tool_calls,
            logprobs=logprobs,
            extra=extra,
            tokens=tokens,
        )

    def _finish_reason(self, word: Any, index: int) -> FinishReason | None:
        if not word or not isinstance(word, str):
            return None
        if word in BROKEN:
            raise _ChoiceError(BROKEN[word], f"the engine ended a choice with {word!r}")
        reason = _FINISH.get(word, "stop")  # an odd word for a good end, e.g. vLLM's "repetition"
        return "tool_calls" if reason == "stop" and index in self._calls else reason

    def _tool_calls(self, value: Any, choice: int, *, streamed: bool) -> list[dict[str, Any]] | None:
        """OpenAI's tool-call deltas: each with an index, without nulls, arguments as text; id, type and name
        only where the call begins, for the SDKs put the strings of deltas together. In a whole message each
        call begins, and its index is its place, whatever the engine calls it."""
        calls = _tool_calls(value)
        if calls and not streamed:
            for place, call in enumerate(calls):
                call["index"] = place
        if calls:
            begun = self._calls.setdefault(choice, set())
            for call in calls:
                if call["index"] in begun:
                    call.pop("id", None)
                    call.pop("type", None)
                    call.get("function", {}).pop("name", None)
                else:
                    begun.add(call["index"])
                    call.setdefault("type", "function")
        return calls


def _choices(answer: _Answer) -> list[Any]:
    if answer.choices is None:
        return []
    if not isinstance(answer.choices, list):
        raise _ChoiceError(ErrorKind.ENGINE, "choices that are no list")
    return answer.choices


def _content(value: Any) -> str:
    """Message content: text, or (in some engines' answers) a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = (part.get("text") for part in value if isinstance(part, dict))
        return "".join(text for text in parts if isinstance(text, str))
    return ""


def _tool_calls(value: Any) -> list[dict[str, Any]] | None:
    """The calls of a message or delta, each with an index, without nulls, arguments as text."""
    if not value:
        return None
    calls: list[dict[str, Any]] = []
    for position, call in enumerate(
        value if isinstance(value, list) else [value]
    ):  # TGI 2 sent a bare object
        if not isinstance(call, dict):
            raise _ChoiceError(ErrorKind.ENGINE, f"a tool call that is no object: {call!r:.100}")
        known = {key: item for key in ("id", "type") if (item := call.get(key)) is not None}
        function = call.get("function")
        if isinstance(function, dict):
            known["function"] = {
                key: item for key in ("name", "arguments") if (item := function.get(key)) is not None
            }
            arguments = known["function"].get("arguments")
            if arguments is not None and not isinstance(arguments, str):
                known["function"]["arguments"] = msgspec.json.encode(arguments).decode()
        index = token_count(call.get("index"))
        calls.append({"index": position if index is None else index, **known})
    return calls


def _extra(message: dict[str, Any]) -> dict[str, Any] | None:
    extra = {
        key: value for key, value in message.items() if key not in _MESSAGE_FIELDS and not _is_empty(value)
    }
    if isinstance(extra.get("reasoning"), str):  # vLLM's name of it; the others have DeepSeek's
        extra.setdefault("reasoning_content", extra.pop("reasoning"))
    return extra or None


def _logprobs(value: Any) -> Any:
    """OpenAI's `logprobs` object. A chat's: `content` and `refusal`, entries without engines' own keys."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), list):
        return value or None
    content = [
        {**_entry(each), "top_logprobs": [_entry(other) for other in _objects(each.get("top_logprobs"))]}
        for each in _objects(value["content"])
    ]
    return {"content": content, "refusal": None}


def _entry(value: dict[str, Any]) -> dict[str, Any]:
    return {name: value.get(name) for name in ("token", "logprob", "bytes")}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _tokens_told(choice: dict[str, Any], logprobs: Any) -> int:
    """Output tokens behind a choice's piece, where something in it has one entry for each."""
    if isinstance(ids := choice.get("token_ids"), list):  # vLLM
        return len(ids)
    if isinstance(logprobs, dict):
        for key in ("content", "tokens"):  # chat, completions
            if isinstance(entries := logprobs.get(key), list):
                return len(entries)
    return 0


def _usage(value: Any) -> Usage | None:
    """Token counts; None where nothing countable was told."""
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    usage = Usage(
        prompt_tokens=token_count(value.get("prompt_tokens")),
        completion_tokens=token_count(value.get("completion_tokens")),
        cached_tokens=token_count(details.get("cached_tokens")) if isinstance(details, dict) else None,
    )
    if usage.prompt_tokens is None and usage.completion_tokens is None and usage.cached_tokens is None:
        return None
    return usage
