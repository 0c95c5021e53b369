"""Tokens per byte, learned while it runs: for each model and kind of text, with the error known.

    tokens of a prompt = what the chat template adds + ratio x bytes

What the template adds is measured once per model, not learned (`Overhead`). The ratio of a key is the
median of its last 256 prompts, and its error is their spread: about the 1st and 99th percentiles, taken a
quarter farther from the median, at least 2 % and 4 tokens. A key is (tenant, model, form, kind, size class):
a short text strays further from the mean than a long one, a text with tools further than one without. A
tenant that has sent too few is judged by all tenants together; from then on nobody can teach it anything
wrong but itself.

What it is learned from: our own exact counts, and the engines' usage for prompts that were estimated.

Nobody gets a free pass. A tenant may teach a ratio with prose and then send something dense that looks like
it. So (`Trust`): one count that is far outside the interval, and this tenant's prompts are counted exactly
until 64 were as expected; at the next offence 128, and so on. And of one tenant's estimates on a model at
most 64 in a row stand unverified, by engine or by count.
"""

import math
from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from gateway.call import Weighed

__all__ = ["Interval", "LearningStatistics", "Overhead", "Ratios", "Trust", "size_class"]

SLACK = 4
"""Tokens on each side that no interval is narrower than, and the least part of the whole."""
LEAST_ERROR = 0.02
ANYBODY = ""
"""In place of a tenant: all of them. No tenant is named so."""
WIDER = 1.25
"""How many times as far from the median as the 1st and 99th percentiles the interval ends."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """Tokens that are in no text: what a chat template puts around messages, BOS."""

    request: float = 0.0
    message: float = 0.0

    def of(self, messages: int) -> float:
        return self.request + self.message * messages


class Interval(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a prompt: most likely, and the least and the most that they will be but for 2 %."""

    low: int
    tokens: int
    high: int

    def far_from(self, tokens: int) -> bool:
        """Whether `tokens` are more than twice as far away as the interval reaches."""
        return not 2 * self.low - self.tokens <= tokens <= 2 * self.high - self.tokens


def size_class(size: int) -> int:
    """Powers of four of bytes: texts in one class differ in length by four times at most."""
    return size.bit_length() // 2


@dataclass(slots=True)
class _Window:
    """The last ratios of one key, in order of arrival (a ring) and in order of size."""

    # array is subscriptable at run time from Python 3.12 on: hence the quotes.

    ring: "array[float]" = field(default_factory=lambda: array("d"))
    next: int = 0
    ordered: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, ratio: float, window: int) -> None:
        if len(self.ring) < window:
            self.ring.append(ratio)
        else:
            self.ordered.pop(bisect_left(self.ordered, self.ring[self.next]))
            self.ring[self.next] = ratio
            self.next = (self.next + 1) % window
        insort(self.ordered, ratio)

    def quantiles(self) -> tuple[float, float, float]:
        """About the 1st percentile, the median and the 99th; never the one least and greatest, which may be
        freaks."""
        last = len(self.ordered) - 1
        cut = min(1 + last // 128, last // 2)
        return self.ordered[cut], self.ordered[last // 2], self.ordered[last - cut]


@dataclass(frozen=True, slots=True)
class LearningStatistics:
    keys: int
    learned: int
    """Keys with enough prompts to be used."""
    evicted: int


class Ratios:
    """The windows of all keys; at most `keys` are kept, the longest unused goes first.

    A key takes 4 KiB when its window is full. `observe` costs 4 us, `interval` 2.
    """

    def __init__(self, *, window: int = 256, learned_after: int = 64, keys: int = 2048) -> None:
        self._window = window
        self._learned_after = learned_after
        self._keys = keys
        self._evicted = 0
        self._windows: OrderedDict[tuple[str, str, str, str, int], _Window] = OrderedDict()

    def observe(self, prompt: Weighed, tokens: int) -> None:
        """Learn that `prompt` had so many tokens."""
        ratio = max(0.0, tokens - prompt.overhead) / prompt.size
        for key in (prompt.key, (ANYBODY, *prompt.key[1:])):
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = _Window()
                if len(self._windows) > self._keys:
                    self._windows.popitem(last=False)
                    self._evicted += 1
            else:
                self._windows.move_to_end(key)
            window.add(ratio, self._window)

    def interval(self, prompt: Weighed) -> Interval | None:
        """What `prompt` should have; None until its key is learned."""
        window = self._learned(prompt)
        if window is None:
            return None
        low, middle, high = window.quantiles()
        tokens = prompt.overhead + middle * prompt.size
        least = LEAST_ERROR * tokens + SLACK
        down = max(least, WIDER * (middle - low) * prompt.size)
        up = max(least, WIDER * (high - middle) * prompt.size)
        return Interval(max(1, math.floor(tokens - down)), max(1, round(tokens)), math.ceil(tokens + up))

    def _learned(self, prompt: Weighed) -> _Window | None:
        """The tenant's own window, or else that of all together."""
        for key in (prompt.key, (ANYBODY, *prompt.key[1:])):
            window = self._windows.get(key)
            if window is not None and len(window.ordered) >= self._learned_after:
                self._windows.move_to_end(key)
                return window
        return None

    def seen(self, prompt: Weighed) -> tuple[int, int]:
        """(prompts like this one that are remembered of anybody, how many it takes)."""
        window = self._windows.get((ANYBODY, *prompt.key[1:]))
        return 0 if window is None else len(window.ordered), self._learned_after

    def statistics(self) -> LearningStatistics:
        learned = sum(len(window.ordered) >= self._learned_after for window in self._windows.values())
        return LearningStatistics(len(self._windows), learned, self._evicted)


@dataclass(slots=True)
class _Standing:
    unverified: int = 0
    probation: int = 0
    """Exact counts that still must be as expected."""
    sentence: int = 0
    """How long the last probation was."""


class Trust:
    """Whose prompts may be estimated: per tenant and model, both from configuration, so it is bounded."""

    def __init__(self, *, unverified: int = 64, probation: int = 64, longest: int = 4096) -> None:
        self._unverified = unverified
        self._probation = probation
        self._longest = longest
        self._standings: dict[tuple[str, str], _Standing] = {}

    def doubt(self, tenant: str, model: str) -> str | None:
        """Why this tenant's prompts are not estimated now; None where they may be."""
        standing = self._standings.get((tenant, model))
        if standing is None:
            return None
        if standing.probation:
            return "this tenant's last prompts were not as expected"
        return (
            "too many estimates of this tenant stand unverified"
            if standing.unverified >= self._unverified
            else None
        )

    def given(self, tenant: str, model: str) -> None:
        """An estimate was given."""
        self._of(tenant, model).unverified += 1

    def verified(self, tenant: str, model: str, *, far: bool) -> None:
        """A prompt's tokens became known, and were `far` from what was, or would have been, estimated."""
        standing = self._of(tenant, model)
        standing.unverified = 0
        if far:
            standing.sentence = min(self._longest, max(self._probation, 2 * standing.sentence))
            standing.probation = standing.sentence
        elif standing.probation:
            standing.probation -= 1

    def _of(self, tenant: str, model: str) -> _Standing:
        standing = self._standings.get((tenant, model))
        if standing is None:
            standing = self._standings[tenant, model] = _Standing()
        return standing
