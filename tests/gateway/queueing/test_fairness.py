"""Tenants: equal service to those that wait, by weight; room for those that come."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.step_model import REFERENCE
from tests.gateway.queueing.pools import Client, Pool

MOST = 2000 + 4 * 500
"""Token equivalents of the largest request below."""


def cost(client: Client) -> float:
    return client.item.prompt_tokens + 4 * client.item.output_tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0, 5.0]), st.sampled_from([5_000, 50_000]))
def test_two_tenants_that_always_wait_are_served_by_their_weights(seed, weight, quantum):
    """However unlike their requests: the difference stays within the quantum and one request of each."""
    rng = random.Random(seed)
    pool = Pool("ab", in_flight=2, settings={"quantum": float(quantum), "headroom": 0.0, "shed": frozenset()})
    sizes = {"big": (2000, 500), "small": (20, 5)}
    weights = {"big": weight, "small": 1.0}
    served = dict.fromkeys(sizes, 0.0)
    open_: dict[str, list[Client]] = {name: [] for name in sizes}

    def fill(name: str) -> None:
        """A hundred of each wait at any time: more than the quantum's worth, for the big ones."""
        while sum(client.open for client in open_[name]) < 100:
            open_[name].append(
                pool.ask(*sizes[name], tenant=name, weight=weights[name], name=name, arrival=pool.clock.now)
            )

    for name in sizes:
        fill(name)
    start = dict.fromkeys(sizes, 0.0)
    for turn in range(1500):
        pool.clock.tick(0.01)
        held = [c for clients in open_.values() for c in clients if c.slot is not None]
        client = rng.choice(held)
        assert client.slot is not None
        client.slot.progress(client.item.output_tokens)
        client.slot.release()
        open_[client.name].remove(client)
        served[client.name] += cost(client) / weights[client.name]
        for name in sizes:
            fill(name)
        if turn == 500:
            start = dict(served)  # both have waited all the time since
    lag = (served["big"] - start["big"]) - (served["small"] - start["small"])
    assert abs(lag) <= 2 * (quantum + 4 * MOST)


def test_one_that_was_away_saves_nothing_up():
    """Its counter is lifted: it does not get all the slots until it has caught up."""
    pool = Pool("a", in_flight=1, settings={"quantum": 1000.0, "headroom": 0.0})
    holder = pool.ask()
    regulars = [pool.ask(1000, 0, tenant="regular", name="regular") for _ in range(60)]
    for _ in range(30):
        assert holder.slot is not None
        holder.slot.progress(1)
        holder.slot.release()
        holder = next(c for c in regulars if c.slot is not None and c.slot._on_release is not None)
    newcomers = [pool.ask(1000, 0, tenant="newcomer", name="newcomer") for _ in range(20)]
    names = []
    for _ in range(20):
        assert holder.slot is not None
        holder.slot.progress(1)
        holder.slot.release()
        holder = next(
            c for c in regulars + newcomers if c.slot is not None and c.slot._on_release is not None
        )
        names.append(holder.name)
    assert names.count("regular") == pytest.approx(10, abs=2)


def test_what_is_sent_while_nobody_waits_is_free():
    pool = Pool("a", in_flight=10)
    for _ in range(5):
        client = pool.ask(1000, 100, tenant="busy")
        assert client.slot is not None
        client.slot.progress(1)
    assert pool.scheduler._accounts.of("busy", 1.0).served == 0


def test_a_tenant_pays_for_what_came_and_not_for_what_was_expected():
    pool = Pool("a", in_flight=1)
    first = pool.ask(tenant="t")
    client = pool.ask(1000, 500, tenant="t")
    pool.ask(1, 1, tenant="u")
    account = pool.scheduler._accounts.of("t", 1.0)
    assert first.slot is not None
    first.slot.release()
    slot = client.slot or next(c for c in pool.clients[1:] if c.slot is not None).slot
    assert slot is not None
    if client.slot is None:
        slot.release()
    assert client.slot is not None
    assert account.served == pytest.approx(REFERENCE.work(1000, 1000, 500) / REFERENCE.token_s)
    client.slot.progress(20)
    client.slot.release()
    assert account.served == pytest.approx(REFERENCE.work(1000, 1000, 20) / REFERENCE.token_s)


