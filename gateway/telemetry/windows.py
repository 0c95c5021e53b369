"""Sums over the last minutes, for gauges: a ring of parts, each stamped with the time it stands for.

A part that is older than the window is not cleared but overwritten when its turn comes, and left out of sums
until then. So adding is a division and a comparison, and nothing has to run while nothing happens.
"""

from collections.abc import Sequence

__all__ = ["Window"]


class Window:
    """Several sums over the last `seconds`, to within a part of them."""

    __slots__ = ("_parts", "_seconds", "_stamps", "_sums", "size")

    def __init__(self, size: int, seconds: float = 300.0, parts: int = 30) -> None:
        """`size` sums; the oldest of `parts` is dropped whole."""
        self.size = size
        self._parts = parts
        self._seconds = seconds / parts
        self._stamps = [-1] * parts
        self._sums = [[0.0] * size for _ in range(parts)]

    @property
    def seconds(self) -> float:
        return self._seconds * self._parts

    def part(self, now: float) -> list[float]:
        """The sums of the present part, to be added to."""
        stamp = int(now / self._seconds)
        place = stamp % self._parts
        if self._stamps[place] != stamp:
            self._sums[place] = [0.0] * self.size  # not cleared: another thread may read it
            self._stamps[place] = stamp
        return self._sums[place]

    def totals(self, now: float) -> Sequence[float]:
        """The sums over the window that ends now."""
        stamp = int(now / self._seconds)
        live = [
            sums
            for seen, sums in zip(self._stamps, self._sums, strict=True)
            if seen > stamp - self._parts and seen >= 0
        ]
        return [sum(column) for column in zip(*live, strict=True)] if live else [0.0] * self.size
