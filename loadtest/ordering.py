"""Do sockets put policies in the order that the twin foresaw?

Asked of pairs that the twin holds clearly apart: a run of some hundred requests cannot tell the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from gateway.replay.figures import Row
from loadtest.comparing import TWIN

CLEAR_TIMES = 1.5
"""Latencies that differ by this factor in the twin must stand in the same order over sockets."""
CLEAR_PART = 0.03
"""The same of goodput, a part of all requests."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two figures of one policy: over sockets, and the twin's."""

    policy: str
    sockets: float
    twin: float


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    of: Callable[[Row], float]
    cls: str
    better: Callable[[float, float], bool]
    """Whether the first is better than the second, however little."""
    clearly: Callable[[float, float], bool]


MEASURES = (
    Measure(
        "short p99 TTFT",
        lambda row: row.ttft_p99,
        "short",
        lambda a, b: a < b,
        lambda a, b: a * CLEAR_TIMES <= b,
    ),
    Measure("goodput", lambda row: row.goodput, "all", lambda a, b: a > b, lambda a, b: a >= b + CLEAR_PART),
)


def pairs(rows: Sequence[Row], measure: Measure) -> list[Pair]:
    """Policies with both figures, in the order of the rows."""
    found = {
        row.policy: measure.of(row)
        for row in rows
        if (row.cls, row.priority, row.tenant) == (measure.cls, "all", "all")
    }
    return [
        Pair(policy, value, found[policy + TWIN]) for policy, value in found.items() if policy + TWIN in found
    ]


def disagreements(rows: Sequence[Row]) -> list[str]:
    """Where sockets contradict the twin, in words; empty: the same order."""
    return [text for measure in MEASURES for text in _disagreements(pairs(rows, measure), measure)]


def _disagreements(found: Sequence[Pair], measure: Measure) -> Iterator[str]:
    for a, b in permutations(found, 2):
        if measure.clearly(a.twin, b.twin) and not measure.better(a.sockets, b.sockets):
            yield (
                f"{measure.name}: {a.policy} is better than {b.policy} in the twin ({a.twin:.3f}, "
                f"{b.twin:.3f}), not over sockets ({a.sockets:.3f}, {b.sockets:.3f})"
            )


def in_order(rows: Sequence[Row], measure: Measure) -> Mapping[str, str]:
    """`sockets` and `twin` -> the policies from best to worst, with their figures."""
    found = pairs(rows, measure)
    told = {}
    for side in ("sockets", "twin"):
        best = sorted(found, key=lambda pair: getattr(pair, side), reverse=measure.better(1.0, 0.0))
        told[side] = ", then ".join(f"{pair.policy} {getattr(pair, side):.3f}" for pair in best)
    return told
