"""What counts as served as promised, and how it is told."""

import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.config.snapshot import Slo
from gateway.telemetry.attainment import OBJECTIVES, Attainment, judged
from gateway.telemetry.records import RecordBook, RequestRecord
from tests.gateway.builders import Clock

SLO = Slo(ttft_p95_ms=800, tpot_p99_ms=50, queue_ms=300)
SERVED = {
    "slo": SLO, "pool": "short", "priority_class": "interactive", "outcome": "completed", "stream": True,
    "attempts": 1, "queued": 0.2, "first_byte": 1.5, "completion_tokens": 11,
}  # fmt: skip
"""Received at 1.0; ends at 1.9: 500 ms to the first token, 40 ms per token."""
NOW = 1.9


def a_record(**fields) -> RequestRecord:
    record = RecordBook().open("id-1", "POST", "/", Clock(1.0))
    for name, it in {**SERVED, **fields}.items():
        setattr(record, name, it)
    return record


@pytest.mark.parametrize(
    ("fields", "queue", "ttft", "tpot", "every"),
    [
        ({}, True, True, True, True),
        ({"queued": 0.31}, False, True, True, False),
        ({"first_byte": 1.81}, True, False, True, False),
        ({"completion_tokens": 8}, True, True, False, False),
        ({"completion_tokens": 22, "choices": 2}, True, True, True, True),
        ({"completion_tokens": 1}, True, True, None, True),  # one token has no pace
        ({"stream": False}, True, None, None, True),  # its first token is not seen
        ({"slo": Slo(queue_ms=300)}, True, None, None, True),
        ({"slo": Slo()}, None, None, None, None),
        ({"slo": None}, None, None, None, None),
        ({"outcome": "rejected", "attempts": 0}, None, None, None, None),  # 4xx: for its own sake
        # Refused for want of capacity, however soon.
        ({"outcome": "failed", "attempts": 0, "queued": 0, "first_byte": None}, False, False, False, False),
        # The engine broke before its first token; then after it.
        ({"outcome": "failed", "first_byte": None}, True, False, False, False),
        ({"outcome": "failed"}, True, True, True, False),
        # The client left: what was overdue is missed, what was not is not known.
        ({"outcome": "cancelled", "first_byte": None}, True, False, None, False),
        ({"outcome": "cancelled", "first_byte": None, "received": 1.5}, True, None, None, None),
        ({"outcome": "cancelled", "attempts": 0, "first_byte": None, "received": 1.8}, *[None] * 4),
        ({"outcome": "cancelled"}, True, True, True, None),
        ({"outcome": "completed", "stream": False, "slo": Slo(ttft_p95_ms=1)}, None, None, None, None),
    ],
)  # fmt: skip
def test_what_is_met(fields, queue, ttft, tpot, every):
    assert judged(a_record(**fields), NOW) == (queue, ttft, tpot, every)


def rows(attainment: Attainment) -> dict[tuple[str, str], tuple[int, float]]:
    return {(row.priority_class, row.objective): (row.requests, row.share) for row in attainment.rows()}


def test_shares_are_of_the_last_five_minutes_and_counters_of_all_time():
    clock = Clock(1000.0)
    attainment = Attainment(clock)
    registry = CollectorRegistry()
    registry.register(attainment)
    for queued in (0.1, 0.1, 0.1, 0.5):
        attainment.note(a_record(queued=queued, received=999.0, first_byte=999.5), clock())
    assert rows(attainment)["interactive", "queue"] == (4, 0.75)
    assert set(rows(attainment)) == {("interactive", objective) for objective in OBJECTIVES}
    clock.tick(400)
    assert not rows(attainment), "no requests, no share: neither 0 nor 1 would be true"
    attainment.note(a_record(priority_class="batch", received=1399.0, first_byte=1399.5), clock())
    assert rows(attainment)["batch", "queue"] == (1, 1.0)
    text = generate_latest(registry).decode()
    labels = '{class="interactive",met="%s",objective="queue",pool="short"}'
    assert f"headgate_slo_requests_total{labels % 'true'} 3.0" in text
    assert f"headgate_slo_requests_total{labels % 'false'} 1.0" in text
    assert 'headgate_slo_attainment{class="batch",objective="queue",pool="short"} 1.0' in text


def test_what_was_promised_nothing_leaves_no_series():
    attainment = Attainment(Clock(5.0))
    attainment.note(a_record(slo=None), 5.0)
    assert not list(attainment.rows())
    assert all(not family.samples for family in attainment.collect())


def test_it_costs_microseconds():
    """Not a benchmark: twenty times what it takes would still pass."""
    attainment, record = Attainment(Clock(5.0)), a_record()
    started = time.process_time()
    for _ in range(2000):
        attainment.note(record, NOW)
    assert (time.process_time() - started) / 2000 < 50e-6
