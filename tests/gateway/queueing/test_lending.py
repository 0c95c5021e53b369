"""Idle replicas of one pool serve who waits for another; batch requests make room for interactive ones."""

import pytest

from gateway.config.snapshot import PriorityClass
from gateway.fleet.step_model import REFERENCE
from gateway.state.overlay import Drain
from tests.gateway.queueing.pools import Client, Pool

INTERACTIVE, STANDARD, BATCH = PriorityClass.interactive, PriorityClass.standard, PriorityClass.batch
LONG = 20_000
MAY = frozenset({"lender"})


class Two:
    """`borrower` has replica a, `lender` x; both take `slots` at a time."""

    def __init__(self, *, slots: int = 1, lent: int = 10, **settings) -> None:
        wide = {"long_prompt": 4096}  # so that two of a lane do not fit together
        self.borrower = Pool("a", in_flight=slots, name="borrower", settings={**wide, **settings})
        self.lender = Pool("x", in_flight=lent, name="lender", clock=self.borrower.clock, settings=wide)
        self.lender.scheduler.lend_to(self.borrower.scheduler)

    def fill(self) -> Client:
        """Take the only slot of the borrower."""
        return served(self.borrower.ask(1, 1), "a")

    def ask(self, prompt: int = 10, **fields) -> Client:
        """In the borrower's line, open to the lender."""
        return self.borrower.ask(prompt, lenders=MAY, **fields)


def served(client: Client, replica: str) -> Client:
    """Check that it is there, and let its first token come."""
    assert client.replica == replica
    assert client.slot is not None
    client.slot.progress(1)
    return client


# ------------------------------------------------------------------------------------------- lending


def test_who_finds_no_room_gets_an_idle_replica_of_the_lender_at_once():
    pools = Two()
    pools.fill()
    lent = served(pools.ask(), "x")
    assert pools.borrower.scheduler.waiting == 0
    assert pools.lender.scheduler.lent == 1
    assert lent.slot is not None
    lent.slot.release()
    assert pools.lender.ledgers["x"].in_flight == 0


def test_own_room_comes_first():
    assert Two().ask().replica == "a"


def test_a_replica_that_gets_room_takes_the_next_of_the_other_line():
    """By that line's order: the shorter one, though it came later."""
    pools = Two()
    pools.fill()
    busy = pools.lender.ask(4000)  # a whole dose, without its first token
    longer, shorter = pools.ask(3000), pools.ask(2500)
    assert longer.open
    assert shorter.open
    served(busy, "x")
    assert shorter.replica == "x"
    assert longer.open, "with the other it is more than a dose"
    served(shorter, "x")
    assert longer.replica == "x"


def test_nothing_is_borrowed_back():
    pools = Two(lent=1)
    served(pools.lender.ask(), "x")
    assert pools.lender.ask(lenders=frozenset({"borrower"})).open


def test_only_who_may_go_there_does():
    """And who may not does not hold up those behind."""
    pools = Two()
    pools.fill()
    mine = pools.borrower.ask()
    assert pools.ask().replica == "x"
    assert mine.open
    assert pools.ask(exclude=frozenset("x")).open


def test_a_pool_with_a_line_of_its_own_lends_nothing():
    pools = Two(lent=10)
    pools.fill()
    served(pools.lender.ask(1), "x")
    drained = pools.lender.ledgers["x"]
    drained.avoid()
    drained.changed()
    own, other = pools.lender.ask(), pools.ask()
    assert own.replica == "x", "its own use it for want of another"
    assert other.open, "an avoided replica is not lent"


def test_own_requests_find_room_though_much_is_lent():
    """Ten slots, 30 % of them for those who come to the lender itself."""
    pools = Two(lent=10)
    pools.fill()
    asked = [pools.ask() for _ in range(9)]
    for client in asked[:7]:
        served(client, "x")
    assert [client.replica for client in asked] == ["x"] * 7 + [None] * 2
    assert [pools.lender.ask().replica for _ in range(3)] == ["x"] * 3


def test_nobody_is_sent_behind_a_long_prompt():
    pools = Two()
    pools.fill()
    long = pools.lender.ask(LONG)
    waits = pools.ask()
    assert waits.open
    served(long, "x")
    assert waits.replica == "x"


