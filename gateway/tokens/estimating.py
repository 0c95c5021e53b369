"""The estimate of a request's cost in tokens, and what it learns from: the lengths of past answers.

    estimated_total_tokens = prompt + n x min(bound, p90 of output lengths once learned, else the default)

(step 5 of a request's way, `gateway/pipeline.py`). Neither extreme serves. What
clients leave as `max_tokens` is seldom used: half of a real mix would be classed as long for it. The mean is
passed by half of the answers. The 90th percentile of answers to prompts of the same tenant, model and size is
wrong for one in ten.

What is not learned yet is taken from something wider:

    size     answers to this tenant, by this model, to prompts of about this length
    tenant   ... to prompts of any length
    model    the first answers to other tenants: how long a newcomer's are

On recorded traffic this halves the error of the mean where there are many tenants (docs/counting.md).
"""

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from gateway.call import Bound, Estimate, PromptCount
from gateway.config.snapshot import Model

__all__ = [
    "ASSUMED_OUTPUT", "LearnedLength", "OutputLength", "OutputLengthStatistics", "OutputLengths", "estimate",
]  # fmt: skip

ASSUMED_OUTPUT = 512
"""Output tokens expected of a model with no default, no bound and no history."""

Level = Literal["size", "tenant", "model"]
"""Of which answers a prediction speaks, from the narrowest to the widest."""

_LEARNED_BY: dict[Level, str] = {
    "size": "learned p90",
    "tenant": "learned p90 of the tenant",
    "model": "learned p90 of the model",
}
_LONGEST = 2**32 - 1
"""What an item of a window holds; no answer is as long."""


class OutputLength(msgspec.Struct, frozen=True, gc=False):
    """How long an answer will be, in tokens per choice."""

    mean: float
    """Exponentially weighted: the last fifty answers or so."""
    p50: int
    p90: int
    level: Level = "size"


def estimate(
    prompt: PromptCount, bound: Bound, n: int, learned: OutputLength | None, model: Model
) -> Estimate:
    """What the request is expected to cost.

    `n` is choices per prompt; a completion with several prompts generates `n` for each of them.
    """
    if learned is not None:
        output, by = learned.p90, _LEARNED_BY[learned.level]
    elif model.max_tokens.default is not None:
        output, by = model.max_tokens.default, "model default"
    elif bound.tokens is not None:
        output, by = bound.tokens, "bound"
    else:
        output, by = ASSUMED_OUTPUT, "assumed"
    mean = output if learned is None else round(learned.mean)
    if bound.tokens is not None and bound.tokens <= output:
        output, by = bound.tokens, "bound"
    if bound.tokens is not None:
        mean = min(mean, bound.tokens)
    choices = prompt.prompts * n
    return Estimate(
        prompt=prompt,
        bound=bound,
        output=output,
        output_by=by,
        total=prompt.tokens + choices * output,
        mean=mean,
        choices=choices,
        learned=learned is not None,
    )


@dataclass(frozen=True, slots=True)
class OutputLengthStatistics:
    keys: int
    learned: int
    """Keys with enough answers to be used."""
    evicted: int


@dataclass(frozen=True, slots=True)
class LearnedLength:
    """What one key holds, for people."""

    level: Level
    tenant: str | None
    """None at the level of the model."""
    model: str
    prompt_from: int | None
    """Fewest tokens of a prompt of this size; up to twice as many. None at the wider levels."""
    answers: int
    """Those remembered."""
    learned: bool
    mean: float
    p50: int
    p90: int


