"""Prints which wire vectors pass: engine x kind x passed, and the rows of the error tables likewise.

    python -m tests.backends.vector_table [--count]        --count: the sums alone

A vector whose kind is `unusable` gives no expectation: it is only decoded, and named with its reason.
"""

import sys
from collections import Counter
from collections.abc import Sequence

from gateway.cli.error_page import COLUMNS, rows
from tests.backends.vectors import check, kind_of, load, names

KINDS = ("generation", "error", "health", "metadata", "load", "tokens", "unusable")


def main(arguments: Sequence[str] = ()) -> int:
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
    if "--count" not in arguments:
        _print_table(total, passed)
    print(f"{passed.total()} of {total.total()} vectors pass")
    for name in names("unusable"):
        print(f"  only decoded: {name}: {load(name)['expect']['why']}")
    examples = [row for engine in COLUMNS for row in rows(engine)]
    good = sum(row.error.kind is row.expected for row in examples)
    print(f"{good} of {len(examples)} rows of the error tables (our own vectors) are read as their rules say")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures or good < len(examples) else 0


def _print_table(total: Counter[tuple[str, str]], passed: Counter[tuple[str, str]]) -> None:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
