"""Waiting for a replica: the asyncio shell around the pool's scheduler.

All decisions are the scheduler's (scheduler.py), and synchronous: a slot is taken, in the ledger, at the
moment it is handed to a waiter, by the very code that freed it. So a free slot and a waiter whose turn it is
never coexist, and a waiter that was cancelled between hand-over and wake-up gives its slot straight back.
Here are only the futures that wait, their patience, and the timer that looks again while somebody waits.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.config.snapshot import Pool, PriorityClass
from gateway.errors import Unavailable
from gateway.fleet.ledger import ReplicaLedger, Slot
from gateway.fleet.step_model import REFERENCE, StepModel
from gateway.queueing.placements import View
from gateway.queueing.scheduler import Item, PoolScheduler, Refusal
from gateway.telemetry.windows import Window


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    waiting: int
    in_flight: int
    outstanding_tokens: int
    waiting_tokens: int = 0
    """Prompt tokens of those that wait."""
    expected_wait: float = 0.0
    """Seconds in which the line as it is drains."""
    lent: int = 0
    """Requests waiting for other pools that its replicas served, ever."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in line. Seconds; `expected_wait` is from now on, by the work ahead and the rate at which
    the line drains."""

    request_id: str
    position: int
    waited: float
    expected_wait: float
    tenant: str
    priority_class: str
    prompt_tokens: int
    long: bool
    """In the lane of long prompts."""


class LineWatch(Protocol):
    """Hears of those who had to stand in line."""

    def note_standing(self, pool: str, priority: str, position: int) -> None:
        """Somebody came to stand there, at that place."""

    def note_foretold(self, pool: str, priority: str, expected: float, waited: float) -> None:
        """Somebody was served: seconds that were to be expected when they came, and seconds that it took."""


class PoolQueue:
    """The replicas of one pool and the requests that wait for them."""

    def __init__(
        self,
        pool: Pool,
        ledgers: Sequence[ReplicaLedger],
        clock: Callable[[], float] | None = None,
        old: "PoolQueue | None" = None,
        watch: LineWatch | None = None,
    ) -> None:
        """`clock`: the ledgers' where it is not given. `old`: the pool's queue before a reload, which
        remembers what its replicas have in their caches."""
        self.pool = pool
        self._watch = watch
        self.ledgers = tuple(ledgers)
        self._clock = self.ledgers[0].clock if clock is None else clock
        self.scheduler: PoolScheduler = PoolScheduler(
            self.ledgers,
            pool.policy,
            self._clock,
            in_flight=pool.limits.in_flight,
            kv_tokens=pool.limits.kv_tokens,
            max_requests=pool.queue.max_requests,
            max_tokens=pool.queue.max_tokens,
            max_bytes=pool.queue.max_bytes,
            adapters=pool.limits.adapters,
            prefixes=None if old is None else old.scheduler.prefixes,
            name=pool.name,
            pace=StepModel(pool.pace),
        )
        self._timer: asyncio.TimerHandle | None = None
        self._picture: Mapping[str, tuple[int, float]] = {}
        self._picture_until = float("-inf")
        self._demand = Window(2, seconds=600.0, parts=60)

    def has(self, slot: Slot) -> bool:
        """Whether the slot is on a replica of this pool."""
        return slot.ledger in self.ledgers

    def close(self) -> None:
        """Hear no more of the replicas. For a queue that nobody will use again."""
        self.scheduler.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def candidates(self, exclude: Collection[str] = ()) -> list[ReplicaLedger]:
        """Replicas that may be chosen, best first, whether or not they have room right now."""
        return [view.ledger for view in self.scheduler.replicas.preference(frozenset(exclude), self._clock())]

    def has_room(self, ledger: ReplicaLedger) -> bool:
        """Whether a small request could be sent to the replica now."""
        return self.scheduler.replicas.has_room(self._view(ledger))

    def acquire_nowait(
        self, prompt_tokens: int, output_tokens: int, exclude: Collection[str] = ()
    ) -> Slot | None:
        """A slot at once, unless there is none, or none that those in line may not have first."""
        self.dispatch()
        granted: list[Slot] = []
        item = Item(
            arrival=self._clock(),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            granted=granted.append,
            refused=_nobody,
            exclude=frozenset(exclude),
        )
        self.scheduler.offer(item)
        self.scheduler.withdraw(item)
        return granted[0] if granted else None

    async def acquire(
        self,
        prompt_tokens: int,
        output_tokens: int,
        *,
        wait: float,
        exclude: Collection[str] = (),
        arrival: float | None = None,
        entered: float | None = None,
        name: str = "",
        tenant: str = "",
        weight: float = 1.0,
        priority: PriorityClass = PriorityClass.standard,
        deadline: float | None = None,
        prefix: tuple[int, ...] = (),
        block_tokens: int = 0,
        session: str | None = None,
        adapter: str | None = None,
        size: int = 0,
        streamed: bool = True,
        lenders: frozenset[str] = frozenset(),
        preempted: int = 0,
    ) -> Slot:
        """A slot, after waiting in line for at most `wait` seconds; of another pool, if one of `lenders` had
        room first.

        `exclude` names replicas that this request must not get; the rest is `Item`'s. Raises Unavailable
        (`no_replica`, `queue_full`, `queue_timeout`, `overloaded`). Cancelling leaves nothing behind.
        """
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        item = Item(
            arrival=self._clock() if arrival is None else arrival,
            entered=entered,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            granted=lambda slot: _give(future, slot),
            refused=lambda refusal: _refuse(future, self._error(refusal)),
            name=name,
            tenant=tenant,
            weight=weight,
            priority=priority,
            deadline=deadline,
            exclude=frozenset(exclude),
            prefix=prefix,
            block_tokens=block_tokens,
            session=session,
            adapter=adapter,
            size=size,
            streamed=streamed,
            lenders=lenders,
            preempted=preempted,
        )
        refusal = self.scheduler.offer(item)
        if not item.exclude and not preempted:  # its first time here
            part = self._demand.part(self._clock())
            part[0] += 1
            part[1] += REFERENCE.work(prompt_tokens, item.uncached, output_tokens)
        if refusal is not None:
            raise self._error(refusal)
        if future.done():
            return future.result()
        self._watch_time()
        stood, expected = self._clock(), 0.0
        if self._watch is not None:
            position, expected = self.scheduler.foreseen(item)
            self._watch.note_standing(self.pool.name, priority.name, position)
        try:
            async with asyncio.timeout(wait):
                slot = await future
        except TimeoutError:
            self._give_up(item, future)
            raise Unavailable(
                f"no replica of pool {self.pool.name} became free in {wait:g} s",
                reason="queue_timeout",
                retry_after=self.scheduler.retry_after(),
            ) from None
        except BaseException:
            self._give_up(item, future)
            raise
        if self._watch is not None:
            self._watch.note_foretold(self.pool.name, priority.name, expected, self._clock() - stood)
        return slot

    def held(
        self, prompt_tokens: int, prefix: tuple[int, ...], block_tokens: int, session: str | None
    ) -> Mapping[str, int]:
        """Replica id -> tokens of a prompt that it probably has in its cache."""
        return self.scheduler.prefixes.hits(prompt_tokens, prefix, session, block_tokens)

    def dispatch(self) -> None:
        """Look at everything anew. Called when a replica comes, goes, or time has passed."""
        self.scheduler.dispatch()

    def statistics(self) -> QueueStatistics:
        scheduler = self.scheduler
        return QueueStatistics(
            waiting=scheduler.waiting,
            in_flight=sum(ledger.in_flight for ledger in self.ledgers),
            outstanding_tokens=sum(ledger.outstanding_tokens for ledger in self.ledgers),
            waiting_tokens=scheduler.waiting_tokens,
            expected_wait=round(scheduler.drain_time(), 3),
            lent=scheduler.lent,
        )

    def standing(self, name: str) -> tuple[int, float] | None:
        """Position and expected wait, seconds, of the request with this id.

        By a picture of the whole line, which takes a walk through it: as many as ask share one, for half a
        second, and longer where the walk would take more than a hundredth of the time.
        """
        now = self._clock()
        if now >= self._picture_until:
            self._picture = {
                each.item.name: (each.position, each.expected_wait) for each in self.scheduler.standings()
            }
            self._picture_until = now + max(0.5, 100 * (self._clock() - now))
        return self._picture.get(name)

    def demand(self) -> tuple[int, float]:
        """What was asked of the pool in ten minutes, served or not: requests, and their work in seconds of
        the reference engine."""
        requests, work = self._demand.totals(self._clock())
        return int(requests), work

    def waiting_by(self) -> Mapping[tuple[str, str], int]:
        """(class, lane: `small`, `medium`, `long`) -> how many wait."""
        return self.scheduler.waiting_by()

    def expected_waits(self) -> Mapping[str, float]:
        """Class -> seconds that a newcomer of it, however long, must reckon with."""
        return {priority.name: self.scheduler.class_wait(priority) for priority in PriorityClass}

    def line(self, most: int) -> list[Waiting]:
        """Who waits, the next one first; at most `most` of them."""
        now = self._clock()
        return [
            Waiting(
                request_id=standing.item.name,
                position=standing.position,
                waited=round(now - standing.item.arrival, 3),
                expected_wait=round(standing.expected_wait, 3),
                tenant=standing.item.tenant,
                priority_class=standing.item.priority.name,
                prompt_tokens=standing.item.prompt_tokens,
                long=standing.item.long,
            )
            for standing in self.scheduler.standings()[:most]
        ]

    def _view(self, ledger: ReplicaLedger) -> View:
        return next(view for view in self.scheduler.views if view.ledger is ledger)

    def _error(self, refusal: Refusal) -> Unavailable:
        name = self.pool.name
        words = {
            "no_replica": f"no replica of pool {name} is left to try",
            "queue_full": f"the queue of pool {name} is full",
            "overloaded": f"pool {name} cannot answer this request in time",
        }
        return Unavailable(
            words[refusal.reason], reason=refusal.reason, retry_after=round(refusal.retry_after, 3)
        )

    def _give_up(self, item: Item, future: "asyncio.Future[Slot]") -> None:
        """Leave the line; if a slot was handed over but never seen, give it back."""
        self.scheduler.withdraw(item)
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()

    def _watch_time(self) -> None:
        """Look again soon, and as long as somebody waits."""
        if self._timer is None and (at := self.scheduler.next_tick()) is not None:
            self._timer = asyncio.get_running_loop().call_later(
                max(0.0, at - self._clock()), self._time_passed
            )

    def _time_passed(self) -> None:
        self._timer = None
        self.scheduler.dispatch()
        self._watch_time()


def _give(future: "asyncio.Future[Slot]", slot: Slot) -> None:
    if future.done():  # cancelled, and its task has not run yet
        slot.release()
    else:
        future.set_result(slot)


def lend(queues: Mapping[str, PoolQueue]) -> None:
    """Join the queues of one configuration as its pools' `lends_to` says."""
    for queue in queues.values():
        for name in queue.pool.lends_to:
            queue.scheduler.lend_to(queues[name].scheduler)


def _refuse(future: "asyncio.Future[Slot]", error: Unavailable) -> None:
    if not future.done():
        future.set_exception(error)


def _nobody(refusal: Refusal) -> None:
    """The item was in line for no time at all."""
