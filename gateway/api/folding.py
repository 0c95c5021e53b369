"""Folding: the events of a native stream as the one document that they are so far. Pure.

Needed where a stream ends before its engine ends it, and where a client asked for a whole answer that the
gateway asked for as a stream, to be able to end it:

    messages     `message_start` gives the frame, `content_block_*` the blocks, `message_delta` the end
    responses    `response.created` gives the frame, `response.output_item.*`, `.content_part.*` and the
                 deltas the items; the last event holds the whole response, which is then taken as it is

A call of a tool that was not finished is no part of the document: its arguments are half a sentence, and
clients act on calls. All else is kept as far as it came. Events that make no sense are passed over, and so
are fields of another type than the dialect gives them: an engine's nonsense must not break a stream that its
client could read.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import msgspec

from gateway.api.asgi import encode_json
from gateway.call import Dialect

__all__ = ["Fold", "Frame", "MessageFold", "ResponseFold", "fold_of", "named_event"]


class Frame(msgspec.Struct, frozen=True):
    """What is said of an answer whose engine has not said it."""

    call_id: str
    created: int
    """Unix seconds."""
    model: str
    """The public name."""


class Fold(Protocol):
    """One answer so far."""

    sequence: int
    """The number of the next event, where events are numbered."""

    def note(self, raw: bytes) -> None:
        """Take in some events, as bytes."""

    def ends(self, usage: Mapping[str, Any]) -> bytes:
        """The events that end the stream here, as at the bound on its output. `usage` is OpenAI's."""

    def document(self, usage: Mapping[str, Any], *, cut: bool) -> bytes:
        """The whole answer as JSON; `cut`: it ends here, as at the bound on its output."""


def fold_of(dialect: Dialect, frame: Frame) -> Fold:
    return MessageFold(frame) if dialect == "messages" else ResponseFold(frame)


