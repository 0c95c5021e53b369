"""Comparisons: figures by hand, the worst of the seeds, ranking, loads carried, and the pages."""

import json
import re
from html.parser import HTMLParser

import pytest

from backends.simulated.engine import PROFILES
from gateway.replay import comparing
from gateway.replay.comparing import Scenario, carried, compare, policy_of, run_job, trace_of
from gateway.replay.figures import Objectives, figures_of, percentile, rank, worst_of
from gateway.replay.page import as_html
from gateway.replay.report import as_json, as_text
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import Journey, Replayed

ENGINE = PROFILES["h200"]
SCENARIO = Scenario((ENGINE,) * 2, requests=300, samples=20)


def journey(at, first, end, prompt=100, output=11, tenant="a", outcome="completed"):
    made = Journey(TraceRequest(at, tenant, prompt, output), output)
    made.sent, made.first, made.end, made.outcome = at, first, end, outcome
    return made


def rows_by_class(run):
    return {row.cls: row for row in run.rows}


def test_percentiles_by_hand():
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.75) == 1.75
    assert percentile([4.0], 0.99) == 4.0
    assert percentile([], 0.5) == 0.0


def test_goodput_counts_what_came_in_time():
    """A short one: 1 s and 60 ms per token; a long one: max(3 s, five times its bare prefill) and 100 ms."""
    journeys = [
        journey(0.0, 1.0, 1.5999),  # just in time: 60 ms for each of ten tokens
        journey(0.0, 1.1, 1.2),  # its first token came late
        journey(0.0, 0.5, 1.2),  # 70 ms
        journey(0.0, 2.9, 3.8, prompt=3000),  # long: 90 ms
        journey(0.0, 3.1, 3.2, prompt=3000),
        journey(0.0, 14.0, 14.1, prompt=60_000),  # its prefill takes 4.2 s
        journey(0.0, float("inf"), 5.0, outcome="shed"),
        journey(0.0, float("inf"), 0.0, outcome="unfinished"),
    ]
    rows = rows_by_class(figures_of("p", 0.7, 1, Replayed(journeys, ended=20.0), ENGINE))
    assert rows["short"].goodput == pytest.approx(1 / 5)
    assert rows["long"].goodput == pytest.approx(2 / 3)
    assert rows["all"].goodput == pytest.approx(3 / 8)
    assert rows["all"].shed == rows["all"].unfinished == pytest.approx(1 / 8)
    assert rows["short"].ttft_max == 1.1
    assert rows["short"].tpot_p99 == pytest.approx(0.07, rel=0.02)
    assert Objectives().ttft(2048, 9.0) == 1.0
    assert Objectives().ttft(2049, 9.0) == 45.0


def test_jain_is_over_what_tenants_asked_for():
    """Both got everything: 1. One of two got nothing: 1/2."""
    journeys = [journey(0.0, 0.1, 0.2), journey(0.0, 0.1, 0.2, tenant="b"), journey(9.0, 9.1, 9.2)]
    even = rows_by_class(figures_of("p", 0.7, 1, Replayed([*journeys[:2], journey(9.0, 9.0, 9.0)]), ENGINE))
    assert even["all"].jain == pytest.approx(1.0)
    starved = [journey(0.0, 0.1, 0.2), journey(0.0, 99.0, 99.1, tenant="b"), journey(9.0, 9.0, 9.0)]
    odd = rows_by_class(figures_of("p", 0.7, 1, Replayed(starved), ENGINE))
    assert odd["all"].jain == pytest.approx(0.5)


def test_of_several_seeds_each_figure_is_the_worst():
    one = figures_of("p", 0.7, 1, Replayed([journey(0.0, 0.1, 5.0)]), ENGINE).rows
    other = figures_of("p", 0.7, 2, Replayed([journey(0.0, 0.9, 1.0)]), ENGINE).rows
    (row,) = [row for row in worst_of([*one, *other]) if row.cls == "short"]
    assert (row.ttft_p99, row.e2e_p99, row.goodput) == (0.9, 5.0, 0.0)


def test_who_finishes_fewer_is_not_ranked():
    full = figures_of("full", 0.7, 1, Replayed([journey(0.0, 0.1, 5.0)] * 2), ENGINE).rows
    half = [journey(0.0, 0.1, 5.0), journey(0.0, 0.1, 5.0, outcome="shed")]
    fewer = figures_of("fewer", 0.7, 1, Replayed(half), ENGINE).rows
    assert {(row.policy, row.ranked) for row in rank([*full, *fewer])} == {("full", True), ("fewer", False)}


