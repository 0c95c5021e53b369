"""When a brown-out's steps are on: the rules, without any I/O.

In overload it is better to give everybody a little less than to refuse some: shorter answers, fewer
choices, a smaller model, a place behind others. Each step of `overload:` says when it is on (`when`), and
what it then takes (routing/degrading.py). A step goes on as soon as all signals of its `when` have reached
their thresholds; it goes off when one of them has stayed below a part of its threshold (`off_below`) for a
while (`dwell`). Without both it would flicker: a step that works shortens the very line that switched it on.

Signals are of the pool's line, not of the request that asks:

    queue_wait   seconds in which the work drains that may go before a newcomer of the class, however long
                 that is: its own class's and more urgent ones', not what waits as `batch` behind it
    waiting      requests in line

Steps are independent of each other: several may be on, and then all hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.config.snapshot import OverloadStep, PriorityClass

__all__ = ["Ladder", "Line", "Rung", "Signals", "signals_of"]


@dataclass(frozen=True, slots=True)
class Signals:
    """What is to be seen of a line."""

    queue_wait: float = 0.0
    waiting: int = 0

    def level(self, step: OverloadStep) -> float:
        """The signals as parts of the step's thresholds, the least of them: 1 and above is overload."""
        parts = []
        if step.queue_wait is not None:
            parts.append(self.queue_wait / step.queue_wait)
        if step.waiting is not None:
            parts.append(self.waiting / step.waiting)
        return min(parts, default=0.0)


class Line(Protocol):
    """A pool's line (scheduler.py)."""

    @property
    def waiting(self) -> int: ...

    def class_wait(self, priority: PriorityClass) -> float: ...


def signals_of(line: Line, priority: PriorityClass) -> Signals:
    """The signals for a newcomer of a class."""
    waiting = line.waiting
    return Signals(line.class_wait(priority), waiting) if waiting else Signals()


@dataclass(frozen=True, slots=True)
class Rung:
    """A step, and whether it is on."""

    number: int
    """From 1, as they are written."""
    step: OverloadStep
    on: bool
    since: float | None
    """When it last went on or off, seconds on the clock; None: it was never on."""


class Ladder:
    """The steps of one `overload:` at one line."""

    __slots__ = ("_calm", "_on", "_seen", "_since", "_steps")

    def __init__(self, steps: Sequence[OverloadStep]) -> None:
        self._steps = tuple(steps)
        self._on = [False] * len(self._steps)
        self._since: list[float | None] = [None] * len(self._steps)
        self._calm: list[float | None] = [None] * len(self._steps)
        """Since when the signals of a step that is on have been low."""
        self._seen: float | None = None

    def look(self, now: float, signals: Signals) -> None:
        """Switch the steps by what is to be seen now."""
        before, self._seen = self._seen, now
        for index, step in enumerate(self._steps):
            level = signals.level(step)
            if not self._on[index]:
                if level >= 1:
                    self._on[index], self._since[index], self._calm[index] = True, now, None
                continue
            if level >= step.off_below:
                self._calm[index] = None
                continue
            calm = self._calm[index]
            if calm is None:
                # Nobody came for so long that nothing was looked at: it has been calm since.
                quiet = before is not None and now - before >= step.dwell
                calm = self._calm[index] = before if quiet else now
            assert calm is not None, "just set"
            if now - calm >= step.dwell:
                self._on[index], self._since[index] = False, now

    def seen(self, now: float, signals: Signals) -> "Ladder":
        """How it would stand if it were looked at now. To be shown: whoever watches switches nothing."""
        shown = Ladder(self._steps)
        shown._on, shown._since, shown._calm = list(self._on), list(self._since), list(self._calm)
        shown._seen = self._seen
        shown.look(now, signals)
        return shown

    @property
    def active(self) -> list[Rung]:
        """The steps that are on, in order."""
        return [rung for rung in self.rungs() if rung.on] if any(self._on) else []

    @property
    def highest(self) -> int:
        """The number of the last step that is on; 0 where none is."""
        return max((number for number, on in enumerate(self._on, 1) if on), default=0)

    def rungs(self) -> list[Rung]:
        return [
            Rung(number, step, on, since)
            for number, (step, on, since) in enumerate(
                zip(self._steps, self._on, self._since, strict=True), 1
            )
        ]
