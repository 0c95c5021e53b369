"""Placements: each picks the replica that its paper, or its name, says."""

from collections import Counter

import pytest

from gateway.queueing.policies import POLICIES
from gateway.queueing.prefixes import PrefixIndex
from tests.gateway.queueing.pools import Pool


def loaded(policy: str, **settings) -> Pool:
    """a: one request, 3,000 unstarted tokens. b: three requests, started, little text. c: two, much text."""
    pool = Pool("abc", policy, settings=settings)
    pool.ledgers["a"].take(3000, 10, lambda: None)
    for _ in range(3):
        pool.ledgers["b"].take(20, 500, lambda: None).progress(1)
    for _ in range(2):
        pool.ledgers["c"].take(150_000, 1000, lambda: None).progress(1)
    return pool


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("predicted_ttft", "b"),  # 67 ms of prefill on a; 9 ms of cache to read on c
        ("lmetric", "c"),  # 3,100 x 2 on a; 100 x 4 on b; 100 x 3 on c
        ("least_tokens", "b"),  # 3,010, 1,497 and 1,998 to come
        ("least_requests", "a"),
        ("prefix", "a"),  # nothing is cached
    ],
)
def test_each_looks_at_what_it_is_named_for(policy, chosen):
    assert loaded(policy).ask(100, 10).replica == chosen


def test_round_robin_goes_round_by_weight():
    pool = Pool("abc", "round_robin", weights={"c": 2.0})
    assert Counter(pool.ask(10).replica for _ in range(40)) == {"a": 10, "b": 10, "c": 20}


def test_power_of_two_never_takes_the_worst_of_all():
    pool = Pool("abc", "power_of_two")
    for _ in range(1000):
        pool.ledgers["a"].take(1, 1, lambda: None)
    places = Counter(pool.ask(10).replica for _ in range(300))
    assert places["a"] == 0
    assert min(places["b"], places["c"]) > 100


def test_prefix_follows_the_cache_until_loads_are_apart():
    pool = Pool("ab", "prefix", settings={"prefix_tokens": 512})
    blocks = tuple(range(10))
    first = pool.ask(5120, prefix=blocks).replica
    other = {"a": "b", "b": "a"}[first or ""]
    assert pool.ask(5120, prefix=(*blocks[:6], 77)).replica == first, "3,072 of 5,120 tokens are there"
    assert pool.ask(5120, prefix=(*blocks[:2], 78)).replica == other, "a fifth is too little"
    for _ in range(100):
        pool.ledgers[first or ""].take(1, 1, lambda: None)
    assert pool.ask(5120, prefix=blocks).replica == other


def test_predicted_ttft_weighs_the_cache_against_the_wait():
    pool = Pool("ab", settings={"prefix_tokens": 512})
    blocks = tuple(range(7))
    first = pool.ask(3600, prefix=blocks)
    assert first.slot is not None
    first.slot.progress(1)
    assert pool.ask(3600, prefix=blocks).replica == first.replica
    pool.ledgers[first.replica or ""].take(9000, 1, lambda: None)
    assert pool.ask(3600, prefix=blocks).replica != first.replica


def test_a_session_stays_where_its_text_is():
    pool = Pool("abc", settings={"prefix_tokens": 512})
    places = set()
    for _ in range(6):
        client = pool.ask(3000, session="s")
        places.add(client.replica)
        assert client.slot is not None
        client.slot.progress(1)
    assert len(places) == 1


def test_an_adapter_stays_where_it_was_loaded():
    pool = Pool("abc")
    places = {pool.ask(10, adapter="french").replica for _ in range(10)}
    assert len(places) == 1
    assert pool.ask(10, adapter="greek").replica is not None


def test_every_early_policy_is_there_for_comparison():
    early = {name for name, policy in POLICIES.items() if policy.binding == "early"}
    assert early == {
        "least_requests", "least_tokens", "round_robin", "power_of_two", "predicted_ttft", "lmetric",
        "prefix",
    }  # fmt: skip


# --------------------------------------------------------------------------------------------- prefixes


def test_a_prefix_is_held_as_far_as_its_blocks_agree():
    index = PrefixIndex(100)
    index.sent("a", 400, (1, 2, 3, 4), None)
    index.sent("b", 200, (1, 2), None)
    assert index.hits(500, (1, 2, 3, 9), None) == {"a": 300, "b": 200}
    assert index.hits(500, (9, 2, 3), None) == {}
    assert index.hits(300, (1, 2, 3), None) == {"a": 299, "b": 200}, "the last token is always computed"


