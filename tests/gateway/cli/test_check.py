"""`headgate check --trace`, `plan --config`, and what a replay says of promises: the file beside traffic."""

import copy
import json

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli import app


@pytest.fixture
def routes(tmp_path):
    """Three engines for short requests, one for all others, which are nearly all the work."""
    file = {
        "version": 1,
        "server": {"authentication": "off"},
        "models": {"m": {"tokenizer": {"kind": "estimate"}, "context": 80_000}},
        "pools": {
            "short": {
                "engine": "openai",
                "serves": "m",
                "slo": {"ttft_p95_ms": 900, "tpot_p99_ms": 60},
                "replicas": [{"id": f"s{i}", "url": f"http://127.0.0.1:{9000 + i}"} for i in range(3)],
            },
            "long": {
                "engine": "openai",
                "serves": "m",
                "replicas": [{"id": "l1", "url": "http://127.0.0.1:9009"}],
            },
        },
        "rules": [
            {"name": "short", "when": {"estimated_total_tokens": {"lte": 1000}}, "pools": ["short"]},
            {"name": "long", "pools": ["long"]},
        ],
    }
    path = tmp_path / "routes.yaml"
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    return path


def run(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def trace(tmp_path):
    """A log of 200 short requests and as many long ones."""
    path = tmp_path / "traffic.csv"
    rows = [f"2025-01-01 00:{i // 60:02}:{i % 60:02},{(400, 6000)[i % 2]},50" for i in range(400)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def test_check_alone_speaks_of_no_shares(routes):
    code, out, err = run("check", routes)
    assert code == 0
    assert "capacity" not in out + err


def test_check_with_a_trace_names_pools_that_have_their_engines_elsewhere(routes, trace):
    code, out, err = run("check", routes, "--trace", trace)
    assert code == 0, err
    assert "400 requests of" in out
    assert "pool long has" in err
    assert "it queues while others idle" in err
    rows = {
        line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("short", "long"))
    }
    short, long = int(rows["short"][0]), int(rows["long"][0])
    assert short + long == 400
    assert 190 <= short <= 200, "the first ones go by an assumed length of their answers"
    assert rows["short"][2] == "75%"


def test_check_with_a_trace_names_first_pools_that_are_too_small_for_what_clients_ask(routes, trace):
    """Of prompts of 400 tokens with answers of 50, two in five ask for 4,096: that is no long answer."""
    file = yaml.safe_load(routes.read_text())
    file["pools"]["short"]["limits"] = {"total": 4096}
    file["rules"][0]["pools"] = ["short", "long"]
    routes.write_text(yaml.safe_dump(file, sort_keys=False))
    _, _, err = run("check", routes, "--trace", trace)
    (warning,) = [line for line in err.splitlines() if "pass by" in line]
    assert 30 <= int(warning.removeprefix("warning: ").split("%")[0]) <= 50
    assert "rule short pass by its first pool, short" in warning
    assert "its total, 4096" in warning
    clamped, roomier = copy.deepcopy(file), copy.deepcopy(file)
    clamped["rules"][0]["fit"] = "clamp"
    roomier["pools"]["short"]["limits"]["total"] = 8192
    for cured in (clamped, roomier):
        routes.write_text(yaml.safe_dump(cured, sort_keys=False))
        code, _, err = run("check", routes, "--trace", trace)
        assert code == 0, err
        assert "pass by" not in err


def test_check_says_what_is_wrong_with_a_trace(routes, tmp_path):
    code, _, err = run("check", routes, "--trace", tmp_path / "none.csv")
    assert code != 0
    assert "none.csv" in err
    code, _, err = run("check", routes, "--trace", "mixed", "--models", "conv")
    assert code != 0
    assert "TENANT=MODEL" in err


def test_a_plan_of_the_files_pools_holds_its_promises(routes, trace):
    code, out, err = run(
        "plan", "--config", routes, "--trace", trace, "--rate", 20, "--format", "json", "--no-check"
    )
    assert code == 0, err
    short, long = json.loads(out)["pools"]
    assert (short["pool"], short["slo"]) == (
        "short",
        {"ttft_p95_ms": 900, "tpot_p99_ms": 60, "queue_ms": None},
    )
    assert (long["pool"], long["slo"]["ttft_p95_ms"]) == ("long", 10_000)  # nobody promised anything
    code, out, _ = run(
        "plan", "--config", routes, "--trace", trace, "--rate", 20, "--fleet", "file", "--format", "json",
        "--no-check",
    )  # fmt: skip
    answer = json.loads(out)
    assert [pool["replicas"] for pool in answer["pools"]] == [3, 1]
    assert any("pool long" in warning for warning in answer["warnings"])


def test_the_files_replicas_need_the_file(trace):
    code, _, err = run("plan", "--trace", trace, "--fleet", "file", "--no-check")
    assert code != 0
    assert "--config" in err


def test_a_replay_says_by_which_promises_it_judges(routes, trace):
    code, out, err = run("replay", "--config", routes, "--trace", trace, "--smoke", "--load", 0.5)
    assert code == 0, err
    assert "pool short: ttft_p95_ms 900, tpot_p99_ms 60" in out.splitlines()[0]
