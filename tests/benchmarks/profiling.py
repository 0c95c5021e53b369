"""A sampling profile of the gateway, for where nothing can be installed.

    python -m tests.benchmarks.profiling FILE <headgate's own arguments>

Runs the gateway with a timer on its CPU time (SIGPROF, every 2 ms) whose handler notes the stack of the main
thread. Python handles signals between two instructions of its own: time inside C code counts for the Python
line that called it, and time of the event loop itself for the loop. Other threads (counting) are not sampled;
the kernel knows what they cost. SIGUSR1 forgets the samples so far, SIGUSR2 writes them.
"""

import collections
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL = 0.002
ROOT = Path(__file__).resolve().parents[2]


def _name(frame: FrameType, *, line: bool = False) -> str:
    code = frame.f_code
    file = code.co_filename
    for cut in ("site-packages/", "lib/python3."):
        file = file.rpartition(cut)[2] if cut in file else file
    file = file.removeprefix(f"{ROOT}/")
    return f"{file}:{frame.f_lineno if line else code.co_firstlineno} {code.co_qualname}"


class Samples:
    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.total = 0
        self.own: collections.Counter[str] = collections.Counter()
        self.lines: collections.Counter[str] = collections.Counter()
        self.inclusive: collections.Counter[str] = collections.Counter()

    def take(self, number: int, frame: FrameType | None) -> None:
        self.total += 1
        if frame is None:
            return
        self.own[_name(frame)] += 1
        self.lines[_name(frame, line=True)] += 1
        seen = set()
        while frame is not None:
            seen.add(_name(frame))
            frame = frame.f_back
        self.inclusive.update(seen)

    def as_json(self) -> str:
        return json.dumps(
            {
                "total": self.total,
                "own": self.own.most_common(60),
                "lines": self.lines.most_common(60),
                "inclusive": self.inclusive.most_common(120),
            }
        )


def reset(pid: int) -> None:
    os.kill(pid, signal.SIGUSR1)


def write(pid: int, output: Path) -> None:
    """Have the samples written, and wait until they are."""
    os.kill(pid, signal.SIGUSR2)
    end = time.monotonic() + 10
    while not output.exists() and time.monotonic() < end:
        time.sleep(0.05)


def show(profile: dict[str, Any], rows: int = 45) -> None:
    total = profile["total"]
    print(f"{total} samples")
    for title in ("inclusive", "own", "lines"):
        print(f"\n{title}:")
        for name, count in profile[title][: 2 * rows if title == "inclusive" else rows]:
            print(f"  {100 * count / total:5.1f} %  {name}")


def main() -> None:
    output = Path(sys.argv.pop(1))
    samples = Samples()

    def dump(number: int, frame: FrameType | None) -> None:
        partial = output.with_suffix(".partial")
        partial.write_text(samples.as_json())
        partial.rename(output)

    signal.signal(signal.SIGPROF, samples.take)
    signal.signal(signal.SIGUSR1, lambda number, frame: samples.clear())
    signal.signal(signal.SIGUSR2, dump)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    from gateway.__main__ import main as headgate

    headgate()


if __name__ == "__main__":
    main()
