"""The twin: each request has one outcome, the books end at zero, the same seed gives the same figures."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulated.engine import PROFILES, profile
from gateway.config.snapshot import PriorityClass
from gateway.queueing.policies import POLICIES
from gateway.replay.fleet import PrefixCache, bare_prefill
from gateway.replay.mixes import mixed
from gateway.replay.requests import TraceRequest, with_max_tokens
from gateway.replay.twin import NEVER, Stop, Twin, capacity, pool_of, replay

ENGINE = PROFILES["h200"]
SMALL = profile("h200", kv_tokens=3000, max_sequences=4, step_tokens=512)


@pytest.fixture(scope="module")
def traffic():
    rng = random.Random(1)
    return with_max_tokens(mixed(rng, 400), rng)


requests = st.lists(
    st.builds(
        TraceRequest,
        at=st.floats(0, 3),
        tenant=st.sampled_from("ab"),
        prompt_tokens=st.integers(1, 1500),
        output_tokens=st.integers(1, 300),
        max_tokens=st.one_of(st.none(), st.integers(1, 400)),
        priority=st.sampled_from(PriorityClass),
        streamed=st.booleans(),
        blocks=st.lists(st.integers(0, 5), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=30,
).map(lambda some: sorted(some, key=lambda request: request.at))


@settings(max_examples=40, deadline=None)
@given(
    requests,
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from([None, 0.05, 1.0]),
    st.sampled_from([0, 2048]),
)
def test_each_request_has_one_outcome_and_the_books_end_at_zero(some, name, budget, prefix_cache):
    """Whatever the policy, and engines so small that they throw sequences out."""
    policy = replace(POLICIES[name], prefix_tokens=512 if prefix_cache else 0)
    twin = Twin(
        [pool_of("p", [SMALL, replace(SMALL, speed=0.4)], policy)],
        lambda request, lengths: [Stop("p")],
        weights={"a": 2.0},
        budget=None if budget is None else lambda prompt, expected, slo: budget,
        prefix_cache=prefix_cache,
    )
    found = twin.run(some, samples=10)
    assert [journey.request for journey in found.journeys] == some
    for journey in found.journeys:
        assert journey.outcome in ("completed", "shed")
        if journey.outcome == "completed":
            assert journey.request.at <= journey.sent < journey.first <= journey.end < NEVER
            assert journey.slot.streamed == journey.request.output_tokens
        else:
            assert journey.sent == journey.first == NEVER
            assert name == "lanes"
    for replica in twin.replicas:
        ledger, statistics = replica.ledger, replica.engine.statistics()
        assert (ledger.in_flight, ledger.outstanding_tokens, ledger.unstarted_tokens) == (0, 0, 0)
        assert (ledger.kv_reserved, ledger.kv_seen, sum(ledger.by_class.values())) == (0, 0, 0)
        assert (statistics.running, statistics.waiting, statistics.kv_used) == (0, 0, 0)
        assert ledger.requests_total == statistics.finished
    assert twin.schedulers["p"].waiting == 0


@pytest.mark.parametrize("name", ["lanes", "power_of_two"])
def test_the_same_traffic_gives_the_same_journeys(traffic, name):
    one, other = (replay(traffic, [ENGINE] * 2, POLICIES[name]) for _ in range(2))
    assert [(j.first, j.end, j.replica) for j in one.journeys] == [
        (j.first, j.end, j.replica) for j in other.journeys
    ]


def test_a_lone_request_by_hand():
    """2 ms to the engine, one step for its prompt, one for each further token."""
    found = replay([TraceRequest(1.0, "a", 1000, 3)], [ENGINE], POLICIES["lanes"])
    (journey,) = found.journeys
    prompt = ENGINE.step_time(1000, 1000 * 500)
    rest = ENGINE.step_time(1, 0, 1000) + ENGINE.step_time(1, 0, 1001)
    assert journey.ttft == pytest.approx(0.002 + prompt)
    assert journey.e2e == pytest.approx(0.002 + prompt + rest)
    assert journey.tpot == pytest.approx(rest / 2)


def test_the_books_follow_the_stream():
    """In the middle of an answer the ledger knows what was streamed, to within a stretch of eight steps."""
    seen = []

    class Watching(Twin):
        def _started(self, who):
            super()._started(who)
            if who.prompt_tokens == 7:
                ledger = self.replicas[0].ledger
                seen.append((ledger.kv_seen, ledger.in_flight, ledger.unstarted_tokens, ledger.kv_reserved))

    long_answer = TraceRequest(0.0, "a", 1000, 400, max_tokens=200)
    pool = pool_of("p", [ENGINE], POLICIES["round_robin"])
    found = Watching([pool], lambda request, lengths: [Stop("p")]).run(
        [long_answer, TraceRequest(1.5, "a", 7, 1)]
    )
    first = found.journeys[0]
    each = first.tpot
    said = 1 + (found.journeys[1].first - first.first) / each
    kv_seen, in_flight, unstarted, reserved = seen[0]
    assert (in_flight, unstarted) == (2, 0)
    assert 200 < said < 300
    assert kv_seen == pytest.approx(1000 + said + 7 + 1, abs=10)
    # 200 were expected; it has said more, and each token beyond reserves its place.
    assert reserved == pytest.approx(1000 + said + 7 + 512, abs=10)


def test_late_binding_keeps_short_requests_out_of_the_queue_of_a_long_one():
    """Two documents of 60,000 tokens and a chat behind them, one engine: only a line with an order helps."""
    documents = [TraceRequest(0.0, "docs", 60_000, 10), TraceRequest(0.001, "docs", 60_000, 10)]
    chat = TraceRequest(0.5, "chat", 200, 10)
    early, late = (
        replay([*documents, chat], [ENGINE], POLICIES[name]).journeys[2] for name in ("least_requests", "sjf")
    )
    assert late.ttft < 0.7 * early.ttft


def test_what_is_given_up_is_unfinished():
    found = replay([TraceRequest(0.0, "a", 10, 100_000)], [ENGINE], POLICIES["lanes"], patience=5.0)
    assert [journey.outcome for journey in found.journeys] == ["unfinished"]


def test_what_fits_no_engine_is_refused():
    found = replay([TraceRequest(0.0, "a", 5000, 10)], [SMALL], POLICIES["round_robin"])
    assert [journey.outcome for journey in found.journeys] == ["shed"]


def test_capacity_is_that_of_full_engines(traffic):
    """Twice the engines do twice the work, but for the end; and no replay is faster."""
    one, two = capacity(traffic, [ENGINE]), capacity(traffic, [ENGINE] * 2)
    assert 1.5 * one < two < 2.05 * one
    at_once = [replace(request, at=0.0) for request in traffic]
    found = replay(at_once, [ENGINE], POLICIES["fcfs"])
    assert len(traffic) / found.ended <= 1.02 * one


def test_bare_prefill_counts_the_chunks():
    assert bare_prefill(ENGINE, 9000) == pytest.approx(
        ENGINE.step_time(8192, 8192 * 4096) + ENGINE.step_time(808, 808 * (8192 + 404))
    )


def test_prompts_are_remembered_by_blocks():
    cache = PrefixCache(3 * 512)
    cache.add((1, 2))
    assert cache.hit((1, 2, 3)) == 1024
    assert cache.hit((3, 1)) == 0
    cache.add((7, 8))  # the end of the oldest prompt goes first
    assert cache.hit((1, 2)) == 512
    assert PrefixCache(0).hit((1,)) == 0


def test_a_warm_cache_answers_sooner():
    blocks = tuple(range(20))
    twice = [TraceRequest(float(at), "a", 20 * 512 + 100, 5, blocks=blocks) for at in (0, 5)]
    found = replay(twice, [ENGINE], replace(POLICIES["lanes"], prefix_tokens=512), prefix_cache=100_000)
    assert found.journeys[1].ttft < 0.1 * found.journeys[0].ttft
    assert found.hit_share == pytest.approx(20 * 512 / 2 / (20 * 512 + 100))


def test_samples_tell_who_waits():
    burst = [TraceRequest(0.001 * number, "a", 3000, 20) for number in range(100)]
    found = replay(burst, [ENGINE], POLICIES["sjf"], samples=20)
    assert len(found.samples) >= 10
    assert max(sample.waiting for sample in found.samples) > 50
    assert max(sample.oldest for sample in found.samples) > 0.05
