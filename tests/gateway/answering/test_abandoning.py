"""Tokens for nobody: what was seen, and what is estimated of what was not."""

import msgspec
import pytest

from backends.contract import GenerateRequest
from backends.registry import REGISTRY
from gateway.answering.abandoning import abandoned
from gateway.fleet.ledger import ReplicaLedger, Slot
from tests.gateway.builders import Clock, NoEngine, a_pool

PROMPT, EXPECTED = 4000, 300


class Desk:
    """A request of 4000 tokens, of which 300 are expected back, at a replica of some kind."""

    def __init__(self, kind: str = "vllm", *, stream: bool = True, n: int = 1, **options) -> None:
        self.clock = Clock(10.0)
        engine = NoEngine(REGISTRY.adapter(kind, options))
        self.ledger = ReplicaLedger(a_pool().replicas[0], engine, self.clock)
        self.slot: Slot = self.ledger.take(PROMPT, EXPECTED, lambda: None)
        self.request = GenerateRequest(request_id="r", model="m", stream=stream, prompt="x", n=n)
        self.prefill = self.ledger.model.prefill(PROMPT)
        self.step = self.ledger.model.step(1, self.ledger.kv_seen)

    def after(self, seconds: float, **fields):
        return abandoned(self.slot, self.request, 10.0 + seconds, prompt=PROMPT, expected=EXPECTED, **fields)


def test_what_came_and_was_not_delivered_is_counted_as_seen():
    assert Desk().after(9, seen=40, delivered=38) == (0, 2)
    assert Desk().after(9, seen=40, delivered=0) == (PROMPT, 40)


def test_a_prompt_counts_for_the_share_of_its_time():
    desk = Desk()
    assert desk.after(0.0) == (0, 0)
    assert desk.after(desk.prefill / 4).prompt == pytest.approx(PROMPT / 4, abs=1)
    assert desk.after(10 * desk.prefill) == (PROMPT, 0)


def test_an_engine_that_looks_now_and_then_makes_tokens_until_it_looks():
    """Half a second of trtllm-serve, on average, from the first token on."""
    desk = Desk("trtllm")
    assert desk.after(1, seen=10, delivered=10).output == int(0.5 / desk.step)
    before = desk.after(0.0)
    assert (before.prompt, before.output) == (PROMPT, int((0.5 - desk.prefill) / desk.step))
    assert Desk("trtllm", n=2).after(1, seen=10, delivered=10).output == 2 * 0.5 // desk.step


def test_what_is_not_streamed_is_estimated_by_time():
    desk = Desk("vllm", stream=False)
    assert desk.after(desk.prefill + 50.5 * desk.step) == (PROMPT, 50)
    assert desk.after(100.0) == (PROMPT, EXPECTED)  # and no more than was expected


@pytest.mark.parametrize(("attentive", "streamed"), [(False, (PROMPT, EXPECTED)), (True, (0, 0))])
def test_what_triton_computes_to_its_end(attentive, streamed):
    """Whole answers always; streams unless its model looks for its client, which BLS as shipped does not."""
    assert Desk("triton", stream=False, attentive=attentive).after(0.001) == (PROMPT, EXPECTED)
    assert Desk("triton", stream=True, attentive=attentive).after(0.0) == streamed


def test_an_answer_that_outran_what_was_expected_goes_on():
    """Up to its bound."""
    desk = Desk("triton")
    assert desk.after(9, seen=EXPECTED + 50, delivered=EXPECTED + 50).output == EXPECTED
    desk.request = msgspec.structs.replace(desk.request, max_tokens=EXPECTED + 70)
    assert desk.after(9, seen=EXPECTED + 50, delivered=EXPECTED + 50).output == 20


def test_what_the_engine_ended_itself_does_not_go_on():
    assert Desk("trtllm").after(1, seen=10, delivered=10, given_up=False) == (0, 0)
    assert Desk("trtllm").after(1, seen=10, given_up=False) == (PROMPT, 10)
