"""Passing on: the bytes of native answers, and the few events that are the gateway's own. Pure.

An engine's events leave as they came, and so do its documents. Ours are

    an answer that is cut     a stream ends as one that reached its bound: open blocks and items are closed,
                              then `message_delta` with the stop reason `max_tokens` and `message_stop`, or
                              `response.incomplete`; a whole answer is the document that says the same
    a stream that broke       an `error` event of either dialect, and nothing after it: no client takes that
                              for a whole answer
"""

from collections.abc import Sequence
from typing import Any

from backends.contract import Delta, Done, Event, Usage
from gateway.api.errors import anthropic_error, error_body
from gateway.api.folding import Frame, fold_of, named_event
from gateway.call import Dialect
from gateway.errors import GatewayError

__all__ = ["PassingDocument", "PassingStream", "UnstreamedDocument", "stream_failure"]


def _raw(events: Sequence[Event]) -> bytes:
    return b"".join(event.raw or b"" for event in events if isinstance(event, Delta | Usage | Done))


def _is_cut(events: Sequence[Event]) -> bool:
    """Whether the gateway ends the answer with these: no native decoder tells a reason."""
    return any(isinstance(event, Delta) and event.finish_reason is not None for event in events)


class PassingStream:
    """Events of one native answer -> the bytes that a client gets."""

    done = b""
    """Nothing is said after the last event."""

    def __init__(self, dialect: Dialect, frame: Frame, *, may_be_cut: bool) -> None:
        """An answer that nothing can cut is not folded: that costs time for each event, and keeps them."""
        self.cut_by: str | None = None
        self._fold = fold_of(dialect, frame)
        self._folds = may_be_cut
        self._numbered = b""
        """The latest events that bear a number, where they are not folded."""
        self._cut = False

    def deltas(self, events: Sequence[Event]) -> bytes:
        """All bytes of `events`."""
        raw = _raw(events)
        if self._folds:
            self._fold.note(raw)
            self._cut = self._cut or _is_cut(events)
        elif b'"sequence_number"' in raw:
            self._numbered = raw
        return raw

    def ends(self, deltas: Sequence[Delta], like: bytes | None) -> bytes:
        """Raw relaying is for chats and completions."""
        raise AssertionError("a native answer has no chunks")

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The end of an answer that was cut. One that its engine ended has told its usage itself."""
        return self._fold.ends(usage) if self._cut else b""

    def next_sequence(self) -> int:
        """The `sequence_number` of the next event."""
        self._fold.note(self._numbered)
        return self._fold.sequence


class PassingDocument:
    """A whole native answer, as the engine wrote it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def add(self, events: Sequence[Event]) -> None:
        self._pieces.append(_raw(events))

    def body(self, usage: dict[str, Any]) -> bytes:
        return b"".join(self._pieces)


class UnstreamedDocument:
    """A whole native answer that was asked for as a stream, so that it could be cut.

    An engine that knows no streams sends the document at once: it is passed on as it came.
    """

    def __init__(self, dialect: Dialect, frame: Frame) -> None:
        self._fold = fold_of(dialect, frame)
        self._cut = False
        self._document = b""

    def add(self, events: Sequence[Event]) -> None:
        raw = _raw(events)
        if raw.startswith(b"{"):  # as no event does
            self._document = raw
            return
        self._fold.note(raw)
        self._cut = self._cut or _is_cut(events)

    def body(self, usage: dict[str, Any]) -> bytes:
        return self._document or self._fold.document(usage, cut=self._cut)


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
