"""The cancellation matrix: what each engine computes for a client that has left, as docs/engines.md tells."""

from pathlib import Path

import pytest

from backends.contract import GenerateRequest
from backends.registry import REGISTRY
from tests.benchmarks.cancellation_matrix import BEGIN, CLOSES, END, PHASES, SETUPS, Phase, measure
from tests.conftest import REPO

TOKENS, SPEED = 400, 8.0
A_FEW = 25
"""Tokens that may be made while sockets close, on a machine with other things to do."""
A_PERIOD = 230
"""Tokens of one sequence in the time between two looks of trtllm-serve, or in llama.cpp's second."""

CASES = [
    (name, stream, phase)
    for name in SETUPS
    for stream in (True, False)
    for phase in PHASES
    if phase == "decoding"
    or name in ("`trtllm`", "`triton`", "`triton`, attentive", "`triton`, llmapi", "`tgi`", "`sglang`")
]


@pytest.mark.parametrize(("name", "stream", "phase"), CASES)
async def test_what_is_wasted(name: str, stream: bool, phase: Phase, tmp_path: Path) -> None:
    """And the gateway's own metric knows of it: too much rather than nothing."""
    wasted = await measure(name, stream, phase, tmp_path, speed=SPEED, tokens=TOKENS)
    if name == "`triton`" or (name == "`triton`, attentive" and not stream):
        assert wasted.output > TOKENS - A_FEW
        assert wasted.counted > 0
    elif name == "`trtllm`" or (name == "`llamacpp`" and not stream):
        assert wasted.output < A_PERIOD
        assert wasted.counted > 0
    else:
        assert wasted.output < A_FEW


def _rows() -> list[list[str]]:
    page = (REPO / "docs" / "engines.md").read_text()
    lines = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_tells_what_the_benchmark_knows() -> None:
    """Else run: python -m tests.benchmarks.cancellation_matrix --write"""
    assert [row[:3] for row in _rows()] == [
        [name, setup.gateway, setup.then] for name, setup in SETUPS.items()
    ]
    assert all(len(row) == 9 and all(row) for row in _rows())


def test_every_engine_is_in_it_with_what_its_adapter_sends() -> None:
    request = GenerateRequest(request_id="r1", model="m", stream=True, prompt="x", rendered="x")
    assert {setup.engine["kind"] for setup in SETUPS.values()} == set(REGISTRY.kinds())
    for setup in SETUPS.values():
        adapter = REGISTRY.adapter(setup.engine["kind"], setup.pool.get("options", {}))
        told = adapter.cancel_request(request)
        assert (told is None) is (setup.gateway == CLOSES)
        if told is not None:
            assert adapter.cancels_first is (told.path == "/abort_request")
