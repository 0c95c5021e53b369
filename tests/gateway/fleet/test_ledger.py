"""The ledger's books balance, whatever happens to its slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import ConnectFailed, EngineError, ErrorKind
from gateway.config.snapshot import Replica
from gateway.fleet.ledger import COOL_DOWN_MAX, ReplicaLedger
from tests.gateway.builders import Clock, NoEngine, a_pool


def a_ledger(clock: Clock | None = None, weight: float = 1.0) -> ReplicaLedger:
    replica = Replica(id="r1", url="http://r1:8000", weight=weight)
    return ReplicaLedger(replica, NoEngine(a_pool().adapter), Clock() if clock is None else clock)


def test_a_slot_enters_the_books_and_leaves_them_once():
    """A second release changes nothing and calls nobody."""
    ledger, released = a_ledger(), []
    slot = ledger.take(100, 20, lambda: released.append(ledger.in_flight))
    assert (ledger.in_flight, ledger.outstanding_tokens, ledger.requests_total) == (1, 120, 1)
    slot.release()
    slot.release()
    assert (ledger.in_flight, ledger.outstanding_tokens, ledger.requests_total) == (0, 0, 1)
    assert released == [0], "called once, after the books were put right"


def test_progress_takes_off_the_prompt_first_and_never_more_than_was_expected():
    """The first event shows that the prompt is computed; an answer longer than expected costs no more."""
    ledger = a_ledger()
    slot = ledger.take(100, 20, lambda: None)
    slot.progress(0)
    assert ledger.outstanding_tokens == 20
    slot.progress(5)
    assert ledger.outstanding_tokens == 15
    slot.progress(1000)
    assert ledger.outstanding_tokens == 0
    slot.release()
    slot.progress(7)
    assert ledger.outstanding_tokens == 0


def test_load_is_per_unit_of_weight():
    heavy = a_ledger(weight=4.0)
    heavy.take(80, 20, lambda: None)
    assert heavy.load() == 25.0


def test_cool_down_doubles_up_to_its_maximum_and_ends():
    """1, 2, 4, 8, 16, 30, 30 seconds; the moment it is over, the replica may be tried."""
    clock = Clock()
    ledger = a_ledger(clock)
    lengths = []
    for _ in range(40):
        ledger.avoid()
        lengths.append(ledger.statistics().cooling_for)
        assert ledger.cooling()
        clock.tick(lengths[-1])
        assert not ledger.cooling()
    assert lengths[:7] == [1, 2, 4, 8, 16, COOL_DOWN_MAX, COOL_DOWN_MAX]
    assert set(lengths[5:]) == {COOL_DOWN_MAX}


def test_an_answer_ends_the_cool_down_and_forgets_the_failures():
    clock = Clock()
    ledger = a_ledger(clock)
    for _ in range(5):
        ledger.avoid()
    ledger.reached()
    assert not ledger.cooling()
    ledger.avoid()
    assert ledger.statistics().cooling_for == 1.0


@pytest.mark.parametrize(("ready", "avoided"), [(None, False), (True, False), (False, True)])
def test_a_replica_that_says_it_is_not_ready_is_avoided(ready, avoided):
    ledger = a_ledger()
    ledger.ready = ready
    assert ledger.cooling() is avoided


@pytest.mark.parametrize("kind", ["client", "context_length", "unsupported"])
def test_a_clients_fault_is_not_noted_against_the_replica(kind):
    """An engine quotes its client: nothing of that reaches an admin's eyes."""
    ledger = a_ledger()
    ledger.failed(EngineError(ErrorKind(kind), "'input': 'my secret'", retryable=False, status=400))
    assert ledger.statistics().last_error is None


def test_a_connections_fault_is_told_in_our_words():
    ledger = a_ledger()
    error = EngineError(ErrorKind.ENGINE, "connection refused", retryable=True, reached=False)
    error.__cause__ = ConnectFailed("connection refused")
    ledger.failed(error)
    assert ledger.statistics().last_error == "engine: connection refused"
    ledger.reached()
    assert ledger.statistics().last_error is None


def test_statistics_are_a_copy_of_the_books():
    ledger = a_ledger()
    ledger.take(3, 4, lambda: None)
    ledger.failed(EngineError(ErrorKind.ENGINE, "its words", retryable=True, status=500))
    row = ledger.statistics()
    assert (row.id, row.in_flight, row.outstanding_tokens, row.last_error) == (
        "r1",
        1,
        7,
        "engine: status 500",
    )
    ledger.take(3, 4, lambda: None)
    assert row.in_flight == 1


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "progress", "release"]),
        st.integers(0, 7),
        st.integers(0, 50),
        st.integers(0, 50),
    ),
    max_size=60,
)


@given(steps)
def test_the_books_equal_the_sum_over_open_slots(steps):
    """Against a model that remembers what each slot still expects; never negative, zero at rest."""
    ledger = a_ledger()
    slots = []
    model = {}
    for what, which, a, b in steps:
        if what == "take":
            slots.append(ledger.take(a, b, lambda: None))
            model[len(slots) - 1] = (a, b)
        elif slots:
            which %= len(slots)
            if what == "progress":
                slots[which].progress(a)
                if which in model:
                    model[which] = (0, max(0, model[which][1] - a))
            else:
                slots[which].release()
                model.pop(which, None)
        assert ledger.in_flight == len(model)
        assert ledger.outstanding_tokens == sum(prompt + output for prompt, output in model.values())
    for slot in slots:
        slot.release()
    assert (ledger.in_flight, ledger.outstanding_tokens) == (0, 0)
