"""What the tests of the doors beside chat and completions share."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic

from backends.simulated.records import Received
from tests.end_to_end.world import KEY, World

__all__ = ["ASK", "ENGINE", "always", "claude", "events_of", "generating", "last", "sends"]

ENGINE = {"kind": "vllm", "served": "org/engine-name"}
"""Its own name for the model must never reach a client."""

ASK = {"model": "m", "max_tokens": 12, "messages": [{"role": "user", "content": "What does a headgate do?"}]}


def claude(here: World, **options: Any) -> anthropic.AsyncAnthropic:
    """The official SDK, pointed at this gateway. No retries unless asked for."""
    return anthropic.AsyncAnthropic(
        base_url=here.addresses.data, **{"api_key": KEY, "max_retries": 0, "timeout": 20, **options}
    )


def events_of(stream: str) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of each event of an SSE answer."""
    blocks = [block.split("\n") for block in stream.strip().split("\n\n") if not block.startswith(":")]
    return [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks
    ]


def last(here: World) -> Received:
    """What the engine was sent last."""
    return here.engine().statistics().recent[-1]


async def sends(here: World) -> dict[str, int]:
    """Sends to engines by how they ended."""
    (family,) = here.gateway.metrics.attempts.collect()
    samples = (each for each in family.samples if each.name == "headgate_attempts_total" and each.value)
    return {each.labels["outcome"]: int(each.value) for each in samples}


@contextlib.asynccontextmanager
async def always(content_type: str, body: bytes) -> AsyncIterator[str]:
    """An engine that gives one answer to everything; yields its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % content_type.encode())
        writer.write(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def generating(path: str, **more: Any) -> dict[str, Any]:
    """A body that asks this door for as much as it may have; the engine does not end it by itself."""
    if path == "/v1/messages":
        return {**ASK, "max_tokens": 4000, "ignore_eos": True, **more}
    return {"model": "m", "input": "Tell all.", "max_output_tokens": 4000, "ignore_eos": True, **more}
