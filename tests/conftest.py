"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The research material (wire vectors, traces) that is not part of this repository.

    Set by `HEADGATE_SHARED`, `../shared` by default. Without it these tests cannot run: that is an error
    in CI and a visible skip elsewhere.
    """
    path = Path(os.environ.get("HEADGATE_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"shared material not found at {path} (set HEADGATE_SHARED)")
        pytest.skip(f"NOT RUN: no shared material at {path} (set HEADGATE_SHARED)")
    return path
