"""What is asked of every real engine, through the gateway, with the official SDK."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.world import World

__all__ = ["STREAM", "ask", "serving", "told", "until"]

STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
STOP_SECONDS = 10.0
PORT_ATTEMPTS = 3


def ask(text: str = "Who opens the gate in spring?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "max_tokens": 12, "temperature": 0, **more}


async def told(here: World, **asked: Any) -> tuple[list[str], list[str | None], Any, httpx.Headers]:
    """Texts and finish reasons by choice, usage, headers; streamed or not."""
    async with here.sdk() as sdk:
        create = sdk.chat.completions.with_raw_response.create
        if not asked.get("stream"):
            raw = await create(**asked)
            whole = raw.parse()
            choices = sorted(whole.choices, key=lambda choice: choice.index)
            texts = [choice.message.content or "" for choice in choices]
            return texts, [choice.finish_reason for choice in choices], whole.usage, raw.headers
        raw = await create(**asked, stream_options={"include_usage": True})
        said: dict[int, str] = {}
        reasons: dict[int, str | None] = {}
        usage = None
        async for chunk in raw.parse():
            usage = chunk.usage or usage
            for choice in chunk.choices:
                said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
                reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        return [said[at] for at in sorted(said)], [reasons[at] for at in sorted(said)], usage, raw.headers


async def until(what: str, condition: Callable[[], bool], seconds: float = 10) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(condition):
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"waited in vain for {what}")


@contextlib.contextmanager
def serving(
    command: Callable[[int], Sequence[str]],
    log: Path,
    *,
    ready_seconds: float,
    env: dict[str, str] | None = None,
) -> Iterator[str]:
    """Run the command for a free port until its `/health` is 200; yields its address, ends it afterwards."""
    for attempts_left in reversed(range(PORT_ATTEMPTS)):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(port), stdout=output, stderr=output, env=env, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            if _wait_ready(process, url, ready_seconds):
                yield url
                return
            if not attempts_left:  # another process may have been faster to take the port
                raise RuntimeError(
                    f"{command(port)[0]} is not ready: {log.read_text(errors='replace')[-4000:]}"
                )
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait(STOP_SECONDS)


def _wait_ready(process: subprocess.Popen[bytes], url: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return True
        time.sleep(0.05)
    return False
