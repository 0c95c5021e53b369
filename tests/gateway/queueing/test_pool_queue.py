"""The queue: no slot is lost or handed out twice, and none lies idle while somebody could use it."""

import asyncio
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.config.snapshot import QueueBounds
from gateway.errors import Unavailable
from gateway.fleet.ledger import Slot
from gateway.queueing.pool_queue import PoolQueue
from gateway.state.overlay import Drain
from tests.gateway.builders import Clock, a_pool, a_queue

LONG = 50.0
"""Seconds of patience that no test here uses up."""


def queue_of(
    replicas: str = "a", in_flight: int | None = 1, max_requests: int = 1000, clock=None
) -> PoolQueue:
    """A letter is a replica."""
    pool = a_pool(replicas=tuple(replicas), in_flight=in_flight, queue=QueueBounds(max_requests=max_requests))
    return a_queue(pool, clock)


def id_of(slot: Slot) -> str:
    return slot.ledger.replica.id


async def settle() -> None:
    """Let everything that can run now run."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiting(queue: PoolQueue, *, exclude=(), wait: float = LONG) -> asyncio.Task[Slot]:
    return asyncio.get_running_loop().create_task(queue.acquire(1, 1, wait=wait, exclude=exclude))


async def test_a_free_replica_is_given_without_waiting():
    queue = queue_of()
    slot = await queue.acquire(100, 20, wait=0)
    assert queue.statistics().in_flight == 1
    assert queue.statistics().outstanding_tokens == 120
    slot.release()
    assert queue.statistics().in_flight == 0


async def test_the_fewest_outstanding_tokens_win_whatever_the_count_of_requests():
    queue = queue_of("ab", in_flight=10)
    big = await queue.acquire(1000, 0, wait=0)
    assert [id_of(await queue.acquire(10, 0, wait=0)) for _ in range(5)] == ["b"] * 5
    big.release()
    assert id_of(await queue.acquire(10, 0, wait=0)) == "a"


async def test_without_a_limit_nobody_waits():
    queue = queue_of(in_flight=None)
    for _ in range(100):
        await queue.acquire(1, 1, wait=0)
    assert queue.statistics().in_flight == 100


async def test_first_come_first_served():
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    tasks = [waiting(queue) for _ in range(5)]
    await settle()
    assert queue.statistics().waiting == 5
    for i in range(5):
        slot.release()
        await settle()
        assert [task.done() for task in tasks] == [True] * (i + 1) + [False] * (4 - i)
        slot = tasks[i].result()
    slot.release()
    assert queue.statistics().in_flight == 0


async def test_nobody_overtakes_the_line():
    """A release and a newcomer in one tick: the one who waited gets the slot."""
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    first = waiting(queue)
    await settle()
    slot.release()
    assert queue.acquire_nowait(1, 1) is None
    assert id_of(await first) == "a"


async def test_no_wait_means_now_or_never():
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    with pytest.raises(Unavailable) as refused:
        await queue.acquire(1, 1, wait=0)
    assert refused.value.reason == "queue_timeout"
    assert queue.statistics().waiting == 0
    slot.release()
    (await queue.acquire(1, 1, wait=0)).release()


async def test_a_wait_that_ends_leaves_nothing_behind():
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    with pytest.raises(Unavailable) as refused:
        await queue.acquire(1, 1, wait=0.01)
    assert refused.value.reason == "queue_timeout"
    assert refused.value.status == 503
    assert refused.value.retry_after is not None
    slot.release()
    assert queue.statistics().in_flight == 0
    assert queue.statistics().waiting == 0


async def test_a_full_queue_refuses_at_once():
    queue = queue_of(max_requests=2)
    slot = await queue.acquire(1, 1, wait=0)
    tasks = [waiting(queue), waiting(queue)]
    await settle()
    with pytest.raises(Unavailable) as refused:
        await queue.acquire(1, 1, wait=LONG)
    assert refused.value.reason == "queue_full"
    tasks[0].cancel()
    await settle()
    third = waiting(queue)
    await settle()
    slot.release()
    await settle()
    tasks[1].result().release()
    await settle()
    third.result().release()


async def test_no_replica_is_left_once_all_are_excluded():
    queue = queue_of("ab")
    with pytest.raises(Unavailable) as refused:
        await queue.acquire(1, 1, wait=LONG, exclude={"a", "b"})
    assert refused.value.reason == "no_replica"


async def test_an_excluded_replica_is_not_given_even_if_it_alone_is_free():
    queue = queue_of("ab")
    held = {id_of(slot): slot for slot in [await queue.acquire(1, 1, wait=0) for _ in "ab"]}
    task = waiting(queue, exclude={"a"})
    await settle()
    held["a"].release()
    await settle()
    assert not task.done()
    held["b"].release()
    assert id_of(await task) == "b"


async def test_one_who_may_not_have_the_free_replica_does_not_block_the_line():
    """Behind a waiter that excludes the free replica, all others are served: those in line and newcomers."""
    queue = queue_of("ab")
    held = {id_of(slot): slot for slot in [await queue.acquire(1, 1, wait=0) for _ in "ab"]}
    choosy, behind = waiting(queue, exclude={"a"}), waiting(queue)
    await settle()
    held["a"].release()
    await settle()
    assert not choosy.done()
    behind.result().release()
    newcomer = await queue.acquire(1, 1, wait=0)
    assert id_of(newcomer) == "a"
    assert not choosy.done()


async def test_a_newcomer_is_not_refused_by_a_full_line_that_cannot_use_the_free_replica():
    queue = queue_of("ab", max_requests=1)
    held = {id_of(slot): slot for slot in [await queue.acquire(1, 1, wait=0) for _ in "ab"]}
    choosy = waiting(queue, exclude={"a"})
    await settle()
    held["a"].release()
    assert id_of(await queue.acquire(1, 1, wait=LONG)) == "a"
    choosy.cancel()


async def test_a_cancelled_waiter_is_passed_over():
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    gone, next_ = waiting(queue), waiting(queue)
    await settle()
    gone.cancel()
    slot.release()  # in the same tick: `gone` has not run yet
    await settle()
    assert gone.cancelled()
    assert id_of(next_.result()) == "a"
    assert queue.statistics().in_flight == 1


async def test_cancelled_between_hand_over_and_wake_up_the_slot_goes_on():
    """The hardest moment: the slot is already the waiter's, but it will never see it."""
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    gone, next_ = waiting(queue), waiting(queue)
    await settle()
    slot.release()
    gone.cancel()
    await settle()
    assert gone.cancelled()
    assert id_of(next_.result()) == "a"
    next_.result().release()
    assert queue.statistics() == queue_of().statistics()


