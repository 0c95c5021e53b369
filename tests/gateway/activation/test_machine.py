"""The states of a pool that may sleep, on a clock set by hand; then all that can happen, in any order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.activation.machine import BACKOFF_MOST, GUESS, KEPT, Machine


def awake(now: float = 100.0, **more: object) -> Machine:
    machine = Machine(now, **more)  # type: ignore[arg-type]
    machine.ask(now)
    machine.woke(now)
    return machine


def test_who_asks_first_starts_the_wake_and_the_others_wait():
    machine = Machine(100.0)
    assert [machine.ask(101.0), machine.ask(102.0), machine.ask(103.0)] == ["start", "wait", "wait"]
    assert machine.woke(109.0) == 8.0
    assert (machine.ask(110.0), machine.state, machine.since) == ("awake", "awake", 109.0)


def test_an_idle_pool_sleeps_once_its_time_has_come():
    machine = awake(idle_after=60.0)
    assert machine.tick(130.0, in_use=True) is None
    assert machine.tick(189.9, in_use=False) is None, "it was in use until 130"
    assert machine.tick(190.0, in_use=False) == "cool"
    assert machine.tick(500.0, in_use=False) is None, "once"
    assert machine.cooled(191.0) is None
    assert (machine.state, machine.since) == ("asleep", 191.0)


def test_a_request_is_use_though_it_has_ended_before_the_tick():
    machine = awake(idle_after=60.0)
    machine.ask(150.0)
    assert machine.tick(170.0, in_use=False) is None
    assert machine.tick(210.0, in_use=False) == "cool"


def test_asked_while_it_cools_it_is_woken_as_soon_as_it_sleeps():
    machine = awake(idle_after=60.0)
    machine.tick(200.0, in_use=False)
    assert machine.ask(201.0) == "wait"
    assert machine.cooled(205.0) == "start"
    assert machine.state == "waking"
    assert machine.woke(206.0) == 1.0


def test_it_never_sleeps_without_a_dwell_time():
    assert awake().tick(1e9, in_use=False) is None


def test_failures_are_followed_by_longer_and_longer_pauses():
    machine, now, pauses = Machine(0.0), 0.0, []
    for _ in range(9):
        assert machine.ask(now) == "start"
        machine.wake_failed(now, "no GPU")
        pauses.append(machine.not_before - now)
        assert machine.ask(now + pauses[-1] / 2) == "not_yet"
        now = machine.not_before
    assert pauses == [2, 4, 8, 16, 32, 64, 120, 120, 120]
    assert machine.why == "no GPU"
    assert machine.ask(now, by_hand=True) == "start"
    machine.woke(now)
    assert (machine.failures, machine.why) == (0, None)


def test_by_hand_it_is_tried_again_at_once():
    machine = Machine(0.0)
    machine.ask(0.0)
    machine.wake_failed(0.0, "x")
    assert machine.ask(0.1) == "not_yet"
    assert machine.ask(0.1, by_hand=True) == "start"


@pytest.mark.parametrize(
    ("took", "expected"),
    [((), GUESS), ((30.0,), 30.0), ((30.0, 50.0, 31.0), 31.0), ((1.0, *(9.0,) * KEPT), 9.0)],
)
def test_retry_after_is_the_median_of_what_wakes_took(took, expected):
    machine = Machine(0.0, past=took)
    assert machine.retry_after(5.0) == expected
    machine.ask(10.0)
    assert machine.retry_after(10.0 + expected / 2) == max(1.0, expected / 2)
    assert machine.retry_after(1000.0) == 1.0, "overdue: soon"
    machine.wake_failed(20.0, "x")
    assert machine.retry_after(20.0) == expected + 2.0


def test_it_may_stay_awake_be_lost_and_be_found():
    machine = awake(idle_after=10.0)
    machine.tick(110.0, in_use=False)
    machine.ask(110.5)
    machine.stayed(111.0, "its engines compute for somebody else")
    assert (machine.state, machine.why) == ("awake", "its engines compute for somebody else")
    assert machine.tick(120.9, in_use=False) is None, "not before another dwell time"
    machine.lost(130.0, "gone")
    assert machine.ask(131.0) == "start"
    machine.wake_failed(132.0, "x")
    machine.found_awake(133.0)
    assert (machine.state, machine.failures, machine.ask(134.0)) == ("awake", 0, "awake")


class AnyOrder(RuleBasedStateMachine):
    """One wake at a time, one cooling at a time, never both; nobody who waits is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.machine = Machine(0.0, idle_after=5.0)
        self.waking = self.cooling = self.waiting = False

    @rule(seconds=st.floats(0.0, 50.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(by_hand=st.booleans())
    def ask(self, by_hand: bool) -> None:
        answer = self.machine.ask(self.now, by_hand=by_hand)
        if answer == "start":
            assert not self.waking, "two wakes"
            assert not self.cooling
            self.waking = True
        if answer in ("start", "wait"):
            assert self.waking or self.cooling, "it waits for nothing"
            self.waiting = True
        if answer == "awake":
            assert not self.waking
            assert not self.cooling, "a request would meet a sleeping engine"
        if answer == "not_yet":
            assert not by_hand
            assert self.machine.not_before - self.now <= BACKOFF_MOST

    @precondition(lambda self: self.waking)
    @rule(well=st.booleans())
    def wake_ends(self, well: bool) -> None:
        self.waking = self.waiting = False
        if well:
            assert self.machine.woke(self.now) >= 0
        else:
            self.machine.wake_failed(self.now, "x")

    @rule(in_use=st.booleans())
    def tick(self, in_use: bool) -> None:
        if self.machine.tick(self.now, in_use=in_use) == "cool":
            assert not in_use
            assert not self.waiting
            assert not self.cooling
            self.cooling = True

    @precondition(lambda self: self.cooling)
    @rule(asleep=st.booleans())
    def cooling_ends(self, asleep: bool) -> None:
        self.cooling = False
        if not asleep:
            self.machine.stayed(self.now, "x")
            self.waiting = False
        elif self.machine.cooled(self.now) == "start":
            assert self.waiting
            self.waking = True
        else:
            assert not self.waiting, "somebody has asked, and is forgotten"

    @rule()
    def by_hand(self) -> None:
        if self.machine.cool(self.now):
            assert not self.cooling
            self.cooling = True

    @rule()
    def seen(self) -> None:
        self.machine.found_awake(self.now)

    @rule()
    def gone(self) -> None:
        self.machine.lost(self.now, "x")

    @invariant()
    def state_is_what_is_under_way(self) -> None:
        assert (self.machine.state == "waking") == self.waking
        assert (self.machine.state == "cooling") == self.cooling
        assert self.machine.since <= self.now
        assert self.machine.retry_after(self.now) >= 1.0


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
