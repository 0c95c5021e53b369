"""The command, against the gateway with a simulated engine behind it, and against nothing."""

import asyncio
import json
from pathlib import Path

import pytest

from loadtest.__main__ import main
from tests.end_to_end.world import KEY, OTHER_KEY, world

DRAWN = [
    "token-dist",
    "--input-mean",
    "128",
    "--input-stdev",
    "5",
    "--output-mean",
    "10",
    "--output-stdev",
    "1",
]


async def test_run_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Prompts have the size asked for, by the gateway's own tokenizer; the key is not in the file."""
    out = tmp_path / "a.json"
    async with world(tmp_path, {"pool": {"kind": "openai", "mean_tokens": 1000.0}}) as here:
        target = ["--url", here.addresses.data, "--model", "m", "--key", KEY]
        how = ["--rate", "60", "--requests", "40", "--warm-up", "4", "--json", str(out)]
        assert await asyncio.to_thread(main, ["run", *target, *DRAWN, *how]) == 0
        trace = tmp_path / "t.csv"
        trace.write_text("t_s,tenant,in_tokens,out_tokens\n0,a,50,4\n0.1,b,500,4\n0.2,a,60,4\n")
        page, keys = tmp_path / "t.html", tmp_path / "keys.json"
        keys.write_text(json.dumps({"a": KEY, "b": OTHER_KEY}))
        replayed = ["run", *target[:-2], "--keys", str(keys), "trace", str(trace), "--warm-up", "2"]
        replayed += ["--html", str(page), "--classes", "50/0/50", "--slo", "short_ttft=5,short_tpot=5"]
        assert await asyncio.to_thread(main, replayed) == 0
        async with here.admin() as admin:
            assert 'tenant="other"' in (await admin.get("/metrics")).text
        wrong_key = ["run", "--smoke", *target[:-1], "wrong", *DRAWN]
        assert await asyncio.to_thread(main, wrong_key) == 1
    text = out.read_text()
    assert KEY not in text + page.read_text()
    summary = json.loads(text)["summary"]
    assert summary["completed"] == 40
    assert summary["errors"] == {}
    assert summary["calibration"]["measured"]
    assert summary["input_tokens_mean"] == pytest.approx(128, rel=0.08)
    assert summary["output_tokens_mean"] == pytest.approx(10, rel=0.1)
    assert summary["ttft_ms"]["p50"] <= summary["latency_ms"]["p50"]
    printed = capsys.readouterr()
    assert "requests/s" in printed.out
    assert "3 of 3" in printed.out
    assert "401 invalid_api_key" in printed.err
    assert main(["compare", str(out), str(out)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()[1:]
    ratios = [line.split()[-1] for line in lines if "NOTE" not in line]
    assert {"1.000"} <= set(ratios) <= {"1.000", "-"}  # gaps may all be 0: nothing to divide by


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "--model", "m", "--rate", "1", "token-dist"], "--url"),
        (["run", "--url", "http://example.com", "--model", "m", "--rate", "1", "token-dist"], "--i-own-this"),
        (["run", "--url", "http://localhost:1", "--model", "m", "token-dist", "--warm-up", "0"], "--rate"),
        (
            ["run", "--url", "http://localhost:1", "--model", "m", "trace", "/none.csv", "--warm-up", "0"],
            "none",
        ),
        (["compare", "/none.json", "/none.json"], "none.json"),
    ],
)
def test_wrong_usage(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert what in capsys.readouterr().err


def test_compare_wants_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "x.json"
    file.write_text("{}")
    assert main(["compare", str(file), str(file)]) == 2
    assert "--json" in capsys.readouterr().err


async def test_a_baseline_that_was_better_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same server against its own figures, and against figures that nobody reaches."""
    out = tmp_path / "a.json"
    async with world(tmp_path, {"pool": {"kind": "openai", "mean_tokens": 1000.0}}) as here:
        load = ["run", "--url", here.addresses.data, "--model", "m", "--key", KEY, "--smoke", *DRAWN]
        assert await asyncio.to_thread(main, [*load, "--json", str(out)]) == 0
        against = [*load, "--baseline", str(out), "--fail-above", "1000"]
        assert await asyncio.to_thread(main, against) == 0
        figures = json.loads(out.read_text())
        for row in figures["rows"]:
            row["goodput"] = 5000.0
        out.write_text(json.dumps(figures))
        assert await asyncio.to_thread(main, against) == 3
    assert "goodput" in capsys.readouterr().err
