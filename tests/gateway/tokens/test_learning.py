"""Learned ratios: known error, bounded memory; and who is trusted."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Weighed
from gateway.tokens.learning import Interval, Overhead, Ratios, Trust, size_class


def weighed(
    size: int = 1000, kind: str = "words:latin", overhead: float = 0.0, tenant: str = "acme"
) -> Weighed:
    return Weighed((tenant, "m", "chat", kind, size_class(size)), size, overhead)


def taught(ratio, count: int = 64, **options) -> Ratios:
    """`ratio` is tokens per byte, or says it."""
    ratios = Ratios(**options)
    for _ in range(count):
        ratios.observe(weighed(), round(1000 * (ratio() if callable(ratio) else ratio)))
    return ratios


def test_nothing_is_said_before_enough_was_seen():
    ratios = taught(0.25, 63)
    assert ratios.interval(weighed()) is None
    assert ratios.seen(weighed()) == (63, 64)
    ratios.observe(weighed(), 250)
    assert ratios.interval(weighed()) == Interval(241, 250, 259), "never narrower than 2 % and 4 tokens"
    assert ratios.interval(weighed(kind="han:4")) is None, "each kind by itself"
    assert ratios.interval(weighed(100_000)) is None, "and each size"


def test_the_template_is_taken_off_and_put_on():
    """A prompt of five messages costs what its template costs."""
    around = Overhead(request=10, message=4)
    ratios = Ratios()
    for _ in range(64):
        ratios.observe(weighed(overhead=around.of(1)), 264)
    interval = ratios.interval(weighed(overhead=around.of(5)))
    assert interval is not None
    assert interval.tokens == 280


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 0.2))
def test_the_interval_holds_what_it_says(seed, spread):
    """Ratios of a normal distribution: of the next 400, at most 4 % lie outside."""
    chance = random.Random(seed)

    def ratio() -> float:
        return max(0.05, chance.gauss(0.25, 0.25 * spread))

    ratios = taught(ratio, 256)
    interval = ratios.interval(weighed())
    assert interval is not None
    outside = sum(not interval.low <= 1000 * ratio() <= interval.high for _ in range(400))
    assert outside <= 16


def test_it_follows_a_change():
    """The last 256 count; in between, the interval holds both."""
    ratios = taught(0.25, 1000)
    for _ in range(20):
        ratios.observe(weighed(), 500)
    assert ratios.interval(weighed()).high >= 500
    for _ in range(256):
        ratios.observe(weighed(), 500)
    assert ratios.interval(weighed()).tokens == 500


def test_a_newcomer_is_judged_by_all_others_and_then_by_itself():
    """Nobody spoils what a tenant has taught itself, and one freak spoils nothing."""
    ratios = taught(0.25)
    ratios.observe(weighed(), 900)
    assert ratios.interval(weighed(tenant="new")) == ratios.interval(weighed()) == Interval(241, 250, 259)
    for _ in range(64):
        ratios.observe(weighed(tenant="other"), 800)
    assert ratios.interval(weighed()).tokens == 250
    assert ratios.interval(weighed(tenant="other")).tokens == 800
    newcomer = ratios.interval(weighed(tenant="new"))
    assert newcomer.high > 2 * newcomer.low


def test_memory_is_bounded():
    """The longest unused key goes first."""
    ratios = Ratios(learned_after=1, keys=4)
    for kind in ("a", "b"):
        ratios.observe(weighed(kind=kind), 100)
    ratios.interval(weighed(kind="a"))
    ratios.observe(weighed(kind="c"), 100)
    assert ratios.interval(weighed(kind="a")) is not None
    assert ratios.interval(weighed(kind="c")) is not None
    assert ratios.interval(weighed(kind="d")) is None
    statistics = ratios.statistics()
    assert (statistics.keys, statistics.learned, statistics.evicted) == (4, 4, 2)


@pytest.mark.parametrize(
    ("tokens", "far"), [(100, False), (120, False), (121, True), (79, True), (80, False)]
)
def test_far_is_twice_the_interval(tokens, far):
    assert Interval(90, 100, 110).far_from(tokens) is far


def test_a_tenant_that_was_far_off_is_counted_for_a_while():
    """64 good ones first; after the next offence twice as many."""
    trust = Trust()
    assert trust.doubt("t", "m") is None
    trust.verified("t", "m", far=True)
    assert trust.doubt("t", "m") is not None
    assert trust.doubt("other", "m") is None
    assert trust.doubt("t", "other") is None
    for _ in range(64):
        assert trust.doubt("t", "m") is not None
        trust.verified("t", "m", far=False)
    assert trust.doubt("t", "m") is None
    trust.verified("t", "m", far=True)
    for _ in range(128):
        assert trust.doubt("t", "m") is not None
        trust.verified("t", "m", far=False)
    assert trust.doubt("t", "m") is None


def test_estimates_do_not_stand_unverified_for_ever():
    """An engine that tells no usage; a hundred requests at a time."""
    trust = Trust()
    for _ in range(64):
        assert trust.doubt("t", "m") is None
        trust.given("t", "m")
    assert trust.doubt("t", "m") == "too many estimates of this tenant stand unverified"
    trust.verified("t", "m", far=False)
    assert trust.doubt("t", "m") is None
