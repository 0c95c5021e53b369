"""When steps are on: thresholds, hysteresis, dwell, and what a line says of itself."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.config.snapshot import OverloadStep, PriorityClass
from gateway.queueing.brownout import Ladder, Signals, signals_of
from tests.gateway.queueing.pools import Pool

ONE = OverloadStep(queue_wait=1.0, off_below=0.5, dwell=10.0, max_tokens=512)
THREE = OverloadStep(queue_wait=3.0, off_below=0.5, dwell=10.0, max_tokens=256)


def on(ladder, now, wait, waiting=1):
    """The numbers of the steps that are on after a look."""
    ladder.look(now, Signals(wait, waiting))
    return [rung.number for rung in ladder.active]


def test_a_step_goes_on_at_its_threshold_at_once():
    ladder = Ladder([ONE, THREE])
    assert on(ladder, 0.0, 0.99) == []
    assert on(ladder, 0.1, 1.0) == [1]
    assert on(ladder, 0.2, 8.0) == [1, 2]
    assert ladder.highest == 2


def test_it_goes_off_only_below_its_part_and_after_the_dwell():
    ladder = Ladder([ONE])
    assert on(ladder, 0.0, 1.0) == [1]
    assert on(ladder, 5.0, 0.6) == [1]
    assert on(ladder, 30.0, 0.5) == [1], "half of the threshold is not below it"
    assert on(ladder, 31.0, 0.49) == [1]
    assert on(ladder, 36.0, 0.51) == [1], "the calm is over, and has to begin again"
    assert on(ladder, 37.0, 0.1) == [1]
    assert on(ladder, 46.9, 0.1) == [1]
    assert on(ladder, 47.0, 0.1) == []
    (rung,) = ladder.rungs()
    assert (rung.on, rung.since) == (False, 47.0)


def test_steps_go_off_one_by_one():
    ladder = Ladder([ONE, THREE])
    on(ladder, 0.0, 4.0)
    for at in range(1, 12):
        found = on(ladder, float(at), 1.2)
    assert found == [1]


def test_nobody_is_degraded_after_a_long_silence():
    """Where nothing was looked at for the dwell, the line was calm: the first one after it loses nothing."""
    ladder = Ladder([ONE])
    assert on(ladder, 0.0, 2.0) == [1]
    assert on(ladder, 600.0, 0.0, waiting=0) == []


def test_after_a_shorter_silence_the_dwell_begins():
    ladder = Ladder([ONE])
    on(ladder, 0.0, 2.0)
    assert on(ladder, 9.0, 0.0) == [1]
    assert on(ladder, 18.9, 0.0) == [1]
    assert on(ladder, 19.0, 0.0) == []


def test_all_signals_of_a_step_must_reach_their_thresholds():
    both = OverloadStep(queue_wait=1.0, waiting=10, dwell=0.0, n=1)
    ladder = Ladder([both])
    assert on(ladder, 0.0, 5.0, waiting=9) == []
    assert on(ladder, 1.0, 0.9, waiting=50) == []
    assert on(ladder, 2.0, 1.0, waiting=10) == [1]
    assert on(ladder, 3.0, 5.0, waiting=4) == [], "one of them below half is enough to go off"


@given(st.lists(st.tuples(st.floats(0.01, 20.0), st.floats(0.0, 3.0)), max_size=60))
def test_it_never_flickers(looks):
    """Whatever the line does, a step that went on stays on for the dwell; it is on after each look above its
    threshold."""
    ladder, now, went_on = Ladder([ONE]), 0.0, None
    for pause, wait in looks:
        now += pause
        found = on(ladder, now, wait)
        if wait >= 1.0:
            assert found == [1]
            went_on = now
        elif found == []:
            assert went_on is None or now - went_on >= ONE.dwell
            went_on = None


def test_a_line_counts_what_may_go_before_the_class():
    """What waits as `batch` is before a batch request, and not before an interactive one."""
    pool = Pool("a", in_flight=1)
    pool.ask(prompt=100, output=100)
    for _ in range(50):
        pool.ask(prompt=2000, output=500, priority=PriorityClass.batch)
    calm = signals_of(pool.scheduler, PriorityClass.interactive)
    behind = signals_of(pool.scheduler, PriorityClass.batch)
    assert calm.waiting == behind.waiting == 50
    assert calm.queue_wait == 0.0
    assert behind.queue_wait > 1.0
    pool.ask(prompt=2000, output=500, priority=PriorityClass.interactive)
    now = signals_of(pool.scheduler, PriorityClass.interactive)
    assert 0.0 < now.queue_wait < behind.queue_wait


def test_an_empty_line_says_nothing():
    assert signals_of(Pool("a").scheduler, PriorityClass.batch) == Signals()


def test_orders_without_a_bound_count_the_whole_line():
    for order in ("sjf", "fcfs"):
        pool = Pool("a", order, in_flight=1)
        for _ in range(20):
            pool.ask(prompt=2000, output=500, priority=PriorityClass.interactive)
        wait = pool.scheduler.class_wait(PriorityClass.interactive)
        assert wait == pool.scheduler.drain_time() > 1.0
