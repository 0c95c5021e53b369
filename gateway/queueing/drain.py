"""How much waits, how fast it goes, and so how long a place in line takes.

Work ahead of a key, and how many have it, is kept in buckets of half a second of key, and again in blocks of
64 of those, so that a newcomer's wait and place are short sums and not a walk through the line. The rate of
draining is measured while there is a line.
"""

from collections.abc import Callable, Sequence

__all__ = ["Backlog"]


class Backlog:
    """Work (replica-seconds) that waits, by place in line."""

    WIDTH = 0.5
    BUCKETS = 4096
    """Keys 2,048 seconds apart share a bucket: more than anybody waits."""
    BLOCK = 64
    SPAN = 1.0
    """Seconds over which the rate is measured before it counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.work = 0.0
        self.requests = 0
        self.tokens = 0
        self.size = 0
        self._buckets = [0.0] * self.BUCKETS
        self._blocks = [0.0] * (self.BUCKETS // self.BLOCK)
        self._counts = [0] * self.BUCKETS
        self._block_counts = [0] * (self.BUCKETS // self.BLOCK)
        self._rate: float | None = None
        self._since: float | None = None
        self._gone = 0.0

    def add(self, key: float, work: float, tokens: int, size: int) -> None:
        if not self.requests:
            self._since, self._gone = self._clock(), 0.0
        bucket = int(key / self.WIDTH) % self.BUCKETS
        self._buckets[bucket] += work
        self._blocks[bucket // self.BLOCK] += work
        self._counts[bucket] += 1
        self._block_counts[bucket // self.BLOCK] += 1
        self.work += work
        self.requests += 1
        self.tokens += tokens
        self.size += size

    def remove(self, key: float, work: float, tokens: int, size: int) -> None:
        self.requests -= 1
        self.tokens -= tokens
        self.size -= size
        bucket = int(key / self.WIDTH) % self.BUCKETS
        self._counts[bucket] -= 1
        self._block_counts[bucket // self.BLOCK] -= 1
        if self.requests:
            self._buckets[bucket] -= work
            self._blocks[bucket // self.BLOCK] -= work
            self.work -= work
        else:  # no dust of rounding
            self._buckets[bucket] = self._blocks[bucket // self.BLOCK] = self.work = 0.0

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
        if int(key / self.WIDTH) - int(floor / self.WIDTH) >= self.BUCKETS:
            return max(self.work, 0.0)
        return max(self._sum(self._buckets, self._blocks, floor, key), 0.0)

    def place(self, floor: float, key: float) -> int:
        """How many wait between two keys, all of the last one's half second among them: the place of somebody
        who is in line with that key, or a few more."""
        if int(key / self.WIDTH) - int(floor / self.WIDTH) >= self.BUCKETS - 1:
            return self.requests
        return max(1, int(self._sum(self._counts, self._block_counts, floor, key + self.WIDTH)))

    def _sum(self, buckets: Sequence[float], blocks: Sequence[float], floor: float, key: float) -> float:
        first, last = int(floor / self.WIDTH), int(key / self.WIDTH)
        if last < first:
            return 0.0
        first, last = first % self.BUCKETS, last % self.BUCKETS
        if first <= last:
            return self._between(buckets, blocks, first, last)
        return self._between(buckets, blocks, first, self.BUCKETS) + self._between(buckets, blocks, 0, last)

    def _between(self, buckets: Sequence[float], blocks: Sequence[float], first: int, last: int) -> float:
        """The sum of a slice: its whole blocks, and what is before and behind them."""
        begin, end = -(-first // self.BLOCK), last // self.BLOCK
        if begin >= end:
            return sum(buckets[first:last])
        head, tail = buckets[first : begin * self.BLOCK], buckets[end * self.BLOCK : last]
        return sum(head) + sum(blocks[begin:end]) + sum(tail)
