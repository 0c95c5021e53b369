"""The scheduler's rules, one by one: room, order, lanes, classes, deadlines, bounds."""

from dataclasses import replace

import pytest

from backends.contract import Load
from gateway.config.snapshot import PriorityClass
from gateway.fleet.reported import FRESH
from gateway.queueing.policies import POLICIES
from gateway.queueing.replicas import REFRESH
from gateway.queueing.scheduler import RETRY_MOST
from gateway.state.overlay import Drain
from tests.gateway.queueing.pools import Client, Pool

LONG = 20_000
"""A prompt of the long lane."""
INTERACTIVE, STANDARD, BATCH = PriorityClass.interactive, PriorityClass.standard, PriorityClass.batch


# ---------------------------------------------------------------------------------------------- room


def test_a_replica_without_unstarted_prompts_takes_one_of_any_size():
    pool = Pool("a")
    assert pool.ask(100_000).replica == "a"


def test_beyond_a_dose_of_unstarted_prompts_requests_wait_until_a_first_token():
    """2,000 + 2,000 tokens are within the dose of 90 ms, 3 x 2,000 are not."""
    pool = Pool("a")
    first, second, third = (pool.ask(2000) for _ in range(3))
    assert (first.replica, second.replica, third.replica) == ("a", "a", None)
    assert first.slot is not None
    first.slot.progress(1)
    assert third.replica == "a"


def test_an_engine_that_does_not_stream_is_taken_to_have_read_the_prompt_after_its_predicted_time():
    pool = Pool("a")
    pool.ask(4000, streamed=False)
    waiting = pool.ask(4000)
    pool.tick(0.05)
    assert waiting.open
    pool.tick(0.10)
    assert waiting.replica == "a"


def test_a_replica_that_has_the_prompt_cached_gets_more_of_it_than_a_dose():
    pool = Pool("a", settings={"prefix_tokens": 512})
    blocks = tuple(range(7))
    first = pool.ask(4000, prefix=blocks)
    assert first.slot is not None
    first.slot.progress(1)
    pool.ask(3800)
    assert pool.ask(4000).open
    assert pool.ask(4000, prefix=blocks, exclude=frozenset("z")).replica == "a", "416 tokens of it are new"


def test_reserved_cache_is_a_bound_unless_the_replica_is_idle():
    pool = Pool("a", kv_tokens=10_000)
    big = pool.ask(9000, 5000)
    assert big.replica == "a", "alone it may have it all"
    assert big.slot is not None
    big.slot.progress(1)
    small = pool.ask(10, 10)
    assert small.open
    big.slot.release()
    assert small.replica == "a"


def test_early_binding_knows_only_the_limit_in_flight():
    pool = Pool("a", "least_requests", in_flight=3)
    asked = [pool.ask(50_000) for _ in range(4)]
    assert [client.replica for client in asked] == ["a", "a", "a", None]


# --------------------------------------------------------------------------------------------- order


def served_in_order(pool: Pool, waiting: list[Client]) -> list[str]:
    """Names in the order in which they get the one slot there is."""
    order: list[str] = []
    holder = next(client for client in pool.clients if client.slot is not None)
    while any(client.open for client in waiting):
        assert holder.slot is not None
        holder.slot.progress(1)
        holder.slot.release()
        (holder,) = (client for client in waiting if client.slot is not None and client.name not in order)
        order.append(holder.name)
    return order


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("fcfs", "big mid tiny"), ("sjf", "tiny mid big"), ("slack", "tiny mid big"), ("lanes", "tiny mid big")],
)
def test_the_order_is_the_policys(policy, expected):
    pool = Pool("a", policy, in_flight=1)
    pool.ask()
    waiting = [pool.ask(size, 50, name=name) for name, size in (("big", 3000), ("mid", 900), ("tiny", 5))]
    assert " ".join(served_in_order(pool, waiting)) == expected


def test_age_overtakes_shortness_after_the_slack():
    """3,500 tokens are worth some 9 seconds of place; one that waits longer goes before the shortest."""
    pool = Pool("a", "slack", in_flight=1)
    pool.ask()
    old = pool.ask(3500, 10, name="old")
    pool.clock.tick(old.item.key - pool.clock.now)
    young = pool.ask(1, 1, name="young")
    assert served_in_order(pool, [old, young]) == ["old", "young"]


