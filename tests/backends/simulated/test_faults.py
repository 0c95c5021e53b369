"""The fault plan: how faults are written, counted and used up."""

import pytest

from backends.simulated.faults import FAULTS, Fault, FaultPlan


@pytest.mark.parametrize("text", ["hang", "close*2", "die_after=3", "die_after=0*1", "slow_first=0.5*4"])
def test_specifications_round_trip(text):
    assert str(Fault.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("explode", "unknown fault"),
        ("die_after", "needs a value"),
        ("hang=3", "takes no value"),
        ("die_after=-1", "name"),
        ("die_after=3x2", "name"),
        ("", "name"),
    ],
)
def test_bad_specifications_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        FaultPlan([text])


def test_a_fault_strikes_as_often_as_it_may_and_where_it_may():
    plan = FaultPlan(["die_after=2*2"])
    assert plan.strike("die_after", 1) is None
    assert plan.strike("hang") is None
    assert plan.strike("die_after", 2)
    assert plan.strike("die_after", 2)
    assert plan.strike("die_after", 2) is None
    assert plan.statistics() == [{"fault": "die_after=2*0", "left": 0, "fired": 2}]


def test_clear_keeps_the_record():
    plan = FaultPlan(["hang"])
    assert plan.strike("hang")
    plan.clear()
    assert plan.strike("hang") is None
    assert plan.fired("hang") == 1


def test_every_fault_is_explained():
    assert all(FAULTS.values())
