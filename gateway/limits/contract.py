"""What the limiter and its stores say to each other.

    Limit     (config/snapshot/) what routes.yaml says: so many units, over time or at a time, for whom
    Account   one bucket of a limit: the limit itself, or its share for one tenant, key, model or pool
    Charge    so many units that a request wants from an account, and the least that it can do with
    Standing  how an account stands after a charge or an adjustment
    Verdict   what a store answers to a list of charges: all were granted, or none was charged

A store decides about all charges of a request in one step. It keeps three kinds of account:

    rate      refilled evenly: `amount` per `period`. Kept as `used` units, which drain at that rate
    budget    starts anew with each day or month (UTC). Kept as `used` units of the current window
    level     what is held at the moment: requests or tokens in flight. Kept as who holds how much, each
              with an end that is renewed while the holder lives (a store of one process needs none)

Arithmetic is in integers, time in whole milliseconds, so that every store decides alike
(`limits/arithmetic.py` has the formulas; the Lua of the Redis store repeats them). The values are msgspec
structs: several are made for each request, and these cost a fifth of frozen dataclasses.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from gateway.config.snapshot import Limit

__all__ = ["Account", "Adjustment", "Charge", "LimitStore", "Standing", "StoreUnavailable", "Verdict"]


class StoreUnavailable(Exception):
    """The store cannot tell: it is gone, slow, full, read-only or its breaker is open."""


class Account(msgspec.Struct, frozen=True, eq=False):
    """One bucket. Accounts are equal where their keys are: a limit whose amount was changed by a reload
    keeps its accounts, and what was used of them."""

    key: str
    """Stable over reloads, restarts and processes: made of the limit's name and of whom this account is
    for, never of secrets."""
    limit: Limit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Account) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


class Charge(msgspec.Struct, frozen=True):
    account: Account
    amount: int
    """Units wanted."""
    least: int
    """Units without which the request cannot go on, at most `amount`. A store grants as many of `amount`
    as are free, and refuses where that is fewer than `least`."""


class Standing(msgspec.Struct, frozen=True):
    """How an account stands, by the store's clock."""

    account: Account
    granted: int | None
    """Units charged by this step; None: nothing, because a limit that is not enforced would have refused,
    because an other one did, or because nothing was asked."""
    used: int
    """Units in use after this step; above the limit's amount where answers outran their reservations."""
    credit: int
    """Rates only: milliseconds x units already drained towards the next unit, below the period in ms."""
    now: int
    """Milliseconds; since 1970 where the store's clock tells the date."""
    window: int | None = None
    """Budgets only: which day or month (days or months since 1970-01), that `used` belongs to."""

    @property
    def free(self) -> int:
        """Units that are free now; never below zero."""
        return max(0, self.account.limit.amount - self.used)


class Verdict(msgspec.Struct, frozen=True):
    granted: bool
    """All enforced limits granted; else nothing was charged anywhere."""
    standings: tuple[Standing, ...]
    """In the order of the charges."""
    refused: tuple[Account, ...] = ()
    """Who said no: enforced limits, and, granted or not, those that are not enforced and would have."""


class Adjustment(msgspec.Struct, frozen=True):
    """A correction of what an account was charged; it never fails, and may take `used` above the amount."""

    account: Account
    delta: int
    """Units: above zero charges more, below zero gives back. `used` never falls below zero."""
    window: int | None = None
    """Budgets: the window that the charge was made in. Given back only while that window lasts."""


class LimitStore(Protocol):
    """Keeps accounts. One conformance suite holds all stores (tests/gateway/limits/conformance.py)."""

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        """Decide about all `charges` in one step. `holding` is the reservation's own, unique id; charges
        under one that is open already add to it.

        Raises StoreUnavailable within one timeout. Cancelled, or when the outcome is unknown, the store
        itself sees to it that the charge, if it was made, is given back.
        """
        ...

    def adjust(
        self,
        holding: str,
        adjustments: Sequence[Adjustment],
        *,
        final: bool,
        told: Callable[[Sequence[Standing]], None] | None = None,
    ) -> None:
        """Correct what was charged; `final` ends the reservation and gives back what it holds of levels.

        Of levels, an adjustment that is not final changes how much `holding` holds. Returns at once. A
        store elsewhere sends it soon and calls `told` with how the accounts then stand; a final one has its
        effect once, however often it is sent.
        """
        ...

    async def look(self, accounts: Sequence[Account]) -> Sequence[Standing]:
        """How accounts stand, charging nothing. Raises StoreUnavailable."""
        ...

    async def aclose(self) -> None:
        """Send what is still to be sent, within a bound, and end."""
        ...