def test_nobody_is_overtaken_by_one_that_came_more_than_the_slack_cap_later():
    pool = Pool("a", "slack", in_flight=1, settings={"kappa": 1e9})
    pool.ask()
    old = pool.ask(3500, 10, name="old")
    pool.clock.tick(pool.policy.slack_cap)
    young = pool.ask(1, 1, name="young", arrival=pool.clock.now + 0.001)
    assert old.item.key == pytest.approx(old.item.arrival + 5.0 + pool.policy.slack_cap), "standard: 5 s"
    assert young.item.key > old.item.key


def test_among_long_requests_the_longest_gives_way_most():
    """The cap is approached, not reached: two that are far beyond it are still told apart."""
    pool = Pool("a", in_flight=1, settings={"slack_cap": 60.0})
    pool.ask()
    longest, long = pool.ask(60_000, name="longest"), pool.ask(30_000, name="long")
    assert long.item.work * pool.policy.kappa > 60.0
    assert long.item.key + 5 < longest.item.key < longest.item.arrival + 5.0 + 60.0
    assert served_in_order(pool, [longest, long]) == ["long", "longest"]


def test_a_request_that_is_tried_again_keeps_its_place():
    pool = Pool("a", in_flight=1)
    pool.ask()
    other = pool.ask(name="other")
    pool.clock.tick(0.5)
    again = pool.ask(name="again", arrival=pool.clock.now - 1.0)
    assert served_in_order(pool, [other, again]) == ["again", "other"]


def test_small_prompts_need_not_wait_until_one_of_more_than_half_a_dose_fits():
    pool = Pool("a")
    pool.ask(2500)
    big = pool.ask(3000)
    small = pool.ask(500)
    assert big.open
    assert small.replica == "a"


# ------------------------------------------------------------------------------------------- classes


def test_classes_wait_for_each_other_by_their_offsets():
    pool = Pool("a", in_flight=1)
    pool.ask()
    waiting = [pool.ask(name=c.name, priority=c) for c in (BATCH, STANDARD, INTERACTIVE)]
    assert served_in_order(pool, waiting) == ["interactive", "standard", "batch"]


def test_after_its_offset_a_batch_request_goes_before_a_new_interactive_one():
    pool = Pool("a", in_flight=1)
    pool.ask()
    batch = pool.ask(name="batch", priority=BATCH)
    pool.clock.tick(601)
    urgent = pool.ask(name="urgent", priority=INTERACTIVE)
    assert served_in_order(pool, [batch, urgent]) == ["batch", "urgent"]


def test_strict_classes_do_not_age_into_each_other():
    pool = Pool("a", in_flight=1, settings={"strict": True})
    pool.ask()
    batch = pool.ask(name="batch", priority=BATCH)
    pool.clock.tick(100_000)
    urgent = pool.ask(name="urgent", priority=INTERACTIVE)
    assert served_in_order(pool, [batch, urgent]) == ["urgent", "batch"]


def test_reserved_slots_are_for_their_class_and_do_not_block_it():
    pool = Pool("a", in_flight=3, settings={"reserved": {INTERACTIVE: 1}})
    assert [pool.ask(priority=STANDARD).replica for _ in range(2)] == ["a", "a"]
    standard = pool.ask(priority=STANDARD)
    urgent = pool.ask(priority=INTERACTIVE)
    assert standard.open, "the last slot is not for it"
    assert urgent.replica == "a"
    assert urgent.slot is not None
    urgent.slot.release()
    assert standard.open
    held = next(client for client in pool.clients if client.slot is not None)
    assert held.slot is not None
    held.slot.release()
    assert standard.replica == "a"


# --------------------------------------------------------------------------------------------- lanes


def measured(replicas: str = "abcd", long_every: int = 10, every: float = 0.5) -> Pool:
    """A pool that has seen 100 requests, every tenth one long: their work needs one replica."""
    pool = Pool(replicas)
    for i in range(100):
        pool.clock.tick(every)
        client = pool.ask(LONG if i % long_every == 0 else 100, 10)
        assert client.slot is not None
        client.slot.progress(1)
        client.slot.release()
    return pool


