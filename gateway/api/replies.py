"""Replies: the client's side of an answer, as a stream of SSE events or as one JSON body.

The status line is sent with the first bytes and not before, so everything that fails up to then can still
become an honest status. A stream that fails later ends with an error event and `[DONE]`: OpenAI's SDKs
take a clean end for success.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from backends.contract import Delta, Done, Event, Usage
from gateway.answering.answer import Answer
from gateway.api.asgi import Scope, Send, send_body
from gateway.api.errors import error_body, error_headers
from gateway.api.folding import Frame
from gateway.api.passing import PassingDocument, PassingStream, UnstreamedDocument, stream_failure
from gateway.api.receiving import DisconnectWatch
from gateway.api.rendering import DONE, StreamRenderer, WholeRenderer, event_of, usage_of
from gateway.call import Call
from gateway.errors import GatewayError
from gateway.telemetry.records import RequestRecord


class _Reply:
    """What both kinds of reply know."""

    def __init__(
        self,
        call: Call,
        record: RequestRecord,
        scope: Scope,
        send: Send,
        watch: DisconnectWatch,
        clock: Callable[[], float],
    ) -> None:
        self.started = False
        self.answered = False
        self._call = call
        self._record = record
        self._scope = scope
        self._send = send
        self._watch = watch
        self._clock = clock
        self._created = int(time.time())
        self._answer: Answer | None = None

    def _begin(self, answer: Answer) -> None:
        self._answer = answer
        if answer.target.model is not self._call.model:
            self._record.answering_model = answer.target.model.name

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("begin() comes first")
        return self._answer

    def model_name(self) -> str:
        """The public name of the model that answers."""
        model = self.answer.target.model
        return self._call.asked_model if model.name == "*" else model.name

    def usage(self) -> dict[str, Any]:
        answer = self.answer
        prompt = answer.prompt_tokens
        if prompt is None:
            prompt = self._record.prompt_tokens or 0
        return usage_of(prompt, answer.completion_tokens, answer.cached_tokens)


EARLY = frozenset({b"x-headgate-rule", b"x-headgate-prompt-tokens", b"x-headgate-prompt-count"})
"""What holds whoever answers. `x-ratelimit-*` does too."""


def _late(header: bytes) -> bool:
    """Whether a header is not known before somebody answers."""
    return header.startswith(b"x-headgate-") and header not in EARLY


class StreamReply(_Reply):
    """An answer as server-sent events."""

    _owed = False
    """The status line left before it was known who answers: some headers have still to be told."""
    _passing: PassingStream | None = None
    """The renderer of a native answer."""

    def begin(self, answer: Answer) -> None:
        self._begin(answer)
        self._renderer = self._a_renderer()
        first = next((event for event in answer.first if isinstance(event, Delta)), None)
        # An engine may answer a request to stream with a whole document: there are no events to pass on.
        self._raw = (
            answer.target.pool.relay == "raw"
            and self._passing is None
            and (first is None or first.raw is not None)
        )

    async def write(self, events: Sequence[Event]) -> None:
        self._renderer.cut_by = self.answer.cut_by
        chunks = self._untouched(events) if self._raw else self._renderer.deltas(events)
        ended = isinstance(events[-1], Done)
        if ended:
            cut = self.answer.cut_by is not None
            if cut and self._raw:
                chunks += self._renderer.ends(self.answer.ends, like=_raw_of(events))
            if cut or not self._raw:
                chunks += self._renderer.usage(self.usage())
            chunks += self._renderer.done
        self.answered = self.answered or bool(chunks)
        if self._owed:
            chunks = self._pay() + chunks
        await self._send_bytes(chunks, more=not ended)

    async def comment(self, text: str) -> None:
        """Before the first event it takes the headers with it; those that are not known yet follow, when they
        are, as comments."""
        if not self.started:
            self._owed = True
        await self._send_bytes(b": " + text.encode() + b"\n\n", more=True)

    async def fail(self, error: GatewayError) -> None:
        told = self._pay(error_headers(error)) if self._owed else b""
        await self._send_bytes(told + self._failure(error), more=False)

    def _pay(self, also: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """The headers that the status line had to leave without, as one comment of several lines."""
        self._owed = False
        late = (each for each in self._record.headers(self._clock()) if _late(each[0]))
        return b"".join(b": %b: %b\n" % each for each in (*late, *also)) + b"\n"

    def _a_renderer(self) -> StreamRenderer | PassingStream:
        call, name = self._call, self.model_name()
        if call.request.native is None:
            return StreamRenderer(call.dialect, call.id, self._created, name, call.include_usage)
        frame = Frame(call.id, self._created, name)
        self._passing = PassingStream(call.dialect, frame, may_be_cut=self.answer.may_be_cut)
        return self._passing

    def _failure(self, error: GatewayError) -> bytes:
        """How a stream ends that has failed."""
        if self._call.request.native is None:
            return event_of(error_body(error)) + DONE
        return stream_failure(
            self._call.dialect, error, 0 if self._passing is None else self._passing.next_sequence()
        )

    def _untouched(self, events: Sequence[Event]) -> bytes:
        """The engine's own bytes, less what this client did not ask for."""
        keep_usage = self._call.include_usage
        return b"".join(
            event.raw
            for event in events
            if (isinstance(event, Delta) or (keep_usage and isinstance(event, Usage)))
            and event.raw is not None
        )

    async def _send_bytes(self, chunk: bytes, *, more: bool) -> None:
        if more and not chunk:
            return
        if not self.started:
            self.started = True
            await self._send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-cache"),
                        (b"x-accel-buffering", b"no"),
                        *(
                            header
                            for header in self._record.headers(self._clock())
                            if not (self._owed and _late(header[0]))
                        ),
                    ],
                }
            )
        if not more:
            self._watch.disarm()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})


def _raw_of(events: Sequence[Event]) -> bytes | None:
    return next((event.raw for event in events if isinstance(event, Delta) and event.raw), None)


class WholeReply(_Reply):
    """An answer as one JSON body. Nothing is sent before it is complete."""

    def begin(self, answer: Answer) -> None:
        self._begin(answer)
        self._renderer = self._a_renderer()

    async def write(self, events: Sequence[Event]) -> None:
        self._renderer.add(events)
        if isinstance(events[-1], Done):
            self.started = self.answered = True
            self._watch.disarm()
            body = self._renderer.body(self.usage())
            await send_body(self._scope, self._send, 200, body, headers=self._record.headers(self._clock()))

    async def comment(self, text: str) -> None:
        """JSON has none."""

    def _a_renderer(self) -> WholeRenderer | PassingDocument | UnstreamedDocument:
        call, name = self._call, self.model_name()
        if call.request.native is None:
            return WholeRenderer(call.dialect, call.id, self._created, name)
        if not self.answer.request.stream:
            return PassingDocument()
        return UnstreamedDocument(call.dialect, Frame(call.id, self._created, name))

    async def fail(self, error: GatewayError) -> None:
        """Never needed: a whole reply has either not started or is complete."""
        raise AssertionError("a whole reply cannot fail half-way") from error
