"""The harness: the gateway's file says the very policy that the twin runs; and a small fleet, for real."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gateway.app import load_snapshot
from gateway.queueing.policies import POLICIES
from gateway.replay.figures import Objectives
from loadtest.__main__ import main, parser
from loadtest.fleet import POOL, routes
from loadtest.fleet_command import policy_for, setting_of


def given(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(["fleet", *arguments])


@pytest.mark.parametrize("shed", [True, False])
@pytest.mark.parametrize("name", [*POLICIES, "lanes:kappa=30:fair=off"])
def test_the_gateway_schedules_by_the_policy_that_the_twin_runs(name: str, shed: bool, tmp_path: Path):
    """Through the file and back, for each policy there is."""
    setting, _ = setting_of(given("--requests", "30"))
    policy = policy_for(name, Objectives(short_ttft=0.8), shed=shed)
    file = tmp_path / "routes.yaml"
    keys = {tenant: f"key-of-{tenant}" for tenant in setting.tenants}
    file.write_text(yaml.safe_dump(routes(setting, policy, ["http://127.0.0.1:1"], keys, tmp_path / "state")))
    snapshot, _ = load_snapshot(file)
    pool = snapshot.pools[POOL]
    assert pool.policy == policy
    assert (pool.limits.in_flight is None) == (policy.binding == "early")
    assert set(snapshot.tenants) >= set(setting.tenants)


def test_all_policies_meet_the_same_load():
    """At the rate that was asked for, on engines of the speed that was asked for."""
    setting, most = setting_of(given("--requests", "200", "--load", "0.5", "--speed", "2", "--engines", "4"))
    seconds = setting.requests[-1].at - setting.requests[0].at
    assert len(setting.requests) / seconds == pytest.approx(0.5 * most)
    faster, double = setting_of(given("--requests", "200", "--speed", "4", "--engines", "4"))
    assert double == pytest.approx(2 * most, rel=0.01)
    assert replace(faster.engine, speed=2.0) == setting.engine


@pytest.mark.timeout(120)
def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two engines and a gateway as processes, two policies in turn, both columns, a page, a baseline."""
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert main(["fleet", "--smoke", "--json", str(out), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "sockets / twin" in printed
    assert "ERROR" not in printed
    figures = json.loads(out.read_text())
    rows = {row["policy"]: row for row in figures["rows"] if row["class"] == "all"}
    assert set(rows) == {"lanes", "lanes (twin)", "round_robin", "round_robin (twin)"}
    for row in rows.values():
        assert (row["requests"], row["shed"], row["failed"], row["unfinished"]) == (40, 0, 0, 0)
    summary = figures["summaries"]["lanes"]
    lengths = summary["output_tokens_mean"]
    setting, _ = setting_of(given("--requests", "40", "--trace", "conv"))
    wanted = [request.output_tokens for request in setting.requests]
    assert lengths == pytest.approx(sum(wanted) / len(wanted))  # the trace's, not max_tokens
    prompts = [request.prompt_tokens for request in setting.requests]
    assert summary["input_tokens_mean"] == pytest.approx(sum(prompts) / len(prompts), rel=0.05)
    assert set(figures["cores"]["lanes"]) >= {"client"}
    assert "<svg" in page.read_text()
    assert "hg-load-" not in out.read_text() + page.read_text()
    assert main(["compare", str(out), str(out), "--fail-above", "1.5"]) == 0
    for row in figures["rows"]:
        row["goodput"] = 2.0
    better = tmp_path / "better.json"
    better.write_text(json.dumps(figures))
    assert main(["compare", str(better), str(out), "--fail-above", "1.5"]) == 3
    assert "REGRESSION" in capsys.readouterr().err


def test_engines_that_do_not_start_are_told(capsys: pytest.CaptureFixture[str]):
    """Slower than an engine takes: what the process said is shown."""
    assert main(["fleet", "--trace", "conv", "--requests", "9", "--speed", "0.0001"]) == 1
    assert "did not start" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--policies", "nobody"], ["--trace", "/none.csv"], ["--profile", "nobody"]]
)
def test_wrong_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["fleet", *wrong]) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--slo", "much=1"], ["--classes", "1/2"], ["--fail-above", "0.5"]])
def test_wrong_values(wrong: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(["fleet", *wrong])
    assert ended.value.code == 2
