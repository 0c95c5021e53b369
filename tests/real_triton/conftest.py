"""One server for all tests of this folder, which xdist keeps in one process (`tests/conftest.py`)."""

from collections.abc import Iterator

import pytest

from tests.conftest import not_run
from tests.real_triton.server import Servers, TritonServer, why_not


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if reason := why_not():
        not_run(f"real Triton: {reason}")
    with Servers(lambda: tmp_path_factory.mktemp("triton")) as servers:
        yield servers


@pytest.fixture
def triton(servers: Servers) -> TritonServer:
    return servers.alive()
