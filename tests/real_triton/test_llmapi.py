"""A model of the llmapi vocabulary behind a real Triton: other tensors, the same answers."""

import itertools
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.world import world
from tests.real_triton.asking import STREAM, TEXTS, answer_of, ask, pool
from tests.real_triton.server import TritonServer

pytestmark = pytest.mark.triton

LLMAPI = {"pool": {"options": {"vocabulary": "llmapi"}}}


def llmapi(triton: TritonServer) -> dict[str, Any]:
    return {"pool": pool(triton, "tensorrt_llm")}


async def test_text_reasons_and_stops(triton: TritonServer, tmp_path: Path) -> None:
    """The prompt is not repeated, the reason is the engine's, half characters wait for their other half."""
    async with world(tmp_path, llmapi(triton), pools=LLMAPI) as here, here.sdk() as sdk:
        for text, stream in itertools.product(TEXTS.values(), (False, True)):
            answer = text[::-1]
            assert (await answer_of(sdk, stream, **ask(text)))[:2] == (answer, "stop")
            said, reason, _ = await answer_of(sdk, stream, **ask(text, stop=["not in it", answer[9:14]]))
            assert (said, reason) == (answer[:9], "stop")
        for stream in (False, True):
            said, reason, _ = await answer_of(sdk, stream, **ask(TEXTS["English"], max_tokens=5))
            assert (said, reason) == (TEXTS["English"][::-1][:20], "length")


@STREAM
async def test_a_model_that_breaks(triton: TritonServer, stream: bool, tmp_path: Path) -> None:
    async with world(tmp_path, llmapi(triton), pools=LLMAPI) as here, here.sdk() as sdk:
        with pytest.raises(openai.InternalServerError) as broken:
            await answer_of(sdk, stream, **ask("!raise 0"))
        assert (broken.value.status_code, broken.value.code) == (502, "upstream_error")
        with pytest.raises(openai.APIError) as late:
            await answer_of(sdk, True, **ask(f"{TEXTS['English']} !raise 4"))
        assert late.value.code == "upstream_error"
        assert "Traceback" not in f"{broken.value.body} {late.value.body}"
