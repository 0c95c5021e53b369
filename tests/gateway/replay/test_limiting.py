"""The limits of a file in the twin: the limiter that serves live traffic, in virtual time."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from backends.simulated.engine import PROFILES
from gateway.cli import app
from gateway.config.snapshot import MaxTokens, PriorityClass, QueueBounds
from gateway.errors import QuotaExceeded
from gateway.queueing.policies import Policy
from gateway.replay.comparing import Comparison, Scenario, run_job
from gateway.replay.figures import figures_of
from gateway.replay.limiting import FileLimits, at_once
from gateway.replay.report import as_text
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import VARIANTS, pools_of, router_of, tenants_of, with_models
from gateway.replay.twin import Twin
from tests.conftest import REPO
from tests.gateway.builders import a_limit, a_model, a_pool, a_rule, a_snapshot, a_tenant

ENGINE = PROFILES["h200"]
INTERACTIVE, BATCH = PriorityClass.interactive, PriorityClass.batch


def a_file(*limits, pools=None, **fields):
    fields.setdefault("models", (a_model(context=20_000),))
    return a_snapshot(pools=pools or (a_pool("pool"),), limits=limits, **fields)


def request(at=0.0, prompt=60, output=40, asked=40, tenant="acme", **fields):
    return TraceRequest(at, tenant, prompt, output, asked, model="llama", **fields)


def run(snapshot, asked, variant="written"):
    limits = partial(FileLimits, snapshot)
    twin = Twin(pools_of(snapshot, ENGINE, variant), router_of(snapshot, variant), limits=limits)
    found = twin.run(asked)
    assert twin.limits.store.open == 0, "every reservation has ended"
    assert twin.limits.store.held() == {}
    return twin, found


def counted(found):
    outcomes = [journey.outcome for journey in found.journeys]
    return {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}


def test_tokens_per_minute_hold_to_the_token():
    """600 tokens a minute: what had passed by any moment is never more than the bucket and its refill, and
    never less by a whole request. The other tenant has no limit."""
    snapshot = a_file(a_limit(600, tenants=("acme",)), tenants=(a_tenant(), a_tenant(name="other")))
    asked = [
        request(at=0.37 * number, tenant=tenant) for number in range(500) for tenant in ("acme", "other")
    ]
    _, found = run(snapshot, asked)
    passed, limited = 0, 0
    for journey in found.journeys:
        if journey.request.tenant == "other":
            assert journey.outcome == "completed"
            continue
        allowed = 600 + journey.request.at * 600 / 60
        if journey.outcome == "completed":
            passed += 100
            assert passed <= allowed
        else:
            assert journey.outcome == "limited"
            assert passed > allowed - 100 - 1, "to the token, and the whole one that it rounds to"
            limited += 1
    assert (passed, limited) == (100 * (6 + 18), 500 - 24), "a full bucket, and 185 s of refill"


def test_what_was_not_used_is_given_back():
    """Each may say 400 tokens and says 40: by estimates alone two of them would fill the bucket."""
    snapshot = a_file(a_limit(1000, per=3600))
    _, found = run(snapshot, [request(at=3.0 * number, asked=400) for number in range(6)])
    assert counted(found) == {"completed": 6}
    _, found = run(snapshot, [request(at=0.001 * number, asked=400) for number in range(6)])
    assert counted(found) == {"completed": 2, "limited": 4}


def test_who_was_shed_pays_nothing():
    pool = a_pool("pool", in_flight=1, queue=QueueBounds(max_requests=0))
    snapshot = a_file(a_limit(200, per=3600), pools=(pool,))
    _, found = run(snapshot, [request(), request(at=0.01), request(at=9.0)])
    assert [journey.outcome for journey in found.journeys] == ["completed", "shed", "completed"]


BRIEF = (a_model(context=20_000, max_tokens=MaxTokens(default=50)),)
"""Of its answers 50 tokens are expected, whatever is asked for."""


def test_what_outruns_its_estimate_is_charged_as_it_streams():
    """Others meet what an answer of 2,000 tokens has used, 9 s after it began, long before its end."""
    snapshot = a_file(a_limit(3000, per=36_000), models=BRIEF)
    late = request(at=9.0, output=10, asked=10, prompt=2000)
    for output, outcome in ((50, "completed"), (2000, "limited")):
        _, found = run(snapshot, [request(output=output, asked=2000), late])
        assert (found.journeys[0].expected, found.journeys[0].output_tokens) == (50, output)
        assert found.journeys[1].outcome == outcome
    assert found.journeys[0].end > 9.0


def test_an_answer_is_cut_where_its_limit_says_so():
    snapshot = a_file(a_limit(1000, per=36_000, overrun="cut"), models=BRIEF)
    twin, found = run(snapshot, [request(output=2000, asked=2000)])
    (row,) = at_once(twin.limits.limiter.rows(snapshot))
    (journey,) = found.journeys
    assert (journey.outcome, journey.limit_cut) == ("completed", True)
    assert journey.prompt_tokens + journey.output_tokens == row.used
    assert 1000 < row.used < 1000 + 2 * snapshot.server.limits.settle_tokens
    replica = twin.replicas[0]
    assert replica.engine.statistics().cancelled == 1
    assert (replica.ledger.in_flight, replica.ledger.kv_seen) == (0, 0)
    assert twin.lengths.predict("acme", "llama", 60) is None


def test_a_limit_may_clamp_instead():
    snapshot = a_file(a_limit(300, per=36_000, clamp=True))
    _, found = run(snapshot, [request(asked=400, output=400, prompt=50)])
    (journey,) = found.journeys
    assert (journey.outcome, journey.output_tokens, journey.limit_cut) == ("completed", 250, True)


def test_limits_of_pools_hold_where_they_serve():
    """The second pool of a chain takes who the first one's limits refuse, if the rule goes on; merged, no
    pool of the file serves, and so none limits."""
    pools = (a_pool("a"), a_pool("b", replicas=("b1",)))
    limit = a_limit(100, per=36_000, pools=("a",))
    asked = [request(at=0.01 * number) for number in range(3)]
    for on, outcomes in ((frozenset({"overloaded"}), {"completed": 3}),
                         (frozenset({"unavailable"}), {"completed": 1, "limited": 2})):  # fmt: skip
        snapshot = a_file(limit, pools=pools, rules=(a_rule(pools=("a", "b"), on=on),))
        twin, found = run(snapshot, asked)
        assert counted(found) == outcomes
        assert twin.replicas[0].engine.statistics().submitted == 1
    assert counted(run(snapshot, asked, "merged")[1]) == {"completed": 3}


def test_a_lender_holds_its_own_limits():
    """Where they refuse, the request waits on in its place."""
    pools = (
        a_pool("a", in_flight=1, replicas=("a1",)),
        a_pool("b", replicas=("b1",), lends_to=("a",)),
    )
    rules = (a_rule(pools=("a", "b"), on=frozenset({"failed"})),)
    asked = [request(at=0.001 * number, output=500, asked=500) for number in range(3)]
    for limits, by_lender in (((), 2), ((a_limit(560, per=36_000, pools=("b",)),), 1)):
        twin, found = run(a_file(*limits, pools=pools, rules=rules), asked)
        assert counted(found) == {"completed": 3}
        assert twin.replicas[1].engine.statistics().submitted == by_lender


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 20), st.integers(1, 6000), st.integers(1, 300),
            st.sampled_from([INTERACTIVE, BATCH]), st.sampled_from(["acme", "other"]), st.booleans(),
        ),
        min_size=1, max_size=60,
    ),
    st.sampled_from(VARIANTS),
    st.sampled_from(["finish", "cut"]),
    st.booleans(),
)  # fmt: skip
def test_the_books_are_whole_whatever_happens(some, variant, overrun, clamp):
    """Limits, preemption, lending, spill and shedding together: one outcome each, nothing held at the end."""
    policy = Policy(preempt=2)
    pools = (
        a_pool("a", in_flight=2, replicas=("a1",), policy=policy, queue=QueueBounds(max_requests=5)),
        a_pool("b", in_flight=3, replicas=("b1",), lends_to=("a",), policy=policy),
    )
    limits = (
        a_limit(20_000, each=("tenant",), overrun=overrun, clamp=clamp),
        a_limit(2, "concurrent", pools=("b",)),
        a_limit(9000, "tokens_in_flight", name="held"),
    )
    snapshot = a_file(
        *limits, pools=pools, tenants=(a_tenant(), a_tenant(name="other")),
        rules=(a_rule(pools=("a", "b"), on=frozenset({"overloaded"})),),
    )  # fmt: skip
    asked = sorted(
        (
            request(at, prompt, output, None, tenant, priority=priority, streamed=streamed)
            for at, prompt, output, priority, tenant, streamed in some
        ),
        key=lambda each: each.at,
    )
    twin, found = run(snapshot, asked, variant)
    assert [journey.request for journey in found.journeys] == asked
    assert set(counted(found)) <= {"completed", "shed", "limited"}
    for replica in twin.replicas:
        ledger, statistics = replica.ledger, replica.engine.statistics()
        assert (ledger.in_flight, ledger.outstanding_tokens, ledger.unstarted_tokens) == (0, 0, 0)
        assert (ledger.kv_reserved, ledger.kv_seen) == (0, 0)
        assert (statistics.running, statistics.waiting, statistics.kv_used) == (0, 0, 0)


def test_figures_tell_them_apart():
    """Limited is neither shed nor in time, and each tenant has a row."""
    snapshot = a_file(a_limit(200, per=36_000, tenants=("acme",)), tenants=(a_tenant(), a_tenant(name="o")))
    asked = [request(at=0.5 * at, tenant=tenant) for at in range(5) for tenant in ("acme", "o")]
    _, found = run(snapshot, asked)
    figures = figures_of("written", 0.5, 1, found, ENGINE)
    whole, mine, other = (
        next(row for row in figures.rows if (row.cls, row.tenant) == ("all", name))
        for name in ("all", "acme", "o")
    )
    assert (whole.limited, whole.shed, whole.goodput) == (0.3, 0.0, 0.7)
    assert (mine.requests, mine.limited, other.limited, other.goodput) == (5, 0.6, 0.0, 1.0)
    assert whole.jain > 0.98, "what limits refused was not asked for"
    text = as_text(Comparison(figures.rows, (figures,), {1: 1.0}, {}, 0.0))
    assert "limits, written: 30.0% of the requests refused, 0.0% got a shorter answer" in text
    assert whole.as_json()["limited"] == 0.3


def test_tenants_of_a_trace_are_those_of_the_file():
    """By name; the others in turn those that are left over, or all of them where none is."""
    snapshot = a_file(tenants=tuple(a_tenant(name=name) for name in ("acme", "conv", "globex")))
    assert tenants_of(["conv", "code", "docs", "more", "code"], snapshot) == {
        "conv": "conv", "code": "acme", "docs": "globex", "more": "acme",
    }  # fmt: skip
    named = {name: name for name in ("acme", "conv", "globex")}
    assert tenants_of([*named, "x"], snapshot) == {**named, "x": "acme"}
    assert tenants_of(["x"], replace(snapshot, tenants={})) == {"x": "x"}


def test_they_ask_for_models_that_they_may_use():
    tenants = (a_tenant(allow=replace(a_tenant().allow, models=("small",))),)
    snapshot = a_file(models=(a_model(), a_model(name="small")), tenants=tenants)
    plain = [TraceRequest(float(at), "conv", 10, 5) for at in range(4)]
    assert {each.model for each in with_models(plain, {}, snapshot, {"conv": "acme"})} == {"small"}
    assert {each.model for each in with_models(plain, {}, snapshot)} == {"llama", "small"}


def test_keys_are_used_in_turn():
    tenants = (a_tenant(keys=("one", "other")),)
    snapshot = a_file(a_limit(1, "requests", per=36_000, each=("key",)), tenants=tenants)
    _, found = run(snapshot, [request(at=float(at)) for at in range(3)])
    assert counted(found) == {"completed": 2, "limited": 1}


async def test_what_never_waits_needs_no_event_loop():
    async def answer():
        return 7

    async def refuse():
        raise QuotaExceeded("no", limit="l")

    assert at_once(answer()) == 7
    with pytest.raises(QuotaExceeded):
        at_once(refuse())
    with pytest.raises(RuntimeError, match="waits"):
        at_once(asyncio.sleep(0))


def load_limited(path):
    """A file as --config reads it, for a job."""
    return a_file(a_limit(2000, each=("tenant",)), tenants=(a_tenant(), a_tenant(name="other", weight=3.0)))


@pytest.mark.parametrize("limits", [True, False])
def test_a_job_holds_them_or_not(limits):
    scenario = Scenario(
        (ENGINE,), requests=80, config=REPO / "routes.yaml", load_config=load_limited, limits=limits
    )
    _, (found,) = run_job(scenario, (1, 0.5, ("written",)))
    rows = {row.tenant: row for row in found.rows if row.cls == "all"}
    assert (rows["all"].limited > 0) is limits
    assert set(rows) == ({"all", "acme", "other"} if limits else {"all"})
    assert set(found.tenants) <= {"acme", "other"}


def test_the_command_line_may_leave_them_out():
    base = [
        "replay", "--config", str(REPO / "routes.yaml"), "--per-pool", "2", "--smoke", "--load", "0.5",
        "--requests", "200", "--format", "json",
    ]  # fmt: skip
    ran = CliRunner().invoke(app, [*base, "--limits", "off"])
    assert ran.exit_code == 0, ran.output
    assert '"limited": 0.0' in ran.stdout
    assert '"limits": "off"' in ran.stdout
