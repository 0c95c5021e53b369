"""Every benchmark still runs: its `--smoke` form, in a process of its own."""

import subprocess
import sys

import pytest

from tests.conftest import REPO


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name",
    [
        "http_clients",
        "cancellation",
        "cancellation_matrix",
        "gateway_cost",
        "counting",
        "admission",
        "scheduling",
        "prefixes",
        "tensors",
    ],
)
def test_benchmark_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--smoke"],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
