"""Whose CPU, and where: pinning, and the CPU seconds of a process tree as the kernel keeps them."""

import os
from pathlib import Path

PROC = Path("/proc")


def cpus() -> tuple[int | None, int | None]:
    """(for what is measured, for stub and load). None where there are no two to choose from."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


def pin(cpu: int | None, pid: int = 0) -> None:
    """Keep a process, and those it starts, on one CPU."""
    if cpu is not None:
        os.sched_setaffinity(pid, {cpu})


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            threads = list((PROC / str(parent) / "task").iterdir())
        except FileNotFoundError:
            continue
        for thread in threads:
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants so far: schedstat (ns), else stat (ticks).

    A thread that ends between two readings takes its time with it; those measured here do not end.
    """
    total = 0.0
    for each in tree(pid):
        for thread in (PROC / str(each) / "task").iterdir():
            try:
                total += int((thread / "schedstat").read_text().split()[0]) / 1e9
            except (FileNotFoundError, IndexError):
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def resident_mib(pid: int) -> float:
    """Resident memory of the tree, MiB; pages that processes share count for each."""
    pages = sum(int((PROC / str(each) / "statm").read_text().split()[1]) for each in tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