async def test_timed_out_between_hand_over_and_wake_up_the_slot_goes_on():
    """The patience ends in the very tick of the hand-over."""
    queue = queue_of()
    slot = await queue.acquire(1, 1, wait=0)
    late, next_ = waiting(queue, wait=0), waiting(queue)
    await asyncio.sleep(0)  # both wait now, and `late`'s timer is due next
    slot.release()
    await settle()
    if late.exception() is None:  # it was quicker than its timer
        late.result().release()
        await settle()
    assert id_of(next_.result()) == "a"
    next_.result().release()
    assert queue.statistics().in_flight == 0


async def test_a_cooling_replica_is_the_last_resort():
    """Chosen only when no other is left; when all are cooling, one is tried all the same."""
    clock = Clock(100.0)
    queue = queue_of("ab", clock=clock)
    a, b = queue.ledgers
    a.avoid()
    first = await queue.acquire(1, 1, wait=0)
    assert id_of(first) == "b"
    with pytest.raises(Unavailable):
        await queue.acquire(1, 1, wait=0)  # b is well and full: a is left alone
    assert id_of(await queue.acquire(1, 1, wait=0, exclude={"b"})) == "a"
    first.release()
    b.avoid()
    assert id_of(await queue.acquire(1, 1, wait=0)) == "b", "a is full"


async def test_a_waiter_with_exclusions_gets_the_last_resort_past_one_without():
    """b is well but full, a is cooling but free: only who may not have b takes a."""
    queue = queue_of("ab", clock=Clock(100.0))
    queue.ledgers[0].avoid()
    slot = await queue.acquire(1, 1, wait=0)
    anybody = waiting(queue)
    await settle()
    assert id_of(await queue.acquire(1, 1, wait=0, exclude={"b"})) == "a"
    assert not anybody.done()
    slot.release()
    assert id_of(await anybody) == "b"


async def test_the_last_resort_is_given_in_line_too():
    """Both wait; when a, still cooling, is free again, only who may not have b takes it."""
    queue = queue_of("ab", clock=Clock(100.0))
    a, b = [await queue.acquire(1, 1, wait=0) for _ in "ab"]
    queue.ledgers[0].avoid()
    anybody, choosy = waiting(queue), waiting(queue, exclude={"b"})
    await settle()
    a.release()
    await settle()
    assert not anybody.done()
    assert id_of(choosy.result()) == "a"
    b.release()
    assert id_of(await anybody) == "b"


