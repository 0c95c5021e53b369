"""The stop cutter: any division of a text gives what the whole text gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.stopping import StopCutter


def cut(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    cutter = StopCutter(stops)
    text = "".join(cutter.feed(piece) for piece in pieces) + cutter.flush()
    return text, cutter.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello"], [], ("Hello", False)),
        (["Hello"], [""], ("Hello", False)),
        (["He", "llo"], ["ll"], ("He", True)),
        (["a EN", "D b"], ["END"], ("a ", True)),
        (["a EN", "X b"], ["END"], ("a ENX b", False)),
        (["a EN"], ["END"], ("a EN", False)),
        (["aab"], ["ab"], ("a", True)),
        (["a", "b", "c", "d"], ["abc", "b"], ("", True)),  # the longer one begins first, though it ends last
        (["a", "b", "x"], ["abc", "b"], ("a", True)),
        (["ab"], ["abc", "b"], ("a", True)),
    ],
)
def test_the_text_ends_before_the_first_stop_string(
    pieces: list[str], stops: list[str], expected: tuple[str, bool]
) -> None:
    """Across pieces, and for the earliest of several."""
    assert cut(pieces, stops) == expected


def test_only_what_is_in_doubt_is_held_back() -> None:
    """Text that cannot belong to a stop string leaves at once."""
    cutter = StopCutter(["END"])
    assert cutter.feed("some text E") == "some text "
    assert cutter.feed("NE") == "EN"
    assert cutter.feed("ND and more") == ""
    assert cutter.stopped
    assert cutter.feed("again") == ""
    assert cutter.flush() == ""


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("ab", max_size=4)),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    """A two-letter alphabet makes overlaps likely."""
    whole = "".join(pieces)
    first = min((whole.find(stop) for stop in stops if stop in whole), default=None)
    assert cut(pieces, stops) == (whole[:first], first is not None)
