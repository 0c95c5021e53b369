"""Fixtures that every room's tests share, and a loud way to leave a test out.

`not_run(reason)` is for what a machine lacks. Each distinct reason is told in one line at the end of pytest's
summary, `NOT RUN: ...`, so that a green run does not hide it; where the environment says `CI=true`, the test
fails, because there the machine is ours to equip (but for what is not `required`).
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from tests.redis_server import namespace, own_redis, redis_server

__all__ = ["namespace", "own_redis", "redis_server"]  # fixtures

# On a busy machine an example may take long; where CI is set, Hypothesis has a profile of its own for that.
if not os.environ.get("CI"):
    settings.register_profile("busy", deadline=None)
    settings.load_profile("busy")

REPO = Path(__file__).resolve().parents[1]
NOT_RUN = "NOT RUN: "


def not_run(reason: str, *, required: bool = True) -> NoReturn:
    """Leave the running test, or all tests of the running fixture, out for want of something.

    `required` False: also in CI, for what takes too long to build there."""
    if required and os.environ.get("CI") == "true":
        pytest.fail(NOT_RUN + reason, pytrace=False)
    pytest.skip(NOT_RUN + reason)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what imports and collection made out of garbage collection, as `headgate serve` does: half a
    million objects. Hundreds of tests collect garbage to hear what was lost: a quarter of a second each, or
    nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Tell below everything else what was not run. Reports come from xdist's workers too."""
    yield
    left_out = [*terminalreporter.getreports("skipped"), *terminalreporter.getreports("failed")]
    left_out += terminalreporter.getreports("error")
    for reason in sorted({_reason(report) for report in left_out} - {""}):
        terminalreporter.write_line(reason, yellow=True, bold=True)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What `not_run` said, with its beginning; empty for all other skips and failures."""
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    lines = said.removeprefix("Skipped: ").splitlines()  # the first one may be xdist's
    return next((line for line in lines if line.startswith(NOT_RUN)), "")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadgroup`, with all tests of the real Triton in one group, so that they share one server.

    The mark `xdist_group` would say so, but xdist 3.8 passes it on in `Item._nodeid`, which pytest 9.2 has no
    longer: without a word, nothing is grouped.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]  # late: xdist is optional

    class OneTriton(LoadGroupScheduling):  # type: ignore[misc]  # Any, for the same reason
        def _split_scope(self, nodeid: str) -> str:
            return "triton" if "real_triton/" in nodeid else super()._split_scope(nodeid)

    return OneTriton(config, log)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The research material (wire vectors, traces) that is not part of this repository.

    Set by `HEADGATE_SHARED`, `../shared` by default.
    """
    path = Path(os.environ.get("HEADGATE_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        not_run("no shared material (set HEADGATE_SHARED)")
    return path