def named_event(value: Mapping[str, Any]) -> bytes:
    """One SSE event that bears the name of its type."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode_json(value))


_SHALLOW = 1000
"""Bytes that cannot be nested too deep."""


def _decoded(data: bytes) -> Any:
    """A JSON value. Raises ValueError, and RecursionError also where it could be read, but not be written
    again as a part of an event or document of ours."""
    if len(data) < _SHALLOW:
        return msgspec.json.decode(data)
    return msgspec.json.decode(b"[[[[[[[[%b]]]]]]]]" % data)[0][0][0][0][0][0][0][0]


def _data(raw: bytes) -> Iterator[dict[str, Any]]:
    """The objects in the data lines of some events; what is none is left out."""
    for line in raw.split(b"\n"):
        if line.startswith(b"data:"):
            try:
                value = _decoded(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _index(event: Mapping[str, Any], field: str, default: int) -> int:
    """The number that an event bears, or what it would."""
    value = event.get(field)
    return value if type(value) is int and value >= 0 else default


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


class _Texts(dict[str, list[str]]):
    """Pieces of texts by the field that they belong to."""

    def add(self, field: str, piece: object) -> None:
        if isinstance(piece, str):
            self.setdefault(field, []).append(piece)

    def written(self, into: Mapping[str, Any]) -> dict[str, Any]:
        """`into` with each text at the end of what its field held."""
        joined = {field: "".join((_text(into.get(field)), *pieces)) for field, pieces in self.items()}
        return {**into, **joined}


# --------------------------------------------------------------------------------------------- messages


class _Block:
    """One block of a message."""

    def __init__(self, begun: Mapping[str, Any]) -> None:
        self.open = True
        self._begun = begun
        self._texts = _Texts()
        self._arguments: list[str] = []
        self._citations: list[Any] = []

    def add(self, delta: Mapping[str, Any]) -> None:
        match delta.get("type"):
            case "input_json_delta":
                self._arguments.append(_text(delta.get("partial_json")))
            case "citations_delta":
                self._citations.append(delta.get("citation"))
            case _:
                for field in ("text", "thinking", "signature"):
                    self._texts.add(field, delta.get(field))

    def finished(self) -> dict[str, Any] | None:
        """The block as a part of a message; None for a call that is not complete."""
        block = self._texts.written(self._begun)
        if self._citations:
            block["citations"] = [*_list(block.get("citations")), *self._citations]
        if "input" in self._begun:
            if self.open:
                return None
            if arguments := "".join(self._arguments):
                try:
                    block["input"] = _decoded(arguments.encode())
                except (ValueError, RecursionError):
                    return None
        return block


class MessageFold:
    """A message."""

    sequence = 0

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, _Block] = {}

    def note(self, raw: bytes) -> None:
        for event in _data(raw):
            match event:
                case {"type": "content_block_delta", "delta": {} as delta}:
                    at = _index(event, "index", 0)
                    self._blocks.setdefault(at, _Block({"type": "text", "text": ""})).add(delta)
                case {"type": "message_start", "message": {} as message}:
                    self._message = message
                case {"type": "content_block_start", "content_block": {} as begun}:
                    self._blocks[_index(event, "index", 0)] = _Block(begun)
                case {"type": "content_block_stop"}:
                    if (block := self._blocks.get(_index(event, "index", 0))) is not None:
                        block.open = False
                case {"type": "message_delta", "delta": {} as delta}:
                    message = self._begun()
                    told = {k: v for k, v in _object(event.get("usage")).items() if v is not None}
                    usage = {**_object(message.get("usage")), **told}
                    self._message = {**message, **delta, "usage": usage}
                case _:
                    pass

    def ends(self, usage: Mapping[str, Any]) -> bytes:
        out = []
        if self._message is None and not self._blocks:
            start = {**self._begun(), "usage": {**_anthropic(usage), "output_tokens": 0}}
            out.append(named_event({"type": "message_start", "message": start}))
        out += [
            named_event({"type": "content_block_stop", "index": index})
            for index, block in self._blocks.items()
            if block.open
        ]
        if not self._has_said_why:
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            out.append(named_event({"type": "message_delta", "delta": delta, "usage": _anthropic(usage)}))
        out.append(named_event({"type": "message_stop"}))
        return b"".join(out)

    def document(self, usage: Mapping[str, Any], *, cut: bool) -> bytes:
        blocks = (block.finished() for block in self._blocks.values())
        message = {**self._begun(), "content": [block for block in blocks if block is not None]}
        if cut and not self._has_said_why:
            told = {**_object(message.get("usage")), **_anthropic(usage)}
            message |= {"stop_reason": "max_tokens", "stop_sequence": None, "usage": told}
        return encode_json(message)

    @property
    def _has_said_why(self) -> bool:
        return self._message is not None and _text(self._message.get("stop_reason")) != ""

    def _begun(self) -> dict[str, Any]:
        if self._message is not None:
            return self._message
        return {
            "id": f"msg_{self._frame.call_id}", "type": "message", "role": "assistant",
            "model": self._frame.model, "content": [], "stop_reason": None, "stop_sequence": None,
        }  # fmt: skip


def _anthropic(usage: Mapping[str, Any]) -> dict[str, int]:
    """Tokens read from a cache are beside `input_tokens`."""
    cached = _cached(usage)
    told = {
        "input_tokens": usage["prompt_tokens"] - cached,
        "output_tokens": usage["completion_tokens"],
    }
    return {**told, "cache_read_input_tokens": cached} if cached else told


def _cached(usage: Mapping[str, Any]) -> int:
    cached: int = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return cached


# -------------------------------------------------------------------------------------------- responses

_PARTS: Mapping[str, tuple[Literal["content", "summary"], str, str]] = {
    "response.output_text": ("content", "output_text", "text"),
    "response.refusal": ("content", "refusal", "refusal"),
    "response.reasoning_text": ("content", "reasoning_text", "text"),
    "response.reasoning_summary_text": ("summary", "summary_text", "text"),
}
"""By the event: the list that the part is in, its type, its field."""

_DONE: Mapping[str, str] = {part: event for event, (_, part, _) in _PARTS.items()}
"""By the part's type: the event."""

_NUMBER: Mapping[str, str] = {"content": "content_index", "summary": "summary_index"}

_SPOKEN = ("message", "reasoning")
"""Items that say something even where they are not complete; of the others one acts on the whole."""


class _Part:
    def __init__(self, begun: Mapping[str, Any]) -> None:
        self.open = True
        self.told = False
        """Its text has had its own end: what is left is the end of the part."""
        self.texts = _Texts()
        self._begun = begun

    def so_far(self) -> dict[str, Any]:
        return self.texts.written(self._begun)

    def tell(self, field: str, text: object) -> None:
        self.told = True
        if isinstance(text, str):
            self._begun, self.texts = {**self._begun, field: text}, _Texts()

    def end(self, whole: Mapping[str, Any]) -> None:
        self.open, self._begun, self.texts = False, whole, _Texts()


class _Item:
    def __init__(self, begun: Mapping[str, Any]) -> None:
        self.open = True
        self.parts: dict[tuple[str, int], _Part] = {}
        """By the list that they are in, and their index."""
        self._begun = begun

    @property
    def id(self) -> object:
        return self._begun.get("id")

    def part(self, event: Mapping[str, Any], where: str, kind: str, field: str) -> _Part:
        key = where, _index(event, _NUMBER[where], 0)
        if key not in self.parts:
            more: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
            self.parts[key] = _Part({"type": kind, field: "", **more})
        return self.parts[key]

    def end(self, whole: Mapping[str, Any]) -> None:
        self.open, self._begun, self.parts = False, whole, {}

    def so_far(self) -> dict[str, Any]:
        item = dict(self._begun)
        for where in _NUMBER if self.open else ():
            if parts := [part.so_far() for (list_, _), part in self.parts.items() if list_ == where]:
                item[where] = parts
        return item

    @property
    def is_spoken(self) -> bool:
        return self._begun.get("type") in _SPOKEN


