"""The planner's question to the twin: do so many replicas hold it?"""

from backends.simulated.engine import PROFILES
from gateway.queueing.policies import POLICIES
from gateway.replay.checking import seen_with
from gateway.replay.requests import TraceRequest

H200 = PROFILES["h200"]
BURST = [TraceRequest(0.01 * number, "t", 2000, 50, max_tokens=64) for number in range(200)]


def test_more_replicas_see_less_waiting():
    """One engine reads 20 such prompts a second, of the 100 that come: it queues; eight do not."""
    one, eight = (seen_with(BURST, H200, count, POLICIES["lanes"], 64) for count in (1, 8))
    assert one.queue_p95_ms > 2000 > 100 > eight.queue_p95_ms
    assert one.ttft_p95_ms > one.queue_p95_ms
    assert eight.unfinished == one.unfinished == 0  # nothing is shed, whatever the policy would


def test_a_bounded_batch_waits_in_the_gateway():
    """`limits.in_flight` is the planned batch: what exceeds it queues here."""
    wide, narrow = (seen_with(BURST, H200, 2, POLICIES["lanes"], batch) for batch in (64, 2))
    assert narrow.queue_p95_ms > 2 * wide.queue_p95_ms
    assert narrow.tpot_p99_ms < wide.tpot_p99_ms
