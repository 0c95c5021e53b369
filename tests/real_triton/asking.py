"""Asking a real Triton through the gateway, on text in four languages."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.real_triton.server import TritonServer

PATIENCE = 20.0
"""Seconds for what takes milliseconds on a machine with nothing else to do."""

STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

TEXTS = {
    "English": "What does a headgate do, and who opens it in spring?",
    "Russian": "Что делает шлюз на канале, и кто открывает его весной?",
    "Chinese": "水闸有什么用？春天谁来打开它？🌊",
    "code": "def open_gate(level: float) -> bool:\n    # spring\n\n    return level > 0.5  # metres",
}


def pool(triton: TritonServer, served: str = "tensorrt_llm_bls") -> dict[str, Any]:
    return {"kind": "triton", "url": triton.url, "served": served}


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 200, **more}


def tokens_of(text: str) -> int:
    """As the model counts: four bytes each."""
    return -(-len(text.encode()) // 4)


async def answer_of(sdk: openai.AsyncOpenAI, stream: bool, **asked: Any) -> tuple[str, str | None, Any]:
    """Text, finish reason and usage, streamed or not."""
    if not stream:
        whole = await sdk.chat.completions.create(**asked)
        return whole.choices[0].message.content or "", whole.choices[0].finish_reason, whole.usage
    pieces, reasons, usage = [], [], None
    options = {"include_usage": True}
    async for chunk in await sdk.chat.completions.create(**asked, stream=True, stream_options=options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons.append(choice.finish_reason)
    (reason,) = filter(None, reasons)
    return "".join(pieces), reason, usage


async def until(what: str, condition: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"waited in vain for {what}")
