"""Explaining tells what would happen, and is plain JSON."""

import json

from gateway.config.snapshot import Range, When
from gateway.routing.explaining import explain
from gateway.routing.router import choose_route
from tests.gateway.builders import Clock, a_call, a_pool, a_queue, a_rule, a_snapshot, an_estimate


def explained(pools, rules, call=None, estimate=None, queues=None):
    snapshot = a_snapshot(pools=pools, rules=rules)
    call, estimate = call or a_call(), estimate or an_estimate()
    queues = queues or {pool.name: a_queue(pool) for pool in pools}
    told = explain(call, choose_route(snapshot, call, estimate), queues)
    assert json.loads(json.dumps(told)) == told, "plain JSON, nothing lost"
    return told


def test_the_whole_explanation():
    short = a_pool("short", total=12, in_flight=4)
    long = a_pool("long", replicas=("r1", "r2"), state="warm")
    small = When(estimated_total_tokens=Range(lte=5))
    rules = [a_rule("tiny", ["short"], when=small), a_rule("else", ["short", "long"])]
    told = explained([short, long], rules, a_call(asked=20), an_estimate(10, 5, asked=20))
    assert told == {
        "dialect": "chat",
        "model": "llama",
        "asked_model": "llama",
        "tenant": "acme",
        "class": "standard",
        "session": None,
        "stream": False,
        "prompt": {"tokens": 10, "exact": True, "source": "test", "tier": "exact", "why": ""},
        "max_tokens": {"asked": 20, "bound": 20, "by": "asked", "clamped": False},
        "estimate": {"output": 5, "output_by": "model default", "mean": 5, "n": 1, "total": 15},
        "rules": [
            {"rule": "tiny", "matched": False, "why": "estimated_total_tokens 15 is not <= 5"},
            {"rule": "else", "matched": True, "why": "every condition holds"},
        ],
        "rule": "else",
        "fit": "next",
        "on": ["failed", "unavailable"],
        "split": [],
        "mirror": None,
        "chain": [
            {
                "pool": "short",
                "engine": "trtllm",
                "model": "llama",
                "engine_model": "engine-llama",
                "adapter": None,
                "prefix_blocks": 0,
                "lenders": [],
                "usable": False,
                "why": told["chain"][0]["why"],
                "max_tokens": 2,
                "by": "pool",
                "clamped": True,
                "limits": {"prompt": None, "total": 12, "in_flight": 4},
                "configured_limits": {"prompt": None, "total": 12, "in_flight": 4},
                "activation": None,
                "candidates": [
                    {
                        "replica": "r1",
                        "outstanding_tokens": 0,
                        "in_flight": 0,
                        "weight": 1.0,
                        "cached_tokens": 0,
                        "has_adapter": None,
                        "why": "least predicted time to first token",
                    }
                ],
            },
            {
                "pool": "long",
                "engine": "trtllm",
                "model": "llama",
                "engine_model": "engine-llama",
                "adapter": None,
                "prefix_blocks": 0,
                "lenders": [],
                "usable": True,
                "why": "takes it",
                "max_tokens": 20,
                "by": "asked",
                "clamped": False,
                "limits": {"prompt": None, "total": None, "in_flight": None},
                "configured_limits": {"prompt": None, "total": None, "in_flight": None},
                "activation": None,
                "candidates": [
                    {
                        "replica": "r1",
                        "outstanding_tokens": 0,
                        "in_flight": 0,
                        "weight": 1.0,
                        "cached_tokens": 0,
                        "has_adapter": None,
                        "why": "least predicted time to first token",
                    },
                    {
                        "replica": "r2",
                        "outstanding_tokens": 0,
                        "in_flight": 0,
                        "weight": 1.0,
                        "cached_tokens": 0,
                        "has_adapter": None,
                        "why": "a later first token predicted, or served more so far",
                    },
                ],
            },
        ],
        "goes_to": "long",
        "refused": None,
    }
    assert "20 output tokens asked" in told["chain"][0]["why"]


def test_a_rule_that_holds_only_with_less_output_says_so():
    """Which condition, how much is left, and that the estimate is the one with less."""
    pool = a_pool(total=100)
    when = When(estimated_total_tokens=Range(lte=100), if_clamped=16)
    told = explained([pool], [a_rule("short", when=when)], a_call(asked=90), an_estimate(60, 90, asked=90))
    assert told["rules"] == [
        {
            "rule": "short",
            "matched": True,
            "why": "estimated_total_tokens 150 is not <= 100, but holds with the output bounded to 40",
        }
    ]
    assert told["max_tokens"] == {"asked": 90, "bound": 40, "by": "rule short", "clamped": True}
    assert told["estimate"]["total"] == 100
    assert (told["chain"][0]["max_tokens"], told["chain"][0]["by"]) == (40, "rule short")


def test_a_refusal_is_told_with_its_status():
    told = explained([a_pool(total=5)], [a_rule()], estimate=an_estimate(10))
    assert told["goes_to"] is None
    assert told["refused"]["status"] == 400


def test_under_refuse_the_walk_ends_where_the_request_would():
    """The second pool could take it; the rule says not to ask it."""
    told = explained(
        [a_pool("short", total=12), a_pool("long")],
        [a_rule(pools=["short", "long"], fit="refuse")],
        a_call(asked=20),
        an_estimate(10, asked=20),
    )
    assert told["chain"][1]["usable"]
    assert told["goes_to"] is None
    assert told["refused"]["status"] == 400


def test_candidates_in_the_order_in_which_they_would_be_tried():
    """Loaded, full and avoided replicas say so; nothing is taken by asking."""
    pool = a_pool(replicas=("loaded", "idle", "avoided", "full"), in_flight=1)
    queue = a_queue(pool, Clock(100.0))
    loaded, idle, avoided, full = queue.ledgers
    full.take(1000, 0, queue.dispatch)
    loaded.outstanding_tokens = 50
    avoided.avoid()
    avoided.last_error = "connect: refused"
    told = explained([pool], [a_rule()], queues={"pool": queue})
    rows = [(row["replica"], row["why"]) for row in told["chain"][0]["candidates"]]
    assert rows == [
        ("idle", "least predicted time to first token"),
        ("loaded", "a later first token predicted, or served more so far"),
        ("full", "full: 1 in flight"),
        ("avoided", "avoided: connect: refused"),
    ]
    assert idle.in_flight == 0
