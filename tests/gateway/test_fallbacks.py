"""The attempt loop: in which order, how often, for which reasons."""

import asyncio

import pytest
from msgspec.structs import replace

from backends.contract import Delta
from gateway.config.snapshot import QueueBounds, Timeouts
from gateway.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineTimeout,
    Unavailable,
)
from gateway.fallbacks import (
    MAX_ATTEMPTS,
    STEP_BUDGET,
    streams_upstream,
)
from tests.gateway.builders import a_call, a_pool, an_estimate
from tests.gateway.engines import ScriptedEngine, an_error
from tests.gateway.town import BROKEN, CLIENT, FATAL, OVERLOADED, REFUSED, TOO_LONG, Town, bad, good


async def test_the_first_pool_answers():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}})
    with await town.ask() as answer:
        assert answer.first == [Delta(text="hi", tokens=1)]
        assert answer.target.pool.name == "a"
        assert town.queues["a"].statistics().in_flight == 1
        assert town.queues["a"].statistics().outstanding_tokens == 15
    assert town.sent == {"a/r1": 1}
    record = town.record
    assert (record.pool, record.replica, record.attempts, record.stage) == ("a", "r1", 1, "waiting")
    town.assert_at_rest()


async def test_the_request_is_put_in_the_pools_words():
    """Its model name, its bound, whether it streams; the rest as it came."""
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"total": 30}}, fit="clamp")
    with await town.ask(
        a_call(stream=True, asked=50, received=100.0, n=2), an_estimate(10, asked=50)
    ) as answer:
        (request,) = town.engines["a", "r1"].requests
        assert (request.model, request.max_tokens, request.stream, request.n) == ("engine-llama", 20, True, 2)
        assert request.messages == answer.call.request.messages
        assert request.rendered is None
        assert answer.sent_max_tokens == 20
    assert (town.record.max_tokens, town.record.max_tokens_by) == (20, "pool a")


@pytest.mark.parametrize(
    ("bound", "total", "by"),
    [(None, None, None), (30, None, "model"), (30, 25, "pool a"), (30, 100, "model")],
)
async def test_what_cut_the_output_is_recorded(bound, total, by):
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"total": total}}, fit="clamp")
    estimate = an_estimate(10, asked=50, bound=50 if bound is None else bound)
    (await town.ask(a_call(asked=50, received=100.0), estimate)).release()
    assert town.record.max_tokens_by == by


async def test_all_output_of_all_prompts_is_in_the_books():
    """prompt + prompts x n x output: the ledger holds what the estimate says."""
    town = Town({"a": {"r1": good()}})
    with await town.ask(estimate=an_estimate(12, 5, prompts=3)):
        assert town.queues["a"].statistics().outstanding_tokens == 27


async def test_replicas_are_tried_best_first_each_at_most_once():
    order = []

    class Noted(ScriptedEngine):
        def __init__(self, name: str) -> None:
            super().__init__(BROKEN)
            self.name = name

        async def generate(self, request):
            order.append(self.name)
            return await super().generate(request)

    town = Town({"a": {name: Noted(name) for name in ("x", "y", "z")}}, pool_fields={"a": {"in_flight": 5}})
    for name, tokens in (("x", 30), ("y", 10), ("z", 20)):
        ledger = next(each for each in town.queues["a"].ledgers if each.replica.id == name)
        ledger.outstanding_tokens = tokens
    with pytest.raises(EngineFailed):
        await town.ask()
    assert order == ["y", "z", "x"]
    assert town.record.attempts == 3


@pytest.mark.parametrize("error", [BROKEN, REFUSED, OVERLOADED])
async def test_the_next_replica_answers_where_one_failed(error):
    town = Town({"a": {"r1": bad(error), "r2": good()}})
    with await town.ask() as answer:
        assert answer.slot.ledger.replica.id == "r2"
        assert town.queues["a"].statistics().in_flight == 1
    assert town.record.attempts == 2
    assert town.queues["a"].ledgers[0].last_error is not None
    town.assert_at_rest()


@pytest.mark.parametrize("error", [CLIENT, FATAL, TOO_LONG])
async def test_what_no_replica_would_do_better_is_tried_once(error):
    town = Town({"a": {"r1": bad(error), "r2": good()}})
    await town.refusal()
    assert town.sent == {"a/r1": 1}


async def test_an_error_in_the_first_events_counts_like_one_before():
    """F16: a 200 whose first event is an error."""
    town = Town({"a": {"r1": bad([BROKEN]), "r2": good()}})
    with await town.ask():
        pass
    assert town.sent == {"a/r1": 1, "a/r2": 1}
    assert town.engines["a", "r1"].generations[0].cancelled
    town.assert_at_rest()


