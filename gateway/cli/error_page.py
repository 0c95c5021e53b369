"""Errors and engines: docs/errors.md, printed from the tables that class them.

    python -m gateway.cli.error_page > docs/errors.md      the page
    python -m gateway.cli.error_page --count               how many rows, by engine and situation

Each row is an example of an engine's table (`backends/*/errors.py`), sent through that engine's decoder, and
from there through `gateway.engine_errors` to what a client gets. So the page shows what happens, not what
somebody meant to happen; a test holds it to the code.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, get_args

from backends.client import ClientGeneration
from backends.contract import (
    ConnectionBroken,
    Delta,
    EngineAdapter,
    EngineError,
    ErrorKind,
    Failure,
    GenerateRequest,
)
from backends.error_table import BY_STATUS, ErrorTable, Example, Situation
from backends.registry import REGISTRY
from gateway.engine_errors import MEANINGS, UNREACHED, gateway_error_for, meaning_of
from gateway.fallbacks import MAX_ATTEMPTS

__all__ = ["COLUMNS", "Row", "failure_of", "main", "page", "rows"]

COLUMNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "trtllm": ("trtllm", {}),
    "triton": ("triton", {}),
    "triton llmapi": ("triton", {"vocabulary": "llmapi"}),
    "triton-openai": ("triton-openai", {}),
    "tgi": ("tgi", {}),
    "tgi messages": ("tgi", {"api": "messages"}),
    "vllm": ("vllm", {}),
    "sglang": ("sglang", {}),
    "llamacpp": ("llamacpp", {}),
    "openai": ("openai", {}),
}
"""Engines with the options that change what they say."""

SITUATIONS: tuple[Situation, ...] = get_args(Situation)
_SHOWN = 150
"""Characters of an engine's words on the page."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example and what became of it."""

    engine: str
    situation: Situation
    rule: str
    """What it was recognised by."""
    example: Example
    error: EngineError
    expected: ErrorKind
    streamed: bool
    begun: bool
    """It came behind a piece of the answer."""


class _HasErrors(Protocol):
    """What every adapter here has, and the gateway need not know."""

    errors: ErrorTable


def adapter_of(engine: str) -> EngineAdapter:
    kind, options = COLUMNS[engine]
    return REGISTRY.adapter(kind, options)


def table_of(engine: str) -> ErrorTable:
    return cast("_HasErrors", adapter_of(engine)).errors


def failure_of(adapter: EngineAdapter, example: Example, before: bytes = b"") -> EngineError:
    """How the adapter reads `example`, behind the events `before` of a stream with status 200.

    Raises AssertionError where it is read as a good answer.
    """
    streamed = bool(before) or example.body.startswith(b"data:")
    request = GenerateRequest(
        request_id="page",
        model="m",
        stream=streamed,
        messages=[{"role": "user", "content": "Hi"}],
        rendered="Hi",
        max_tokens=64,
    )
    decoder = adapter.decoder(request)
    decoder.head(200 if before else example.status, {})
    events = [*decoder.feed(before), *decoder.feed(example.body), *decoder.end()]
    failures = [event.error for event in events if isinstance(event, Failure)]
    if not failures:
        raise AssertionError(f"a good answer: {example!r}")
    return failures[0]


def rows(engine: str) -> Iterator[Row]:
    """All examples of an engine: answers that refuse, errors in the middle of a stream, bad endings."""
    adapter, table = adapter_of(engine), table_of(engine)
    for rule in table.rules:
        for example in table.examples.get(rule.name, ()):
            streamed = example.status == 200 and example.body.startswith(b"data:")
            error = failure_of(adapter, example)
            yield Row(engine, rule.situation, rule.name, example, error, rule.kind, streamed, False)
            if streamed:
                error = failure_of(adapter, example, table.begun)
                yield Row(engine, rule.situation, rule.name, example, error, rule.kind, True, True)
    for ending in table.endings:
        error = failure_of(adapter, ending.example)
        begun = not error.retryable
        yield Row(
            engine, ending.situation, ending.name, ending.example, error, ending.kind, begun, begun
        )  # fmt: skip
    for before in (b"", table.begun):
        error = asyncio.run(_cut(adapter, before))
        yield Row(
            engine, "crash", CUT, Example(200, before), error, ErrorKind.ENGINE, True, bool(before)
        )  # fmt: skip


