"""`headgate calibrate` on a simulated engine in real time, each in a process of its own."""

import json
from pathlib import Path

import pytest

from backends.simulated.engine import PROFILES
from backends.simulated.profiles import profile_from_file
from tests.end_to_end.test_command_line import first_url, headgate, running

SPEED = 0.25
"""A quarter of an H200: steps of 20 ms, beside which the timers of a busy machine are small."""
NEAR = {"step_s": 0.10, "token_s": 0.20, "kv_token_s": 0.5}
"""How far the constants may be off. Those that are left out are within the noise of so short a run."""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_constants_of_a_simulated_engine_come_back(tmp_path: Path) -> None:
    """Fitted over HTTP, written, read again, and used by the next engine."""
    out = tmp_path / "profile.json"
    with running("engine", "--kind", "vllm", "--profile", "h200", "--speed", SPEED, "--port", 0) as engine:
        url = first_url(engine)
        done = headgate(
            "calibrate", "--url", url, "--out", out, "--rounds", 2, "--max-prompt", 2048,
            "--max-concurrency", 8, "--max-seconds", 25, "--name", "quarter",
            seconds=180,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "is vllm" in done.stderr
    assert "only their sum, base, is seen" in done.stdout
    assert "residuals, all" in done.stdout
    true = PROFILES["h200"]
    found = profile_from_file(out)
    expected = {
        "step_s": (true.step_s + true.host_s) / SPEED,
        "token_s": true.token_s / SPEED,
        "kv_token_s": true.kv_token_s / SPEED,
    }
    for name, near in NEAR.items():
        assert getattr(found, name) == pytest.approx(expected[name], rel=near), done.stdout
    assert json.loads(out.read_text())["measured"]["residuals"]["all"]["rms"] < 0.1
    with running("engine", "--kind", "tgi", "--profile", out, "--port", 0) as engine:
        assert first_url(engine)


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    done = headgate("calibrate", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    done = headgate("calibrate", "--url", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_VARIABLE")
    assert done.returncode == 2
    assert "NO_SUCH_VARIABLE" in done.stderr
    assert not list(tmp_path.iterdir())
