"""What a machine lacks is told once, at the end, and fails in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

TESTS = """
import pytest
from tests.conftest import not_run

@pytest.fixture(scope="module")
def thing():
    not_run("a thing: this machine has none")

@pytest.mark.parametrize("number", range(3))
def test_of_a_thing(thing, number): ...

def test_of_another(): not_run("another: nor that")

def test_that_is_skipped_for_good(): pytest.skip("a usual reason")

def test_that_runs(): ...
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("ci", ["true", ""])
def test_each_reason_is_told_once(ci: str, workers: list[str], tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    (tmp_path / "test_things.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=50,
        check=False,
    )
    lines = run.stdout.splitlines()
    assert lines[-3:-1] == ["NOT RUN: a thing: this machine has none", "NOT RUN: another: nor that"], (
        run.stdout
    )
    if ci:
        assert run.returncode == pytest.ExitCode.TESTS_FAILED
        assert "1 failed, 1 passed, 1 skipped, 3 errors" in lines[-1]
    else:
        assert run.returncode == pytest.ExitCode.OK
        assert "1 passed, 5 skipped" in lines[-1]
