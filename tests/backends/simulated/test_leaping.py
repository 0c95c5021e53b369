"""Leaping over steps changes nothing: the same sequences start, end and give way at the same times."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulated.engine import PROFILES, CapacityError, Engine, profile
from backends.simulated.leaping import LeapingEngine

PROFILE = profile("h200", kv_tokens=900, max_sequences=5, step_tokens=128)

requests = st.lists(
    st.tuples(
        st.integers(1, 400),  # prompt
        st.integers(1, 60),  # output
        st.floats(0, 1),  # arrival
        st.one_of(st.none(), st.floats(0.001, 0.5)),  # cancelled so long after it
    ),
    max_size=20,
)


def events_of(plan):
    """(time, tie, what, number) of a plan, in order."""
    events = [(arrival, number, "submit", number) for number, (_, _, arrival, _) in enumerate(plan)]
    events += [
        (arrival + later, number, "cancel", number)
        for number, (_, _, arrival, later) in enumerate(plan)
        if later is not None
    ]
    return sorted(events)


def stepped(plan, engine):
    """{number: (first token, end)}, and who was sent back when; step by step."""
    first, last, back, said, gone = {}, {}, [], {}, set()
    events = events_of(plan)
    now = 0.0
    while events or engine.next_event(now) is not None:
        due = engine.next_event(now)
        if events and (due is None or events[0][0] <= due):
            now, _, what, number = events.pop(0)
            if what == "submit":
                engine.submit(now, number, plan[number][0], plan[number][1])
            elif engine.cancel(now, number):
                gone.add(number)
            continue
        step = engine.step(due)
        now = due
        back += [(number, step.start) for number in step.preempted]
        # A cancel in the course of the step loses its token.
        lost = {n for at, _, what, n in events if what == "cancel" and at <= step.end} - set(step.finished)
        for number in step.produced:
            if number in lost:
                continue
            said[number] = said.get(number, 0) + 1
            if said[number] == 1:
                first[number] = step.end
            if said[number] == plan[number][1]:
                last[number] = step.end
    return first, last, back, gone


def leapt(plan, engine):
    first, last, back, gone = {}, {}, [], set()
    events = events_of(plan)
    now = 0.0
    while events or engine.next_event(now) is not None:
        due = engine.next_event(now)
        if events and (due is None or events[0][0] <= due):
            now, _, what, number = events.pop(0)
            if what == "submit":
                engine.submit(now, number, plan[number][0], plan[number][1])
            elif engine.cancel(now, number):
                gone.add(number)
            continue
        now = due
        ended = engine.advance(due)
        if ended is None:
            continue
        back += [(number, ended.start) for number in ended.preempted]
        first |= {number: ended.end for number in ended.started if number not in gone}
        last |= dict.fromkeys(ended.finished, ended.end)
    return first, last, back, gone


@settings(max_examples=300, deadline=None)
@given(requests, st.integers(470, 1500), st.sampled_from([1, 8, 1 << 30]))
def test_a_leap_is_as_many_steps(plan, kv_tokens, longest):
    """Same first tokens, ends, preemptions and counts, whatever arrives or is cancelled in the middle."""
    shape = profile("h200", kv_tokens=kv_tokens, max_sequences=5, step_tokens=128)
    slow, fast = Engine(shape), LeapingEngine(shape, longest=longest)
    expected, found = stepped(plan, slow), leapt(plan, fast)
    for one, other in zip(expected[:2], found[:2], strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    assert [number for number, _ in expected[2]] == [number for number, _ in found[2]]
    assert expected[3] == found[3]
    one, other = slow.statistics(), fast.statistics()
    assert other.kv_used == 0
    for name in ("submitted", "finished", "cancelled", "preempted", "steps", "running", "waiting"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.prompt_tokens == other.prompt_tokens
    assert one.busy_s == pytest.approx(other.busy_s)


def test_one_leap_for_a_whole_answer():
    """A thousand tokens of one sequence are two events: its prompt, and all the rest."""
    engine = LeapingEngine(PROFILES["h200"])
    engine.submit(0.0, "a", 1000, 1001)
    assert engine.advance(0.0) is None
    read = engine.advance(engine.next_event(0.0))
    assert (read.started, read.finished, read.steps) == (["a"], [], 1)
    said = engine.advance(engine.next_event(0.0))
    assert (said.started, said.finished, said.steps) == ([], ["a"], 1000)
    assert engine.next_event(9.0) is None
    assert engine.statistics().output_tokens == 1001


def test_what_was_said_can_be_asked_in_between():
    """`streamed` grows by one with each step, without an event."""
    engine, reference = LeapingEngine(PROFILES["h200"]), Engine(PROFILES["h200"])
    for each in (engine, reference):
        each.submit(0.0, "a", 1000, 101)
    engine.advance(0.0)
    engine.advance(reference.step(0.0).end)
    start = engine.streamed(0.0)
    for tokens in range(100):
        step = reference.step(reference.next_event(0.0))
        assert engine.streamed(step.end - 1e-6) == start + tokens
        assert engine.streamed(step.end + 1e-6) == start + tokens + 1


def test_cached_tokens_are_not_computed_again():
    """They are read by the attention of the others, and hold cache; at least one token is computed."""
    engine = LeapingEngine(PROFILES["h200"])
    engine.submit(0.0, "a", 1000, 1, cached_tokens=5000)
    engine.advance(0.0)
    assert engine.next_event(0.0) == pytest.approx(PROFILES["h200"].step_time(1, 999.5))
    engine.advance(engine.next_event(0.0))
    assert engine.statistics().prompt_tokens == 1


def test_what_never_fits_is_refused():
    engine = LeapingEngine(PROFILE)
    with pytest.raises(CapacityError):
        engine.submit(0.0, "a", 890, 11)
    engine.submit(0.0, "a", 890, 10)
    with pytest.raises(ValueError, match="here already"):
        engine.submit(0.0, "a", 1, 1)
    with pytest.raises(ValueError, match="at least one"):
        engine.submit(0.0, "b", 1, 0)
    engine.advance(0.0)
    with pytest.raises(ValueError, match="under way"):
        engine.advance(0.0)
    assert "1 running" in repr(engine)
