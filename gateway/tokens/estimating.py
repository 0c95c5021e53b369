"""The estimate of a request's cost in tokens, and what it learns from: the lengths of past answers.

    estimated_total_tokens = prompt + n x min(bound, p90 of output lengths once learned, else the default)

(step 5 of a request's way, `gateway/pipeline.py`). Neither extreme serves. What
clients leave as `max_tokens` is seldom used: half of a real mix would be classed as long for it. The mean is
passed by half of the answers. The 90th percentile of answers to prompts of the same tenant, model and size is
wrong for one in ten.
"""

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field

from gateway.call import Bound, Estimate, PromptCount
from gateway.config.snapshot import Model

__all__ = ["ASSUMED_OUTPUT", "OutputLengthStatistics", "OutputLengths", "estimate"]

ASSUMED_OUTPUT = 512
"""Output tokens expected of a model with no default, no bound and no history."""


def estimate(prompt: PromptCount, bound: Bound, n: int, learned_p90: int | None, model: Model) -> Estimate:
    """What the request is expected to cost.

    `n` is choices per prompt; a completion with several prompts generates `n` for each of them.
    """
    if learned_p90 is not None:
        output, by = learned_p90, "learned p90"
    elif model.max_tokens.default is not None:
        output, by = model.max_tokens.default, "model default"
    elif bound.tokens is not None:
        output, by = bound.tokens, "bound"
    else:
        output, by = ASSUMED_OUTPUT, "assumed"
    if bound.tokens is not None and bound.tokens <= output:
        output, by = bound.tokens, "bound"
    total = prompt.tokens + prompt.prompts * n * output
    return Estimate(prompt=prompt, bound=bound, output=output, output_by=by, total=total)


@dataclass(frozen=True, slots=True)
class OutputLengthStatistics:
    keys: int
    learned: int
    """Keys with enough answers to be used."""
    evicted: int


@dataclass(slots=True)
class _Window:
    """The last lengths of one key, in order of arrival (a ring) and in order of size."""

    # array is subscriptable at run time from Python 3.12 on: hence the quotes.

    ring: "array[int]" = field(default_factory=lambda: array("L"))
    next: int = 0
    ordered: "array[int]" = field(default_factory=lambda: array("L"))


class OutputLengths:
    """90th percentiles of output lengths per (tenant, model, size of the prompt).

    Sizes are powers of two: floor(log2 of the prompt's tokens). Each key remembers its last `window`
    lengths and answers once it has `learned_after` of them. At most `keys` keys are kept; the one that was
    unused for longest goes first. An update costs a bisection and two short moves of memory.
    """

    def __init__(self, *, window: int = 128, learned_after: int = 20, keys: int = 4096) -> None:
        self._window = window
        self._learned_after = learned_after
        self._keys = keys
        self._evicted = 0
        self._windows: OrderedDict[tuple[str, str, int], _Window] = OrderedDict()

    def observe(self, tenant: str, model: str, prompt_tokens: int, output_tokens: int) -> None:
        """Learn the length of one finished choice, in tokens."""
        key = (tenant, model, _bucket(prompt_tokens))
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window()
            if len(self._windows) > self._keys:
                self._windows.popitem(last=False)
                self._evicted += 1
        else:
            self._windows.move_to_end(key)
        if len(window.ring) < self._window:
            window.ring.append(output_tokens)
        else:
            oldest = window.ring[window.next]
            window.ordered.pop(bisect_left(window.ordered, oldest))
            window.ring[window.next] = output_tokens
            window.next = (window.next + 1) % self._window
        insort(window.ordered, output_tokens)

    def p90(self, tenant: str, model: str, prompt_tokens: int) -> int | None:
        """The length that 90 % of the remembered answers do not pass (nearest rank); None until learned."""
        key = (tenant, model, _bucket(prompt_tokens))
        window = self._windows.get(key)
        if window is None or len(window.ordered) < self._learned_after:
            return None
        self._windows.move_to_end(key)
        return window.ordered[-(-9 * len(window.ordered) // 10) - 1]

    def statistics(self) -> OutputLengthStatistics:
        learned = sum(len(window.ordered) >= self._learned_after for window in self._windows.values())
        return OutputLengthStatistics(keys=len(self._windows), learned=learned, evicted=self._evicted)


def _bucket(prompt_tokens: int) -> int:
    """floor(log2(prompt_tokens)); 0 for an empty prompt."""
    return max(prompt_tokens, 1).bit_length() - 1
