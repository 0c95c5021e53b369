"""One record, one outcome; at rest, accepted equals the sum over all outcomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.records import RecordBook
from tests.gateway.builders import Clock


def test_a_record_ends_once():
    book = RecordBook()
    record = book.open("id-1", "POST", "/", Clock())
    assert (len(book), list(book)) == (1, [record])
    record.finish("failed")
    record.finish("completed")
    assert (record.outcome, record.stage, len(book)) == ("failed", "done", 0)
    assert book.outcomes == {"failed": 1}


@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["completed", "failed", "cancelled", "rejected"])))
)
def test_the_book_balances(steps):
    """I4, at every moment: accepted = live + ended."""
    book, records = RecordBook(), {}
    for number, outcome in steps:
        if number in records:
            records[number].finish(outcome)
        else:
            records[number] = book.open(str(number), "POST", "/", Clock())
        assert book.accepted == len(book) + book.outcomes.total()
    assert book.accepted == len(records)


@pytest.mark.parametrize(
    ("first_byte", "now", "overhead"),
    [(None, 10.0, 3.0), (8.0, 100.0, 1.0), (3.0, 100.0, 0.0)],
)
def test_overhead_is_what_neither_queue_nor_engine_took(first_byte, now, overhead):
    """Never negative, and not growing once the first byte is there."""
    record = RecordBook().open("id-1", "POST", "/", Clock(1.0))
    record.queued, record.upstream_wait, record.first_byte = 2.0, 4.0, first_byte
    assert record.overhead(now) == overhead


def test_the_row_for_people():
    record = RecordBook().open("id-1", "POST", "/v1/chat/completions", Clock(1.0))
    row = record.as_row(1.5)
    assert row["shown_id"] is None
    assert (row["status"], row["ttft_ms"], row["duration_ms"]) == (None, None, 500.0)
    record.shown_id, record.status, record.first_byte = "theirs", 200, 1.25
    row = record.as_row(2.0)
    assert (row["shown_id"], row["status"], row["ttft_ms"], row["duration_ms"]) == (
        "theirs",
        200,
        250.0,
        1000.0,
    )
