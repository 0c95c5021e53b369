"""Every benchmark still runs: its `--smoke` form, in a process of its own."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import NOT_RUN, REPO, not_run


@pytest.mark.timeout(240)
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
        "triton_grpc",
    ],
)
def test_benchmark_runs(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--smoke"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO, start_new_session=True
    )
    with running:
        try:
            shown, complaints = running.communicate(timeout=220)
        except BaseException:
            os.killpg(running.pid, signal.SIGKILL)  # with the servers that it started
            raise
    assert running.returncode == 0, complaints
    if shown.startswith(NOT_RUN):
        not_run(shown.strip().removeprefix(NOT_RUN))
    assert len(shown.splitlines()) >= 3
