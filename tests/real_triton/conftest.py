"""One server for all tests of this folder, which xdist keeps in one process (`tests/conftest.py`)."""

from collections.abc import Iterator

import pytest

from tests.conftest import not_run
from tests.real_triton.server import TritonServer, running, why_not


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    if reason := why_not():
        not_run(f"real Triton: {reason}")
    with running(tmp_path_factory.mktemp("triton")) as server:
        yield server
