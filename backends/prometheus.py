"""Reading Prometheus' text format, as tolerantly as engines write it.

The grammar is that of the exposition format 0.0.4 (prometheus.io, "Exposition formats"):

    name{label="value",...} value [timestamp]

A line that does not fit is skipped: a metric that is absent is untold, and half an answer tells half. Names
may hold colons (`vllm:num_requests_running`). Types are not read: whoever asks knows what a name means.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["Sample", "Samples", "read_samples"]

_MAX_LINES = 100_000
_LINE = re.compile(
    r'\s*(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)\s*'
    r'(?:\{(?P<labels>(?:[^"{}]|"(?:[^"\\]|\\.)*")*)\})?'
    r"\s+(?P<value>\S+)(?:\s+-?\d+)?\s*(?:#.*)?",
)  # fmt: skip
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n"}


class Sample(NamedTuple):
    name: str
    labels: Mapping[str, str]
    value: float
    """Finite."""


class Samples:
    """The samples of one answer, by name."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def of(self, name: str, **labels: str) -> list[Sample]:
        """The samples of `name` whose labels have these values."""
        return [
            sample
            for sample in self._by_name.get(name, ())
            if all(sample.labels.get(label) == value for label, value in labels.items())
        ]

    def sum(self, *names: str, **labels: str) -> float | None:
        """The sum over the series of the first of `names` that is there; None if none is."""
        values = self._values(names, labels)
        return math.fsum(values) if values else None

    def mean(self, *names: str, **labels: str) -> float | None:
        """As `sum`, for gauges that are shares."""
        values = self._values(names, labels)
        return math.fsum(values) / len(values) if values else None

    def _values(self, names: Iterable[str], labels: Mapping[str, str]) -> list[float]:
        found = (values for name in names if (values := [s.value for s in self.of(name, **labels)]))
        return next(found, [])

    def values_of(self, label: str, *names: str) -> list[str]:
        """The values that `label` has on the series of `names`, in order of appearance, each once."""
        values = (sample.labels.get(label) for name in names for sample in self._by_name.get(name, ()))
        return list(dict.fromkeys(value for value in values if value))


def read_samples(body: bytes) -> Samples:
    """The samples of `body`; none of what is no sample. Never raises."""
    lines = body.decode("utf-8", "replace").split("\n", _MAX_LINES)[:_MAX_LINES]
    return Samples(sample for line in lines if (sample := _sample(line)) is not None)


def _sample(line: str) -> Sample | None:
    if line.startswith("#") or (match := _LINE.fullmatch(line)) is None:
        return None
    try:
        value = float(match["value"])
    except ValueError:
        return None
    if not math.isfinite(value):  # an unset summary is NaN
        return None
    labels = {name: _ESCAPED.sub(_unescape, text) for name, text in _LABEL.findall(match["labels"] or "")}
    return Sample(match["name"], labels, value)


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[1])
