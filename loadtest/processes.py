"""Processes of this checkout: started, waited for, watched, ended by their own handle."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
STOP_S = 15.0


class DidNotStart(RuntimeError):
    """The process ended, or said nothing of an address; the message holds what it wrote."""


@dataclass(frozen=True, slots=True)
class Process:
    """One that listens."""

    url: str
    pid: int

    def cpu_s(self) -> float | None:
        """CPU seconds of all its threads so far; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def headgate(*arguments: str, log: Path, says: str) -> Iterator[Process]:
    """`headgate ARGUMENTS` of this checkout, its output in `log`, where the group of `says` is its URL.

    Raises DidNotStart.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own program
            [sys.executable, "-m", "gateway", *arguments], stdout=output, stderr=output, cwd=ROOT
        )
    try:
        yield Process(_url(process, log, re.compile(says)), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _url(process: subprocess.Popen[bytes], log: Path, says: re.Pattern[str]) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        ended = process.poll() is not None
        if found := says.search(log.read_text(errors="replace")):
            return found[1]
        if ended:
            break
        time.sleep(0.05)
    raise DidNotStart(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