async def test_one_who_was_passed_over_keeps_its_place():
    queue = queue_of("ab")
    held = {id_of(slot): slot for slot in [await queue.acquire(1, 1, wait=0) for _ in "ab"]}
    choosy, second, third = waiting(queue, exclude={"a"}), waiting(queue), waiting(queue)
    await settle()
    held["a"].release()
    held["b"].release()
    await settle()
    assert (id_of(choosy.result()), id_of(second.result())) == ("b", "a")
    assert not third.done()
    third.cancel()


async def test_dispatch_serves_the_line_when_a_replica_comes_back():
    """The prober calls it: the end of a cool-down is nobody's release."""
    clock = Clock(100.0)
    queue = queue_of("ab", clock=clock)
    queue.ledgers[0].avoid()
    await queue.acquire(1, 1, wait=0)
    task = waiting(queue)
    await settle()
    clock.tick(1.0)
    queue.dispatch()
    assert id_of(await task) == "a"


async def test_newcomers_do_not_overtake_at_the_end_of_a_cool_down():
    clock = Clock(100.0)
    queue = queue_of("ab", clock=clock)
    queue.ledgers[0].avoid()
    await queue.acquire(1, 1, wait=0)
    first = waiting(queue)
    await settle()
    clock.tick(1.0)
    assert queue.acquire_nowait(1, 1) is None
    assert id_of(await first) == "a"


def test_candidates_are_best_first_whether_or_not_they_have_room():
    queue = queue_of("abc", in_flight=1)
    queue.acquire_nowait(10, 0)
    queue.acquire_nowait(5, 0)
    assert [ledger.replica.id for ledger in queue.candidates()] == ["c", "b", "a"]
    assert [ledger.replica.id for ledger in queue.candidates(exclude={"c"})] == ["b", "a"]


# ------------------------------------------------------------------------------------------ properties


class Bookkeeper:
    """Drives a queue, remembers who asked, who got what, and checks the invariants."""

    def __init__(self, replicas: str, in_flight: int, max_requests: int) -> None:
        self.clock = Clock(100.0)
        self.queue = queue_of(replicas, in_flight, max_requests, self.clock)
        self.limit = in_flight
        self.asked: list[tuple[asyncio.Task[Slot], frozenset[str]]] = []
        self.held: list[Slot] = []
        self.seen: set[int] = set()
        self.cooled = False

    def collect(self) -> None:
        """Take over the slots of tasks that got one."""
        for i, (task, exclude) in enumerate(self.asked):
            if i in self.seen or not task.done():
                continue
            self.seen.add(i)
            if task.cancelled():
                continue
            error = task.exception()
            if error is not None:
                assert isinstance(error, Unavailable)
                continue
            slot = task.result()
            assert id_of(slot) not in exclude
            assert all(slot is not other for other in self.held), "handed out twice"
            self.held.append(slot)

    def check_always(self) -> None:
        for ledger in self.queue.ledgers:
            assert 0 <= ledger.in_flight <= self.limit
            assert ledger.outstanding_tokens == 2 * ledger.in_flight

    def check_at_rest(self) -> None:
        """Every slot in the books is in somebody's hand; nobody waits who could be served; no overtaking."""
        self.collect()
        for ledger in self.queue.ledgers:
            assert ledger.in_flight == sum(slot.ledger is ledger for slot in self.held)
        open_ = [(i, exclude) for i, (task, exclude) in enumerate(self.asked) if not task.done()]
        assert self.queue.statistics().waiting == len(open_)
        for i, exclude in open_:
            for ledger in self.queue.candidates(exclude):
                assert not self.queue.has_room(ledger), "a free slot and an eligible waiter"
            if not self.cooled:
                for task, _ in self.asked[i + 1 :]:
                    if task.done() and not task.cancelled() and task.exception() is None:
                        assert id_of(task.result()) in exclude, "overtaken"

    async def close(self) -> None:
        """Whatever is left: cancel who waits, release what is held; then nothing may remain."""
        for task, _ in self.asked:
            task.cancel()
        await settle()
        self.check_at_rest()
        for slot in self.held:
            slot.release()
            slot.release()
        assert self.queue.statistics().in_flight == 0
        assert self.queue.statistics().waiting == 0
        assert self.queue.statistics().outstanding_tokens == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def drive(replicas: str, in_flight: int, max_requests: int, steps) -> None:
    keeper = Bookkeeper(replicas, in_flight, max_requests)
    for what, which, exclude in steps:
        if what in ("ask", "ask now"):
            task = waiting(keeper.queue, exclude=exclude, wait=LONG if what == "ask" else 0)
            keeper.asked.append((task, frozenset(exclude)))
        elif what == "cancel" and keeper.asked:
            task = keeper.asked[which % len(keeper.asked)][0]
            if not task.done():
                task.cancel()
        elif what == "release" and keeper.held:
            keeper.held.pop(which % len(keeper.held)).release()
        elif what == "tick":
            await asyncio.sleep(0)
            keeper.collect()
        elif what == "rest":
            await settle()
            keeper.check_at_rest()
        elif what == "break":
            keeper.cooled = True
            keeper.queue.ledgers[which % len(replicas)].avoid()
            keeper.queue.dispatch()
        elif what == "mend":
            keeper.queue.ledgers[which % len(replicas)].reached()
            keeper.queue.dispatch()
        keeper.check_always()
    await settle()
    keeper.check_at_rest()
    await keeper.close()


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask now", "cancel", "release", "release", "tick", "tick", "rest", "break", "mend"]
        ),
        st.integers(0, 20),
        st.sets(st.sampled_from("abc"), max_size=2),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["a", "ab", "abc"]), st.integers(1, 3), st.sampled_from([0, 1, 3, 1000]), steps)