@dataclass(slots=True)
class _Window:
    """The last lengths of one key, in order of arrival (a ring) and in order of size, and their mean."""

    # array is subscriptable at run time from Python 3.12 on: hence the quotes.

    ring: "array[int]" = field(default_factory=lambda: array("I"))
    next: int = 0
    ordered: "array[int]" = field(default_factory=lambda: array("I"))
    mean: float = 0.0
    seen: int = 0

    def add(self, length: int, window: int, horizon: int) -> None:
        if len(self.ring) < window:
            self.ring.append(length)
        else:
            oldest = self.ring[self.next]
            self.ordered.pop(bisect_left(self.ordered, oldest))
            self.ring[self.next] = length
            self.next = (self.next + 1) % window
        insort(self.ordered, length)
        self.seen = min(self.seen + 1, horizon)  # at first the plain average
        self.mean += (length - self.mean) / self.seen

    def quantile(self, tenths: int) -> int:
        """The length that so many tenths of the answers do not pass (nearest rank)."""
        return self.ordered[-(-tenths * len(self.ordered) // 10) - 1]


_Key = tuple[str | None, str, int | None]
"""Tenant, model, size of the prompt; None at the wider levels."""


class OutputLengths:
    """Output lengths by tenant, model and size of the prompt: their mean, median and 90th percentile.

    Sizes are powers of two: floor(log2 of the prompt's tokens). Each key remembers its last `window`
    lengths and answers once it has `learned_after` of them. At most `keys` keys are kept, 1.5 KB each; the
    one that was unused for longest goes first. An update costs a bisection and two short moves of memory
    for each of two keys.
    """

    def __init__(
        self, *, window: int = 128, learned_after: int = 20, keys: int = 4096, horizon: int = 50
    ) -> None:
        """`horizon`: the mean gives an answer the weight 1 / `horizon`, and forgets at that rate."""
        self._window = window
        self._learned_after = learned_after
        self._keys = keys
        self._horizon = horizon
        self._evicted = 0
        self._windows: OrderedDict[_Key, _Window] = OrderedDict()

    def observe(self, tenant: str, model: str, prompt_tokens: int, output_tokens: int) -> None:
        """Learn the length of one finished choice, in tokens."""
        length = min(output_tokens, _LONGEST)
        self._add((tenant, model, _size(prompt_tokens)), length)
        if self._add((tenant, model, None), length) <= self._learned_after:
            # Of each tenant only the first ones: else the busiest tenant would speak for all.
            self._add((None, model, None), length)

    def predict(self, tenant: str, model: str, prompt_tokens: int) -> OutputLength | None:
        """What the narrowest level says that is learned; None where none is."""
        exact: _Key = (tenant, model, _size(prompt_tokens))
        for key in (exact, (tenant, model, None), (None, model, None)):
            window = self._windows.get(key)
            if window is not None and len(window.ring) >= self._learned_after:
                self._windows.move_to_end(key)
                return OutputLength(window.mean, window.quantile(5), window.quantile(9), _level(key))
        return None

    def statistics(self) -> OutputLengthStatistics:
        learned = sum(len(window.ring) >= self._learned_after for window in self._windows.values())
        return OutputLengthStatistics(keys=len(self._windows), learned=learned, evicted=self._evicted)

    def rows(self, most: int = 1000) -> Iterator[LearnedLength]:
        """The keys that were used last, at most so many."""
        for (tenant, model, size), window in list(reversed(self._windows.items()))[:most]:
            yield LearnedLength(
                level=_level((tenant, model, size)),
                tenant=tenant,
                model=model,
                prompt_from=None if size is None else 1 << size,
                answers=len(window.ring),
                learned=len(window.ring) >= self._learned_after,
                mean=round(window.mean, 1),
                p50=window.quantile(5),
                p90=window.quantile(9),
            )

    def _add(self, key: _Key, length: int) -> int:
        """How many lengths the key remembers now."""
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window()
            if len(self._windows) > self._keys:
                self._windows.popitem(last=False)
                self._evicted += 1
        else:
            self._windows.move_to_end(key)
        window.add(length, self._window, self._horizon)
        return len(window.ring)


def _level(key: _Key) -> Level:
    return "model" if key[0] is None else "tenant" if key[2] is None else "size"


def _size(prompt_tokens: int) -> int:
    """floor(log2(prompt_tokens)); 0 for an empty prompt."""
    return max(prompt_tokens, 1).bit_length() - 1
