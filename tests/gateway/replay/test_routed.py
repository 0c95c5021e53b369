"""A routes.yaml in the twin: the real router and limits, with walls, as written, with spill, and merged."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from backends.simulated.engine import PROFILES
from gateway.cli import app
from gateway.cli.replay import load_routes
from gateway.config.snapshot import QueueBounds, Range, When
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import SPILL_AFTER, pools_of, router_of, with_models
from gateway.replay.twin import Sight, Twin
from tests.conftest import REPO
from tests.gateway.builders import a_model, a_pool, a_rule, a_snapshot

ENGINE = PROFILES["h200"]


@pytest.fixture
def snapshot():
    """Two walls: up to 1,000 tokens in all to `small` (one at a time), else to `large`."""
    small = a_pool("small", total=1000, in_flight=1, queue=QueueBounds(max_requests=1))
    large = a_pool("large", total=10_000, replicas=("r2", "r3"))
    rules = (
        a_rule("short", pools=("small", "large"), when=When(estimated_total_tokens=Range(lte=1000))),
        a_rule("long", pools=("large",)),
    )
    return a_snapshot(models=(a_model(context=20_000),), pools=(small, large), rules=rules)


def request(at=0.0, prompt=100, output=50, asked=60, **fields):
    return TraceRequest(at, "acme", prompt, output, asked, model="llama", **fields)


def way(snapshot, asked, variant="written"):
    return [stop.pool for stop in router_of(snapshot, variant)(asked, Sight())]


def test_the_rules_decide(snapshot):
    assert way(snapshot, request()) == ["small", "large"]
    assert way(snapshot, request(prompt=5000)) == ["large"]
    assert way(snapshot, request(), "merged") == ["merged"]


def test_what_no_pool_takes_is_refused(snapshot):
    """Beyond the context, beyond every pool, of no known model: in no figure."""
    asked = [
        request(prompt=30_000),
        request(prompt=15_000),
        TraceRequest(0.0, "acme", 10, 5, 5, model="none"),
    ]
    assert [way(snapshot, each) for each in asked] == [[], [], []]
    found = Twin(pools_of(snapshot, ENGINE, "written"), router_of(snapshot, "written")).run(asked)
    assert (found.journeys, found.refused) == ([], 3)


@pytest.mark.parametrize(("variant", "completed"), [("written", 2), ("spill", 4), ("merged", 4)])
def test_a_full_pool_sends_on_only_where_it_may(snapshot, variant, completed):
    """One runs, one waits; the third and fourth go where the others are only if the rule says so."""
    burst = [request(at=0.001 * number, output=500, asked=500) for number in range(4)]
    found = Twin(pools_of(snapshot, ENGINE, variant), router_of(snapshot, variant)).run(burst)
    assert sum(journey.outcome == "completed" for journey in found.journeys) == completed
    assert all(journey.outcome in ("completed", "shed") for journey in found.journeys)


def test_patience_ends(snapshot):
    """With `overloaded` a request waits `after_ms`, then goes on; at its last pool, the queue's own bound."""
    stops = router_of(snapshot, "spill")(request(), Sight())
    assert [stop.patience for stop in stops] == [SPILL_AFTER, 60.0]
    assert [stop.patience for stop in router_of(snapshot, "written")(request(), Sight())] == [
        60.0,
        60.0,
    ]


def test_idle_engines_of_a_later_pool_serve_who_waits(snapshot):
    """As the file says; with `spill` wherever a chain leads on, with `walls` nowhere."""
    pools = {**snapshot.pools, "large": replace(snapshot.pools["large"], lends_to=("small",))}
    lending = replace(snapshot, pools=pools)
    burst = [request(at=0.001 * number, output=500, asked=500) for number in range(3)]
    for file, variant, lent in (
        (snapshot, "written", 0),
        (snapshot, "spill", 2),
        (lending, "written", 2),
        (lending, "walls", 0),
    ):
        twin = Twin(pools_of(file, ENGINE, variant), router_of(file, variant))
        found = twin.run(burst)
        assert twin.schedulers["large"].lent == lent
        assert sum(journey.outcome == "completed" for journey in found.journeys) == min(2 + lent, 3)
        waits = [journey.ttft for journey in found.journeys if journey.outcome == "completed"]
        assert (max(waits) < 0.5) == (lent > 0), "else it waits for the answer before it"


def test_the_lenders_own_bound_holds(snapshot):
    """Who waits where less is sent gets, from the lender, what the lender leaves."""
    rules = (replace(snapshot.rules[0], fit="clamp", when=When()),)
    asked = request(prompt=900, asked=900)
    stops = router_of(replace(snapshot, rules=rules), "spill")(asked, Sight())
    assert [(stop.pool, stop.max_tokens, dict(stop.lenders)) for stop in stops] == [
        ("small", 100, {"large": 900}),
        ("large", 900, {}),
    ]


def test_pools_keep_their_limits(snapshot):
    small, large = pools_of(snapshot, ENGINE, "written", per_pool=3)
    assert (small.in_flight, len(small.engines), len(large.engines)) == (1, 3, 3)
    (merged,) = pools_of(snapshot, ENGINE, "merged")
    assert (merged.name, len(merged.engines), merged.in_flight) == ("merged", 3, ENGINE.max_sequences)


def test_tenants_ask_for_models_in_turn(snapshot):
    plain = [TraceRequest(float(at), "acme", 10, 5) for at in range(4)]
    assert [each.model for each in with_models(plain, {"acme": ("a", "b")}, snapshot)] == ["a", "b", "a", "b"]
    assert {each.model for each in with_models(plain, {}, snapshot)} == {"llama"}
    assert with_models([request()], {"acme": ("a",)}, snapshot) == [request()]


def test_the_shipped_file():
    """All three ways in one run; and a file that is not right is told as `check` tells it."""
    assert load_routes(REPO / "routes.yaml").pools
    ran = CliRunner().invoke(
        app,
        [
            "replay", "--config", str(REPO / "routes.yaml"), "--per-pool", "2", "--smoke", "--load", "0.5",
            "--models", "conv=llama3-8b-ru+chat-mini,code=code-7b,docs=llama3-8b-ru", "--requests", "200",
        ],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert all(name in ran.stdout for name in ("walls", "written", "spill", "merged"))


def test_a_broken_file(tmp_path):
    path = tmp_path / "routes.yaml"
    path.write_text("version: 1\npools: {}\n")
    assert CliRunner().invoke(app, ["replay", "--config", str(path), "--smoke"]).exit_code == 1
    assert CliRunner().invoke(app, ["replay", "--models", "conv"]).exit_code == 2
