"""The overlay in force, followed from the store: what this process changes, and what others do.

A change counts when it has been applied, so `change` returns after that. Changes of other processes are
looked for every POLL seconds, off the loop. Reading and applying happen under one lock: an older reading
never replaces a newer one, so nothing that was revoked comes back to life.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from gateway.state.overlay import Overlay
from gateway.state.store import StateStore

log = logging.getLogger("headgate.state")

POLL = 0.3
"""Seconds between two looks for changes of other processes; a revocation must hold within one second."""

T = TypeVar("T")


class LiveState:
    """`apply` is called on the loop with each new overlay, and must not fail or wait."""

    def __init__(self, store: StateStore, apply: Callable[[Overlay], None]) -> None:
        self.store = store
        self.overlay = Overlay()
        self._apply = apply
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Apply what the store says now. Raises sqlite3.Error."""
        async with self._lock:
            overlay = await asyncio.to_thread(self.store.read)
            self.overlay = overlay
            self._apply(overlay)

    async def change(self, work: Callable[[], T]) -> T:
        """Do `work` on the store in a thread, and apply what came of it. Raises what `work` raises."""
        result = await asyncio.to_thread(work)
        await self.refresh()
        return result

    async def watch(self) -> None:
        """Follow the changes of other processes, for ever."""
        failing = False
        while True:
            await asyncio.sleep(POLL)
            try:
                if await asyncio.to_thread(self.store.version) != self.overlay.version:
                    await self.refresh()
                failing = False
            except sqlite3.Error as error:
                if not failing:
                    log.error("the state store cannot be read; what was known stays in force: %s", error)
                failing = True