def test_a_long_prompt_costs_its_tenant_more_than_its_tokens_say():
    """Attention grows with the square: one prompt of 60,000 tokens takes longer than sixty of 1,000."""
    pool = Pool("ab")
    pool.ask(60_000, 1, tenant="docs")
    pool.ask(10, 1, tenant="chat")
    long = pool.ask(60_000, 1, tenant="docs")
    assert long.open
    for client in pool.clients[:2]:
        assert client.slot is not None
        client.slot.progress(1)
        client.slot.release()
    assert long.slot is not None
    assert pool.scheduler._accounts.of("docs", 1.0).served > 1.5 * 60_000


def test_a_flood_leaves_part_of_each_replica_to_the_others():
    """Of ten slots a tenant above its share gets seven while another is active, all ten when it is alone."""
    pool = Pool("a", in_flight=10)
    quiet = pool.ask(10, tenant="quiet")
    flood = [pool.ask(10, tenant="flood") for _ in range(30)]
    assert sum(client.slot is not None for client in flood) == 6
    assert [pool.ask(10, tenant="quiet").replica for _ in range(3)] == ["a"] * 3, "never behind the flood"
    for client in pool.clients:
        if client.item.tenant == "quiet":
            assert client.slot is not None
            client.slot.release()
    assert quiet.slot is not None
    pool.tick(0.02)
    assert sum(client.slot is not None for client in flood) == 10


def test_without_fairness_the_flood_takes_it_all():
    pool = Pool("a", in_flight=10, settings={"fair": False})
    pool.ask(10, tenant="quiet")
    flood = [pool.ask(10, tenant="flood") for _ in range(30)]
    assert sum(client.slot is not None for client in flood) == 9
    assert pool.ask(10, tenant="quiet").open


def test_accounts_of_the_idle_are_forgotten_in_the_end():
    pool = Pool("a")
    accounts = pool.scheduler._accounts
    for i in range(3 * accounts.KEPT):
        client = pool.ask(10, tenant=f"t{i}")
        assert client.slot is not None
        client.slot.progress(1)
        client.slot.release()
    assert len(accounts._accounts) <= accounts.KEPT


def test_in_a_short_line_nobody_is_held_back():
    """The same flood, but nothing takes long: it may have all ten slots, less what the other holds."""
    pool = Pool("a", in_flight=10, settings={"fair_after": 5.0})
    pool.ask(10, tenant="quiet")
    flood = [pool.ask(10, tenant="flood") for _ in range(30)]
    pool.scheduler.dispatch()
    assert sum(client.slot is not None for client in flood) == 9


def test_a_line_that_takes_long_is_divided():
    pool = Pool("a", in_flight=10, settings={"fair_after": 5.0})
    held = [pool.ask(10, tenant="flood") for _ in range(10)]
    waiting = [pool.ask(4000, 4000, tenant="flood") for _ in range(300)]
    assert pool.scheduler.drain_time() > 5
    pool.scheduler.dispatch()
    quiet = pool.ask(10, tenant="quiet")
    for client in held[:3]:
        assert client.slot is not None
        client.slot.release()
    assert quiet.slot is not None
    assert all(client.slot is None for client in waiting), "its seven slots are taken"


def test_once_divided_it_stays_so_until_the_line_is_short():
    """Else a flood would keep the line just as long as it may be."""
    pool = Pool("a", in_flight=1, settings={"fair_after": 5.0})
    for _ in range(2):
        pool.ask(10, tenant="flood")  # one runs, one stays in line
    waiting = [pool.ask(400, 400, tenant="flood") for _ in range(300)]
    seen = {}
    for client in reversed(waiting):
        client.withdrawn = True
        pool.scheduler.withdraw(client.item)
        pool.scheduler.dispatch()
        seen[pool.scheduler.drain_time()] = pool.scheduler._accounts.contended
    assert {fair for drain, fair in seen.items() if drain > 1} == {True}
    assert {fair for drain, fair in seen.items() if drain <= 1} == {False}
    assert any(1 < drain < 5 for drain in seen)


