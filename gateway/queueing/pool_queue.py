"""Who gets the next free replica of a pool: first come, first served.

Pure bookkeeping around one idea: a slot is taken, in the ledger, at the moment it is handed to a waiter,
by the very code that freed it. So a free slot and an eligible waiter never coexist, nothing is polled,
and a waiter that was cancelled between hand-over and wake-up gives its slot straight back.

The replica with the fewest outstanding tokens wins, within its `in_flight` limit. A replica that lately
could not be reached is chosen only when no other is left; one that was drained is not chosen at all.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gateway.config.snapshot import Pool
from gateway.errors import Unavailable
from gateway.fleet.ledger import ReplicaLedger, Slot


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    waiting: int
    in_flight: int
    outstanding_tokens: int


@dataclass(slots=True, eq=False)
class _Waiter:
    future: asyncio.Future[Slot]
    prompt_tokens: int
    output_tokens: int
    exclude: Collection[str]


class PoolQueue:
    """The replicas of one pool and the requests that wait for them."""

    def __init__(self, pool: Pool, ledgers: Sequence[ReplicaLedger]) -> None:
        self.pool = pool
        self.ledgers = tuple(ledgers)
        self._waiters: deque[_Waiter] = deque()
        for ledger in self.ledgers:
            ledger.watch(self.dispatch)

    def close(self) -> None:
        """Hear no more of the replicas. For a queue that nobody will use again."""
        for ledger in self.ledgers:
            ledger.unwatch(self.dispatch)

    def candidates(self, exclude: Collection[str] = ()) -> list[ReplicaLedger]:
        """Replicas that may be chosen, best first, whether or not they have room right now."""
        left = [
            ledger for ledger in self.ledgers if ledger.drained is None and ledger.replica.id not in exclude
        ]
        well = [ledger for ledger in left if not ledger.cooling()]
        return sorted(well or left, key=_preference)

    def has_room(self, ledger: ReplicaLedger) -> bool:
        limit = self.pool.limits.in_flight
        if ledger.drained is not None:
            return False
        return limit is None or ledger.in_flight < limit

    def acquire_nowait(
        self, prompt_tokens: int, output_tokens: int, exclude: Collection[str] = ()
    ) -> Slot | None:
        """A slot at once, unless there is none, or none that those in line may not have first."""
        self.dispatch()
        return self._take(prompt_tokens, output_tokens, exclude)

    async def acquire(
        self, prompt_tokens: int, output_tokens: int, *, wait: float, exclude: Collection[str] = ()
    ) -> Slot:
        """A slot, after waiting in line for at most `wait` seconds.

        `exclude` names replicas that this request must not get. Raises Unavailable (`no_replica`,
        `queue_full`, `queue_timeout`). Cancelling leaves nothing behind.
        """
        slot = self.acquire_nowait(prompt_tokens, output_tokens, exclude)
        if slot is not None:
            return slot
        if not self.candidates(exclude):
            raise Unavailable(f"no replica of pool {self.pool.name} is left to try", reason="no_replica")
        if len(self._waiters) >= self.pool.queue.max_requests:
            raise Unavailable(f"the queue of pool {self.pool.name} is full", reason="queue_full")
        waiter = _Waiter(asyncio.get_running_loop().create_future(), prompt_tokens, output_tokens, exclude)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(wait):
                return await waiter.future
        except TimeoutError:
            self._give_up(waiter)
            raise Unavailable(
                f"no replica of pool {self.pool.name} became free in {wait:g} s", reason="queue_timeout"
            ) from None
        except BaseException:
            self._give_up(waiter)
            raise

    def dispatch(self) -> None:
        """Hand free slots to waiters, in order. Called whenever a slot or a replica comes back."""
        passed: deque[_Waiter] = deque()
        all_taken = False  # for a waiter without exclusions; one that has them may still find a replica
        while self._waiters and any(map(self.has_room, self.ledgers)):
            waiter = self._waiters.popleft()
            if waiter.future.done():
                continue
            slot = None
            if waiter.exclude or not all_taken:
                slot = self._take(waiter.prompt_tokens, waiter.output_tokens, waiter.exclude)
            if slot is not None:
                waiter.future.set_result(slot)
                continue
            passed.append(waiter)
            all_taken = all_taken or not waiter.exclude
        passed.extend(self._waiters)
        self._waiters = passed

    def statistics(self) -> QueueStatistics:
        return QueueStatistics(
            waiting=sum(not waiter.future.done() for waiter in self._waiters),
            in_flight=sum(ledger.in_flight for ledger in self.ledgers),
            outstanding_tokens=sum(ledger.outstanding_tokens for ledger in self.ledgers),
        )

    def _take(self, prompt_tokens: int, output_tokens: int, exclude: Collection[str]) -> Slot | None:
        for ledger in self.candidates(exclude):
            if self.has_room(ledger):
                return ledger.take(prompt_tokens, output_tokens, ledger.changed)
        return None

    def _give_up(self, waiter: _Waiter) -> None:
        """Leave the line; if a slot was handed over but never seen, give it back."""
        if waiter.future.done() and not waiter.future.cancelled():
            waiter.future.result().release()
            return
        waiter.future.cancel()
        try:
            self._waiters.remove(waiter)
        except ValueError:
            pass  # dispatch has dropped it already


def _preference(ledger: ReplicaLedger) -> tuple[float, int, float]:
    """Least first: outstanding tokens by weight; among idle replicas, whoever served least so far."""
    return ledger.load(), ledger.in_flight, ledger.requests_total / ledger.replica.weight