def test_a_comparison_is_the_same_in_one_process_and_in_two():
    """Jobs know nothing of each other."""
    one = compare(SCENARIO, ["lanes", "round_robin"], [0.7], [1, 2], processes=1)
    two = compare(SCENARIO, ["lanes", "round_robin"], [0.7], [1, 2], processes=2)
    assert one.rows == two.rows
    assert one.capacities == two.capacities
    assert len(one.runs) == 4


def test_a_sweep_finds_the_load_that_is_carried(monkeypatch):
    monkeypatch.setattr(comparing, "SWEEP", (0.3, 3.0))
    told = []
    found = compare(SCENARIO, ["round_robin"], None, [1], processes=1, told=told.append)
    tried = sorted({run.load for run in found.runs})
    assert tried == [0.3, 1.65, 3.0]
    assert 0.3 < found.carried["round_robin"] < 3.0
    assert carried(found.runs, "round_robin", 1) == found.carried["round_robin"]
    assert "seed 1, load 0.3" in told[0]


def test_scenarios_reach_the_figures():
    """Classes, a flood, streams, weights: each has rows of its own."""
    scenario = Scenario(
        (ENGINE,) * 2, requests=300, flood=("noisy", 0.6), shed=False, nonstream=0.5, classes=(20, 60, 20),
        tenants=3, weights=(("t1", 2.0),), prefix_cache=10_000, samples=0,
    )  # fmt: skip
    _, (run,) = run_job(scenario, (1, 0.7, ("lanes",)))
    assert {row.priority for row in run.rows} == {"all", "interactive", "standard", "batch"}
    assert {row.tenant for row in run.rows} == {"all", "victims", "noisy"}
    assert set(run.tenants) == {"t1", "t2", "t3", "noisy"}
    assert run.samples == ()


def test_policies_take_settings():
    assert policy_of("lanes:fair=off:kappa=30").fair is False
    assert policy_of("lanes:kappa=30").kappa == 30.0
    for wrong in ("nobody", "lanes:shed=on", "lanes:nothing=1"):
        with pytest.raises(ValueError, match=r"nobody|cannot set"):
            policy_of(wrong)


def test_made_traces_of_one_source():
    assert {request.tenant for request in trace_of(Scenario((ENGINE,), trace="code", requests=50), 1)} == {
        "code"
    }


class Checker(HTMLParser):
    """Counts what a page holds, and what it would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetches = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetches += [value for name, value in attrs if name in ("src", "href")]


def test_reports():
    """Table, JSON, and a page that fetches nothing and runs nothing."""
    scenario = Scenario((ENGINE,) * 2, requests=200, classes=(1, 1, 1), samples=20)
    found = compare(scenario, ["lanes", "least_requests"], [0.7, 0.9], [1], processes=1)
    text = as_text(found)
    assert "capacity" in text
    assert "load 0.7" in text
    assert "least_requests" in text
    rows = json.loads(json.dumps(as_json(found, {"seed": 1})))["rows"]
    wanted = "policy load class priority ttft_p50 ttft_p95 ttft_p99 ttft_max e2e_p50 e2e_p95 e2e_p99 tpot_p99"
    assert {*wanted.split(), "goodput", "shed", "unfinished", "jain"} <= set(rows[0])
    assert {row["class"] for row in rows} == {"short", "long", "all"}
    checker = Checker()
    page = as_html(found, {"trace": "<mixed>"}, "headgate replay")
    checker.feed(page)
    assert "script" not in checker.tags
    assert checker.fetches == []
    assert checker.tags.count("svg") == 6 + 2 * 8
    assert "&lt;mixed&gt;" in page
    assert not re.search(r"\bnan\b", page)


def test_the_longest_wait_counts_refusals_and_those_given_up():
    journeys = [
        journey(0.0, 1.0, 2.0),
        journey(1.0, float("inf"), 4.0, outcome="shed"),
        journey(2.0, float("inf"), float("inf"), outcome="unfinished"),
    ]
    for count, wait in ((1, 1.0), (2, 3.0), (3, 8.0)):
        run = figures_of("p", 0.7, 1, Replayed(journeys[:count], ended=10.0), ENGINE)
        assert rows_by_class(run)["all"].wait_max == wait