CUT = "the connection breaks"


class _Cut:
    """An exchange whose connection breaks behind `body`."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, body: bytes) -> None:
        self._pieces = [body] if body else []

    async def events(self) -> bytes:
        if self._pieces:
            return self._pieces.pop()
        raise ConnectionBroken("closed before the end of the body")

    def finish(self) -> None:
        """Nothing is kept."""

    def cancel(self) -> None:
        """It is gone already."""


async def _cut(adapter: EngineAdapter, body: bytes) -> EngineError:
    """What the client of an engine makes of a connection that breaks."""
    request = GenerateRequest(request_id="page", model="m", stream=True, messages=[], rendered="")
    decoder = adapter.decoder(request)
    decoder.head(200, {})
    generation = ClientGeneration(_Cut(body), decoder, 1024)
    try:
        while any(isinstance(event, Delta) for event in await generation.events()):
            pass
    except EngineError as error:
        return error
    raise AssertionError("a broken connection that nobody noticed")


# ------------------------------------------------------------------------------------------------ page

_HEAD = """# Engines' errors

What each engine says when it does not answer, what the gateway takes that for, and what a client gets. This
page is printed by `python -m gateway.cli.error_page > docs/errors.md`. Every row is an answer in that
engine's shape, sent through its decoder and on to the client's error; a test holds the page, and each row, to
the code. The rules are tables in code (`backends/*/errors.py`), tried from the top.

**An engine's words** reach a client only where the error is about the request (`client`, `context_length`,
`unsupported`), and only if they hold no traceback, path, address or host; at most 400 characters of them. In
all other cases the client gets the sentence of the first table. Logs have the class and the status.

**Elsewhere**: *replica*: the next replica of the same pool may try, as long as nothing of the answer has left
(at most {attempts} attempts, and within the retry budget). *pool*: the next pool of the rule's chain may, if
its `on:` has that word (`unavailable` and `failed` by default).

**In the middle** of a stream the status has left: the client gets the same error as an event, and nothing is
tried elsewhere. Chats and completions end with `[DONE]` behind it; at native doors (responses, messages) the
event is one of their dialect, and nothing comes behind it. As long as nothing of the answer has left, the
status is an honest one, also where the engine's was 200.

