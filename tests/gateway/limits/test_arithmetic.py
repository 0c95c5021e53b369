"""The arithmetic of accounts against rational numbers and the calendar (P1)."""

import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.limits.arithmetic import (
    DAY,
    MOST,
    added,
    drained,
    full_in,
    granted,
    period_of,
    wait_for,
    window_end,
    window_of,
)  # fmt: skip
from tests.gateway.builders import a_limit

AMOUNTS = st.one_of(st.integers(1, 20), st.integers(1, 10**12), st.integers(1, 5 * 10**15))
PERIODS = st.sampled_from([1, 60, 3600, 86400])
ELAPSED = st.one_of(st.integers(0, 2000), st.integers(0, 10**8), st.integers(0, 10**13))


class Bucket(RuleBasedStateMachine):
    """One rate account, beside a reference in rational numbers that drains continuously."""

    @initialize(amount=AMOUNTS, per=PERIODS)
    def begin(self, amount: int, per: int) -> None:
        self.amount, self.period = amount, per * 1000
        self.limit = a_limit(amount, per=per)
        self.used = self.credit = self.seen = self.now = 0
        self.exact = Fraction(0)
        self.admitted: list[tuple[int, int]] = []
        self.reach: list[int] = []
        """For each of those, when the oldest reservation was made that was given back since."""
        self.open: list[int] = []

    def drain(self) -> None:
        elapsed = self.now - self.seen
        self.used, self.credit = drained(self.used, self.credit, elapsed, self.amount, self.period)
        if elapsed > 0:
            self.exact = max(Fraction(0), self.exact - Fraction(elapsed * self.amount, self.period))
        self.seen = max(self.seen, self.now)

    @rule(elapsed=ELAPSED)
    def wait(self, elapsed: int) -> None:
        self.now += elapsed
        before = self.used
        self.drain()
        assert self.used <= before, "time alone never uses anything"

    @rule(back=st.integers(1, 10**6))
    def step_back(self, back: int) -> None:
        """The clock goes back: nothing is added, and the time up to where it was counts once."""
        self.now -= back
        before = self.used, self.credit
        self.drain()
        assert (self.used, self.credit) == before

    @rule(part=st.fractions(0, 2), least=st.fractions(0, 1))
    def charge(self, part: Fraction, least: Fraction) -> None:
        self.drain()
        wanted = int(self.amount * part)
        grant = granted(wanted, int(wanted * least), self.used, self.amount)
        # The account holds no less than the exact reference, and less than one unit more.
        room = self.amount - self.exact
        if grant is None:
            assert int(wanted * least) > room - 1
            return
        assert int(wanted * least) <= grant <= max(0, room)
        self.used = added(self.used, grant)
        self.exact += grant
        self.admitted.append((self.seen, grant))
        self.reach.append(self.seen)
        self.open.append(len(self.admitted) - 1)

    @rule(part=st.fractions(0, 1))
    def give_back(self, part: Fraction) -> None:
        """A refund is at most its reservation; of what has drained meanwhile, nothing is given twice."""
        if self.open:
            self.drain()
            at = self.open.pop()
            when, grant = self.admitted[at]
            back = int(grant * part)
            self.used = added(self.used, -back)
            if not self.used:
                self.credit = 0
            self.exact = max(Fraction(0), self.exact - back)
            self.admitted[at] = when, grant - back
            if back:
                self.reach[at + 1 :] = [min(reach, when) for reach in self.reach[at + 1 :]]

    @rule(need=st.fractions(0, 1))
    def wait_is_sufficient_and_tight(self, need: Fraction) -> None:
        self.drain()
        units = max(1, int(self.amount * need))
        wait = wait_for(self.limit, units, self.used, self.credit, self.seen)
        assert wait is not None
        after, _ = drained(self.used, self.credit, wait, self.amount, self.period)
        assert granted(units, units, after, self.amount) == units
        if wait:
            before, _ = drained(self.used, self.credit, wait - 1, self.amount, self.period)
            assert granted(units, units, before, self.amount) is None

    @rule()
    def full_is_sufficient_and_tight(self) -> None:
        self.drain()
        wait = full_in(self.limit, self.used, self.credit, self.seen)
        assert wait is not None
        assert drained(self.used, self.credit, wait, self.amount, self.period)[0] == 0
        assert not wait or drained(self.used, self.credit, wait - 1, self.amount, self.period)[0] > 0

    @invariant()
    def holds_exactly_what_the_reference_holds(self) -> None:
        if hasattr(self, "used"):
            held = self.used - Fraction(self.credit, self.period) if self.used else Fraction(0)
            assert held == self.exact
            assert 0 <= self.credit < self.period
            assert 0 <= self.used <= MOST

    @invariant()
    def never_admits_above_capacity_and_rate(self) -> None:
        """Over any interval: what was granted in it and not given back is at most amount + rate x t.

        A reservation that is given back whole has drained in part meanwhile, and nobody knows which part of
        what drained was its own: so t counts from when the oldest of those was made.
        """
        if hasattr(self, "admitted"):
            total, since = 0, self.seen
            for (_, grant), reach in zip(reversed(self.admitted), reversed(self.reach), strict=True):
                total += grant
                since = min(since, reach)
                elapsed = self.seen - since
                assert total <= self.amount + Fraction(elapsed * self.amount, self.period)


