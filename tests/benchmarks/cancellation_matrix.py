"""What is wasted when a client leaves: for each engine, streamed and not, in each phase of a request.

    python -m tests.benchmarks.cancellation_matrix [--smoke] [--write]

The engines are the simulated ones with `notice: realistic`, behind a gateway, at their own speed (about 190
tokens a second). The client leaves while its request waits in the engine, while its prompt is computed, and
while tokens are made; what the engine computes for it after that is the waste. The prompt is part of it where
the request was still waiting. `--write` puts the table into docs/engines.md.
"""

import argparse
import asyncio
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import httpx

from backends.simulated.engine import profile
from tests.conftest import REPO
from tests.end_to_end.world import KEY, World, world

Phase = Literal["queued", "prefilling", "decoding"]
PHASES: tuple[Phase, ...] = ("queued", "prefilling", "decoding")
TO_THE_END = "to its end"


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine as it is set up, and what is known of it from its source."""

    engine: Mapping[str, Any]
    pool: Mapping[str, Any]
    gateway: str
    """What the gateway does."""
    then: str
    """What the engine does then."""


def _setup(gateway: str, then: str, pool: Mapping[str, Any] = MappingProxyType({}), **engine: Any) -> Setup:
    return Setup(engine, pool, gateway, then)


CLOSES = "closes"
SETUPS: Mapping[str, Setup] = {
    "`trtllm`": _setup(CLOSES, "looks once a second whether its client is there, then aborts", kind="trtllm"),
    "`triton`": _setup(CLOSES, "computes to the end: its models never look", kind="triton"),
    "`triton`, attentive": _setup(
        CLOSES,
        "notices when it next writes: a stream at its next token, a whole answer at its end; waiting or "
        "prefilling, it goes on to the first token",
        pool={"options": {"attentive": True}},
        kind="triton",
        attentive=True,
    ),
    "`triton`, llmapi": _setup(
        "closes, then sends the same JSON `id` with `stop: true`",
        "looks every 100 ms whether it was told",
        pool={"options": {"vocabulary": "llmapi"}},
        kind="triton",
        served="tensorrt_llm",
        vocabulary="llmapi",
    ),
    "`triton-openai`": _setup(CLOSES, "cancels the request with its connection", kind="triton-openai"),
    "`tgi`": _setup(
        CLOSES, "drops it at its next token; a waiting one when it is taken from the queue", kind="tgi"
    ),
    "`tgi`, messages": _setup(CLOSES, "the same", pool={"options": {"api": "messages"}}, kind="tgi"),
    "`vllm`": _setup(CLOSES, "aborts at once", kind="vllm"),
    "`sglang`": _setup("posts `/abort_request` with its `rid`, then closes", "aborts at once", kind="sglang"),
    "`llamacpp`": _setup(
        CLOSES,
        "a stream: notices at its next token; a whole answer: looks after a second without a token for "
        "anybody, so on a busy server it computes it to its end",
        kind="llamacpp",
    ),
    "`openai`": _setup(CLOSES, "as the engine behind it", kind="openai"),
}


class Wasted(NamedTuple):
    """Tokens that the engine computed after its client had left."""

    prompt: int
    output: int
    counted: float
    """What `headgate_abandoned_tokens_total` says: prompt and output together."""


OCCUPANT = 60
"""Output tokens of the request that another waits for."""
PROMPT = "Tell me everything about canals. " * 700


async def measure(
    name: str, stream: bool, phase: Phase, directory: Path, *, speed: float = 1.0, tokens: int = 500
) -> Wasted:
    """One client that leaves."""
    setup = SETUPS[name]
    fast = dataclasses.replace(profile("h200"), speed=speed, max_sequences=1 if phase == "queued" else 8)
    engines = {"pool": {**setup.engine, "engine": fast, "speed": speed, "mean_tokens": 90_000.0,
                        "notice": "realistic", "max_total_tokens": 16384}}  # fmt: skip
    async with world(directory, engines, pools={"pool": setup.pool}, at_rest=False) as here:
        engine, headers = here.engine(), {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=here.addresses.data, headers=headers, timeout=60) as http:
            occupant = None
            if phase == "queued":
                occupant = asyncio.get_running_loop().create_task(_ask(http, False, "Hi", OCCUPANT))
                await _until(lambda: engine.statistics().engine.output_tokens > 0)
            start = engine.statistics().engine
            prompt = PROMPT if phase == "prefilling" else "Hi"
            leaving = asyncio.get_running_loop().create_task(_ask(http, stream, prompt, tokens))
            if phase == "queued":
                await _until(lambda: engine.statistics().waiting == 1)
            elif phase == "prefilling":
                await _until(lambda: engine.statistics().running == 1)
            else:
                await _until(lambda: engine.statistics().engine.output_tokens > 5)
            left = engine.statistics().engine
            leaving.cancel()
            await asyncio.wait([leaving])
            if occupant is not None:
                await occupant
            await here.wait_at_rest(60)
        end = engine.statistics().engine
        others = (
            OCCUPANT - start.output_tokens if phase == "queued" else left.output_tokens - start.output_tokens
        )
        prompt_tokens = end.prompt_tokens - left.prompt_tokens
        return Wasted(prompt_tokens, max(0, end.output_tokens - start.output_tokens - others), counted(here))


async def _ask(http: httpx.AsyncClient, stream: bool, prompt: str, tokens: int) -> None:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "m", "messages": messages, "max_tokens": tokens, "stream": stream}
    await http.post("/v1/chat/completions", json=body)


async def _until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.0005)


def counted(here: World) -> float:
    """The gateway's own metric."""
    (family,) = here.gateway.metrics.abandoned.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


def cell(wasted: Wasted, tokens: int) -> str:
    if wasted.output >= tokens - 1:
        return f"{wasted.output}: {TO_THE_END}"
    return f"{wasted.output}" if wasted.prompt == 0 else f"{wasted.output} + prompt"


HEAD = (
    "| engine | the gateway | the engine then | "
    + " | ".join(f"{phase}, {how}" for how in ("streamed", "whole") for phase in PHASES)
    + " |\n|---|---|---|" + "---|" * 6
)  # fmt: skip
BEGIN, END = "<!-- cancellation matrix: begin -->", "<!-- cancellation matrix: end -->"


async def table(speed: float, tokens: int, names: list[str]) -> list[str]:
    lines = [HEAD]
    for name in names:
        cells = []
        for stream in (True, False):
            for phase in PHASES:
                with tempfile.TemporaryDirectory() as directory:
                    wasted = await measure(name, stream, phase, Path(directory), speed=speed, tokens=tokens)
                cells.append(cell(wasted, tokens))
        lines.append(f"| {name} | {SETUPS[name].gateway} | {SETUPS[name].then} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def write(lines: list[str]) -> None:
    page = REPO / "docs" / "engines.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one engine, fast")
    parser.add_argument("--write", action="store_true", help="put the table into docs/engines.md")
    given = parser.parse_args()
    print(HEAD)
    if given.smoke:
        asyncio.run(table(10.0, 60, ["`vllm`"]))
        return
    lines = asyncio.run(table(1.0, 500, list(SETUPS)))
    if given.write:
        write(lines)


if __name__ == "__main__":
    main()
