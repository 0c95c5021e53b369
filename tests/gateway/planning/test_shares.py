"""Pools whose share of the work is not their share of the capacity."""

import pytest

from gateway.planning.shares import PoolShare, lopsided


def test_both_directions_worst_first():
    """30 % of the work on half of the capacity, 70 % on a quarter, none on the rest."""
    found = lopsided([PoolShare("short", 3, 2), PoolShare("long", 7, 1), PoolShare("spare", 0, 1)])
    assert [each.pool for each in found] == ["spare", "long", "short"]
    assert found[1].factor == pytest.approx(2.8)
    assert "pool long has 70% of the work and 25% of the capacity, 2.8 times as much" in str(found[1])
    assert "1/1.7 as much: it idles while others queue" in str(found[2])
    assert "and no work: it idles" in str(found[0])


def test_work_without_capacity():
    found = lopsided([PoolShare("a", 1, 0), PoolShare("b", 1, 1)])
    assert str(found[0]).startswith(
        "pool a has 50% of the work and 0% of the capacity, and no capacity: it queues"
    )


@pytest.mark.parametrize(
    "pools",
    [
        [],
        [PoolShare("one", 5, 1)],
        [PoolShare("a", 0, 1), PoolShare("b", 0, 9)],
        [PoolShare("a", 1, 0), PoolShare("b", 1, 0)],
        [PoolShare("a", 3, 2), PoolShare("b", 3, 4)],  # 50 % on a third: 1.5 times exactly
    ],
)
def test_fine(pools):
    assert lopsided(pools) == ()


def test_the_bound_can_be_moved():
    pools = [PoolShare("a", 3, 2), PoolShare("b", 3, 4)]
    assert [each.pool for each in lopsided(pools, most=1.4)] == ["a"]
