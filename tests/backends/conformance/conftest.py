"""All engines of the table behind one gateway."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.backends.conformance.engines import ENGINES, Engine
from tests.backends.conformance.observing import Refused, Seen, observe
from tests.end_to_end.world import World, world


def settings(engines: Mapping[str, Engine], upstream_stream: str = "client") -> dict[str, Any]:
    """What routes.yaml says of them: each serves a model of its own name."""
    return {
        "pools": {
            name: {
                "serves": {name: row.served},
                "options": dict(row.options),
                "upstream_stream": upstream_stream,
            }
            for name, row in engines.items()
        },
        "models": dict.fromkeys(engines),
        "rules": [{"name": name, "when": {"model": name}, "pools": [name]} for name in engines],
    }


class Fleet:
    """The engines, and a client of the gateway before them."""

    def __init__(self, here: World, http: httpx.AsyncClient) -> None:
        self._here = here
        self._http = http

    def recite(self, name: str, text: str | None, *, spelled: bool = False) -> None:
        """Make an engine say this in every answer; None: what it would say by itself."""
        self._here.engines[f"{name}-1"].recite(text, spelled=spelled)

    def arm(self, name: str, fault: str) -> None:
        self._here.engines[f"{name}-1"].arm(fault)

    def clear(self, name: str) -> None:
        self._here.engines[f"{name}-1"].faults.clear()

    async def ask(self, name: str, *, stream: bool, **body: Any) -> Seen | Refused:
        """What a client sees of the answer to `body`, a chat unless it has a prompt."""
        asked: dict[str, Any] = {"model": name, "max_tokens": 200, **body}
        if "prompt" not in asked:
            asked.setdefault("messages", [{"role": "user", "content": "What does a headgate do?"}])
        if stream:
            asked |= {"stream": True}
            asked.setdefault("stream_options", {"include_usage": True})
        return await observe(self._http, asked)


@contextlib.asynccontextmanager
async def a_fleet(
    directory: Path, engines: Mapping[str, Engine], upstream_stream: str = "client", **server: Any
) -> AsyncIterator[Fleet]:
    """`server`: options of all simulated engines."""
    started = {
        name: {"kind": row.kind, "served": row.served, "speed": 1000.0, **row.server, **server}
        for name, row in engines.items()
    }
    async with world(directory, started, **settings(engines, upstream_stream)) as here, here.http() as http:
        yield Fleet(here, http)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Engines are asked to stream where the client asks for it."""
    async with a_fleet(tmp_path_factory.mktemp("fleet"), ENGINES) as fleet:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streaming(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Engines are always asked to stream: whole answers are put together by the gateway."""
    async with a_fleet(tmp_path_factory.mktemp("streaming"), ENGINES, "always") as fleet:
        yield fleet
