"""How soon an engine hears that a client has gone: through the gateway, and, as control, without it.

    python -m tests.benchmarks.cancellation [--smoke]

For each dialect, streamed and not, before and after the first token. Client, gateway and engine share one
event loop and so one clock; the figure is the time from the client's close to the moment at which the
engine's server sees its connection closed. Median of five.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from backends.simulated.server import SimulatedServer
from tests.end_to_end.world import KEY, world

DIALECTS = ("trtllm", "triton", "tgi", "openai")

TOKENS = 4000
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": TOKENS}
CHAT_PATH = "/v1/chat/completions"

DIRECT: dict[str, tuple[str, str, dict[str, Any]]] = {
    # engine: (path streamed, path not streamed, body)
    "trtllm": (CHAT_PATH, CHAT_PATH, CHAT),
    "openai": (CHAT_PATH, CHAT_PATH, CHAT),
    "triton": (
        "/v2/models/ensemble/generate_stream",
        "/v2/models/ensemble/generate",
        {"text_input": "Hi", "max_tokens": TOKENS},
    ),
    "tgi": ("/generate_stream", "/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": TOKENS}}),
}


async def close_after(
    url: str, path: str, body: dict[str, Any], engine: SimulatedServer, *, tokens: bool
) -> float:
    """Close a request before or after its first token; seconds until the engine saw it."""
    clock = asyncio.get_running_loop().time
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    seen = len(engine.statistics().closes)
    requests, made = engine.statistics().requests, engine.statistics().engine.output_tokens
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        + content
    )
    async with asyncio.timeout(20):
        while engine.statistics().requests == requests:
            await asyncio.sleep(0.001)
        if tokens and body.get("stream", "stream" in path):
            await reader.readuntil(b"data: ")
        elif tokens:
            while engine.statistics().engine.output_tokens <= made:
                await asyncio.sleep(0.001)
        closed = clock()
        writer.transport.abort()
        while len(engine.statistics().closes) == seen:
            await asyncio.sleep(0.0005)
    return engine.statistics().closes[-1].closed_at - closed


async def figures(kind: str, directory: Path, rounds: int) -> list[tuple[str, float, float]]:
    """(case, seconds through the gateway, seconds without it)."""
    rows = []
    for tokens in (False, True):
        faults = [] if tokens else ["slow_first=60"]
        engines = {"pool": {"kind": kind, "mean_tokens": 4000.0, "speed": 1.0, "faults": faults}}
        async with world(directory, engines) as here:
            for stream in (True, False):
                chat = {**CHAT, "stream": stream}
                streamed, plain, direct = DIRECT[kind]
                path = streamed if stream else plain
                direct = {**direct, "stream": stream} if kind != "tgi" else direct
                through, without = [], []
                for _ in range(rounds):
                    through.append(
                        await close_after(here.addresses.data, CHAT_PATH, chat, here.engine(), tokens=tokens)
                    )
                    without.append(
                        await close_after(here.engine().url, path, direct, here.engine(), tokens=tokens)
                    )
                case = (
                    f"{'streamed' if stream else 'whole'}, {'after' if tokens else 'before'} the first token"
                )
                rows.append((case, statistics.median(through), statistics.median(without)))
    return rows


async def run(rounds: int, kinds: tuple[str, ...]) -> None:
    print(f"{'engine':8} {'case':34} {'gateway ms':>11} {'direct ms':>10} {'added ms':>9}")
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for case, through, without in await figures(kind, directory, rounds):
                a, b = 1e3 * through, 1e3 * without
                print(f"{kind:8} {case:34} {a:11.2f} {b:10.2f} {a - b:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one round, one dialect")
    smoke = parser.parse_args().smoke
    # asyncio's own loop: uvloop's clock ticks in milliseconds.
    asyncio.run(run(1, DIALECTS[:1]) if smoke else run(5, DIALECTS))


if __name__ == "__main__":
    main()
