"""Names to addresses: aiohttp's resolver under ours."""

import asyncio
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from backends.contract import (
    ConnectFailed,
    Endpoint,
)
from backends.transport import AiohttpTransport
from backends.transport.resolving import LastGoodResolver
from tests.backends.loops import on_both_loops
from tests.backends.transport.conformance import POST


class ScriptedResolver(AbstractResolver):
    """Answers with what the list says: addresses, an error, or (None) silence."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        answer = self._answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def close(self) -> None:
        pass


@on_both_loops
async def test_resolver_keeps_the_last_good_answer() -> None:
    """A name service that fails or hangs does not lose an engine that was found before."""
    found, moved = [{"host": "127.0.0.1"}], [{"host": "127.0.0.2"}]
    resolver = LastGoodResolver(
        ScriptedResolver(OSError("down"), found, OSError("down"), None, moved, OSError("down"), None), 0.02
    )
    with pytest.raises(OSError, match="down"):
        await resolver.resolve("engine", 80)
    assert [await resolver.resolve("engine", 80) for _ in range(5)] == [found, found, found, moved, moved]
    with pytest.raises(OSError, match="another not resolved within"):
        await resolver.resolve("another", 80)


@on_both_loops
@pytest.mark.parametrize("answer", [OSError("no such name"), None])
async def test_unresolvable_name(answer: OSError | None) -> None:
    """A name that is unknown, or that nobody looks up in time, is ConnectFailed."""
    transport = AiohttpTransport(connect_timeout=0.05, resolver=ScriptedResolver(answer))
    with pytest.raises(ConnectFailed):
        await transport.open(Endpoint("http://engine.invalid"), POST)
    await transport.aclose()