def test_a_refusal_for_want_of_time_is_a_sign_of_contention():
    pool = Pool("a", in_flight=1, settings={"fair_after": 5.0})
    pool.ask(10, tenant="flood")
    late = pool.ask(10, tenant="flood", deadline=pool.clock() + 0.5)
    pool.clock.tick(1)
    pool.scheduler.dispatch()
    assert late.refusal is not None
    pool.ask(10, tenant="flood")
    pool.scheduler.dispatch()
    assert pool.scheduler._accounts.contended
    pool.clock.tick(11)
    pool.scheduler.dispatch()
    assert not pool.scheduler._accounts.contended


def test_in_a_flood_long_prompts_of_others_may_leave_the_long_set():
    """Ten slots on each of two replicas, one of them the long set. A slot outside it that comes back may go
    to a long prompt of one who has less than its share; the flood's own, though first, keeps to the set."""
    pool = Pool("ab", in_flight=10, settings={"quantum": 1e9, "headroom": 0.0})
    inside, outside = pool.scheduler.views
    inside.long, outside.long = True, False
    flood = [pool.ask(10, tenant="flood") for _ in range(20)]
    long = {name: pool.ask(3000, tenant=name) for name in ("flood", "quiet")}
    for client in flood:
        assert client.slot is not None
        client.slot.progress(1)
    pool.tick(0.02)
    assert all(client.open for client in long.values()), "no slot is free"
    back = next(client.slot for client in flood if client.replica == outside.ledger.replica.id)
    assert back is not None
    back.release()
    assert long["quiet"].replica == outside.ledger.replica.id
    assert long["flood"].open


def test_a_flood_that_is_over_is_forgotten():
    """Its tenant still holds slots, and does not wait: once there is nothing to divide it stands where all
    do, and nobody is owed anything."""
    pool = Pool("a", in_flight=4, settings={"fair_after": 1.0})
    accounts = pool.scheduler._accounts
    pool.ask(10, tenant="quiet")
    flood = [pool.ask(10, 2000, tenant="flood") for _ in range(12)]
    pool.tick(0.02)
    account = accounts.of("flood", 1.0)
    assert accounts.contended
    assert account.standing & 1
    for client in flood[3:]:
        client.withdrawn = True
        pool.scheduler.withdraw(client.item)
    waiting = pool.ask(10, tenant="quiet")
    assert waiting.open
    pool.tick(0.02)
    assert not accounts.contended
    assert (account.waiting, account.in_flight, account.standing) == (0, 3, 0)
    assert not accounts.owed(accounts.of("quiet", 1.0))


@pytest.mark.parametrize("ticks", [False, True])
def test_an_empty_line_is_no_flood(ticks):
    """Nobody waits any more, so nobody calls `dispatch` for time's sake: whoever comes next finds it out."""
    pool = Pool("a", in_flight=4, settings={"fair_after": 1.0})
    accounts = pool.scheduler._accounts
    quiet = pool.ask(10, tenant="quiet")
    flood = [pool.ask(10, 2000, tenant="flood") for _ in range(12)]
    pool.tick(0.02)
    for client in flood[3:]:
        client.withdrawn = True
        pool.scheduler.withdraw(client.item)
    assert accounts.of("flood", 1.0).standing & 1
    assert quiet.slot is not None
    if ticks:
        pool.tick(0.02)
    else:
        quiet.slot.release()
        assert pool.ask(10, tenant="flood").slot is not None, "the room that was closed to it"
    assert not accounts.contended
    assert accounts.of("flood", 1.0).standing == 0


def test_without_a_flood_long_prompts_keep_to_the_long_set():
    """The same, but nobody holds more than its share."""
    pool = Pool("ab", in_flight=10, settings={"quantum": 1e9, "headroom": 0.0})
    inside, outside = pool.scheduler.views
    inside.long, outside.long = True, False
    held = [pool.ask(10, tenant=f"t{i % 4}") for i in range(20)]
    long = pool.ask(3000, tenant="quiet")
    for client in held:
        assert client.slot is not None
        client.slot.progress(1)
    back = next(client.slot for client in held if client.replica == outside.ledger.replica.id)
    assert back is not None
    back.release()
    assert long.open