def test_a_lender_that_comes_back_helps_at_once():
    pools = Two()
    pools.fill()
    ledger = pools.lender.ledgers["x"]
    ledger.drained = Drain("x", 1.0, "me")
    ledger.changed()
    waits = pools.ask()
    assert waits.open
    ledger.drained = None
    ledger.changed()
    assert waits.replica == "x"


def test_what_has_left_the_line_is_not_served_by_the_lender():
    pools = Two()
    pools.fill()
    long = pools.lender.ask(LONG)
    first, second = pools.ask(), pools.ask()
    pools.borrower.scheduler.withdraw(first.item)
    first.withdrawn = True
    served(long, "x")
    assert first.replica is None
    assert second.replica == "x"


def test_an_unstreamed_answer_of_the_lender_is_read_after_its_time():
    """Nobody calls an idle pool's `dispatch`: its borrower's ticks do."""
    pools = Two()
    pools.fill()
    pools.lender.ask(4000, streamed=False)
    waits = pools.ask(2000)
    assert waits.open
    pools.borrower.tick(0.15)
    assert waits.replica == "x"


def test_who_is_lent_a_replica_pays_in_the_line_it_left():
    pools = Two()
    pools.fill()
    lent = pools.ask(100, tenant="rich")
    account = pools.borrower.scheduler._accounts.of("rich", 1.0)
    assert account.served == pytest.approx(REFERENCE.work(100, 100, 10) / REFERENCE.token_s)
    assert pools.lender.scheduler._accounts.of("rich", 1.0).served == 0, "nobody waits there"
    served(lent, "x")
    assert lent.slot is not None
    lent.slot.release()
    paid = REFERENCE.work(100, 100, 1) / REFERENCE.token_s
    assert account.served == pytest.approx(paid), "one token came, of ten expected"


def test_reserved_slots_are_not_lent_to_others():
    pools = Two()
    lender = Pool(
        "x", in_flight=10, name="strict", clock=pools.borrower.clock, settings={"reserved": {INTERACTIVE: 10}}
    )
    lender.scheduler.lend_to(pools.borrower.scheduler)
    pools.fill()
    assert pools.borrower.ask(lenders=frozenset({"strict"})).open
    assert pools.borrower.ask(lenders=frozenset({"strict"}), priority=INTERACTIVE).replica == "x"


# ---------------------------------------------------------------------------------------- preemption


class Holder:
    """What holds a slot, may be told to stop, and then asks again."""

    def __init__(self, pool: Pool, client: Client) -> None:
        self.pool, self.client, self.stopped = pool, client, 0
        assert client.slot is not None
        client.slot.stop = self.stop

    def stop(self) -> None:
        self.stopped += 1

    def again(self) -> Client:
        item = self.client.item
        return self.pool.ask(
            item.prompt_tokens,
            item.output_tokens,
            priority=item.priority,
            arrival=item.arrival,
            preempted=item.preempted + 1,
        )


def holding(pool: Pool, prompt: int = 10, priority: PriorityClass = BATCH, **fields) -> Holder:
    return Holder(pool, pool.ask(prompt, priority=priority, **fields))


def preempting(replicas: str = "a", times: int = 1, **fields) -> Pool:
    return Pool(replicas, **{"in_flight": 1, **fields}, settings={"preempt": times})


def test_a_batch_request_without_a_first_token_makes_room():
    pool = preempting()
    batch = holding(pool)
    urgent = pool.ask(priority=INTERACTIVE)
    assert urgent.replica == "a"
    assert batch.stopped == 1
    assert batch.client.slot is not None
    assert batch.client.slot.taken_back
    batch.client.slot.release()
    assert pool.ledgers["a"].in_flight == 1, "its holder's release is nothing more"


@pytest.mark.parametrize(
    ("times", "victim", "urgent"), [(0, BATCH, INTERACTIVE), (1, STANDARD, INTERACTIVE), (1, BATCH, STANDARD)]
)
def test_off_by_default_and_only_batch_for_interactive(times, victim, urgent):
    pool = preempting(times=times)
    held = holding(pool, priority=victim)
    assert pool.ask(priority=urgent).open
    assert held.stopped == 0


def test_not_once_it_has_its_first_token_nor_where_its_holder_cannot_stop():
    pool = preempting(in_flight=2)
    served(holding(pool).client, "a")
    held = holding(pool)
    assert held.client.slot is not None
    held.client.slot.stop = None
    assert pool.ask(priority=INTERACTIVE).open


