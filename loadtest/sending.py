"""One request, timed: sent, read to its end, judged. Never retried: a retry would hide what is measured.

One thing is no retry: a kept connection that the server had closed before this request came (llama.cpp does
so after every stream, though it announces keep-alive) is replaced by a fresh one, in the request's own time.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Sample:
    """What became of one request. Times are seconds of `time.perf_counter`."""

    sent: float
    late: float = 0.0
    """Seconds behind its place in the plan. Latencies count from that place (`due`), not from the sending:
    what a user would have waited for a client that was held up is not left out."""
    ended: float = 0.0
    first: float | None = None
    """When the first piece of the answer's text was there; streams only."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between one piece of text and the next."""
    input_tokens: int | None = None
    """As the server's usage tells."""
    output_tokens: int = 0
    counted: bool = False
    """The server told no usage: `output_tokens` are pieces of text."""
    error: str | None = None
    """`429 rate_limit_exceeded`, `stream server_error`, `timeout`, ...; None: a whole answer."""

    @property
    def due(self) -> float:
        """When it was to be sent."""
        return self.sent - self.late

    @property
    def latency(self) -> float:
        """Seconds from its place in the plan to its end."""
        return self.ended - self.due

    @property
    def ttft(self) -> float | None:
        """Seconds from its place in the plan to the first piece of text; None where none was seen."""
        return None if self.first is None else self.first - self.due


class Client:
    """Sends chat completions to one server, over as many connections as it takes. Use `async with`."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        timeout: float,
        stream: bool,
        extra: Mapping[str, Any],
        keys: Mapping[str, str] | None = None,
    ) -> None:
        """`timeout`: seconds for a whole request. `extra`: fields added to each body. `keys`: those of
        tenants; all others use `key`."""
        self._url = url + CHAT
        self._head: dict[str, Any] = {"model": model, **extra}
        self._stream = stream
        self._timeout = timeout
        self._key = key
        self._keys = keys or {}
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        self._kept, self._fresh = _session(keep_alive=True), _session(keep_alive=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in (self._kept, self._fresh):
            if session is not None:
                await session.close()

    async def send(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int | None,
        *,
        tenant: str = "",
        stream: bool = True,
        fields: Mapping[str, Any] | None = None,
    ) -> Sample:
        """The sample of one request; what goes wrong is in it, not raised.

        `stream` false: a whole answer, even from a client that streams. `fields`: added to this body."""
        assert self._kept is not None
        assert self._fresh is not None
        stream = stream and self._stream
        body = {**self._head, **(fields or {}), "messages": messages}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        content = orjson.dumps(body)
        sample = Sample(sent=time.perf_counter())
        try:
            async with asyncio.timeout(self._timeout):
                attempt = _Attempt(content, self._headers(tenant), stream)
                try:
                    await self._exchange(self._kept, attempt, sample)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if not attempt.reused or attempt.answered:
                        raise
                    await self._exchange(self._fresh, _Attempt(content, attempt.headers, stream), sample)
        except TimeoutError:
            sample.error = "timeout"
        except aiohttp.ClientConnectorError:
            sample.error = "cannot connect"
        except (aiohttp.ClientError, OSError):
            sample.error = "connection broken"
        except ValueError:
            sample.error = "answer is not JSON"
        sample.ended = time.perf_counter()
        return sample

    def _headers(self, tenant: str) -> dict[str, str]:
        headers = {"content-type": "application/json", "user-agent": "headgate-loadtest"}
        if key := self._keys.get(tenant, self._key):
            headers["authorization"] = f"Bearer {key}"
        return headers

    async def _exchange(self, session: aiohttp.ClientSession, attempt: "_Attempt", sample: Sample) -> None:
        async with session.post(
            self._url,
            data=attempt.content,
            headers=attempt.headers,
            allow_redirects=False,
            trace_request_ctx=attempt,
        ) as answer:
            attempt.answered = True
            if answer.status != 200:
                sample.error = f"{answer.status} {_code(await answer.read())}".rstrip()
            elif attempt.stream:
                await _read_stream(answer.content, sample)
            else:
                _note_whole(await answer.read(), sample)


@dataclass(slots=True)
class _Attempt:
    """A request on one connection, and how far it came."""

    content: bytes
    headers: Mapping[str, str]
    stream: bool
    reused: bool = False
    """Its connection had served another one before."""
    answered: bool = False


def _session(*, keep_alive: bool) -> aiohttp.ClientSession:
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=not keep_alive),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[tracing],
        trust_env=False,
    )


async def _note_reuse(_session: Any, context: Any, _parameters: Any) -> None:
    context.trace_request_ctx.reused = True


async def _read_stream(content: aiohttp.StreamReader, sample: Sample) -> None:
    """Read server-sent events to the end. Those that one read brings arrived together: their gaps are 0."""
    buffer = b""
    last = 0.0
    pieces = 0
    done = False
    while data := await content.readany():
        now = time.perf_counter()
        buffer += data
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
            if not event.startswith(b"data:", at):
                continue  # a comment
            payload = event[at + 5 :].strip()
            if payload == b"[DONE]":
                done = True
                continue
            chunk = orjson.loads(payload)
            if error := chunk.get("error"):
                sample.error = f"stream {_error_code(error)}".rstrip()
                return
            if usage := chunk.get("usage"):
                _note_usage(usage, sample)
            if any(_has_text(choice) for choice in chunk.get("choices") or ()):
                pieces += 1
                if sample.first is None:
                    sample.first = now
                else:
                    sample.gaps.append(now - last)
                last = now
    if not done:
        sample.error = "stream ended without [DONE]"
    if sample.input_tokens is None:
        sample.output_tokens, sample.counted = pieces, True


def _note_whole(content: bytes, sample: Sample) -> None:
    answer = orjson.loads(content)
    if not answer.get("choices"):
        sample.error = "answer without choices"
    if usage := answer.get("usage"):
        _note_usage(usage, sample)
    else:
        sample.counted = True


def _note_usage(usage: Mapping[str, Any], sample: Sample) -> None:
    sample.input_tokens = usage.get("prompt_tokens")
    sample.output_tokens = usage.get("completion_tokens") or 0


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(
        delta.get("content")
        or delta.get("tool_calls")
        or delta.get("reasoning")
        or delta.get("reasoning_content")
    )


def _code(content: bytes) -> str:
    """The error's code, or its type; closed sets, unlike messages."""
    try:
        return _error_code(orjson.loads(content).get("error"))
    except (ValueError, AttributeError):
        return ""


def _error_code(error: object) -> str:
    if not isinstance(error, Mapping):
        return ""
    return str(error.get("code") or error.get("type") or "")[:60]
