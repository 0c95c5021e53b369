"""What the wheel holds, built offline by the build backend itself."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory],
        cwd=REPO, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (built,) = directory.glob("*.whl")
    return built


def test_the_data_is_inside(wheel):
    """The simulated engines' tokenizer, the schema of routes.yaml, and the scripts for Redis."""
    names = set(zipfile.ZipFile(wheel).namelist())
    source = REPO / "deploy" / "tokenizers" / "headgate-mini"
    assert {f"backends/simulated/headgate-mini/{file.name}" for file in source.iterdir()} <= names
    assert "gateway/config/routes.schema.json" in names
    scripts = REPO / "gateway" / "limits" / "lua"
    assert {f"gateway/limits/lua/{script.name}" for script in scripts.iterdir()} <= names
    assert "gateway/limits/lua/reserve.lua" in names
    assert not any(name.startswith("tests/") for name in names)
    # The recipes for engines stay in the checkout (docs/launching.md).
    assert not any(name.startswith("backends/") and name.endswith((".md", ".sh", ".yaml")) for name in names)


def test_engines_find_their_tokenizer_without_a_checkout(wheel, tmp_path):
    """The wheel alone on the path, as where it is installed."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "from backends.simulated.tokens import EngineTokenizer, default_tokenizer_directory as default\n"
        "print(default(), EngineTokenizer.load(default()).size)"
    )
    # -P leaves the working directory off the path; an editable install comes after PYTHONPATH.
    told = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == f"{tmp_path}/backends/simulated/headgate-mini 4096\n"