def test_the_index_forgets_what_was_unused_for_longest():
    index = PrefixIndex(100, blocks=1000, sessions=10)
    for i in range(5000):
        index.sent("a", 100, (i,), f"s{i}")
    assert len(index) == 1010
    assert index.hits(200, (4999,), None) == {"a": 100}
    assert index.hits(200, (1,), None) == {}
    assert index.hits(200, (), "s1") == {}


def test_a_restarted_replica_holds_nothing():
    index = PrefixIndex(100)
    index.sent("a", 100, (1,), "s")
    index.forget("a")
    assert index.hits(200, (1,), "s") == {}


def test_blocks_of_a_prompt_may_be_more_tokens_than_usual():
    index = PrefixIndex(128)
    index.sent("a", 400, (1, 2, 3), None)
    assert index.hits(2000, (1, 2, 4), None, 256) == {"a": 512}


def test_the_session_speaks_only_for_what_blocks_cannot_tell():
    index = PrefixIndex(100)
    index.sent("a", 900, (1, 2), "s")
    assert index.hits(1000, (), "s") == {"a": 900}, "no blocks"
    assert index.hits(1000, (1, 2), "s") == {"a": 900}, "all of them are there: the rest may be too"
    assert index.hits(1000, (1, 3), "s") == {"a": 100}, "it goes on in another way"
    assert index.hits(1000, (4, 5), "s") == {}, "a new beginning"


def test_a_replica_is_trusted_as_far_as_what_it_says_bears_out():
    index = PrefixIndex(100)
    index.sent("a", 1001, tuple(range(10)), None)
    for _ in range(40):
        expected = index.hits(1001, tuple(range(10)), None)["a"]
        index.told("a", expected, 500)
    assert index.hits(1001, tuple(range(10)), None)["a"] == pytest.approx(500, rel=0.02), "half was there"
    for _ in range(40):
        index.told("a", index.hits(1001, tuple(range(10)), None)["a"], 1000)
    assert index.hits(1001, tuple(range(10)), None)["a"] > 990, "it is believed again"


def test_a_replica_that_has_nothing_three_times_running_was_restarted():
    index = PrefixIndex(100)
    for replica in "ab":
        index.sent(replica, 1000, (1, 2, 3), "s")
    for _ in range(2):
        index.told("b", 300, 0)
    index.told("b", 200, 150)
    for _ in range(2):
        index.told("b", 300, 0)
    assert index.hits(1000, (1, 2, 3), None)["b"] > 0, "never three times running"
    index.told("b", 300, 0)
    assert index.hits(1000, (1, 2, 3), "s") == {"a": 300}
    index.sent("b", 1000, (1, 2), None)
    assert 0 < index.hits(1000, (1, 2, 3), None)["b"] < 200, "it is known anew, and trusted less"


def test_an_engine_that_never_tells_is_taken_at_its_best():
    """vLLM leaves zeros out once it was started to tell; without that it tells nothing at all."""
    index = PrefixIndex(100)
    index.sent("a", 1000, (1, 2, 3), None)
    for _ in range(10):
        index.told("a", 300, None)
    assert index.trust("a") == 1.0
    index.told("a", 300, 300)
    index.told("a", 300, None)
    assert index.trust("a") < 1.0


def test_replicas_may_come_and_go_for_ever():
    index = PrefixIndex(100)
    for number in range(1000):
        index.sent(f"r{number}", 1000, (1, 2), None)
        index.forget(f"r{number - 1}")
    assert index.hits(1000, (1, 2), None) == {"r999": 200}


def test_a_replica_that_was_away_holds_nothing():
    pool = Pool("ab", settings={"prefix_tokens": 512})
    blocks = tuple(range(7))
    first = pool.ask(3600, prefix=blocks, adapter="french")
    home = pool.ledgers[first.replica or ""]
    assert pool.scheduler.prefixes.hits(3600, blocks, None)
    home.avoid()
    pool.clock.tick(60)
    home.reached()
    pool.ask(10)
    assert not pool.scheduler.prefixes.hits(3600, blocks, None)
    assert not home.adapters


def test_no_more_is_remembered_than_the_replicas_can_hold():
    pool = Pool("ab", kv_tokens=5120, settings={"prefix_tokens": 512})
    for number in range(100):
        client = pool.ask(600, prefix=(number,))
        assert client.slot is not None
        client.slot.release()
    assert len(pool.scheduler.prefixes) <= 20
