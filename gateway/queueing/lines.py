"""Lines of waiting requests, ordered within tenants and between them.

A `Line` holds requests that may go to the same replicas, lent ones included. Each tenant's share of it is a
heap; over the tenants' heads lie four more heaps, by the tenant's standing (fairness.py):

    0  entitled
    1  holds more than its share of slots: closed out of the last part of each replica
    2  ahead of the others in service: goes when nobody of 0 and 1 is there
    3  both

Entries become stale when a head leaves or a tenant's standing changes; they are dropped when they come to the
top. Every operation is O(log n).
"""

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # both know lines
    from gateway.queueing.fairness import Account
    from gateway.queueing.items import Item

__all__ = ["Flow", "Line"]


class Flow:
    """One tenant's requests in one line."""

    __slots__ = ("account", "heap", "line")

    def __init__(self, line: "Line", account: "Account") -> None:
        self.line = line
        self.account = account
        self.heap: list[tuple[float, int, Item]] = []

    def head(self) -> "tuple[float, int, Item] | None":
        heap = self.heap
        while heap:
            entry = heap[0]
            if entry[2].flow is self and entry[2].number == entry[1]:
                return entry
            heapq.heappop(heap)  # withdrawn, or in line again at another place
        return None


class Line:
    """Requests that may go to the same replicas."""

    __slots__ = ("count", "exclude", "flows", "heads", "lenders", "priority", "size")

    def __init__(self, size: int, priority: int, exclude: frozenset[str], lenders: frozenset[str]) -> None:
        self.size = size
        self.priority = priority
        self.exclude = exclude
        self.lenders = lenders
        self.count = 0
        self.flows: dict[str, Flow] = {}
        self.heads: tuple[list[tuple[float, int, Flow]], ...] = ([], [], [], [])

    def push(self, item: "Item", account: "Account") -> Flow:
        """Put `item` (with its key and number) in line."""
        flow = self.flows.get(account.tenant)
        if flow is None:
            flow = self.flows[account.tenant] = Flow(self, account)
            account.flows.append(flow)
        item.flow = flow
        entry = (item.key, item.number, item)
        heapq.heappush(flow.heap, entry)
        self.count += 1
        if flow.head() is entry:
            self.note(flow)
        return flow

    def remove(self, item: "Item") -> None:
        """Take `item` out, wherever in the line it is."""
        flow = item.flow
        assert flow is not None, "it is in this line"
        was_head = flow.heap[0][2] is item
        item.flow = None
        self.count -= 1
        if was_head:
            self.note(flow)
        elif len(flow.heap) > 64 and len(flow.heap) > 4 * self.count:
            flow.heap = [
                entry for entry in flow.heap if entry[2].flow is flow and entry[2].number == entry[1]
            ]
            heapq.heapify(flow.heap)
        if not flow.heap:
            del self.flows[flow.account.tenant]
            flow.account.flows.remove(flow)

    def note(self, flow: Flow) -> None:
        """A flow has another head, or its tenant another standing."""
        head = flow.head()
        if head is None:
            return
        account = flow.account
        heads = self.heads[account.standing]
        heapq.heappush(heads, (account.served if account.standing > 1 else head[0], head[1], flow))
        if len(heads) > 64 and len(heads) > 8 * len(self.flows):
            heads[:] = {entry[1]: entry for entry in heads if self._current(entry, account.standing)}.values()
            heapq.heapify(heads)

    def best(self, *, open_to_all: bool) -> "Item | None":
        """Who is next for a replica; `open_to_all`: tenants above their share may have it too."""
        one, other = self._top(0), self._top(1) if open_to_all else None
        if one is None and other is None:
            one, other = self._top(2), self._top(3) if open_to_all else None
        if other is not None and (one is None or other < one):
            one = other
        return None if one is None else one[2].heap[0][2]

    def _top(self, standing: int) -> tuple[float, int, Flow] | None:
        heads = self.heads[standing]
        while heads:
            entry = heads[0]
            if self._current(entry, standing):
                return entry
            heapq.heappop(heads)
        return None

    @staticmethod
    def _current(entry: tuple[float, int, Flow], standing: int) -> bool:
        flow = entry[2]
        if flow.account.standing != standing:
            return False
        head = flow.head()
        if head is None or head[1] != entry[1]:
            return False
        return standing < 2 or entry[0] == flow.account.served