def test_the_long_set_is_sized_by_the_measured_rate_of_long_work():
    """Prompts of 0.76 s: 10 of them in 50 s need one replica, 100 two, in 20 s four."""
    assert sum(view.long for view in measured().scheduler.views) == 1
    assert sum(view.long for view in measured(long_every=1).scheduler.views) == 2
    assert sum(view.long for view in measured(long_every=1, every=0.2).scheduler.views) == 4


def test_short_requests_prefer_the_replicas_outside_the_long_set_and_may_use_all():
    pool = measured("abc")
    (inside,) = [view.ledger.replica.id for view in pool.scheduler.views if view.long]
    places = [pool.ask(1500).replica for _ in range(7)]
    assert inside not in places[:4]
    assert places[4:] == [inside, inside, None]


def test_long_requests_wait_for_their_set_unless_a_replica_is_idle():
    pool = measured("abc")
    (inside,) = [view.ledger.replica.id for view in pool.scheduler.views if view.long]
    held = [pool.ask(4000) for _ in range(3)]
    long = pool.ask(LONG)
    for client in held:
        if client.replica != inside:
            assert client.slot is not None
            client.slot.progress(1)
    assert long.open, "the others have room, but requests in flight"
    other = next(client for client in held if client.replica != inside)
    assert other.slot is not None
    other.slot.release()
    assert long.replica == other.replica, "an idle replica is nobody's loss"


def test_a_long_request_whose_turn_it_is_gets_one_replica_closed_to_the_others():
    """Short requests always wait, and would fill every replica again before its last prompt is read."""
    pool = Pool("ab")
    for _ in range(10):
        pool.ask(1500)
    long = pool.ask(LONG)
    pool.clock.tick(pool.policy.slack_cap + 5)  # its turn
    for _ in range(20):
        while sum(client.open for client in pool.clients) < 10:
            pool.ask(1500)
        pool.tick(0.1)
        for client in [client for client in pool.clients if client.slot and not client.slot.started]:
            assert client.slot is not None
            client.slot.progress(1)  # an engine's step: those that came meanwhile are for the next one
    assert long.slot is not None
    assert sum(client.slot is not None for client in pool.clients) > 20, "the other replica went on"


def test_the_closed_replica_is_opened_again_when_the_long_request_leaves():
    pool = measured("abc")
    asked = [pool.ask(3900) for _ in range(3)]
    long = pool.ask(LONG)
    waiting = [pool.ask(1000) for _ in range(8)]
    for client in asked:
        assert client.slot is not None
        client.slot.progress(1)
    pool.scheduler.withdraw(long.item)
    long.withdrawn = True
    pool.tick(1.0)
    assert not any(client.open for client in waiting)


# ------------------------------------------------------------------------- deadlines, bounds, retry-after


def test_a_request_is_shed_while_it_waits_once_its_first_token_cannot_come_in_time():
    pool = Pool("a", in_flight=1, settings={"budget": 2.0})
    pool.ask()
    urgent = pool.ask(priority=INTERACTIVE)
    patient = pool.ask(priority=STANDARD)
    pool.tick(1.9)
    assert urgent.open
    pool.tick(0.2)
    assert urgent.refusal is not None
    assert urgent.refusal.reason == "overloaded"
    assert patient.open, "its class is not shed"


def test_a_deadline_of_its_own_holds_in_every_class():
    pool = Pool("a", in_flight=1)
    pool.ask()
    client = pool.ask(priority=BATCH, deadline=pool.clock.now + 1.0)
    pool.tick(1.01)
    assert client.refusal is not None
    late = pool.ask(deadline=pool.clock.now - 0.1)
    assert late.refusal is not None
    assert late.refusal.reason == "overloaded"


