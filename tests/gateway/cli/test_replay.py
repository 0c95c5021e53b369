"""`headgate replay`: a tiny run in each format, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from gateway.cli import app

RUN = CliRunner()


def invoke(*arguments):
    return RUN.invoke(app, ["replay", *arguments])


def test_smoke():
    """All the policies, three loads, one seed, in seconds."""
    ran = invoke("--smoke", "--requests", "200", "--replicas", "2")
    assert ran.exit_code == 0, ran.output
    for name in ("lanes", "sjf", "lmetric", "load 0.85", "capacity"):
        assert name in ran.stdout


def test_json_on_a_fleet_of_two_speeds(tmp_path):
    target = tmp_path / "out.json"
    ran = invoke(
        "--smoke", "--requests", "100", "--policies", "lanes,lanes:fair=off", "--speeds", "1x1,2.2x1",
        "--load", "0.5",
        "--flood", "noisy=0.6", "--classes", "20/60/20", "--weights", "conv=2", "--shed", "off",
        "--nonstream-share", "0.3", "--profile", "h200-slow-host", "--format", "json", "-o", str(target),
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    written = json.loads(target.read_text())
    assert written["settings"]["speeds"] == "1x1,2.2x1"
    assert {row["policy"] for row in written["rows"]} == {"lanes", "lanes:fair=off"}
    assert {row["tenant"] for row in written["rows"]} == {"all", "victims", "noisy"}


def test_html_from_a_file(tmp_path):
    trace = tmp_path / "trace.csv"
    lines = [f"{at},a,{100 + at},{10 + at % 5}" for at in range(40)]
    trace.write_text("t_s,tenant,in_tokens,out_tokens\n" + "\n".join(lines) + "\n")
    ran = invoke(
        "--trace", str(trace), "--smoke", "--policies", "lanes", "--load", "0.5", "--format", "html",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "<svg" in ran.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ("--policies", "nobody"), ("--load", "0"), ("--load", "much"), ("--speeds", "fast"),
        ("--profile", "abacus"),
        ("--flood", "noisy"), ("--classes", "1/2"), ("--weights", "a=0"), ("--policies", "lanes:shed=1"),
    ],
)  # fmt: skip
def test_wrong_usage(wrong):
    assert invoke(*wrong).exit_code == 2


def test_a_trace_that_is_not_there(tmp_path):
    ran = invoke("--trace", str(tmp_path / "none.csv"), "--smoke")
    assert ran.exit_code == 1
    ran = invoke("--trace", "mixed-files", "--trace-dir", str(tmp_path), "--smoke")
    assert ran.exit_code == 1
