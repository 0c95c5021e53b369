"""`headgate plan`: the formulas, the replay's word, and the warnings, as an operator sees them."""

import json

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from tests.gateway.planning.models import LLAMA3_8B


def planned(*arguments):
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA3_8B))
    return path


def test_by_formula_alone(config):
    """Rates that were measured, one pool: each formula with its numbers, cost at the end."""
    code, out, _ = planned(
        "--prompt-tokens", 1000, "--output-tokens", 200, "--rate", 50, "--prefill-tps", 20_000,
        "--decode-tps", 2000, "--batch", 32, "--split", 0, "--slo", "all:ttft_p95_ms=2000", "--no-check",
        "--model-config", config, "--gpu-memory-gb", 150.1, "--gpu-price", 3.5,
    )  # fmt: skip
    assert code == 0
    for line in (
        "KV bytes per token = 2 x 32 layers x 8 kv_heads x 128 head_dim x 2 bytes = 131072 bytes",
        "KV bytes per request = 131072 x (1000 in + 200 out) = 157286400 bytes",
        "(0.9 x 1 GPUs x 150.1 GB - 16.0605 GB - 2.5 GB) x 1e9 / 131072 = 889049 tokens",
        "T = 1000 / 20000 + 200 / (2000 / 32) + 0 = 3.25 s",
        "QPS by batch = 32 / 3.25 = 9.84615 requests/s",
        "QPS by work = 1 / (1000 / 20000 + 200 / 2000) = 6.66667 requests/s",
        "replicas = ceil(50 / (6.66667 x 0.7)) = 11",
        "cost per 1M tokens = 3.5 x 11 GPUs / (216000000 / 1e6) = 0.178241",
    ):
        assert line in out, out


def test_checked_by_a_replay():
    """Two pools from the built-in trace; what the replay holds is what is planned."""
    code, out, err = planned("--rate", 20, "--check-requests", 400, "--format", "json", "--profile", "h200")
    assert code == 0, err
    answer = json.loads(out)
    assert [pool["pool"] for pool in answer["pools"]] == ["short", "long"]
    assert sum(pool["rate"] for pool in answer["pools"]) == pytest.approx(20, rel=1e-3)
    for pool in answer["pools"]:
        assert pool["held_by_replay"] is True
        last = [each for each in pool["replays"] if each["replicas"] == pool["replicas"]]
        assert last
        assert last[-1]["missed"] == []
    assert answer["replicas"] == sum(pool["replicas"] for pool in answer["pools"])


def test_a_fleet_on_the_wrong_side():
    """Most of the work is long, most of the replicas are not: told, and seen in the replay."""
    code, out, _ = planned("--rate", 20, "--check-requests", 300, "--fleet", "short=3,long=1")
    assert code == 0
    assert "WARNING: pool short has 30% of the work and 75% of the capacity, 1/2.5 as much" in out
    assert "WARNING: pool long has 70% of the work and 25% of the capacity, 2.8 times as much" in out
    assert "1 replicas, where 3 keep below 70%" in out
    assert "DOES NOT HOLD" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--profile", "h300"), "unknown engine profile 'h300'"),
        (("--prefill-tps", 100), "go together"),
        (("--prefill-tps", 100, "--decode-tps", 1000, "--batch", 8), "decoding cannot be faster"),
        (("--prompt-tokens", 100), "goes with --output-tokens and --rate"),
        (("--slo", "medium:ttft_p95_ms=1"), "no pool 'medium'; there are short, long"),
        (("--slo", "short:ttft=1"), "--slo is POOL:ttft_p95_ms=800"),
        (("--fleet", "short=1"), "--fleet names each of short, long"),
        (("--trace", "nowhere.csv"), "nowhere.csv"),
        (("--model-config", "nowhere.json"), "nowhere.json"),
        (("--policy", "best"), "best"),
        (("--rate", "-1"), "--rate is above zero"),
    ],
)
def test_what_makes_no_plan_says_why(arguments, says):
    code, _, err = planned(*arguments, "--no-check")
    assert code == 1
    assert says in err
