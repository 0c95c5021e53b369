"""Prefill is fed no faster than running answers can bear."""

from typing import Any

import pytest

from gateway.queueing.pacing import LEAST, fed
from gateway.queueing.placements import View
from tests.gateway.queueing.pools import Pool


def view_with(in_flight: int, prompt: int = 1000) -> View:
    pool = Pool("a", settings={"pace": False})
    view = pool.scheduler.views[0]
    for _ in range(in_flight):
        view.ledger.take(prompt, 10, lambda: None).progress(1)
    return view


def test_an_idle_replica_may_be_fed_nearly_all_the_time():
    view = view_with(0)
    fed(view, 10.0, 0.5, target=0.060)
    assert view.full_until == pytest.approx(10.0 + 0.5 / (1 - view.step_s / 0.060))


def test_the_larger_the_batch_the_slower_it_is_fed():
    small, large = view_with(1), view_with(200)
    for view in (small, large):
        fed(view, 10.0, 0.5, target=0.060)
    assert large.full_until > small.full_until + 0.05


def test_the_fill_adds_up_and_runs_out():
    view = view_with(0)
    fed(view, 10.0, 0.5, target=0.060)
    once = view.full_until - 10.0
    fed(view, 10.0, 0.5, target=0.060)
    assert view.full_until == pytest.approx(10.0 + 2 * once)
    fed(view, 100.0, 0.5, target=0.060)
    assert view.full_until == pytest.approx(100.0 + once), "what was not used is not saved"


def test_prompts_always_get_a_part_of_the_time():
    view = view_with(200)
    fed(view, 10.0, 0.3, target=0.001)
    assert view.full_until == pytest.approx(10.0 + 0.3 / LEAST)


def busy(**settings: Any) -> Pool:
    """One replica, an answer running, more than a second of prompts just computed."""
    pool = Pool("a", settings=settings)
    first = pool.ask(100, 500)
    assert first.slot is not None
    first.slot.progress(1)
    client = pool.ask(30_000, 10)
    assert client.slot is not None
    client.slot.progress(1)
    return pool


@pytest.mark.parametrize("prompt", [100, 10_000])
def test_who_would_slow_down_running_answers_waits(prompt: int):
    assert busy().ask(prompt).open
    assert not busy(pace=False).ask(prompt).open


def test_a_tenant_above_its_share_may_not_run_ahead():
    """Half a second of fill: a small prompt of anybody else may still go."""
    pool = Pool("a", in_flight=10)
    pool.ask(1, tenant="quiet")
    for _ in range(6):
        pool.ask(1, tenant="flood")
    for client in pool.clients:
        assert client.slot is not None
        client.slot.progress(1)
    pool.scheduler.views[0].full_until = pool.clock.now + 0.5
    assert pool.ask(1, tenant="flood").open
    assert not pool.ask(1, tenant="quiet").open


def test_the_small_goes_before_the_long_and_nobody_waits_for_ever():
    pool = busy()
    long, small = pool.ask(10_000), pool.ask(100)
    served: list[str] = []
    for _ in range(200):
        pool.tick(0.02)
        for name, client in (("small", small), ("long", long)):
            if client.slot is not None and name not in served:
                served.append(name)
                client.slot.progress(1)
    assert served == ["small", "long"]


def test_a_replica_with_nothing_in_flight_is_never_full():
    pool = busy()
    for client in pool.clients:
        assert client.slot is not None
        client.slot.release()
    assert not pool.ask(10_000).open


def test_while_requests_are_refused_the_long_set_keeps_the_common_target():
    """A tighter target moves the fill further for the same prompt."""
    pool = Pool("a", settings={"tpot_target": 0.020, "tpot_long": 0.100})
    (view,) = pool.scheduler.views

    def fill_of_the_next(long: bool) -> float:
        view.long = long
        client = pool.ask(1000)
        assert client.slot is not None
        client.slot.progress(1)
        client.slot.release()
        return client.item.fill

    loose = fill_of_the_next(long=True)
    assert fill_of_the_next(long=False) > 1.2 * loose
    refused = pool.ask(deadline=pool.clock.now - 1).refusal
    assert refused is not None
    assert refused.reason == "overloaded"
    assert fill_of_the_next(long=True) > 1.2 * loose
    pool.clock.tick(60)
    assert fill_of_the_next(long=True) < 1.1 * loose


def test_a_prompt_that_is_never_read_gives_its_time_back():
    """Its client left, or its slot was taken back for somebody more urgent."""
    pool = Pool("a")
    pool.ask(100)
    (view,) = pool.scheduler.views
    before = view.full_until
    client = pool.ask(1500)
    assert client.slot is not None
    assert view.full_until > before
    client.slot.release()
    assert view.full_until == pytest.approx(before)
