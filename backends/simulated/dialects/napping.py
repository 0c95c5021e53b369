"""An engine's sleep: whether it is awake, and how long waking takes."""

import asyncio

from backends.simulated.options import ServerOptions

__all__ = ["Nap"]


class Nap:
    """Told by requests; what it was told is counted."""

    def __init__(self, options: ServerOptions) -> None:
        self.possible = options.sleeps or options.asleep
        self.asleep = options.asleep
        self.wakes = 0
        """How often it was told to wake, awake or not."""
        self.sleeps = 0
        self._wake_s = options.wake_s
        self._turn = asyncio.Lock()

    async def wake(self) -> None:
        """Returns when it is awake. Told while it wakes, it answers when that is done."""
        self.wakes += 1
        async with self._turn:
            if self.asleep:
                await asyncio.sleep(self._wake_s)
                self.asleep = False

    async def sleep(self) -> None:
        self.sleeps += 1
        async with self._turn:
            self.asleep = True
