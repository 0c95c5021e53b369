"""Tenants' quotas: reserve what a request is expected to cost, settle what it did cost.

Each quota is a token bucket, refilled evenly, kept in memory for this process. A reservation charges all
of a tenant's quotas or none. Settling corrects the charge once; a request that ends without an answer
gets everything back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from gateway.config.snapshot import Quota, Snapshot, Tenant
from gateway.errors import QuotaExceeded

PERIODS = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}


class _Bucket:
    """`level` units are free now; it may fall below zero when an answer outran its reservation."""

    __slots__ = ("_level", "_seen", "quota")

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self._level = float(quota.amount)
        self._seen = now

    def level(self, now: float) -> float:
        elapsed = max(0.0, now - self._seen)  # a clock that steps back gives nothing
        self._level = min(self.quota.amount, self._level + elapsed * self.quota.amount / self.quota.per)
        self._seen = max(now, self._seen)
        return self._level

    def become(self, quota: Quota, now: float) -> None:
        """Take another amount; the same share of it is free as was before."""
        if quota != self.quota:
            level = self.level(now)
            self._level = level * quota.amount / self.quota.amount
            self.quota = quota

    def add(self, amount: float, now: float) -> None:
        self._level = min(self.quota.amount, self.level(now) + amount)

    def wait(self, need: float, now: float) -> float:
        """Seconds until `need` units are free."""
        return max(0.0, (need - self.level(now)) * self.quota.per / self.quota.amount)


@dataclass(frozen=True, slots=True)
class QuotaStatistics:
    tenant: str
    unit: str
    per: str
    amount: int
    free: float


class Reservation:
    """A charge that is still an estimate. Settle it once; leaving it unsettled refunds it."""

    __slots__ = ("_buckets", "_clock", "_tokens", "settled")

    def __init__(self, buckets: Sequence[_Bucket], tokens: int, clock: Callable[[], float]) -> None:
        self._buckets = buckets
        self._tokens = tokens
        self._clock = clock
        self.settled: int | None = None
        """Tokens finally charged; None while the reservation is open."""

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refund()

    def settle(self, tokens: int) -> None:
        """Charge `tokens` instead of what was reserved. The first call counts, later ones do nothing."""
        if self.settled is not None:
            return
        self.settled = tokens
        now = self._clock()
        for bucket in self._buckets:
            if bucket.quota.unit == "tokens":
                bucket.add(self._tokens - tokens, now)

    def refund(self) -> None:
        """Give everything back, the request itself too. Nothing after `settle`."""
        if self.settled is not None:
            return
        now = self._clock()
        self.settle(0)
        for bucket in self._buckets:
            if bucket.quota.unit == "requests":
                bucket.add(1, now)


class Limiter:
    """The buckets of all tenants of one configuration.

    A quota that `previous` has too (same tenant, unit and period) keeps its bucket, so a reload neither
    refills nor drains it, and reservations that are open are settled where they were made.
    """

    def __init__(
        self, snapshot: Snapshot, clock: Callable[[], float], previous: "Limiter | None" = None
    ) -> None:
        self._clock = clock
        kept: dict[str, tuple[_Bucket, ...]] = {} if previous is None else previous._buckets
        self._buckets: dict[str, tuple[_Bucket, ...]] = {
            tenant.name: self._of(tenant, kept.get(tenant.name, ()), clock())
            for tenant in snapshot.tenants.values()
        }

    @staticmethod
    def _of(tenant: Tenant, kept: Sequence[_Bucket], now: float) -> tuple[_Bucket, ...]:
        left = list(kept)
        buckets = []
        for quota in tenant.quotas:
            same = (each for each in left if (each.quota.unit, each.quota.per) == (quota.unit, quota.per))
            bucket = next(same, None)
            if bucket is None:
                bucket = _Bucket(quota, now)
            else:
                left.remove(bucket)
                bucket.become(quota, now)
            buckets.append(bucket)
        return tuple(buckets)

    def reserve(self, tenant: Tenant, tokens: int) -> Reservation:
        """Charge a request of `tokens` expected tokens to every quota of `tenant`, or raise QuotaExceeded."""
        buckets = self._buckets.get(tenant.name, ())
        now = self._clock()
        worst: tuple[float, _Bucket] | None = None
        for bucket in buckets:
            need = tokens if bucket.quota.unit == "tokens" else 1
            if need > bucket.quota.amount:
                raise QuotaExceeded(
                    f"This request is expected to use {need} {bucket.quota.unit}, more than the whole limit "
                    f"of {_name(bucket.quota)}; it can never pass.",
                    hopeless=True,
                )
            if (wait := bucket.wait(need, now)) > 0 and (worst is None or wait > worst[0]):
                worst = wait, bucket
        if worst is not None:
            raise QuotaExceeded(f"The limit of {_name(worst[1].quota)} is used up.", retry_after=worst[0])
        for bucket in buckets:
            bucket.add(-(tokens if bucket.quota.unit == "tokens" else 1), now)
        return Reservation(buckets, tokens, self._clock)

    def statistics(self) -> list[QuotaStatistics]:
        now = self._clock()
        return [
            QuotaStatistics(
                name, b.quota.unit, PERIODS.get(b.quota.per, f"{b.quota.per} s"), b.quota.amount, b.level(now)
            )
            for name, buckets in self._buckets.items()
            for b in buckets
        ]


def _name(quota: Quota) -> str:
    return f"{quota.amount} {quota.unit} per {PERIODS.get(quota.per, f'{quota.per} s')}"
