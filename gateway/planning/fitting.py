"""Fitting the constants of an engine's step to what was measured of it from outside.

The model, of one step (backends/simulated/engine.py has its story):

    T = base + e*min(n, hinge) + b*max(0, n - hinge) + q*sum(chunk*(context + chunk/2)) + d*KV + s*sequences

n is prompt tokens and decoding sequences of the step, KV the cached tokens which the latter read; `base` is
a + host, the step itself and the engine's own code around it: both come once a step, so nothing that is seen
over HTTP tells one from the other. A first token takes the steps of its prompt and, once, `request`: network,
HTTP, counting, and whatever else a request costs before its first step.

Least squares on the *relative* error, by the normal equations: a miss of 5 % counts the same at 5 ms and at
500 ms. No constant may be negative: the worst one is held at 0 and the others are fitted again. A constant
whose standard error exceeds a third of it, or that is held at 0, is *not identified*.

A decoding sequence costs what a prompt token does: so it is in engines that compute both by the same kernels.
Where it is not (llama.cpp's, on a GPU), s is what each costs on top. It is another constant that noise can
hide in, so it is 0 unless it is identified and takes a fifth off the decode residuals.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

__all__ = ["Constant", "Fit", "Residuals", "Sample", "fit"]

Kind = Literal["prefill", "decode"]

NAMES = ("base", "e", "b", "q", "d", "request", "s")
PLAIN = NAMES.index("s")
"""How many constants a fit without s has."""
WORTH_IT = 0.8
"""Decode residuals with s, as a part of those without, up to which s is kept."""
UNSURE = 1 / 3
"""Standard error, as a part of its constant, beyond which that counts as not identified."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `seconds` is a first token's whole time, or the time between two tokens."""

    kind: Kind
    seconds: float
    prompt_tokens: int
    """Of each request."""
    sequences: int = 1
    """decode: how many decoded at the same time."""
    kv_tokens: float = 0.0
    """decode: cached tokens of all of them, on average over the time that was measured."""

    def __str__(self) -> str:
        if self.kind == "prefill":
            return f"first token of {self.prompt_tokens} tokens"
        return f"{self.sequences} decoding with {self.kv_tokens:.0f} cached tokens"


@dataclass(frozen=True, slots=True)
class Constant:
    """Seconds per unit, and the standard error of that; `error` is infinite where nothing tells."""

    name: str
    value: float
    error: float

    @property
    def identified(self) -> bool:
        return self.error <= UNSURE * self.value


@dataclass(frozen=True, slots=True)
class Residuals:
    """Predicted / measured - 1, without its sign."""

    samples: int
    rms: float
    median: float
    most: float
    worst: str
    """Which sample is the furthest off."""


