"""Server-sent events, cut out of bytes as they arrive.

The framer keeps bytes, never text: events are found by their blank line, and only CR, LF and CRLF end a
line (WHATWG HTML, "Server-sent events", 9.2.5). `str.splitlines` also cuts at U+2028, U+0085 and form feeds,
which engines write unescaped inside JSON; and a UTF-8 character is never cut, because no byte of one is a
CR or LF.

Every byte fed comes back in the `raw` of exactly one event, in order, except those of the event still
incomplete. So blocks without data (comments, stray blank lines) are events here too, with `data` None.

A blank line that ends in CR is complete only when the next byte shows that no LF belongs to it: such an event
waits for one more byte, or for `end`. No engine frames with CR alone.

Cost: each byte is looked at once, however the input is cut. While no CR has been seen, the search is one
`find`; after it, a compiled pattern.
"""

import re
from typing import NamedTuple

__all__ = ["MAX_EVENT_BYTES", "SseEvent", "SseFramer"]

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Bytes that one event may have, its blank line included (fault F15 of the reliability catalogue)."""

_BOM = b"\xef\xbb\xbf"
_BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")  # atomic: "\r\n" is never taken for two line ends
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LOOK_BACK = 3  # bytes of a blank line that may have arrived before its last one


class SseEvent(NamedTuple):
    """One event: its bytes, and its data lines joined by LF (None: no data line, so nothing to dispatch)."""

    raw: bytes
    data: bytes | None


class SseFramer:
    """Bytes in, whole events out. Not thread safe; one for each response body."""

    __slots__ = ("_buffer", "_limit", "_seen_cr", "_started", "overflowed")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._buffer = bytearray()
        self._seen_cr = False
        self._started = False
        self.overflowed = False
        """True: an event passed the limit. Nothing is buffered and nothing more comes out."""

    @property
    def pending(self) -> bool:
        """Whether something that is not white space waits for its blank line."""
        return bool(self._buffer.strip())

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes; those before an overflow are still returned."""
        if self.overflowed:
            return []
        if not self._seen_cr and b"\r" in data:
            self._seen_cr = True
        searched = max(0, len(self._buffer) - _LOOK_BACK)
        source: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            source = self._buffer
        events: list[SseEvent] = []
        start = 0
        while (end := self._blank_line_end(source, max(start, searched))) != -1:
            if end - start > self._limit:
                break
            events.append(self._event(bytes(source[start:end])))
            start = end
        if len(source) - start > self._limit or end != -1:
            self.overflowed = True
            self._buffer = bytearray()
        elif source is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += data[start:]
        return events

    def end(self) -> list[SseEvent]:
        """At the end of the body: the event whose blank line ended in a CR, if there is one.

        An event without its blank line is not dispatched; `pending` tells of it.
        """
        blank = _BLANK_LINE.search(self._buffer, max(0, len(self._buffer) - _LOOK_BACK))
        if blank is None or blank.end() != len(self._buffer):
            return []
        raw = bytes(self._buffer)
        self._buffer = bytearray()
        return [self._event(raw)]

    def _blank_line_end(self, source: bytes | bytearray, position: int) -> int:
        """Where the next blank line ends, or -1 if it has not ended for certain."""
        if not self._seen_cr:
            found = source.find(b"\n\n", position)
            return found if found == -1 else found + 2
        blank = _BLANK_LINE.search(source, position)
        if blank is None:
            return -1
        end = blank.end()
        undecided = end == len(source) and source[end - 1] == 0x0D
        return -1 if undecided else end

    def _event(self, raw: bytes) -> SseEvent:
        self._started, first = True, not self._started
        if not self._seen_cr and raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2:
            return SseEvent(raw, raw[6:-2])
        return SseEvent(raw, _data(raw.removeprefix(_BOM) if first else raw))


def _data(block: bytes) -> bytes | None:
    lines: list[bytes] = []
    for line in _LINE_END.split(block):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
