"""How many replicas long prompts get, and which.

Every 100 arrivals the rate of long work (replica-seconds of the reference engine per second) is measured
anew; the long set is as many replicas, slowest first, as carry that rate, and at most the long share of all
work. Before the first measurement all replicas are in it. Too many, and every replica
has long prompts between the steps of short requests; too few, and long requests wait for minutes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # placements imports nothing of ours at run time either
    from gateway.queueing.placements import View

__all__ = ["LongSet"]


class LongSet:
    """Measures the work of both lanes, and marks the views of the replicas that long prompts may use."""

    EVERY = 100
    """Arrivals between two sizings."""
    MEMORY = 0.8
    """Weight of all earlier measurements at each sizing."""

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._arrivals = 0
        self._since: float | None = None
        self._work = [0.0, 0.0]
        self._span = 0.0
        self._sums = [0.0, 0.0]

    def arrived(self, now: float, long: bool, work: float) -> bool:
        """A request came. Returns whether it is time to size the set anew."""
        if self._since is None:
            self._since = now
        self._work[long] += work
        self._arrivals += 1
        return self._arrivals >= self.EVERY

    def resize(self, now: float, views: "Sequence[View]") -> None:
        """Choose the set among `views`, those that can be used now."""
        if self._arrivals >= self.EVERY and self._since is not None and now > self._since:
            self._span = self._span * self.MEMORY + now - self._since
            self._sums = [
                total * self.MEMORY + new for total, new in zip(self._sums, self._work, strict=True)
            ]
            self._work, self._arrivals, self._since = [0.0, 0.0], 0, now
        if self._span <= 0:
            for view in views:
                view.long = True
            return
        long, total = self._sums[1], sum(self._sums)
        capacity = sum(1 / view.slowness for view in views)
        need = self._margin * min(long / self._span, long / total * capacity if total else 0.0)
        got = 0.0
        for view in sorted(views, key=lambda view: (-view.slowness, view.index)):
            view.long = got < need or got == 0.0
            if view.long:
                got += 1 / view.slowness
