"""What is remembered of system prompts: the frequent ones, within bounds, and nothing of the others."""

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.activation import prefixes
from gateway.activation.prefixes import COUNTERS, LONGEST, MOST, SEEN, Prefixes, system_prompt


def noted(*texts: str) -> Prefixes:
    seen = Prefixes()
    for text in texts:
        seen.note("m", text)
    return seen


def test_the_most_frequent_first():
    seen = noted(*["often"] * 9, *["sometimes"] * 5, *["rare"] * (SEEN - 1))
    assert seen.common(5) == [("m", "often"), ("m", "sometimes")]
    assert seen.common(1) == [("m", "often")]


def test_a_text_that_was_said_once_or_twice_is_not_kept():
    seen = noted(*["a secret"] * (SEEN - 1))
    assert seen.characters == 0
    assert "a secret" not in repr([counter.text for counter in seen._counters.values()])


def test_models_have_their_own():
    seen = Prefixes()
    for _ in range(SEEN):
        seen.note("a", "text")
    seen.note("b", "text")
    assert seen.common(5) == [("a", "text")]


def test_newcomers_do_not_pass_for_common():
    """They take over a count that is not theirs."""
    seen = noted(*[str(i) for i in range(COUNTERS)] * SEEN)
    seen.note("m", "new")
    assert ("m", "new") not in seen.common(2 * COUNTERS)


def test_a_frequent_one_survives_a_flood_of_others():
    seen = Prefixes()
    for i in range(5 * COUNTERS):
        seen.note("m", str(i))
        if i % 4 == 0:
            seen.note("m", "frequent")
    assert seen.common(1) == [("m", "frequent")]


def test_yesterdays_make_room(monkeypatch):
    monkeypatch.setattr(prefixes, "AGE", 50)
    seen = noted(*["yesterday"] * 40, *["today"] * 60)
    assert seen.common(1) == [("m", "today")]


def test_long_ones_are_not_kept():
    assert noted(*["x" * (LONGEST + 1)] * 5).common(1) == []


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 6)), max_size=60))
def test_bounds_hold(notes):
    seen = Prefixes()
    for which, times in notes:
        text = f"{which} " * (which * 300)
        for _ in range(times):
            seen.note("m", text or "x")
    assert len(seen) <= COUNTERS
    texts = [counter.text for counter in seen._counters.values() if counter.text is not None]
    assert seen.characters == sum(map(len, texts)) <= MOST


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_a_chat_begins_with(role):
    assert (
        system_prompt([{"role": role, "content": "You are."}, {"role": "user", "content": "x"}]) == "You are."
    )


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        [{"role": "user", "content": "x"}],
        [{"role": "system", "content": ""}],
        [{"role": "system"}],
        [{"role": "system", "content": [{"type": "text", "text": "x"}]}],
    ],
)
def test_what_begins_with_nothing_of_the_kind(messages):
    assert system_prompt(messages) is None


def test_a_note_costs_microseconds():
    """Of a system prompt of 4 KB, each time another object."""
    seen, texts = Prefixes(), [f"word {i % 20} " * 500 for i in range(2000)]
    seconds = min(timeit.repeat(lambda: [seen.note("m", text) for text in texts], number=1, repeat=3))
    assert seconds / len(texts) < 50e-6