class ResponseFold:
    """A response."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._response: dict[str, Any] | None = None
        self._items: dict[int, _Item] = {}
        """By output index."""
        self._ended = False
        self.sequence = 0

    def note(self, raw: bytes) -> None:
        for event in _data(raw):
            self.sequence = _index(event, "sequence_number", self.sequence - 1) + 1
            kind = event.get("type")
            if not isinstance(kind, str):
                continue
            if isinstance(response := event.get("response"), dict):
                self._response = response
                self._ended = self._ended or kind in ("response.completed", "response.incomplete")
                continue
            of, _, step = kind.rpartition(".")
            if of in _PARTS:
                self._say(of, step, event)
            else:
                self._step(kind, event)

    def _say(self, of: str, step: str, event: Mapping[str, Any]) -> None:
        where, kind, field = _PARTS[of]
        part = self._item_of(event).part(event, where, kind, field)
        if step == "delta":
            part.texts.add(field, event.get("delta"))
        elif step == "done":
            part.tell(field, event.get(field))

    def _step(self, kind: str, event: Mapping[str, Any]) -> None:
        item, part = event.get("item"), event.get("part")
        if kind == "response.output_item.added" and isinstance(item, dict):
            self._items[_index(event, "output_index", len(self._items))] = _Item(item)
        elif kind == "response.output_item.done" and isinstance(item, dict):
            self._item_of({"item_id": item.get("id"), **event}).end(item)
        elif isinstance(part, dict) and kind.endswith(("_part.added", "_part.done")):
            where = "summary" if "summary" in kind else "content"
            parts, key = self._item_of(event).parts, (where, _index(event, _NUMBER[where], 0))
            if kind.endswith(".added"):
                parts[key] = _Part(part)
            elif kind.endswith(".done"):
                parts.setdefault(key, _Part(part)).end(part)

    def _item_of(self, event: Mapping[str, Any]) -> _Item:
        """The item that an event speaks of: by its index, by its id, or else the last; none so far is a
        message."""
        index, item_id = _index(event, "output_index", -1), _text(event.get("item_id")) or None
        if index in self._items:
            return self._items[index]
        for item in reversed(self._items.values()):
            if item_id is None or item.id == item_id:
                return item
        begun: dict[str, Any] = {
            "id": item_id or f"msg_{self._frame.call_id}", "type": "message", "role": "assistant",
            "status": "in_progress", "content": [],
        }  # fmt: skip
        return self._items.setdefault(len(self._items) if index < 0 else index, _Item(begun))

    def ends(self, usage: Mapping[str, Any]) -> bytes:
        out: list[bytes] = []

        def tell(kind: str, **fields: Any) -> None:
            out.append(named_event({"type": kind, "sequence_number": self.sequence, **fields}))
            self.sequence += 1

        if self._response is None and not self._items:
            tell("response.created", response=self._begun())
        for index, item in self._items.items():
            if not item.open or not item.is_spoken:
                continue
            for (where, number), part in item.parts.items():
                if part.open:
                    at = {"item_id": item.id, "output_index": index, _NUMBER[where]: number}
                    _tell_part(tell, at, where, part)
            tell("response.output_item.done", output_index=index, item=_stopped(item))
        tell("response.incomplete", response=self._cut(usage))
        return b"".join(out)

    def document(self, usage: Mapping[str, Any], *, cut: bool) -> bytes:
        return encode_json(self._cut(usage) if cut or not self._ended else self._begun())

    def _begun(self) -> dict[str, Any]:
        if self._response is not None:
            return self._response
        return {
            "id": f"resp_{self._frame.call_id}", "object": "response", "created_at": self._frame.created,
            "model": self._frame.model, "status": "in_progress", "error": None, "incomplete_details": None,
            "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        }  # fmt: skip

    def _cut(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        output = [
            _stopped(item) if item.open else item.so_far()
            for item in self._items.values()
            if item.is_spoken or not item.open
        ]
        return {
            **self._begun(),
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": output,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": _cached(usage), "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }


def _stopped(item: _Item) -> dict[str, Any]:
    return {**item.so_far(), "status": "incomplete"}


def _tell_part(tell: Callable[..., None], at: Mapping[str, Any], where: str, part: _Part) -> None:
    """The events that end a part."""
    so_far = part.so_far()
    event = None if part.told else _DONE.get(_text(so_far.get("type")))
    if event is not None:
        field = _PARTS[event][2]
        logprobs = {"logprobs": _list(so_far.get("logprobs"))} if so_far["type"] == "output_text" else {}
        tell(f"{event}.done", **at, **{field: _text(so_far.get(field))}, **logprobs)
    names = {"content": "response.content_part.done", "summary": "response.reasoning_summary_part.done"}
    tell(names[where], **at, part=so_far)