def test_so_often_and_no_more():
    pool = preempting(times=2)
    assert pool.policy.preempt == 2
    batch = holding(pool)
    for _ in range(2):
        urgent = pool.ask(priority=INTERACTIVE)
        batch = Holder(pool, release(urgent, batch.again()))
    assert pool.ask(priority=INTERACTIVE).open
    assert batch.stopped == 0


def release(one: Client, other: Client) -> Client:
    """`one` ends, and `other` gets the slot."""
    assert one.slot is not None
    one.slot.release()
    assert other.slot is not None
    return other


def test_back_in_line_it_stands_where_it_stood():
    """Before batch requests that came after it, and though the line is full."""
    pool = preempting(max_requests=2)
    first = holding(pool)
    pool.tick(1.0)
    later = pool.ask(priority=BATCH)
    urgent = pool.ask(priority=INTERACTIVE)
    pool.ask(priority=BATCH)
    assert pool.ask(priority=BATCH).refusal is not None
    again = first.again()
    assert pool.scheduler.waiting == 3
    assert release(urgent, again).replica == "a"
    assert later.open


def test_a_full_line_keeps_nobody_out_who_need_not_wait():
    """The line is full of requests that go after it; one that could not preempt is refused."""
    pool = preempting(max_requests=1)
    batch = holding(pool)
    waits = pool.ask(priority=BATCH)
    refused = pool.ask(priority=STANDARD)
    assert refused.refusal is not None
    urgent = pool.ask(priority=INTERACTIVE)
    assert urgent.replica == "a"
    assert batch.stopped == 1
    assert waits.open
    assert pool.scheduler.waiting == 1
    late = pool.ask(priority=INTERACTIVE)
    assert late.refusal is not None, "nothing is left to be taken back"
    assert late.refusal.reason == "queue_full"
    assert pool.scheduler.waiting == 1


def test_as_many_as_are_needed_newest_first_where_the_fewest_tokens_are_lost():
    pool = Pool("ab", settings={"preempt": 1})
    on_a = [holding(pool, 1800, exclude=frozenset("b")) for _ in range(2)]
    on_b = [holding(pool, tokens, exclude=frozenset("a")) for tokens in (2500, 500, 600)]
    assert pool.ask(3000, priority=STANDARD).open
    urgent = pool.ask(1000, priority=INTERACTIVE)
    assert urgent.replica == "b"
    assert [each.stopped for each in on_a + on_b] == [0, 0, 0, 0, 1]


def test_room_that_is_left_over_goes_to_the_next():
    pool = Pool("a", settings={"preempt": 1})
    holding(pool, 4000)
    standard = pool.ask(900, priority=STANDARD)
    assert standard.open
    assert pool.ask(200, priority=INTERACTIVE).replica == "a"
    assert standard.replica == "a"


def test_who_waits_already_takes_a_slot_too():
    """It came when the batch request could not be stopped yet."""
    pool = preempting()
    batch = holding(pool)
    stop, batch.client.slot.stop = batch.client.slot.stop, None
    urgent = pool.ask(priority=INTERACTIVE)
    assert urgent.open
    batch.client.slot.stop = stop
    pool.tick(0.02)
    assert urgent.replica == "a"


def test_nothing_is_taken_back_where_it_would_not_suffice():
    pool = Pool("a", settings={"preempt": 1})
    pool.ask(3900, priority=STANDARD)
    batch = holding(pool, 100)
    assert pool.ask(400, priority=INTERACTIVE).open, "without the 100 it is still more than a dose"
    assert batch.stopped == 0


def test_a_lent_slot_may_be_taken_back_too():
    """By an interactive request of the lender's own."""
    pools = Two()
    lender = Pool("y", in_flight=1, name="other", clock=pools.borrower.clock, settings={"preempt": 1})
    lender.scheduler.lend_to(pools.borrower.scheduler)
    pools.fill()
    lent = pools.borrower.ask(priority=BATCH, lenders=frozenset({"other"}))
    held = Holder(pools.borrower, lent)
    assert lent.replica == "y"
    assert lender.ask(priority=INTERACTIVE).replica == "y"
    assert held.stopped == 1