async def test_a_replica_that_cannot_be_reached_is_avoided_next_time():
    """F1; and one that answers is well again."""
    town = Town({"a": {"r1": bad(REFUSED), "r2": good()}})
    for _ in range(2):
        (await town.ask()).release()
    assert town.sent == {"a/r1": 1, "a/r2": 2}
    assert town.queues["a"].ledgers[0].cooling()
    assert town.record.attempts == 1


async def test_a_replica_that_answers_is_well_again():
    """Tried as the last resort, it ends its own cool-down."""
    town = Town({"a": {"r1": good(REFUSED)}})
    await town.refusal()
    assert town.queues["a"].ledgers[0].cooling()
    (await town.ask()).release()
    assert not town.queues["a"].ledgers[0].cooling()


async def test_a_replica_that_broke_but_was_reached_is_not_avoided():
    """4xx and backpressure are not death (vrouter#60, sglang#39464)."""
    for error in (BROKEN, OVERLOADED, CLIENT):
        town = Town({"a": {"r1": bad(error)}})
        await town.refusal()
        assert not town.queues["a"].ledgers[0].cooling()


async def test_at_most_four_sends():
    town = Town({"a": {f"r{i}": bad() for i in range(9)}, "b": {"r1": good()}})
    await town.refusal()
    assert town.record.attempts == MAX_ATTEMPTS
    assert sum(town.sent.values()) == MAX_ATTEMPTS
    assert "b/r1" not in town.sent


async def test_the_first_event_is_waited_for_so_long():
    """F7: 504, not sent again, the slot is free, the connection is dropped."""
    timeouts = Timeouts(first_token=0.01)
    for script in (None, [None]):
        town = Town(
            {"a": {"r1": ScriptedEngine(script), "r2": good()}},
            pool_fields={"a": {"timeouts": timeouts}},
            on=frozenset(),
        )
        error = await town.refusal(a_call(stream=True, received=100.0))
        assert isinstance(error, EngineTimeout)
        assert town.sent == {"a/r1": 1}


async def test_an_unstreamed_answer_may_take_as_long_as_the_request():
    """Its first event is its last: `first_token` does not apply."""
    timeouts = Timeouts(first_token=0.0, total=5.0)
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"timeouts": timeouts}})
    (await town.ask()).release()


async def test_a_request_past_its_deadline_is_not_waited_for():
    town = Town({"a": {"r1": good()}}, pool_fields={"a": {"timeouts": Timeouts(total=5.0)}})
    slots = town.occupy("a")
    with pytest.raises(EngineTimeout):
        async with asyncio.timeout(1):
            await town.ask(a_call(received=90.0))
    for slot in slots:
        slot.release()
    town.assert_at_rest()


@pytest.mark.parametrize(
    ("error", "on", "hops"),
    [
        (FATAL, {"failed"}, True),
        (FATAL, {"unavailable", "overloaded", "too_long"}, False),
        (REFUSED, {"unavailable"}, True),
        (REFUSED, {"failed", "overloaded", "too_long"}, False),
        (OVERLOADED, {"overloaded"}, True),
        (OVERLOADED, {"failed", "unavailable", "too_long"}, False),
        (TOO_LONG, {"too_long"}, True),
        (TOO_LONG, {"failed", "unavailable", "overloaded"}, False),
        (CLIENT, {"failed", "unavailable", "overloaded", "too_long"}, False),
        (an_error("unsupported"), {"failed", "overloaded", "too_long"}, False),
        (an_error("unsupported"), {"unavailable"}, True),
        (an_error("no_route"), {"unavailable"}, True),
        (an_error("timeout"), {"failed"}, True),
        (an_error("not_found"), {"failed"}, True),
        (an_error("auth"), {"failed"}, True),
    ],
)
async def test_a_hop_is_taken_only_for_a_reason_of_the_rule(error, on, hops):
    town = Town({"a": {"r1": bad(error)}, "b": {"r1": good()}}, on=frozenset(on))
    if hops:
        with await town.ask() as answer:
            assert answer.target.pool.name == "b"
        assert town.record.pool == "b"
        town.assert_at_rest()
    else:
        await town.refusal()
        assert town.sent == {"a/r1": 1}


async def test_the_default_reasons():
    town = Town({"a": {"r1": bad(REFUSED)}, "b": {"r1": bad(FATAL)}, "c": {"r1": good()}})
    with await town.ask() as answer:
        assert answer.target.pool.name == "c"


async def test_all_replicas_are_tried_before_the_next_pool():
    town = Town({"a": {"r1": bad(), "r2": bad()}, "b": {"r1": good()}})
    with await town.ask():
        assert town.sent == {"a/r1": 1, "a/r2": 1, "b/r1": 1}


async def test_the_last_failure_is_told():
    town = Town({"a": {"r1": bad(FATAL)}, "b": {"r1": bad(an_error("timeout"))}})
    assert isinstance(await town.refusal(), EngineTimeout)
    town = Town({"a": {"r1": bad(an_error("timeout"))}, "b": {"r1": bad(FATAL)}})
    assert isinstance(await town.refusal(), EngineFailed)