@pytest.mark.parametrize(("client", "last"), [(600.0, 2.0), (2.0, 2.0), (1.0, 1.0)])
def test_of_a_clients_deadline_and_the_budget_of_its_class_the_earlier_holds(client: float, last: float):
    """OpenAI's SDKs always say when they give up, after 600 s: that does not switch shedding off."""
    pool = Pool("a", in_flight=1, settings={"budget": 2.0, "budget_stretch": 0.0})
    pool.ask()
    urgent = pool.ask(priority=INTERACTIVE, deadline=pool.clock.now + client)
    patient = pool.ask(priority=STANDARD, deadline=pool.clock.now + client)
    pool.tick(last - 0.1)
    assert urgent.open
    pool.tick(0.11)
    assert urgent.refusal is not None
    assert urgent.refusal.reason == "overloaded"
    assert patient.open == (client > last), "its class is not shed: its own deadline is all it has"


def reports(pool: Pool, running: int, own: int) -> None:
    """Two reports in a row, and the time until what is derived from a ledger is derived anew."""
    for _ in range(2):
        pool.ledgers["a"].reported.note(Load(running=running), pool.clock.now, own)
    pool.tick(REFRESH)


def test_requests_of_others_take_room_where_the_limit_is_known():
    """As far as the engine's reports tell, while they are fresh; one slot is always ours."""
    pool = Pool("a", in_flight=4)
    reports(pool, 2, 0)
    clients = [pool.ask() for _ in range(5)]
    assert [client.open for client in clients] == [False, False, True, True, True]
    reports(pool, 60, 2)
    for client, waiting in zip(clients[:2], (3, 2), strict=True):
        assert client.slot is not None
        client.slot.release()
        assert sum(client.open for client in clients) == waiting, "never below one"
    pool.tick(FRESH + 1.0)
    assert not any(client.open for client in clients)


def test_where_the_limit_is_not_known_others_take_no_room():
    pool = Pool("a")
    reports(pool, 1000, 0)
    assert not any(pool.ask().open for _ in range(10))


def test_nobody_is_shed_after_the_slot_was_granted():
    pool = Pool("a", in_flight=1)
    client = pool.ask(deadline=pool.clock.now + 1.0)
    pool.tick(100)
    assert client.slot is not None
    assert client.refusal is None


def test_one_that_comes_behind_twice_its_budget_of_work_is_refused_at_once():
    """And is told to come back when the line is expected to have drained, a minute at most."""
    pool = Pool("a", in_flight=1, settings={"budget": 0.5})
    pool.ask()
    for _ in range(300):
        pool.ask(3000, 200)
    pool.clock.tick(10)
    client = pool.ask(100, 10, priority=INTERACTIVE, arrival=pool.clock.now + 50)
    assert client.refusal is not None
    assert client.refusal.reason == "overloaded"
    assert 1.0 < client.refusal.retry_after <= RETRY_MOST


def test_instead_of_a_refusal_a_request_may_become_batch():
    pool = Pool("a", in_flight=1, settings={"budget": 1.0, "overdue": "demote"})
    first = pool.ask()
    urgent = pool.ask(priority=INTERACTIVE, name="urgent")
    standard = pool.ask(name="standard")
    pool.tick(1.1)
    assert urgent.open
    assert urgent.item.priority is BATCH
    assert first.slot is not None
    assert served_in_order(pool, [urgent, standard]) == ["standard", "urgent"]


@pytest.mark.parametrize("bounds", [{"max_requests": 2}, {"max_tokens": 2000}, {"max_bytes": 200}])
def test_the_line_is_bounded_by_requests_tokens_and_bytes(bounds):
    pool = Pool("a", in_flight=1, **bounds)
    pool.ask()
    assert [pool.ask(1000, size=100).open for _ in range(3)] == [True, True, False]
    refusal = pool.clients[-1].refusal
    assert refusal is not None
    assert refusal.reason == "queue_full"


def test_no_replica_is_a_refusal_and_a_drained_one_is_none():
    pool = Pool("ab")
    refusal = pool.ask(exclude=frozenset("ab")).refusal
    assert refusal is not None
    assert refusal.reason == "no_replica"
    pool.ledgers["a"].drained = Drain("a", 1.0, "me")
    assert pool.ask(exclude=frozenset("b")).refusal is not None


