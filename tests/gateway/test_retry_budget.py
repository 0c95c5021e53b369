"""How many attempts there may be more than requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fallbacks import (
    RetryBudget,
)
from tests.gateway.builders import Clock
from tests.gateway.town import Town, bad, good


async def test_an_exhausted_budget_ends_the_retries():
    town = Town({"a": {"r1": bad(), "r2": good()}})
    while town.budget.withdraw():
        pass
    await town.refusal()
    assert town.sent == {"a/r1": 1}


async def test_where_no_replica_is_left_no_retry_is_charged():
    town = Town({"a": {"r1": bad()}})
    for _ in range(300):
        await town.refusal()
    assert town.budget.withdraw()
    assert town.budget._balance == pytest.approx(RetryBudget.CAP - 1)


def test_a_budget_is_a_fifth_of_the_requests_and_ten_a_second():
    clock = Clock()
    budget = RetryBudget(clock)
    assert sum(budget.withdraw() for _ in range(1000)) == 100, "the balance at the start"
    for _ in range(11):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    clock.tick(0.5)
    assert sum(budget.withdraw() for _ in range(100)) == 5
    clock.tick(3600)
    assert sum(budget.withdraw() for _ in range(1000)) == 100, "capped"


def test_a_clock_that_steps_back_gives_no_retries():
    clock = Clock(100.0)
    budget = RetryBudget(clock)
    while budget.withdraw():
        pass
    for now in (0.0, 100.0, 50.0, 100.0):
        clock.now = now
        assert not budget.withdraw()


@given(st.lists(st.one_of(st.just("request"), st.just("retry"), st.floats(0, 3)), max_size=200))
def test_retries_never_pass_the_budget(trace):
    """P9, over any trace: start + a fifth of the requests + ten a second."""
    clock = Clock()
    budget = RetryBudget(clock)
    requests = retries = 0
    for step in trace:
        if step == "request":
            requests += 1
            budget.deposit()
        elif step == "retry":
            retries += budget.withdraw()
        else:
            clock.tick(step)
        assert retries <= 100 + 0.2 * requests + 10 * clock.now + 1e-6
