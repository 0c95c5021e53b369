"""How much waits, how fast it goes, and so how long a place in line takes.

Work ahead of a key is kept in buckets of half a second of key, so that a newcomer's wait is one sum over a
slice and not a walk through the line. The rate of draining is measured while there is a line.
"""

from collections.abc import Callable

__all__ = ["Backlog"]


class Backlog:
    """Work (replica-seconds) that waits, by place in line."""

    WIDTH = 0.5
    BUCKETS = 4096
    """Keys 2,048 seconds apart share a bucket: more than anybody waits."""
    SPAN = 1.0
    """Seconds over which the rate is measured before it counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.work = 0.0
        self.requests = 0
        self.tokens = 0
        self.size = 0
        self._buckets = [0.0] * self.BUCKETS
        self._rate: float | None = None
        self._since: float | None = None
        self._gone = 0.0

    def add(self, key: float, work: float, tokens: int, size: int) -> None:
        if not self.requests:
            self._since, self._gone = self._clock(), 0.0
        self._buckets[int(key / self.WIDTH) % self.BUCKETS] += work
        self.work += work
        self.requests += 1
        self.tokens += tokens
        self.size += size

    def remove(self, key: float, work: float, tokens: int, size: int) -> None:
        self.requests -= 1
        self.tokens -= tokens
        self.size -= size
        if self.requests:
            self._buckets[int(key / self.WIDTH) % self.BUCKETS] -= work
            self.work -= work
        else:  # no dust of rounding
            self._buckets[int(key / self.WIDTH) % self.BUCKETS] = self.work = 0.0

    def drained(self, work: float) -> None:
        """Work left the line for a replica."""
        self._gone += work

    def rate(self, capacity: float) -> float:
        """Replica-seconds per second that leave the line; `capacity` until it has been seen."""
        now = self._clock()
        if self._since is not None and now - self._since >= self.SPAN:
            seen = self._gone / (now - self._since)
            self._rate = seen if self._rate is None else 0.7 * self._rate + 0.3 * seen
            self._since, self._gone = now, 0.0
        return max(capacity if self._rate is None else self._rate, 1e-3)

    def ahead(self, floor: float, key: float) -> float:
        """Work between two keys."""
        first, last = int(floor / self.WIDTH), int(key / self.WIDTH)
        if last < first:
            return 0.0
        if last - first >= self.BUCKETS:
            return max(self.work, 0.0)
        first, last = first % self.BUCKETS, last % self.BUCKETS
        buckets = self._buckets
        if first <= last:
            return max(sum(buckets[first:last]), 0.0)
        return max(sum(buckets[first:]) + sum(buckets[:last]), 0.0)
