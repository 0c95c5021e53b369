"""Hostile text costs the event loop at most 50 ms, in any form: the thread CPU of its longest callback."""

import asyncio
import gc
import json
import random
import sys
from collections.abc import Iterator

import pytest

from backends.contract import GenerateRequest
from gateway.config.snapshot import Model, TokenizerSpec
from gateway.tokens.counting import Counting, CountingLimits
from gateway.tokens.tokenizing import Tokenizer
from tests.benchmarks.counting import FORMS, Longest, body_of, timed_callbacks
from tests.end_to_end.world import TOKENIZER

SPEC = TokenizerSpec("huggingface", path=str(TOKENIZER))
MODEL = Model("m", SPEC)
BOUND = 0.050 if sys.gettrace() is None else 0.250
"""Seconds; measuring coverage makes each line several times as slow."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(SPEC)


@pytest.fixture
def longest() -> Iterator[Longest]:
    """What other tests left on the heap is not this loop's to collect; `serve` freezes its own, too."""
    gc.collect()
    gc.freeze()
    with timed_callbacks() as longest:
        yield longest


def request_of(form: str, seed: int) -> GenerateRequest:
    body = json.loads(body_of(form, random.Random(seed), 600_000))
    parameters = {"tools": body["tools"]} if "tools" in body else {}
    return GenerateRequest(
        request_id="r", model="m", stream=False, messages=body["messages"], parameters=parameters
    )


@pytest.mark.parametrize("form", FORMS)
async def test_a_hostile_prompt_costs_the_loop_little(tokenizer, longest, form):
    """600 KB, counted and rendered. Exact in the end: nothing was saved by giving up."""
    counting = Counting({SPEC: tokenizer}, CountingLimits(seconds=60))
    requests = [request_of(form, seed) for seed in range(2)]
    await asyncio.sleep(0)
    longest.clear()
    for request in requests:
        count = await counting.count(MODEL, request)
        await counting.prepare(MODEL, request, adds_bos=False, counted=count)
        assert count.exact
    await asyncio.sleep(0)
    assert 0 < longest.cpu < BOUND, longest.what
    await counting.aclose()


async def test_estimating_it_costs_the_loop_little_too(tokenizer, longest):
    """Where no thread is to be had: no text is read then, or only its length."""
    counting = Counting({SPEC: tokenizer}, CountingLimits(threads=1, waiting=-1, seconds=60))
    requests = [request_of(form, 1) for form in FORMS]
    await asyncio.sleep(0)
    for request in requests:
        longest.clear()
        assert not (await counting.count(MODEL, request)).exact
        await asyncio.sleep(0)
        assert 0 < longest.cpu < BOUND, longest.what
    await counting.aclose()


async def test_the_clock_of_this_file_sees_what_holds_the_loop(longest):
    """Counting on the loop itself, with the plain library, is seen and named."""
    counter = Tokenizer.load(SPEC).counter

    async def hold() -> None:
        counter.count("the gate " * 400_000, add_special_tokens=False)

    async with asyncio.TaskGroup() as group:
        group.create_task(hold())
    assert longest.cpu > 0.050
    assert "hold" in longest.what


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


async def test_a_panic_on_the_loop_or_off_it_degrades_to_the_estimate(tokenizer, monkeypatch):
    """Short prompts are counted on the loop, long ones in a thread; both survive and are told."""
    counting = Counting({SPEC: tokenizer})

    def panic(*_: object, **__: object) -> int:
        raise Panic("called `Result::unwrap()` on an `Err` value")

    monkeypatch.setattr(type(tokenizer.counter), "count", panic)
    for number, text in enumerate(("short and never seen", "long and never seen " * 1000), 1):
        request = GenerateRequest(request_id="r", model="m", stream=False, prompt=text)
        count = await counting.count(MODEL, request)
        assert not count.exact
        assert "(failed)" in count.source
        assert counting.statistics().estimated == {"failed": number}
    await counting.aclose()