@dataclass(frozen=True, slots=True)
class Fit:
    base: Constant
    e: Constant
    b: Constant
    q: Constant
    d: Constant
    request: Constant
    s: Constant
    hinge: int
    step_tokens: int
    residuals: dict[str, Residuals]
    """Of `all`, and of each kind there is."""

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Those of the form that was fitted: s only where it is part of it."""
        common = (self.base, self.e, self.b, self.q, self.d, self.request)
        return (*common, self.s) if self.s.value else common

    def seconds(self, sample: Sample) -> float:
        """What the fitted model says of a sample."""
        terms = _terms(sample, self.hinge, self.step_tokens)
        return sum(each.value * term for each, term in zip(self.constants, terms, strict=False))  # without s


def fit(samples: Iterable[Sample], *, hinge: int = 172, step_tokens: int = 8192) -> Fit:
    """The constants that fit best. `step_tokens`: prompts longer than that are read in several steps.

    Raises ValueError where there are fewer samples than constants, or one of no time.
    """
    samples = list(samples)
    if len(samples) < PLAIN:
        raise ValueError(f"{len(samples)} samples do not determine {PLAIN} constants")
    if any(sample.seconds <= 0 for sample in samples):
        raise ValueError("a sample that took no time")
    plain = _fit(samples, hinge, step_tokens, PLAIN)
    if len(samples) <= len(NAMES) or len({each.sequences for each in samples if each.kind == "decode"}) < 3:
        return plain
    wide = _fit(samples, hinge, step_tokens, len(NAMES))
    better = wide.residuals["decode"].rms <= WORTH_IT * plain.residuals["decode"].rms
    return wide if better and wide.s.identified else plain


def _fit(samples: Sequence[Sample], hinge: int, step_tokens: int, size: int) -> Fit:
    """The first `size` constants; the others are 0."""
    rows = [[term / sample.seconds for term in _terms(sample, hinge, step_tokens)] for sample in samples]
    # Columns of like size: constants differ by seven orders of magnitude.
    scales = [math.sqrt(sum(row[i] ** 2 for row in rows)) for i in range(size)]
    free = [i for i in range(size) if scales[i] > 0]
    while True:
        scaled = [[row[i] / scales[i] for i in free] for row in rows]
        found, inverse = _least_squares(scaled)
        lowest = min(range(len(free)), key=found.__getitem__)
        if found[lowest] >= 0:
            break
        del free[lowest]
    misses = [1 - sum(map(_product, zip(row, found, strict=True))) for row in scaled]
    spare = len(samples) - len(free)
    variance = sum(miss * miss for miss in misses) / spare if spare else math.inf
    constants = [Constant(name, 0.0, math.inf) for name in NAMES]
    for place, i in enumerate(free):
        error = math.sqrt(variance * inverse[place][place]) if spare else math.inf
        constants[i] = Constant(NAMES[i], found[place] / scales[i], error / scales[i])
    residuals = {"all": _residuals(samples, misses, lambda sample: True)}
    for kind in ("prefill", "decode"):
        if any(sample.kind == kind for sample in samples):
            residuals[kind] = _residuals(samples, misses, lambda sample, kind=kind: sample.kind == kind)  # type: ignore[misc]  # mypy cannot infer a default's type here
    base, e, b, q, d, request, s = constants
    return Fit(base, e, b, q, d, request, s, hinge, step_tokens, residuals)


def _terms(sample: Sample, hinge: int, step_tokens: int) -> tuple[float, ...]:
    """What each constant is multiplied with, in the order of NAMES."""
    if sample.kind == "decode":
        light = min(sample.sequences, hinge)
        return 1.0, light, sample.sequences - light, 0.0, sample.kv_tokens, 0.0, float(sample.sequences)
    whole, rest = divmod(sample.prompt_tokens, step_tokens)
    light = whole * min(step_tokens, hinge) + min(rest, hinge)
    # sum(chunk*(context + chunk/2)) over the chunks of a prompt is half its square, however it is cut.
    quadratic = sample.prompt_tokens**2 / 2
    return float(whole + (rest > 0)), light, sample.prompt_tokens - light, quadratic, 0.0, 1.0, 0.0


def _least_squares(rows: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """x that makes rows*x nearest to 1 each, and the inverse of rows' normal matrix.

    Directions that no row shows get a hair of stiffness, so that they end at 0 with a huge error.
    """
    size = len(rows[0])
    span = range(size)
    normal = [[sum(row[i] * row[j] for row in rows) + 1e-12 * (i == j) for j in span] for i in span]
    right = [sum(row[i] for row in rows) for i in span]
    inverse = _inverse(normal)
    return [sum(inverse[i][j] * right[j] for j in span) for i in span], inverse


def _inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Gauss and Jordan, with the largest pivot of each column."""
    size = len(matrix)
    work = [[*map(float, row), *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(work[row][column]))  # used at once
        work[column], work[pivot] = work[pivot], work[column]
        head = work[column][column]
        work[column] = [value / head for value in work[column]]
        for row in range(size):
            if row != column and (factor := work[row][column]):
                work[row] = [a - factor * b for a, b in zip(work[row], work[column], strict=True)]
    return [row[size:] for row in work]


def _product(pair: tuple[float, float]) -> float:
    return pair[0] * pair[1]


def _residuals(
    samples: Sequence[Sample], misses: Sequence[float], wanted: Callable[[Sample], bool]
) -> Residuals:
    some = [(abs(miss), sample) for miss, sample in zip(misses, samples, strict=True) if wanted(sample)]
    sizes = [size for size, _ in some]
    most, worst = max(some, key=lambda each: each[0])
    rms = math.sqrt(sum(size * size for size in sizes) / len(sizes))
    return Residuals(len(sizes), rms, median(sizes), most, str(worst))