## What each class means
"""


def page() -> str:
    """docs/errors.md."""
    parts = [_HEAD.format(attempts=MAX_ATTEMPTS), _classes(), _alike(), "## How many rows\n", _count()]
    return "\n".join([*parts, *map(_engine, COLUMNS)])


def _row(values: Iterable[object]) -> str:
    return "| " + " | ".join(str(value) for value in values) + " |"


def _table(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *map(_row, lines)]) + "\n"


def _status(error: EngineError) -> str:
    seen = gateway_error_for(error, "chat")
    return f"{seen.status} `{seen.code or seen.type}`"


def _plain(kind: ErrorKind, *, reached: bool = True) -> EngineError:
    return EngineError(kind, "", retryable=True, reached=reached)


def _classes() -> str:
    kinds = [
        (f"`{kind}`", MEANINGS[kind], _plain(kind), "no" if kind.is_refusal else "yes") for kind in ErrorKind
    ]
    kinds.append(("`engine`, not reached", UNREACHED, _plain(ErrorKind.ENGINE, reached=False), "yes"))
    lines = []
    for name, meaning, error, replica in kinds:
        seen = gateway_error_for(error, "chat")
        own = "the engine's words, else " if meaning.quotes else ""
        on = "-" if meaning.on is None else f"`{meaning.on}`"
        lines.append([name, replica, on, f"{_status(error)}, type `{seen.type}`", f'{own}"{meaning.words}"'])
    return _table(["class", "another replica", "another pool: `on`", "the client gets", "and reads"], lines)


def _alike() -> str:
    """What no engine says: connections and time."""
    engine, timeout = _plain(ErrorKind.ENGINE), _plain(ErrorKind.TIMEOUT)
    unreached = _plain(ErrorKind.ENGINE, reached=False)
    failed = "replica; pool: `failed`"
    lines = [
        ["crash", "no connection: refused, unresolvable, TLS failed, not in time", "`engine`",
         "replica; pool: `unavailable`", _status(unreached)],
        ["crash", "an answer over 64 MiB, an event over its limit, headers over theirs, not HTTP", "`engine`",
         failed, _status(engine)],
        ["timeout", "no first event within `timeouts.first_token_s`", "`timeout`", "pool: `failed`",
         _status(timeout)],
        ["timeout", "no first event within the client's own deadline", "-", "-", _status(timeout)],
        ["timeout", "silence of `timeouts.idle_s` in the middle of a stream", "-", "-",
         "an error event `upstream_timeout`"],
    ]  # fmt: skip
    by_status = [[rule.name, rule.situation, f"`{rule.kind}`"] for rule in BY_STATUS]
    return "\n".join(
        [
            "## Alike for every engine\n",
            _table(["situation", "what happens", "class", "elsewhere", "the client gets"], lines),
            "A replica that could not be reached, or did not answer in time, is left alone for a while; one",
            "that refused its client is not. By the status alone, where no rule of an engine's own holds:\n",
            _table(["status", "situation", "class"], by_status),
        ]
    )


def _count() -> str:
    lines = []
    for engine in COLUMNS:
        counted = Counter(row.situation for row in rows(engine))
        lines.append([engine, *(counted[each] or "-" for each in SITUATIONS), counted.total()])
    return _table(["", *SITUATIONS, "rows"], lines)


def _engine(engine: str) -> str:
    found = list(rows(engine))
    silent = [each for each in SITUATIONS if each not in {row.situation for row in found}]
    found.sort(key=lambda row: SITUATIONS.index(row.situation))
    lines = [
        [row.situation, _said(row), row.rule, f"`{row.error.kind}`", _elsewhere(row), _client(row)]
        for row in found
    ]
    note = f"\nNothing of its own to say for: {', '.join(silent)}.\n" if silent else ""
    head = ["situation", "the engine says", "recognised by", "class", "elsewhere", "the client gets"]
    return f"## {engine}\n\n" + _table(head, lines) + note


def _said(row: Row) -> str:
    if row.rule == CUT:
        return "nothing more, in the middle of a stream" if row.begun else "nothing, behind status 200"
    text = " ".join(row.example.body.decode().split())
    if row.rule not in {ending.name for ending in table_of(row.engine).endings}:
        text = text.removeprefix("data: ").removesuffix(" data: [DONE]")
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    where = str(row.example.status)
    if row.streamed:
        where = "in the middle of a stream" if row.begun else "an event of a stream, status 200"
    return f"{where}: " + (f"`{text.replace('|', '¦')}`" if text else "no body")


def _elsewhere(row: Row) -> str:
    if row.begun:
        return "-"
    on = meaning_of(row.error).on
    places = (["replica"] if row.error.retryable else []) + ([f"pool: `{on}`"] if on else [])
    return "; ".join(places) or "-"


def _client(row: Row) -> str:
    seen = gateway_error_for(row.error, "chat")
    words = json.dumps(seen.message, ensure_ascii=False).replace("|", "¦")
    if row.begun:
        return f"an error event `{seen.code or seen.type}`"
    param = f", `{seen.param}`" if seen.param else ""
    words = words if len(words) <= _SHOWN else words[: _SHOWN - 2] + '…"'
    return f"{_status(row.error)}{param}: {words}"


def main(arguments: Sequence[str]) -> None:
    """Print the page, or the count."""
    sys.stdout.write(_count() if "--count" in arguments else page())


if __name__ == "__main__":
    main(sys.argv[1:])
