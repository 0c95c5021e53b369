"""What the decoders of all dialects share: reading an answer by its content, and telling errors apart.

Engines lie about content types (Triton labels an error body as an event stream and the other way round), so a
decoder looks at the first byte instead. A status that is not 2xx is an error whose body, JSON, one SSE frame
or plain text, is read up to a bound. A 2xx body is an event stream if it begins like one, else one document.

A dialect subclasses `AnswerDecoder` and says what an event, a document and the end of a stream mean. It calls
`emit` for what was decoded and `fail` for what went wrong; both are seen by the caller of `feed` in order.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from backends.contract import Delta, Done, EngineError, ErrorKind, Event, Failure
from backends.sse import MAX_EVENT_BYTES, SseFramer

__all__ = [
    "AnswerDecoder", "Classify", "EngineWords", "engine_words", "lenient_json", "token_count",
]  # fmt: skip

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 2000
_BEFORE_CONTENT = b"\xef\xbb\xbf \t\r\n"
_STREAM_BEGINS_WITH = frozenset(b":deir")  # a comment, or the fields data, event, id, retry


# --------------------------------------------------------------------------------------- engines' errors


class EngineWords(NamedTuple):
    """An engine's error in its own words, whatever shape it came in."""

    message: str
    type: str = ""
    code: int | None = None
    """The HTTP status that the body itself names."""
    param: str | None = None
    reason: str = ""
    """`code` where that is a word: OpenAI's closer name for what `type` says broadly."""

    @property
    def types(self) -> frozenset[str]:
        """All that the error is called, in lower case; an empty word where it has no name."""
        return frozenset(word.lower() for word in (self.type, self.reason) if word) or frozenset({""})


class Classify(Protocol):
    """What an engine's words mean, with their HTTP status, None where it was 2xx. One for each engine: its
    `error_table.ErrorTable`."""

    def __call__(self, status: int | None, words: EngineWords, /) -> ErrorKind: ...

    def param(self, status: int | None, words: EngineWords, /) -> str | None:
        """The parameter at fault; None: nobody names one."""


def engine_words(value: Any) -> EngineWords | None:
    """The error in a decoded JSON value; None if it holds none.

    Shapes: `{"error": {"message", "type", "code", "param"}}` (OpenAI, vLLM, llama.cpp, TGI's chat route with
    `http_status_code`), `{"error": "text", "error_type"}` (TGI, Triton, TensorRT-LLM's validation),
    `{"object": "error", "message", ...}` (TensorRT-LLM, SGLang), `{"detail": ...}` (FastAPI).
    """
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        return _words(error)
    if error:
        return EngineWords(_text(error), _text(value.get("error_type") or ""))
    if value.get("object") == "error":
        return _words(value)
    if "choices" not in value and (detail := value.get("detail")):
        return EngineWords(_text(detail))
    return None


def _words(error: dict[str, Any]) -> EngineWords:
    code = error.get("code", error.get("http_status_code"))
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:4])  # a status, and no word
    status = code if isinstance(code, int) and 400 <= code <= 599 else None
    kind, param = error.get("type"), error.get("param")
    message = error.get("message")
    return EngineWords(
        _text(message if message else error),
        kind if isinstance(kind, str) else "",
        status,
        param if isinstance(param, str) else None,
        code if isinstance(code, str) else "",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


# ------------------------------------------------------------------------------------------- JSON values


def lenient_json(data: bytes) -> Any:
    """JSON as Triton writes it: bytes that are not UTF-8 become U+FFFD; NaN and Infinity are numbers.

    Raises ValueError if it is not JSON even so.
    """
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        pass  # the rare case pays for a second try
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text, strict=False)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if "\\u" in text and isinstance(value, dict):  # half an escaped surrogate pair is no character either
        value = {key: _whole(item) if isinstance(item, str) else item for key, item in value.items()}
    return value


def _whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def token_count(value: Any) -> int | None:
    """A count that an engine told, or None for anything that is not one."""
    return value if type(value) is int and value >= 0 else None


# ----------------------------------------------------------------------------------------------- decoder


