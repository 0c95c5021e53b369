"""One timer for many short waits.

`asyncio.timeout` costs several microseconds each time it is entered, which is more than relaying an event
does. A watchdog is entered once; each wait only writes down until when it may last, and a timer that is
usually late looks at that now and then.
"""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Watchdog:
    """Ends the waits inside its block, which must all be those of the entering task.

    When a wait outlasts its patience, the block is left with TimeoutError, as with `asyncio.timeout`; a
    cancellation from elsewhere passes through untouched. `silent` is called when a wait has lasted `beat`
    seconds, and after each so many more.
    """

    __slots__ = ("_base", "_beat", "_deadline", "_loop", "_silent", "_since", "_task", "_timer", "expired")

    def __init__(self, beat: float = math.inf, silent: Callable[[], None] | None = None) -> None:
        self.expired = False
        self._beat = math.inf if silent is None else beat
        self._silent = silent
        self._since = 0.0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a Watchdog needs a running task")
        self._task = task
        self._base = task.cancelling()
        self._loop = asyncio.get_running_loop()
        return self

    def expect(self, seconds: float) -> None:
        """From now on, the block has `seconds` until the next call of this."""
        self._since = self._loop.time()
        self._deadline = self._since + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            self._arm()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.expired and self._task.uncancel() <= self._base and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(self._deadline, self._since + self._beat), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now < self._deadline:
            if now - self._since >= self._beat and self._silent is not None:
                self._since = now
                self._silent()
            self._arm()
            return
        self.expired = True
        self._task.cancel()
