"""What is promised, and the budgets that follow from it: which wins, where several are written."""

import pytest

from gateway.config.snapshot import Budget, Policy, PriorityClass, Slo
from tests.gateway.config.conftest import MINIMAL

INTERACTIVE, STANDARD, BATCH = PriorityClass.interactive, PriorityClass.standard, PriorityClass.batch


@pytest.fixture
def pool_of(try_load):
    def pool_of(*lines: str):
        """The pool of the minimal file, with these lines more."""
        text = MINIMAL.replace(
            "    engine: openai\n", "    engine: openai\n" + "".join(f"    {line}\n" for line in lines)
        )
        snapshot, problems, _ = try_load(text)
        assert snapshot is not None, problems
        return snapshot.pools["p"]

    return pool_of


def test_a_class_overrides_its_pool_field_by_field_and_null_promises_nothing(pool_of):
    pool = pool_of(
        "slo: {ttft_p95_ms: 800, tpot_p99_ms: 60}",
        "scheduler: {classes: {interactive: {slo: {queue_ms: 300}}, batch: {slo: {ttft_p95_ms: null}}}}",
    )
    assert pool.promised(STANDARD) == pool.slo == Slo(800, 60)
    assert pool.promised(INTERACTIVE) == Slo(800, 60, 300)
    assert pool.promised(BATCH) == Slo(None, 60)
    assert pool.policy.budgets == {
        INTERACTIVE: Budget(0.8, 0.3),
        STANDARD: Budget(0.8),
    }, "nothing is shed for its time per token"


def test_without_promises_there_are_no_budgets_but_the_schedulers(pool_of):
    pool = pool_of()
    assert not pool.slo
    assert not pool.policy.budgets
    assert not pool.policy.budgets_long
    assert pool.policy.time_to_first(INTERACTIVE, long=False, bare=0.1) == Policy().budget


def test_a_written_budget_wins_in_its_lane(pool_of):
    slo = "slo: {ttft_p95_ms: 800, queue_ms: 500}"
    bare = 0.01
    for written, short, long in (
        ("", 0.51, 0.51),
        ("budget_ms: 2000", 2.0, 0.51),
        ("budget_long_ms: 9000", 0.51, 9.0),
        ("budget_ms: 10000, budget_long_ms: 30000", 10.0, 30.0),  # though they are the defaults
    ):
        policy = pool_of(slo, f"scheduler: {{{written}}}").policy
        assert policy.time_to_first(INTERACTIVE, long=False, bare=bare) == pytest.approx(short)
        assert policy.time_to_first(INTERACTIVE, long=True, bare=bare) == pytest.approx(long)


def test_no_promise_asks_for_less_than_five_times_the_bare_prefill(pool_of):
    policy = pool_of("slo: {ttft_p95_ms: 800}").policy
    assert policy.time_to_first(INTERACTIVE, long=True, bare=1.0) == 5.0
    # A promised time in line is one: who computes for a second may still wait no longer.
    policy = pool_of("slo: {queue_ms: 300}").policy
    assert policy.time_to_first(INTERACTIVE, long=True, bare=1.0) == pytest.approx(1.3)


def test_silence_and_comments(try_load):
    """Seconds; 0 is never."""
    text = MINIMAL.replace("    engine: openai\n", "    engine: openai\n    timeouts: {keepalive_s: 0}\n")
    snapshot, *_ = try_load(text)
    assert snapshot.pools["p"].timeouts.keepalive == float("inf")
    snapshot, *_ = try_load(MINIMAL)
    assert snapshot.pools["p"].timeouts.keepalive == 15.0
    assert snapshot.rules[0].queue_comments is None
