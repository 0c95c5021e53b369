"""What engines say of their load: kept, aged, and weighed against the ledger."""

from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Load
from gateway.fleet.reported import FRESH, Reported


def test_a_figure_that_is_left_out_keeps_its_last_value():
    reported = Reported()
    assert reported.age(9.0) is None
    reported.note(Load(running=3, waiting=2, kv_usage=0.5), 10.0, 5)
    reported.note(Load(running=1), 15.0, 5)
    assert (reported.load.running, reported.load.waiting, reported.load.kv_usage) == (1, 2, 0.5)
    assert reported.age(17.5) == 2.5


def test_an_answer_that_tells_nothing_is_no_news():
    """An idle trtllm-serve answers an empty list: that is not `idle`."""
    reported = Reported()
    reported.note(Load(running=3), 10.0, 3)
    reported.note(Load(), 15.0, 0)
    assert reported.age(16.0) == 6.0


def test_others_are_believed_at_the_second_report_and_forgotten_with_age():
    reported = Reported()
    reported.note(Load(running=6, waiting=4), 10.0, 3)
    assert reported.foreign(10.0) == 0, "one report may have caught a request between its two ends"
    reported.note(Load(running=6), 15.0, 2)
    assert reported.foreign(15.0) == 4
    assert reported.foreign(15.0 + FRESH) == 4
    assert reported.foreign(15.1 + FRESH) == 0


def test_an_engine_that_tells_only_a_sum():
    reported = Reported()
    for at in (1.0, 2.0):
        reported.note(Load(in_flight=7), at, 2)
    assert reported.foreign(2.0) == 5


COUNTS = st.none() | st.integers(0, 50)


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, st.integers(0, 50)), min_size=1, max_size=8))
def test_never_more_than_reported_and_never_negative(answers):
    reported = Reported()
    for at, (running, waiting, in_flight, own) in enumerate(answers):
        reported.note(Load(running=running, waiting=waiting, in_flight=in_flight), float(at), own)
    most = max((r or 0) + (w or 0) + (i or 0) for r, w, i, _ in answers)
    assert 0 <= reported.foreign(float(len(answers))) <= most
