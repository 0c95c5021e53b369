"""A few threads for counting, a bounded line before them, and a limit on how long anybody waits.

The work frees the GIL, so a thread is enough to keep the event loop running.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from gateway.errors import GatewayError

__all__ = ["Lane", "NotCounted", "Reason", "guarded"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Reason = Literal["too long", "busy", "slow", "failed", "engine"]
"""Why a prompt was estimated although its model has a tokenizer."""


class NotCounted(Exception):
    """A turn in the way, not a failure: estimate instead."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Lane:
    """A few threads, a bounded line before them, and a limit on how long anybody waits for a result."""

    def __init__(self, name: str, threads: int, waiting: int, seconds: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"counting-{name}")
        self._threads = threads
        self._waiting = waiting
        self._seconds = seconds
        self.jobs: set[Future[Any]] = set()
        self.abandoned: set[Future[Any]] = set()

    async def run(self, work: Callable[[], T], *, bounded: bool = True) -> T:
        """The result of `work`. Raises what it raises, if a GatewayError, else NotCounted.

        When the awaiting task is cancelled, a waiting job is dropped and a running one ends alone.
        """
        full = len(self.jobs) >= self._threads + self._waiting
        if (bounded and full) or len(self.abandoned) >= self._threads:
            raise NotCounted("busy")
        try:
            job = self._executor.submit(guarded, work)
        except RuntimeError:  # closed: a request of an old configuration came late
            raise NotCounted("busy") from None
        self.jobs.add(job)
        job.add_done_callback(self._forget)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise NotCounted("slow") from None
        finally:
            if not job.cancelled() and not job.done():
                self.abandoned.add(job)
                if job.done():  # between the question and the note
                    self.abandoned.discard(job)

    def _forget(self, job: Future[Any]) -> None:
        # Called in the job's thread: each is one atomic operation on a set.
        self.jobs.discard(job)
        self.abandoned.discard(job)

    async def aclose(self) -> None:
        """Take no more jobs; wait for those at work, at most as long as anybody would."""
        self._executor.shutdown(wait=False)
        waiters = [asyncio.wrap_future(job) for job in tuple(self.jobs)]
        if waiters:
            await asyncio.wait(waiters, timeout=self._seconds)
        for waiter in waiters:
            if not waiter.done():
                waiter.cancel()
            elif not waiter.cancelled():
                waiter.exception()  # seen: whoever waits for the job itself is told as well


def guarded(work: Callable[[], T]) -> T:
    """`work`, with everything but refusals and orders to stop turned into NotCounted.

    A panic in Rust arrives as pyo3's PanicException, which is a BaseException.
    """
    try:
        return work()
    except (GatewayError, NotCounted, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Its message may quote the prompt: only its kind is logged.
        log.warning("a tokenizer failed with %s; the prompt is estimated", type(error).__name__)
        raise NotCounted("failed") from None