@example("ab", 1, 1000, [("ask", 0, {"a"}), ("ask", 0, {"a"}), ("rest", 0, set()), ("ask", 0, set())])
def test_no_interleaving_loses_or_doubles_a_slot(replicas, in_flight, max_requests, steps):
    """P4: asks, cancels, timeouts and releases in any order, in one tick or several."""
    asyncio.run(drive(replicas, in_flight, max_requests, steps))


@pytest.mark.parametrize("seed", range(25))
async def test_churn(seed):
    """Many clients that ask, wait, hold and give up at random: at the end the books are empty.

    The holding times are turns of the loop, not seconds, so the whole runs at once.
    """
    random_ = random.Random(seed)
    queue = queue_of("abc", in_flight=2)
    served = 0

    async def client() -> None:
        nonlocal served
        exclude = set(random_.sample("abc", random_.choice([0, 0, 0, 1, 2])))
        slot = await queue.acquire(3, 4, wait=random_.choice([0, LONG]), exclude=exclude)
        try:
            for _ in range(random_.randrange(4)):
                await asyncio.sleep(0)
            served += 1
        finally:
            slot.release()

    clients = []
    for _ in range(200):
        clients.append(asyncio.get_running_loop().create_task(client()))
        if random_.random() < 0.3:
            random_.choice(clients).cancel()
        if random_.random() < 0.5:
            await asyncio.sleep(0)
        assert all(ledger.in_flight <= 2 for ledger in queue.ledgers)
    done = await asyncio.gather(*clients, return_exceptions=True)
    for result in done:
        assert result is None or isinstance(result, (Unavailable, asyncio.CancelledError)), result
    assert served > 0
    assert queue.statistics().in_flight == queue.statistics().waiting == 0
    assert queue.statistics().outstanding_tokens == 0


def drain(queue: PoolQueue, *replicas: str) -> None:
    for ledger in queue.ledgers:
        ledger.drained = Drain(ledger.replica.id, 1.0, "me") if ledger.replica.id in replicas else None
        ledger.changed()


async def test_a_drained_replica_gets_nothing_even_as_the_last_resort():
    queue = queue_of("ab", in_flight=10)
    queue.ledgers[1].avoid()
    drain(queue, "a")
    assert [id_of(await queue.acquire(1, 0, wait=0)) for _ in range(3)] == ["b"] * 3
    drain(queue, "a", "b")
    with pytest.raises(Unavailable) as refused:
        await queue.acquire(1, 0, wait=LONG)
    assert refused.value.reason == "no_replica"
    assert queue.statistics().waiting == 0


async def test_who_waits_stays_in_line_and_is_served_when_the_replica_is_back():
    queue = queue_of("a", in_flight=1)
    slot = await queue.acquire(1, 0, wait=0)
    waiter = waiting(queue)
    await settle()
    drain(queue, "a")
    slot.release()
    await settle()
    assert queue.statistics().waiting == 1
    drain(queue)
    await settle()
    assert id_of(waiter.result()) == "a"


async def test_two_queues_over_the_same_replicas_share_one_limit_and_one_line_of_slots():
    """As after a reload: the older configuration's waiters come first, and no slot lies idle."""
    old = queue_of("a", in_flight=1)
    slot = await old.acquire(1, 0, wait=0)
    new = PoolQueue(old.pool, old.ledgers)
    waiters = [waiting(new), waiting(old)]
    await settle()
    slot.release()
    await settle()
    assert [waiter.done() for waiter in waiters] == [False, True]
    waiters[1].result().release()
    await settle()
    assert waiters[0].done()
    old.close()
    last = waiting(new)
    await settle()
    waiters[0].result().release()
    await settle()
    assert last.done()