class AnswerDecoder(ABC):
    """A `contract.Decoder` without its dialect."""

    def __init__(self, classify: Classify, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._classify = classify
        self._framer = SseFramer(max_event_bytes)
        self._document = bytearray()
        self._streamed: bool | None = None  # None: nothing but white space has come
        self._status: int | None = None  # of an answer that is an error as a whole
        self._retry_after: float | None = None
        self._events: list[Event] = []
        self._over = False
        self._delivered = False

    # ---- for the dialects to define

    @abstractmethod
    def read_event(self, data: bytes, raw: bytes) -> None:
        """One SSE event with data."""

    @abstractmethod
    def read_document(self, data: bytes) -> None:
        """The whole body of an answer that is no stream. Must end in `finish` or `fail`."""

    @abstractmethod
    def stream_ended(self) -> None:
        """The clean end of a stream before `finish` or `fail`. Must call one of them."""

    def before_failure(self) -> None:  # noqa: B027 - most dialects hold nothing back
        """A chance to emit what was held back, once something has been delivered."""

    # ---- for the dialects to call

    def emit(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._delivered = True
        self._events.append(event)

    def finish(self, raw: bytes | None = None) -> None:
        """The good end."""
        self._events.append(Done(raw=raw))
        self._over = True

    def fail(
        self, kind: ErrorKind, message: str, *, status: int | None = None, param: str | None = None
    ) -> None:
        """The bad end."""
        if self._delivered:
            self.before_failure()
        error = EngineError(
            kind,
            message[:_MAX_MESSAGE_CHARACTERS],
            retryable=not kind.is_refusal and not self._delivered,
            status=status,
            retry_after=self._retry_after,
            param=param,
        )
        self._events.append(Failure(error=error))
        self._over = True

    def fail_with(self, words: EngineWords) -> None:
        """The bad end, in the engine's words."""
        kind, param = self._classify(self._status, words), self._classify.param(self._status, words)
        self.fail(kind, words.message, status=self._status, param=param)

    @property
    def delivered(self) -> bool:
        """Whether anything that a client can use has been decoded."""
        return self._delivered

    # ---- contract.Decoder

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Note what the status means; `headers` are in lower case."""
        if not 200 <= status < 300:
            self._status = status
            self._streamed = False
        self._retry_after = _retry_after(headers)

    def feed(self, data: bytes) -> list[Event]:
        if self._over or not data:
            return []
        if self._streamed is None:
            self._document += data
            begin = self._document.lstrip(_BEFORE_CONTENT)
            if not begin:
                return []
            self._streamed = begin[0] in _STREAM_BEGINS_WITH
            data, self._document = bytes(self._document), bytearray()
        if self._streamed:
            self._feed_stream(data)
        else:
            self._feed_document(data)
        return self._take()

    def end(self) -> list[Event]:
        if not self._over:
            if self._status is not None:
                self._read_error(bytes(self._document), self._status)
            elif self._streamed is None:
                self.fail(ErrorKind.ENGINE, "an empty answer")
            elif self._streamed:
                self._end_stream()
            else:
                self.read_document(bytes(self._document).lstrip(_BEFORE_CONTENT))  # copied once, if large
        self._document = bytearray()
        return self._take()

    # ---- inside

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _feed_stream(self, data: bytes) -> None:
        for event in self._framer.feed(data):
            if event.data:
                self.read_event(event.data, event.raw)
                if self._over:
                    return
        if self._framer.overflowed:
            self.fail(ErrorKind.ENGINE, "an event over the size limit")

    def _end_stream(self) -> None:
        for event in self._framer.end():
            if event.data:
                self.read_event(event.data, event.raw)
        if not self._over:
            self.stream_ended()

    def _feed_document(self, data: bytes) -> None:
        limit = MAX_DOCUMENT_BYTES if self._status is None else MAX_ERROR_BYTES
        self._document += data[: limit + 1 - len(self._document)]
        if len(self._document) <= limit:
            return
        if self._status is None:
            self.fail(ErrorKind.ENGINE, "an answer over the size limit")
        else:
            self._read_error(bytes(self._document), self._status)

    def _read_error(self, body: bytes, status: int) -> None:
        frames = SseFramer().feed(body)
        data = next((frame.data for frame in frames if frame.data), body)
        try:
            words = engine_words(lenient_json(data))
        except ValueError:
            words = None
        if words is None:
            words = EngineWords(data.decode("utf-8", "replace").strip() or f"HTTP {status} without a body")
        self.fail_with(words)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after`; a date needs a clock and is left alone."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
