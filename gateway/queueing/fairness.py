"""Fairness between tenants: who has been served how much, and who holds how many slots.

Virtual token counters (Sheng et al., OSDI 2024, arXiv 2401.00588): a tenant's counter rises by work / weight
when a request of it is sent, by what was expected, and is put right when it ends, by what came. Work is the
time of a replica that a request takes up (`StepModel.work`), told in prompt tokens: a long prompt costs more
than its tokens say, and an output token as much as it costs among others. What is sent while nobody waits is
free. Who begins to wait is lifted to the least counter of those that wait: nobody saves up. A tenant more
than a quantum ahead of the least served one that waits is *ahead*: its requests go when no other tenant's
can. Within the quantum the order is that of the line.

Counters alone do not keep room free: a flood fills every slot before the next tenant asks. So a tenant that
holds more than its share of all slots, while others are active, is *over*: of each replica it may use only
the first part (1 - headroom). Nor do slots alone: long prompts have replicas of their own, sized by the work
of all tenants, and it is there that a flood is felt. So while a tenant is over, a tenant that is neither over
nor ahead is *owed*: its long prompts, up to a dose, may go anywhere (scheduler.py).
"""

import heapq

from gateway.queueing.lines import Flow
from gateway.queueing.policies import Policy

__all__ = ["Account", "Accounts"]


class Account:
    """One tenant's books in one pool."""

    __slots__ = ("flows", "in_flight", "served", "standing", "tenant", "waiting", "weight")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.weight = 1.0
        self.served = 0.0
        """Work per unit of weight, as prompt tokens."""
        self.in_flight = 0
        self.waiting = 0
        self.standing = 0
        """1 for over, plus 2 for ahead: which heap of its line holds its heads."""
        self.flows: list[Flow] = []


class Accounts:
    """All tenants of one pool."""

    KEPT = 4096
    """Accounts of tenants that neither wait nor run; the oldest are forgotten beyond this."""

    def __init__(self, policy: Policy) -> None:
        self.fair = policy.fair
        self.slots = 0.0
        """Slots of all replicas together; kept by the scheduler."""
        self.contended = policy.fair_after == 0
        """Whether the line is long enough to divide what there is; kept by the scheduler. In a short one all
        get what they ask for soon, and to hold somebody back would only cost."""
        self._quantum = policy.quantum
        self._accounts: dict[str, Account] = {}
        self._waiting: list[tuple[float, str, Account]] = []
        self._ahead: list[tuple[float, str, Account]] = []
        self._weights = 0.0
        self._active = 0
        self._least = 0.0
        self._over = 0

    def of(self, tenant: str, weight: float) -> Account:
        """The account of a tenant about to wait or run; all tenants share one where fairness is off."""
        if not self.fair:
            tenant, weight = "", 1.0
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= self.KEPT:
                self._forget()
            account = self._accounts[tenant] = Account(tenant)
        if weight != account.weight:
            if account.in_flight or account.waiting:
                self._weights += weight - account.weight
            account.weight = weight
        return account

    def least(self) -> float:
        """The counter of the least served tenant that waits; while nobody waits, the last there was."""
        heap = self._waiting
        while heap and (not heap[0][2].waiting or heap[0][0] != heap[0][2].served):
            heapq.heappop(heap)
        if heap:
            self._least = heap[0][0]
        return self._least

    def joined(self, account: Account) -> None:
        """A request of it begins to wait."""
        if not account.waiting:
            if not account.in_flight:
                self._activate(account)
            account.waiting = 1
            if self.fair:
                account.served = max(account.served, self.least())
                heapq.heappush(self._waiting, (account.served, account.tenant, account))
                self.judge(account)
        else:
            account.waiting += 1

    def left(self, account: Account) -> None:
        """A request of it waits no more."""
        account.waiting -= 1
        if not account.waiting:
            if not account.in_flight:
                self._deactivate(account)
            self._welcome()

    def sent(self, account: Account, cost: float) -> None:
        """A request of it, no longer waiting, got a slot. `cost`: 0 where nobody waits, nor did it."""
        if not account.in_flight and not account.waiting:
            self._activate(account)
        account.in_flight += 1
        if self.fair and cost:
            if not account.waiting:
                account.served = max(account.served, self._least)
            self._charge(account, cost)

    def ended(self, account: Account, refund: float) -> None:
        """A slot of it is back, and cost `refund` less (more, if negative) than expected."""
        account.in_flight -= 1
        if not account.in_flight and not account.waiting:
            self._deactivate(account)
        if not self.fair:
            return
        if refund:
            self._charge(account, -refund)
        elif account.standing & 1:
            self.judge(account)

    def charge(self, account: Account, cost: float) -> None:
        """What another pool served of it; negative to give back."""
        if self.fair and cost:
            self._charge(account, cost)

    def owed(self, account: Account) -> bool:
        """Whether others hold more than their share, and this tenant neither does nor is ahead."""
        return self.contended and self._over > 0 and not account.standing

    def judge(self, account: Account) -> None:
        """Set the standing of a tenant anew."""
        contended = self.contended
        over = (
            contended and self._active > 1 and account.in_flight * self._weights > self.slots * account.weight
        )
        ahead = contended and account.waiting > 0 and account.served > self.least() + self._quantum
        standing = over + 2 * ahead
        if ahead:
            heapq.heappush(self._ahead, (account.served, account.tenant, account))
        if standing != account.standing:
            self._over += over - (account.standing & 1)
            account.standing = standing
            for flow in account.flows:
                flow.line.note(flow)
        elif ahead:  # its place among those ahead is its counter
            for flow in account.flows:
                flow.line.note(flow)

    def review(self) -> None:
        """Set the standing of everybody who stands back, or may have to, anew: others may have gone."""
        if not self.fair:
            return
        for account in self._accounts.values():
            if account.standing or (account.waiting and self.contended):
                self.judge(account)

    def _charge(self, account: Account, tokens: float) -> None:
        account.served += tokens / account.weight
        if account.waiting:
            heapq.heappush(self._waiting, (account.served, account.tenant, account))
        self.judge(account)
        self._welcome()

    def _welcome(self) -> None:
        """Who was ahead may have been caught up with."""
        if not self._ahead:
            return
        bound = self.least() + self._quantum
        while self._ahead and self._ahead[0][0] <= bound:
            served, _, account = heapq.heappop(self._ahead)
            if account.served == served and account.standing > 1:
                self.judge(account)

    def _activate(self, account: Account) -> None:
        self._active += 1
        self._weights += account.weight

    def _deactivate(self, account: Account) -> None:
        self._active -= 1
        self._weights = self._weights - account.weight if self._active else 0.0
        self._over -= account.standing & 1
        account.standing = 0

    def _forget(self) -> None:
        idle = [name for name, each in self._accounts.items() if not each.in_flight and not each.waiting]
        for name in idle[: len(idle) // 2 + 1]:
            del self._accounts[name]