FULL = {"overloaded", "unavailable", "failed"}


async def test_a_full_pool_is_left_after_so_long():
    """`after_ms` in the queue of the first pool, then the next one."""
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, on=frozenset(FULL), after=0.01)
    slots = town.occupy("a")
    with await town.ask() as answer:
        assert answer.target.pool.name == "b"
    assert town.sent == {"b/r1": 1}
    for slot in slots:
        slot.release()
    town.assert_at_rest()


async def test_within_that_time_the_first_pool_may_still_answer():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, on=frozenset(FULL), after=5.0)
    (slot,) = town.occupy("a")
    asyncio.get_running_loop().call_later(0.01, slot.release)
    with await town.ask() as answer:
        assert answer.target.pool.name == "a"


async def test_the_last_usable_pool_is_waited_for_as_long_as_its_queue_says():
    """`after_ms` would only lead to a refusal there; a pool that cannot take the request is no way out."""
    bounds = {"queue": QueueBounds(max_wait=0.02)}
    town = Town(
        {"a": {"r1": good()}, "b": {"r1": good()}},
        pool_fields={"a": bounds, "b": {"state": "cold"}},
        on=frozenset(FULL),
        after=0.0,
    )
    (slot,) = town.occupy("a")
    asyncio.get_running_loop().call_later(0.005, slot.release)
    with await town.ask() as answer:
        assert answer.target.pool.name == "a"


async def test_without_the_reason_a_full_pool_is_waited_for():
    town = Town(
        {"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields={"a": {"queue": QueueBounds(max_wait=0.01)}}
    )
    slots = town.occupy("a")
    with pytest.raises(Unavailable) as refused:
        await town.ask()
    assert refused.value.reason == "queue_timeout"
    assert town.sent == {}
    for slot in slots:
        slot.release()


async def test_a_failure_is_told_rather_than_the_wait_for_another_replica():
    """r1 broke, r2 stays full: the engine's failure is the news."""
    town = Town({"a": {"r1": bad(), "r2": good()}}, pool_fields={"a": {"queue": QueueBounds(max_wait=0.01)}})
    slot = town.queues["a"].ledgers[1].take(1, 1, town.queues["a"].dispatch)
    with pytest.raises(EngineFailed):
        await town.ask()
    slot.release()
    town.assert_at_rest()


SHORT = {"a": {"total": 20}}


def asks(tokens: int = 50):
    return a_call(asked=tokens, received=100.0), an_estimate(10, asked=tokens)


async def test_next_passes_over_the_pool_that_is_too_small():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields=SHORT, fit="next")
    with await town.ask(*asks()) as answer:
        assert answer.target.pool.name == "b"
        assert answer.sent_max_tokens == 50
    assert town.record.max_tokens_by is None


async def test_clamp_sends_less():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields=SHORT, fit="clamp")
    with await town.ask(*asks()) as answer:
        assert answer.target.pool.name == "a"
        assert answer.sent_max_tokens == 10


async def test_refuse_refuses_and_sends_nothing():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields=SHORT, fit="refuse")
    error = await town.refusal(*asks())
    assert isinstance(error, ContextLengthExceeded)
    assert error.param == "max_tokens"
    assert town.sent == {}
    assert town.record.attempts == 0


async def test_refuse_speaks_of_output_a_pool_too_small_for_the_prompt_is_skipped():
    town = Town({"a": {"r1": good()}, "b": {"r1": good()}}, pool_fields={"a": {"prompt": 5}}, fit="refuse")
    with await town.ask(*asks()) as answer:
        assert answer.target.pool.name == "b"


async def test_a_pool_that_failed_is_told_rather_than_one_behind_it_that_is_too_small():
    """The request was good for the first pool: a 400 would tell the client never to try again."""
    town = Town({"a": {"r1": bad()}, "b": {"r1": good()}}, pool_fields={"b": {"total": 20}}, fit="refuse")
    assert isinstance(await town.refusal(*asks()), EngineFailed)


async def test_no_usable_pool_at_all():
    town = Town({"a": {"r1": good()}}, pool_fields=SHORT)
    assert isinstance(await town.refusal(*asks()), ContextLengthExceeded)
    assert town.sent == {}


@pytest.mark.parametrize(
    ("setting", "client", "total", "streams"),
    [
        ("auto", True, 1, True),
        ("auto", False, STEP_BUDGET, False),
        ("auto", False, STEP_BUDGET + 1, True),
        ("always", False, 1, True),
        ("client", False, 10 * STEP_BUDGET, False),
        ("client", True, 1, True),
    ],
)
def test_whether_the_engine_is_asked_to_stream(setting, client, total, streams):
    estimate = replace(an_estimate(), total=total)
    assert streams_upstream(a_pool(upstream_stream=setting), a_call(stream=client), estimate) is streams
