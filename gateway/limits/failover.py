"""What limits do while their shared store cannot be asked: each as its `store_down` says.

    local    (default) this process grants its share of the amount, from memory. A request for more than that
             passes while nothing of it is used, and puts it into debt: whatever could pass with the store can
             pass without it, at the share's rate
    closed   refuses: the caller gets StoreUnavailable, the client 503
    open     grants, and counts nothing

What was granted here is settled here. When the store is back it goes on from what it had: over an outage, `n`
processes let through at most n shares, which is one amount, beyond what it would have granted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from msgspec.structs import replace as but

from gateway.limits.contract import (
    Account,
    Adjustment,
    Charge,
    LimitStore,
    Standing,
    StoreUnavailable,
    Verdict,
)
from gateway.limits.memory import MemoryStore

__all__ = ["FailoverStore", "Policy"]

Policy = Literal["local", "closed", "open"]


class FailoverStore:
    """A LimitStore over `primary`, with `local` for when that is away.

    `processes`: how many processes share the limits. `note` is told of each decision that was made without
    the store, by the strictest policy that took part.
    """

    def __init__(
        self,
        primary: LimitStore,
        local: MemoryStore,
        processes: Callable[[], int],
        note: Callable[[Policy], None] = lambda _: None,
    ) -> None:
        self.primary = primary
        self.local = local
        self._processes = processes
        self._note = note
        self._away: dict[str, dict[str, Account | None]] = {}
        """Open reservations, with the accounts that were not charged at the primary: by key, as kept here;
        None: nowhere."""

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        try:
            return await self.primary.reserve(holding, charges)
        except StoreUnavailable:
            if any(_policy(charge) == "closed" for charge in charges):
                self._note("closed")
                raise
        asked = [charge for charge in charges if _policy(charge) == "local"]
        self._note("local" if asked else "open")
        shares = [self._share(charge.account) for charge in asked]
        verdict = await self.local.reserve(
            holding,
            [
                Charge(share, min(charge.amount, share.limit.amount), min(charge.least, share.limit.amount))
                for charge, share in zip(asked, shares, strict=True)
            ],
        )
        told = {
            charge.account.key: _told(charge, share, standing, verdict.granted)
            for charge, share, standing in zip(asked, shares, verdict.standings, strict=True)
        }
        if verdict.granted:
            away = self._away.setdefault(holding, {})
            away.update((charge.account.key, None) for charge in charges)
            away.update((share.key, share) for share in shares)
            debts = [
                Adjustment(share, debt)
                for charge, share in zip(asked, shares, strict=True)
                if told[share.key].granted is not None and (debt := charge.least - share.limit.amount) > 0
            ]
            if debts:
                self.local.adjust(holding, debts, final=False)
        return Verdict(
            verdict.granted,
            tuple([told.get(charge.account.key) or _free(charge, verdict.granted) for charge in charges]),
            verdict.refused,
        )

    def adjust(
        self,
        holding: str,
        adjustments: Sequence[Adjustment],
        *,
        final: bool,
        told: Callable[[Sequence[Standing]], None] | None = None,
    ) -> None:
        away = self._away.pop(holding, None) if final else self._away.get(holding)
        if away is None:
            self.primary.adjust(holding, adjustments, final=final, told=told)
            return
        ours, theirs = [], []
        for adjustment in adjustments:
            key = adjustment.account.key
            if key not in away:
                theirs.append(adjustment)
            elif (share := away[key]) is not None:
                ours.append(but(adjustment, account=share))
        if ours or final:
            self.local.adjust(holding, ours, final=final, told=told if ours else None)
        if theirs or final:
            self.primary.adjust(holding, theirs, final=final, told=told if theirs else None)

    async def look(self, accounts: Sequence[Account]) -> Sequence[Standing]:
        """While the store is away: how this process's shares stand."""
        try:
            return await self.primary.look(accounts)
        except StoreUnavailable:
            return await self.local.look([self._share(account) for account in accounts])

    async def aclose(self) -> None:
        await self.primary.aclose()
        await self.local.aclose()

    def _share(self, account: Account) -> Account:
        limit = account.limit
        return Account(account.key, replace(limit, amount=max(1, limit.amount // max(1, self._processes()))))


def _policy(charge: Charge) -> Policy:
    """A limit that only looks on never refuses, whatever it says."""
    limit = charge.account.limit
    return "open" if limit.store_down == "closed" and not limit.enforce else limit.store_down


def _told(charge: Charge, share: Account, standing: Standing, granted: bool) -> Standing:
    """How the share stands, in terms of what was asked."""
    amount = share.limit.amount
    if granted and standing.granted is not None:
        debt = max(0, charge.least - amount)
        return but(standing, granted=standing.granted + debt, used=standing.used + debt)
    if charge.least <= amount:
        return standing
    # It waits until nothing of the share is used. So that whoever computes when that is, from an amount that
    # the request fits into, finds it: the same in larger units.
    whole = Account(share.key, replace(share.limit, amount=charge.least))
    return but(standing, account=whole, used=-(-standing.used * charge.least // amount), credit=0)


def _free(charge: Charge, granted: bool) -> Standing:
    return Standing(charge.account, charge.amount if granted else None, 0, 0, 0)
