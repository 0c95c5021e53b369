"""Passing on: the bytes of native answers, and the few events that are the gateway's own. Pure.

An engine's events leave as they came. Ours are those that end a stream in the engine's place:

    cut by a limit    responses: `response.incomplete`; messages: `content_block_stop`, `message_delta` with
                      the stop reason `max_tokens`, `message_stop`
    broken            an `error` event of either dialect, and nothing after it: no client takes that for a
                      whole answer
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from backends.contract import Delta, Done, Event, Usage
from gateway.api.asgi import encode_json
from gateway.api.errors import anthropic_error, error_body
from gateway.call import Dialect
from gateway.errors import GatewayError

__all__ = ["PassingDocument", "PassingStream", "stream_failure"]


class PassingStream:
    """Events of one native answer -> the bytes that a client gets."""

    done = b""
    """Nothing is said after the last event."""

    def __init__(self, dialect: Dialect, call_id: str, created: int, model: str) -> None:
        self._dialect = dialect
        self._id = call_id
        self._created = created
        self._model = model
        self.cut_by: str | None = None
        self._first: bytes = b""
        self._last: bytes = b""
        self._texts: list[str] = []
        self._cut = False

    def deltas(self, events: Sequence[Event]) -> bytes:
        """All bytes of `events`."""
        out = []
        for event in events:
            if not isinstance(event, Delta | Usage | Done):
                continue
            if event.raw:
                out.append(event.raw)
                self._first = self._first or event.raw
                self._last = event.raw
            if isinstance(event, Delta):
                if event.text:
                    self._texts.append(event.text)
                self._cut = self._cut or event.finish_reason is not None
        return b"".join(out)

    def ends(self, deltas: Sequence[Delta], like: bytes | None) -> bytes:
        """Raw relaying is for chats and completions."""
        raise AssertionError("a native answer has no chunks")

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The end of an answer that was cut. One that its engine ended has told its usage itself."""
        if not self._cut:
            return b""
        return self._cut_message(usage) if self._dialect == "messages" else self._cut_response(usage)

    def next_sequence(self) -> int:
        """The `sequence_number` of the next event."""
        number = _last_data(self._last).get("sequence_number")
        return number + 1 if isinstance(number, int) else 0

    def _cut_message(self, usage: dict[str, Any]) -> bytes:
        out = []
        if not self._first:
            message: dict[str, Any] = {
                "id": f"msg_{self._id}", "type": "message", "role": "assistant", "model": self._model,
                "content": [], "stop_reason": None, "stop_sequence": None,
                "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": 0},
            }  # fmt: skip
            out.append(named_event({"type": "message_start", "message": message}))
        last = _last_data(self._last)
        if last.get("type") in ("content_block_start", "content_block_delta"):
            out.append(named_event({"type": "content_block_stop", "index": last.get("index", 0)}))
        out.append(
            named_event(
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
                    "usage": {"output_tokens": usage["completion_tokens"]},
                }
            )
        )
        out.append(named_event({"type": "message_stop"}))
        return b"".join(out)

    def _cut_response(self, usage: dict[str, Any]) -> bytes:
        out, number = [], self.next_sequence()
        response = next((data["response"] for data in _data(self._first) if data.get("response")), None)
        if not isinstance(response, dict):
            response = {
                "id": f"resp_{self._id}", "object": "response", "created_at": self._created,
                "model": self._model, "status": "in_progress", "error": None, "incomplete_details": None,
                "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            }  # fmt: skip
            event = {"type": "response.created", "sequence_number": number, "response": response}
            out.append(named_event(event))
            number += 1
        output = []
        if self._texts:
            part = {"type": "output_text", "text": "".join(self._texts), "annotations": []}
            item_id = _last_data(self._last).get("item_id") or f"msg_{self._id}"
            output = [
                {
                    "id": item_id,
                    "type": "message",
                    "role": "assistant",
                    "status": "incomplete",
                    "content": [part],
                }
            ]
        ended = {
            **response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": output,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {
                    "cached_tokens": usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
                },
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }
        out.append(named_event({"type": "response.incomplete", "sequence_number": number, "response": ended}))
        return b"".join(out)


class PassingDocument:
    """A whole native answer."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def add(self, events: Sequence[Event]) -> None:
        self._pieces += [event.raw for event in events if isinstance(event, Delta) and event.raw]

    def body(self, usage: dict[str, Any]) -> bytes:
        """As the engine wrote it."""
        return b"".join(self._pieces)


def stream_failure(dialect: Dialect, error: GatewayError, number: int = 0) -> bytes:
    """What ends a native stream that has failed; `number` is the next event's, where events are numbered."""
    if dialect == "messages":
        return named_event(anthropic_error(error))
    told = error_body(error)["error"]
    return named_event(
        {
            "type": "error",
            "sequence_number": number,
            "code": told["code"] or told["type"],
            "message": told["message"],
            "param": told["param"],
        }
    )


def named_event(value: dict[str, Any]) -> bytes:
    """One SSE event that bears the name of its type."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode_json(value))


def _data(raw: bytes) -> list[dict[str, Any]]:
    """The objects in the data lines of some events; what is none is left out."""
    found = []
    for line in raw.splitlines():
        if line.startswith(b"data:"):
            try:
                value = msgspec.json.decode(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                found.append(value)
    return found


def _last_data(raw: bytes) -> dict[str, Any]:
    found = _data(raw)
    return found[-1] if found else {}
