"""Our count and the engine's: who is told, when, and when not."""

import logging

import pytest

from gateway.tokens.drift import Drift, difference


@pytest.mark.parametrize(
    ("ours", "told", "cached", "more"),
    [
        (100, 101, None, 1),
        (100, 100, 64, 0),
        (100, 36, 64, 0),
        (100, 99, 0, -1),
        (100, 90, 64, -10),
    ],
)
def test_cached_tokens_may_be_left_out_by_the_engine(ours, told, cached, more):
    """With or without them is as good."""
    assert difference(ours, told, cached) == more


def compare(
    drift: Drift, mores: list[int], start: float = 0.0, ours: int = 1000, pool: str = "pool"
) -> list[int]:
    """The positions at which a warning was logged; one pair a second."""
    return [
        index
        for index, more in enumerate(mores)
        if drift.compare("llama", pool, ours, more, 0.05, start + index)
    ]


def test_one_bos_too_many_is_told(caplog):
    """One token of a thousand, but always: at the tenth prompt, once an hour, each pool by itself."""
    drift = Drift()
    with caplog.at_level(logging.WARNING):
        assert compare(drift, [1] * 100) == [9]
        assert compare(drift, [1] * 10, pool="other") == [9]
        assert compare(drift, [1] * 2, start=3608.0) == [1]
    text = caplog.messages[0]
    for fact in (
        "model llama in pool pool",
        "1001 tokens there, 1000 here",
        "headgate tokenizers verify --live",
    ):
        assert fact in text


def test_one_odd_pair_is_not_told():
    """Nor are a few small differences, one way and the other."""
    drift = Drift()
    assert compare(drift, [0] * 10 + [500] + [0] * 9) == []
    assert compare(drift, [1, -1, 0] * 20) == []


def test_large_differences_are_told_whichever_way_they_go():
    assert compare(Drift(), [100, -100] * 10) != []


def test_equal_counts_are_silent():
    assert compare(Drift(), [0] * 100) == []
