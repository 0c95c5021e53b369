"""What a model behind a real Triton may send: bytes that are no text, tensors that nobody wants, nothing."""

from pathlib import Path

import openai
import pytest

from tests.end_to_end.world import world
from tests.real_triton.asking import STREAM, TEXTS, answer_of, ask, pool
from tests.real_triton.server import TritonServer

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "tensorrt_llm_bls_accumulating"])
async def test_bytes_that_are_no_utf8(triton: TritonServer, model: str, tmp_path: Path) -> None:
    """Triton passes them on inside its JSON. In deltas a character that is cut in two is lost; where
    all text comes each time, it becomes whole. What is around it stays, and no half is ever sent."""
    text = f"{TEXTS['Chinese']} !invalid"
    async with world(tmp_path, {"pool": pool(triton, model)}) as here, here.sdk() as sdk:
        streamed, _, _ = await answer_of(sdk, True, **ask(text))
        whole, _, _ = await answer_of(sdk, False, **ask(text))
        cut, _, _ = await answer_of(sdk, False, **ask(text, max_tokens=5))
    assert whole == text[::-1]
    assert cut.rstrip("\ufffd") == text[::-1][: len(cut.rstrip("\ufffd"))]
    assert cut.endswith("\ufffd")
    if model == "tensorrt_llm_bls":
        assert "\ufffd" in streamed
        kept = iter(text[::-1])
        assert all(character in kept for character in streamed if character != "\ufffd")
        assert streamed.startswith("dilavni!")
    else:
        assert streamed == text[::-1]


@STREAM
async def test_tensors_that_nobody_wants(triton: TritonServer, stream: bool, tmp_path: Path) -> None:
    """Logits beside the text, 20 KB with each response: dropped unread."""
    text = f"{TEXTS['English']} !logits 2000"
    async with world(tmp_path, {"pool": pool(triton)}) as here, here.sdk() as sdk:
        said, reason, usage = await answer_of(sdk, stream, **ask(text))
    assert (said, reason) == (text[::-1], "stop")
    assert usage.completion_tokens == -(-len(text) // 4)


@STREAM
async def test_nothing_at_all(triton: TritonServer, stream: bool, tmp_path: Path) -> None:
    """A stream without an event, and an answer of status 200 that is an error: neither is an empty answer."""
    async with world(tmp_path, {"pool": pool(triton)}) as here, here.sdk() as sdk:
        with pytest.raises(openai.APIStatusError) as broken:
            await answer_of(sdk, stream, **ask("!nothing"))
    assert broken.value.status_code >= 500
