"""Prints which wire vectors pass: engine x kind x passed. `python -m tests.backends.vector_table`."""

import sys
from collections import Counter

from tests.backends.vectors import check, kind_of, load, names

KINDS = ("generation", "error", "health", "metadata", "load", "tokens", "unusable")


def main() -> int:
    total: Counter[tuple[str, str]] = Counter()
    passed: Counter[tuple[str, str]] = Counter()
    failures = []
    for name in names():
        vector = load(name)
        cell = (kind_of(vector), vector["expect"]["kind"])
        total[cell] += 1
        try:
            check(name)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
        else:
            passed[cell] += 1
    kinds = [kind for kind in KINDS if any(cell[1] == kind for cell in total)]
    print(f"{'engine':<20}" + "".join(f"{kind:>12}" for kind in (*kinds, "all")))
    for engine in (*sorted({engine for engine, _ in total}), "all"):
        cells = [
            (
                sum(n for (e, k), n in passed.items() if engine in ("all", e) and kind in ("all", k)),
                sum(n for (e, k), n in total.items() if engine in ("all", e) and kind in ("all", k)),
            )
            for kind in (*kinds, "all")
        ]
        row = (f"{good}/{every}" if every else "-" for good, every in cells)
        print(f"{engine:<20}" + "".join(f"{cell:>12}" for cell in row))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
