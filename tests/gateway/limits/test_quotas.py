"""Quotas against an exact reference over rational numbers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.snapshot import Quota
from gateway.errors import RETRY_AFTER_CAP, QuotaExceeded
from gateway.limits.quotas import Limiter
from tests.gateway.builders import Clock, a_quota, a_snapshot, a_tenant

EPSILON = 1e-6
"""Units: far above what doubles lose here, far below one token."""


def a_limiter(*quotas: Quota, clock: Clock | None = None):
    tenant = a_tenant(quotas=quotas)
    return Limiter(a_snapshot(tenants=[tenant]), Clock() if clock is None else clock), tenant


def free(limiter: Limiter) -> list[float]:
    return [row.free for row in limiter.statistics()]


def test_a_tenant_without_quotas_is_never_refused():
    limiter, tenant = a_limiter()
    for _ in range(100):
        limiter.reserve(tenant, 10**9).settle(10**9)


def test_a_tenant_that_the_file_does_not_name_has_no_quotas():
    limiter, _ = a_limiter(a_quota(1))
    limiter.reserve(a_tenant("anonymous"), 1000)


def test_settling_corrects_the_charge_once():
    """I2: charged is what was settled, however often it is settled or refunded afterwards."""
    limiter, tenant = a_limiter(a_quota(100), a_quota(10, "requests"))
    reservation = limiter.reserve(tenant, 60)
    assert free(limiter) == [40, 9]
    reservation.settle(25)
    reservation.settle(90)
    reservation.refund()
    assert reservation.settled == 25
    assert free(limiter) == [75, 9]


def test_a_refund_gives_back_tokens_and_request_once():
    limiter, tenant = a_limiter(a_quota(100), a_quota(10, "requests"))
    reservation = limiter.reserve(tenant, 60)
    reservation.refund()
    reservation.refund()
    reservation.settle(60)
    assert free(limiter) == [100, 10]


def test_leaving_the_block_unsettled_refunds():
    limiter, tenant = a_limiter(a_quota(100))
    with pytest.raises(RuntimeError), limiter.reserve(tenant, 60):
        raise RuntimeError
    assert free(limiter) == [100]
    with limiter.reserve(tenant, 60) as reservation:
        reservation.settle(10)
    assert free(limiter) == [90]


def test_an_answer_that_outran_its_reservation_is_paid_for_later():
    """The level goes below zero, and the next request waits until it is back."""
    clock = Clock()
    limiter, tenant = a_limiter(a_quota(60), clock=clock)  # one a second
    limiter.reserve(tenant, 10).settle(90)
    assert free(limiter) == [-30]
    with pytest.raises(QuotaExceeded) as refused:
        limiter.reserve(tenant, 10)
    assert refused.value.retry_after == pytest.approx(40)
    clock.tick(40)
    limiter.reserve(tenant, 10)


def test_a_late_refund_never_lifts_a_bucket_above_its_capacity():
    clock = Clock()
    limiter, tenant = a_limiter(a_quota(60), clock=clock)
    reservation = limiter.reserve(tenant, 60)
    clock.tick(3600)
    reservation.refund()
    assert free(limiter) == [60]


def test_all_quotas_or_none():
    """The second quota refuses: the first one is not charged."""
    limiter, tenant = a_limiter(a_quota(100), a_quota(1, "requests"), a_quota(1000, per=86400))
    limiter.reserve(tenant, 10)
    before = free(limiter)
    with pytest.raises(QuotaExceeded, match="1 requests per minute"):
        limiter.reserve(tenant, 10)
    assert free(limiter) == before


@pytest.mark.parametrize("pers", [(1, 60), (60, 1)])
def test_the_longest_wait_is_the_one_told(pers):
    """Both are used up; after the shorter wait the client would only be refused again."""
    limiter, tenant = a_limiter(a_quota(60, "requests"), *(a_quota(10, per=per) for per in pers))
    limiter.reserve(tenant, 10)
    with pytest.raises(QuotaExceeded, match="10 tokens per minute") as refused:
        limiter.reserve(tenant, 5)
    assert refused.value.retry_after == pytest.approx(30.0)


def test_a_request_larger_than_the_whole_bucket_is_hopeless():
    """No Retry-After: it can never pass, and nothing is charged (SMG's rule)."""
    limiter, tenant = a_limiter(a_quota(10, "requests"), a_quota(100))
    with pytest.raises(QuotaExceeded) as refused:
        limiter.reserve(tenant, 101)
    assert refused.value.hopeless
    assert refused.value.retry_after is None
    assert free(limiter) == [10, 100]
    limiter.reserve(tenant, 100)


def test_retry_after_is_capped():
    limiter, tenant = a_limiter(a_quota(1, "requests", per=86400))
    limiter.reserve(tenant, 1)
    with pytest.raises(QuotaExceeded) as refused:
        limiter.reserve(tenant, 1)
    assert refused.value.retry_after == RETRY_AFTER_CAP
    assert not refused.value.hopeless


def test_a_clock_that_steps_back_gives_nothing():
    clock = Clock(1000.0)
    limiter, tenant = a_limiter(a_quota(60), clock=clock)
    limiter.reserve(tenant, 60)
    for now in (500.0, 1000.0, 0.0, 1000.0):
        clock.now = now
        assert free(limiter) == [0]
    clock.now = 1001.0
    assert free(limiter) == [pytest.approx(1)]


def test_tenants_do_not_share():
    """A1's quota is not A2's, though both are declared alike."""
    one, other = a_tenant("one", quotas=(a_quota(10),)), a_tenant("other", quotas=(a_quota(10),))
    limiter = Limiter(a_snapshot(tenants=[one, other]), Clock())
    limiter.reserve(one, 10)
    limiter.reserve(other, 10)
    assert {row.tenant: row.free for row in limiter.statistics()} == {"one": 0, "other": 0}


# ------------------------------------------------------------------------------------------ properties


class ExactBucket:
    """The reference: rational arithmetic, no shortcuts."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.level = Fraction(quota.amount)
        self.seen = Fraction(0)

    def advance(self, now: Fraction) -> None:
        gained = max(Fraction(0), now - self.seen) * self.quota.amount / self.quota.per
        self.level = min(Fraction(self.quota.amount), self.level + gained)
        self.seen = max(self.seen, now)

    def need(self, tokens: int) -> int:
        return tokens if self.quota.unit == "tokens" else 1


quotas = st.lists(
    st.builds(
        Quota,
        unit=st.sampled_from(["requests", "tokens"]),
        amount=st.integers(1, 200),
        per=st.sampled_from([1, 60, 3600]),
    ),
    min_size=1,
    max_size=3,
)
quarters = st.integers(-40, 400).map(lambda n: n / 4)  # seconds that doubles hold exactly
trace = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), quarters),
        st.tuples(st.just("reserve"), st.integers(0, 220)),
        st.tuples(st.just("settle"), st.integers(0, 7), st.integers(0, 300)),
        st.tuples(st.just("refund"), st.integers(0, 7)),
    ),
    max_size=50,
)


@given(quotas, trace)
def test_decisions_equal_the_exact_reference(quotas, trace):
    """P1, P2: the same decisions, the same levels, for any trace with any clock."""
    clock = Clock()
    limiter, tenant = a_limiter(*quotas, clock=clock)
    exact = [ExactBucket(quota) for quota in quotas]
    open_: list[tuple[object, int]] = []
    for step in trace:
        if step[0] == "tick":
            clock.tick(step[1])
        for bucket in exact:
            bucket.advance(Fraction(clock.now))
        if step[0] == "reserve":
            tokens = step[1]
            shortest = min(bucket.level - bucket.need(tokens) for bucket in exact)
            try:
                open_.append((limiter.reserve(tenant, tokens), tokens))
            except QuotaExceeded as refused:
                assert shortest < EPSILON
                assert refused.hopeless == any(bucket.need(tokens) > bucket.quota.amount for bucket in exact)
                if not refused.hopeless:
                    due = max((b.need(tokens) - b.level) * b.quota.per / b.quota.amount for b in exact)
                    assert refused.retry_after == pytest.approx(min(float(due), RETRY_AFTER_CAP), abs=1e-6)
            else:
                assert shortest > -EPSILON
                for bucket in exact:
                    bucket.level -= bucket.need(tokens)
        elif step[0] in ("settle", "refund") and open_:
            reservation, tokens = open_[step[1] % len(open_)]
            already = reservation.settled is not None
            if step[0] == "settle":
                reservation.settle(step[2])
            else:
                reservation.refund()
            if not already:
                for bucket in exact:
                    back = 0
                    if bucket.quota.unit == "tokens":
                        back = tokens - (step[2] if step[0] == "settle" else 0)
                    elif step[0] == "refund":
                        back = 1
                    bucket.level = min(Fraction(bucket.quota.amount), bucket.level + back)
        assert free(limiter) == pytest.approx([float(bucket.level) for bucket in exact], abs=EPSILON)


@given(
    st.integers(1, 100),
    st.sampled_from([1, 60]),
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 100)), max_size=60),
)
def test_never_admits_above_capacity_plus_rate_times_time(amount, per, arrivals):
    """Over every interval between two admissions, not just from the start."""
    clock = Clock()
    limiter, tenant = a_limiter(a_quota(amount, per=per), clock=clock)
    admitted: list[tuple[float, int]] = []
    for gap, tokens in arrivals:
        clock.tick(gap)
        try:
            limiter.reserve(tenant, tokens).settle(tokens)
        except QuotaExceeded:
            continue
        admitted.append((clock.now, tokens))
    for i, (begin, _) in enumerate(admitted):
        total = 0
        for end, tokens in admitted[i:]:
            total += tokens
            assert total <= amount + (end - begin) * amount / per + EPSILON


@given(st.integers(1, 500), st.sampled_from([1, 60]), st.integers(0, 500), st.integers(1, 500))
def test_retry_after_is_sufficient_and_tight(amount, per, used, tokens):
    """After that long it passes; a hundredth of a second less, and it does not."""
    used, tokens = min(used, amount), min(tokens, amount)
    clock = Clock()
    limiter, tenant = a_limiter(a_quota(amount, per=per), clock=clock)
    limiter.reserve(tenant, used)
    try:
        limiter.reserve(tenant, tokens)
        assert used + tokens <= amount
        return
    except QuotaExceeded as refused:
        wait = refused.retry_after
    assert wait is not None
    if wait > 0.01:
        clock.tick(wait - 0.01)
        with pytest.raises(QuotaExceeded):
            limiter.reserve(tenant, tokens)
        clock.tick(0.01)
    else:
        clock.tick(wait)
    clock.tick(1e-6)  # a client reads it in whole milliseconds, rounded up
    limiter.reserve(tenant, tokens)


def test_a_reload_neither_refills_nor_drains():
    """The same quota keeps its bucket, open reservations included; another amount keeps the share."""
    clock = Clock()
    old, tenant = a_limiter(a_quota(100), clock=clock)
    reservation = old.reserve(tenant, 60)
    same = Limiter(a_snapshot(tenants=[tenant]), clock, old)
    assert free(same) == [40]
    reservation.settle(10)
    assert free(same) == [90]
    halved = a_tenant(quotas=(a_quota(50), a_quota(7, "requests")))
    cut = Limiter(a_snapshot(tenants=[halved, a_tenant("new", quotas=(a_quota(5),))]), clock, same)
    assert free(cut) == [45, 7, 5]