TestBucket = Bucket.TestCase


@given(st.integers(0, MOST), st.integers(0, 86_399_999), ELAPSED, AMOUNTS, PERIODS)
def test_no_step_passes_what_a_double_holds(used, credit, elapsed, amount, per):
    """The same steps in doubles, as Lua has them, give the same numbers."""
    period = per * 1000
    credit %= period
    expected = drained(used, credit, elapsed, amount, period)
    u, a, p = float(used), float(amount), float(period)
    full, rest = float(elapsed) // p, float(elapsed) % p
    if u <= 0 or full > u // a:
        got = 0.0, 0.0
    else:
        x = (a % p) * rest + float(credit)
        u = u - full * a
        u = u - (a // p) * rest
        u = u - x // p
        got = (0.0, 0.0) if u <= 0 else (u, x % p)
    assert got == expected


@given(AMOUNTS, PERIODS, st.lists(st.integers(0, 10**7), max_size=20))
def test_looking_changes_nothing(amount, per, steps):
    """Drained in many steps is drained in one (monotone, and nothing is lost to rounding)."""
    used, credit = amount, 0
    for step in steps:
        used, credit = drained(used, credit, step, amount, per * 1000)
    assert (used, credit) == drained(amount, 0, sum(steps), amount, per * 1000)


@pytest.mark.parametrize(
    ("wanted", "least", "used", "amount", "grant"),
    [
        (5, 5, 0, 5, 5),
        (6, 6, 0, 5, None),
        (6, 1, 3, 5, 2),
        (6, 3, 3, 5, None),
        (0, 0, 9, 5, 0),  # in debt: whoever wants nothing gets it
        (1, 1, 9, 5, None),
        (1, 0, 9, 5, 0),
    ],
)
def test_granted(wanted, least, used, amount, grant):
    assert granted(wanted, least, used, amount) == grant


def test_added_stays_within_its_bounds():
    assert added(5, -6) == 0
    assert added(MOST - 1, 5) == MOST
    assert added(5, 6) == 11


@given(st.integers(0, 13_601_087_999_999))
def test_windows_are_those_of_the_calendar(wall):
    """Month lengths and leap years, up to the year 2400: 2100 is none."""
    moment = datetime.datetime.fromtimestamp(wall // 1000, datetime.UTC)
    day, month = window_of("day", wall), window_of("month", wall)
    assert day == (moment.date() - datetime.date(1970, 1, 1)).days
    assert month == (moment.year - 1970) * 12 + moment.month - 1
    following = datetime.datetime(
        moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=datetime.UTC
    )
    assert window_end("month", month) == int(following.timestamp()) * 1000
    assert window_end("day", day) == (day + 1) * DAY
    for calendar, window in (("day", day), ("month", month)):
        end = window_end(calendar, window)
        assert window_of(calendar, end - 1) == window
        assert window_of(calendar, end) == window + 1
        assert wall < end


@pytest.mark.parametrize(
    ("date", "days"),
    [("2023-02", 28), ("2024-02", 29), ("2000-02", 29), ("2100-02", 28), ("2026-12", 31), ("2026-11", 30)],
)
def test_months_have_their_lengths(date, days):
    year, month = map(int, date.split("-"))
    window = (year - 1970) * 12 + month - 1
    assert window_end("month", window) - window_end("month", window - 1) == days * DAY


def test_what_time_does_not_help():
    held = a_limit(5, "concurrent")
    assert wait_for(held, 1, 4, 0, 0) == 0
    assert wait_for(held, 1, 5, 0, 0) is None
    assert wait_for(held, 6, 0, 0, 0) is None
    assert wait_for(a_limit(5), 6, 0, 0, 0) is None
    with pytest.raises(ValueError, match="is not a rate"):
        period_of(held)


def test_a_budget_waits_for_its_next_window():
    budget = a_limit(5, calendar="day")
    assert wait_for(budget, 5, 0, 0, 10, 0) == 0
    assert wait_for(budget, 5, 1, 0, 10, 0) == DAY - 10
    assert wait_for(budget, 5, 1, 0, 2 * DAY, 0) == 0, "the clock is beyond it: at once"
