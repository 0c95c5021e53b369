"""Sums over the last minutes."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.windows import Window

steps = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 9)), max_size=60)


@given(steps, st.floats(0, 200))
def test_it_is_the_sum_of_what_came_lately_to_within_a_part(gaps, later):
    """All of the last nine parts of ten is in it, nothing older than ten."""
    window, now, seen = Window(2, seconds=100.0, parts=10), 0.0, []
    for gap, value in gaps:
        now += gap
        part = window.part(now)
        part[0] += 1
        part[1] += value
        seen.append((now, value))
    end = now + later
    count, total = window.totals(end)
    surely = [value for at, value in seen if at > end - 89]
    perhaps = [value for at, value in seen if at > end - 101]
    assert len(surely) <= count <= len(perhaps)
    assert sum(surely) <= total <= sum(perhaps)


def test_nothing_ever_is_nothing():
    assert list(Window(3).totals(1e6)) == [0.0, 0.0, 0.0]


def test_a_ring_turned_twice_does_not_mix_its_rounds():
    window = Window(1, seconds=10.0, parts=10)
    window.part(3.0)[0] += 5
    window.part(13.5)[0] += 7  # the same place, one round later
    assert list(window.totals(13.9)) == [7.0]
    assert window.seconds == 10.0