def test_everybody_who_waits_can_be_told_position_and_expected_wait():
    """The rate is what left the line lately."""
    pool = Pool("a", "fcfs", in_flight=1)
    holder = pool.ask()
    waiting = [pool.ask(1000, 100) for _ in range(20)]
    for _ in range(10):
        assert holder.slot is not None
        holder.slot.progress(1)
        pool.tick(0.5)
        holder.slot.release()
        holder = next(client for client in waiting if client.slot is not None and client.slot.ledger.in_flight
                      and client.slot._on_release is not None)  # fmt: skip
    rows = pool.scheduler.standings()
    assert [row.position for row in rows] == list(range(1, 11))
    assert [row.item for row in rows] == [client.item for client in waiting[10:]]
    assert rows[0].expected_wait == 0
    assert rows[-1].expected_wait == pytest.approx(9 * 0.5, rel=0.25)
    assert pool.scheduler.drain_time() == pytest.approx(10 * 0.5, rel=0.25)


# ------------------------------------------------------------------------------------------ replicas


def test_a_replica_that_came_back_grows_into_its_share():
    pool = Pool("ab", in_flight=100)
    pool.ledgers["a"].avoid()
    pool.clock.tick(2)
    pool.ledgers["a"].reached()
    pool.ledgers["a"].changed()
    places = [pool.ask(10).replica for _ in range(40)]
    assert places.count("a") <= 10
    pool.tick(31)
    later = [pool.ask(10).replica for _ in range(40)]
    assert later.count("a") > places.count("a")


def test_weights_divide_the_load():
    pool = Pool("ab", weights={"a": 3.0})
    places = [pool.ask(100).replica for _ in range(40)]
    assert places.count("a") == pytest.approx(30, abs=3)


def test_a_slow_replica_is_found_out_and_gets_less():
    """Same prompts, but b takes three times as long: its model says so, and placement follows."""
    pool = Pool("ab")
    speeds = {"a": 1.0, "b": 3.0}
    for _ in range(30):
        for name, ledger in pool.ledgers.items():
            slot = ledger.take(3000, 10, lambda: None)
            pool.clock.tick(speeds[name] * (0.0052 + 3000 * 22.3e-6 + 0.78e-9 * 3000**2))
            slot.progress(1)
            slot.release()
            pool.clock.tick(0.1)
    assert pool.ledgers["b"].model.slowness / pool.ledgers["a"].model.slowness == pytest.approx(3, rel=0.15)
    pool.tick(1.0)
    places = [pool.ask(500).replica for _ in range(8)]
    assert places.count("a") >= 5
    views = {view.ledger.replica.id: view for view in pool.scheduler.views}
    assert views["b"].dose == pytest.approx(views["a"].dose / 3, rel=0.2), "90 ms of prefill are fewer tokens"


def test_a_closed_scheduler_hears_no_more():
    pool = Pool("a", in_flight=1)
    first = pool.ask()
    waiting = pool.ask()
    pool.scheduler.close()
    assert first.slot is not None
    first.slot.release()
    assert waiting.open


def test_a_slot_that_is_given_back_inside_the_grant_goes_to_the_next():
    """A client may be gone by the time of its grant."""
    pool = Pool("a", in_flight=1)
    holder = pool.ask()
    gone, following = pool.ask(), pool.ask()
    gone.item.granted = lambda slot: slot.release()
    assert holder.slot is not None
    holder.slot.release()
    assert following.replica == "a"
    assert pool.ledgers["a"].in_flight == 1


def test_every_named_policy_serves():
    for name in POLICIES:
        pool = Pool("abc", name, in_flight=2)
        assert sum(pool.ask(100).slot is not None for _ in range(10)) == 6, name


def test_a_policy_is_a_value():
    assert replace(POLICIES["lanes"]) == POLICIES["lanes"]


def test_a_class_budget_begins_anew_in_another_pool():
    """What one pool could not do in time, another one does not refuse unseen; a deadline of its own stays."""
    pool = Pool("a", in_flight=1, settings={"budget": 1.0, "budget_stretch": 0.0})
    early = pool.clock.now - 5.0
    late = pool.ask(priority=PriorityClass.interactive, arrival=early)
    assert late.refusal is not None
    come = pool.ask(priority=PriorityClass.interactive, arrival=early, entered=pool.clock.now)
    assert come.slot is not None
    own = pool.ask(
        priority=PriorityClass.interactive, arrival=early, entered=pool.clock.now, deadline=early + 1.0
    )
    assert own.refusal is not None
