"""Plans: everything about limits that is the same for all requests of one tenant, key, model and pool."""

import msgspec

from gateway.config.snapshot import Limit, Prices
from gateway.limits.contract import Account
from gateway.limits.scopes import LEVELS, TOKENS, UNITS, account_of
from gateway.telemetry.metrics import Tally

__all__ = ["Plan", "Scoped", "plan_of", "scoped_of"]

OUTPUT = frozenset({"output_tokens", "tokens", "cost", "tokens_in_flight"})
"""Units of which an answer uses more the longer it becomes."""


class Scoped(msgspec.Struct, frozen=True, eq=False):
    """One account that a request uses."""

    account: Account
    unit: int
    """Its place in UNITS."""
    level: bool
    output: bool
    """Whether output counts."""
    clamps: bool
    """Whether less output will do."""
    pooled: bool
    """Whether it depends on the pool."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scoped) and other.account.key == self.account.key

    def __hash__(self) -> int:
        return hash(self.account.key)


class Plan(msgspec.Struct, frozen=True, eq=False):
    """The accounts of a request, and what follows from them."""

    tenant: str
    key_id: str | None
    model: str
    scoped: tuple[Scoped, ...]
    prices: Prices | None
    clamps: bool
    """Some limit has `clamp`."""
    cuts: bool
    """Some limit has `overrun: cut`."""
    output: bool
    """Some account counts output."""
    tokens: bool
    """Some account counts tokens over time."""
    tally: Tally


def scoped_of(
    limit: Limit, tenant: str, key_id: str | None, model: str, pool: str | None, prices: Prices | None
) -> Scoped:
    output = limit.unit in OUTPUT and (limit.unit != "cost" or (prices is not None and prices.output > 0))
    return Scoped(
        account=account_of(limit, tenant, key_id, model, pool),
        unit=UNITS.index(limit.unit),
        level=limit.unit in LEVELS,
        output=output,
        clamps=output and limit.clamp,
        pooled=bool(limit.pools) or "pool" in limit.each,
    )


def plan_of(
    tenant: str,
    key_id: str | None,
    model: str,
    accounts: tuple[Scoped, ...],
    prices: Prices | None,
    tally: Tally,
) -> Plan:
    return Plan(
        tenant=tenant,
        key_id=key_id,
        model=model,
        scoped=accounts,
        prices=prices,
        clamps=any(each.clamps for each in accounts),
        cuts=any(
            each.output and each.account.limit.overrun == "cut" and each.account.limit.enforce
            for each in accounts
        ),
        output=any(each.output for each in accounts),
        tokens=any(each.account.limit.unit in TOKENS for each in accounts),
        tally=tally,
    )
