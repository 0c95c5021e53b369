"""Rendering: engine events -> OpenAI's JSON, streamed or whole. Pure.

Whatever the engine's dialect, a client sees one shape: our id and one `created` for the whole answer, the
model's public name, the role in a choice's first delta, OpenAI's finish reasons only.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from backends.contract import Delta, Event
from gateway.api.asgi import encode_json
from gateway.call import Dialect

DONE = b"data: [DONE]\n\n"

OBJECTS = {
    ("chat", True): "chat.completion.chunk",
    ("chat", False): "chat.completion",
    ("completions", True): "text_completion",
    ("completions", False): "text_completion",
}

ID_PREFIXES = {"chat": "chatcmpl-", "completions": "cmpl-"}


def usage_of(prompt: int, completion: int, cached: int | None) -> dict[str, Any]:
    """OpenAI's `usage` object."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


def event_of(value: object) -> bytes:
    """One SSE event."""
    return b"data: " + encode_json(value) + b"\n\n"


class StreamRenderer:
    """Events of one answer -> SSE bytes."""

    done = DONE
    """What is said after the last event."""

    def __init__(self, dialect: Dialect, call_id: str, created: int, model: str, include_usage: bool) -> None:
        self._chat = dialect == "chat"
        self._include_usage = include_usage
        self._head: dict[str, Any] = {
            "id": ID_PREFIXES[dialect] + call_id,
            "object": OBJECTS[dialect, True],
            "created": created,
            "model": model,
        }
        self.cut_by: str | None = None
        """What ended the answer before the engine did: told in the last chunk of each choice."""
        self._introduced: set[int] = set()

    def deltas(self, events: Sequence[Event]) -> bytes:
        """The chunks of all deltas among `events`."""
        out = []
        for event in events:
            if isinstance(event, Delta):
                if self._chat and event.index not in self._introduced:
                    self._introduced.add(event.index)
                    out.append(self._chunk(event.index, {"role": "assistant", "content": ""}, None, None))
                body = self._chat_delta(event) if self._chat else event.text
                out.append(self._chunk(event.index, body, event.logprobs, event.finish_reason))
        return b"".join(out)

    def ends(self, deltas: Sequence[Delta], like: bytes | None) -> bytes:
        """The last chunks of choices whose former ones were not written here, but passed on as `like`, which
        is one SSE event: from now on everything carries its id, model and time."""
        try:
            head = msgspec.json.decode((like or b"").partition(b"data:")[2].strip())
            self._head |= {name: head[name] for name in self._head if name in head}
        except (msgspec.DecodeError, TypeError):
            pass  # odd bytes: then our own
        body: Any = {} if self._chat else ""
        return b"".join(self._chunk(each.index, body, None, each.finish_reason) for each in deltas)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk after the last choice, for clients that asked for it."""
        return event_of({**self._head, "choices": [], "usage": usage}) if self._include_usage else b""

    def _chat_delta(self, delta: Delta) -> dict[str, Any]:
        body: dict[str, Any] = {} if delta.extra is None else dict(delta.extra)
        if delta.text:
            body["content"] = delta.text
        if delta.tool_calls:
            body["tool_calls"] = delta.tool_calls
        return body

    def _chunk(self, index: int, body: Any, logprobs: Any, finish_reason: str | None) -> bytes:
        choice = {
            "index": index,
            "delta" if self._chat else "text": body,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = {**self._head, "choices": [choice]}
        if finish_reason is not None and self.cut_by is not None:
            chunk["headgate"] = {"cut_by": self.cut_by}
        if self._include_usage:
            chunk["usage"] = None
        return event_of(chunk)


class _Choice:
    """One choice, put together piece by piece."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.finish_reason: str | None = None
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.logprobs: Any = None
        self.extra: dict[str, Any] = {}

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.finish_reason = delta.finish_reason or self.finish_reason
        for piece in delta.tool_calls or ():
            self._add_tool_call(piece)
        if delta.logprobs is not None:
            self.logprobs = _joined(self.logprobs, delta.logprobs)
        for name, value in (delta.extra or {}).items():
            self.extra[name] = _joined(self.extra.get(name), value)

    def _add_tool_call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index", len(self.tool_calls))
        whole = self.tool_calls.setdefault(index, {"type": "function", "function": {"arguments": ""}})
        for name in ("id", "type"):
            if piece.get(name):
                whole[name] = piece[name]
        function = piece.get("function") or {}
        if function.get("name"):
            whole["function"]["name"] = function["name"]
        whole["function"]["arguments"] += function.get("arguments") or ""


def _joined(old: Any, new: Any) -> Any:
    """Pieces of a streamed field put together: strings and lists are concatenated, objects merged."""
    if old is None:
        return new
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: _joined(old.get(name), value) for name, value in new.items() if value is not None}
    return new


class WholeRenderer:
    """Events of one answer -> one JSON body."""

    def __init__(self, dialect: Dialect, call_id: str, created: int, model: str) -> None:
        self._chat = dialect == "chat"
        self._head = {
            "id": ID_PREFIXES[dialect] + call_id,
            "object": OBJECTS[dialect, False],
            "created": created,
            "model": model,
        }
        self._choices: dict[int, _Choice] = {}

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Delta):
                self._choices.setdefault(event.index, _Choice()).add(event)

    def body(self, usage: dict[str, Any]) -> bytes:
        """The whole answer."""
        choices = [self._choice(index, choice) for index, choice in sorted(self._choices.items())]
        return encode_json({**self._head, "choices": choices, "usage": usage})

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        head = {"index": index}
        tail = {"logprobs": choice.logprobs, "finish_reason": choice.finish_reason or "stop"}
        if not self._chat:
            return head | {"text": text} | tail
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, **choice.extra}
        if choice.tool_calls:
            message["content"] = text or None
            message["tool_calls"] = [call for _, call in sorted(choice.tool_calls.items())]
        return head | {"message": message} | tail
