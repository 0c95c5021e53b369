"""Our count of a prompt and the engine's: where they differ, somebody has the wrong tokenizer or template.

Only exact counts accuse: an estimate is wrong by nature. One odd pair means little (an engine may have
restarted with another model a second ago), so the last 20 pairs of a model in a pool are kept, and a warning
is due when most of them differ: by more than `drift_warn`, or by anything at all, always in the same
direction; a BOS that is there once too often is one token, and the model never saw such a prompt. One warning
an hour.
"""

import logging
import statistics
from collections import deque
from dataclasses import dataclass, field

__all__ = ["Drift", "difference"]

log = logging.getLogger(__name__)

PAIRS = 20
ENOUGH = 10
"""Pairs before anything is said."""
AGAIN = 3600.0
"""Seconds between two warnings about one model in one pool."""


def difference(ours: int, told: int, cached: int | None) -> int:
    """Tokens that the engine told more than we counted.

    Some engines leave the tokens that they found in their cache out of the prompt's: with them is as good as
    without.
    """
    plain = told - ours
    return plain if cached is None else min((plain, plain + cached), key=abs)


@dataclass(slots=True)
class _Pairs:
    last: "deque[tuple[int, int]]" = field(default_factory=lambda: deque(maxlen=PAIRS))
    """(our count, the difference)."""
    warned: float | None = None


class Drift:
    """The last pairs per model and pool, and the warnings made of them."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], _Pairs] = {}

    def compare(self, model: str, pool: str, ours: int, more: int, threshold: float, now: float) -> bool:
        """Note an exact count that the engine's usage exceeds by `more`; whether a warning was logged.

        `threshold` is a part of the count; `now` in seconds, monotonic.
        """
        pairs = self._pairs.setdefault((model, pool), _Pairs())
        pairs.last.append((ours, more))
        if not more or len(pairs.last) < ENOUGH:
            return False
        if pairs.warned is not None and now - pairs.warned < AGAIN:
            return False
        part = statistics.median(abs(each) / max(count, 1) for count, each in pairs.last)
        above = sum(each > 0 for _, each in pairs.last)
        below = sum(each < 0 for _, each in pairs.last)
        if part <= threshold and 10 * max(above, below) < 9 * len(pairs.last):
            return False
        pairs.warned = now
        log.warning(
            "model %s in pool %s: the engine counts prompts otherwise than the gateway: %d tokens there, %d "
            "here; of the last %d prompts %d were longer there and %d shorter, by %.1f %% (median). Wrong "
            "tokenizer, chat template or BOS? Run: headgate tokenizers verify --live",
            model, pool, ours + more, ours, len(pairs.last), above, below, 100 * part,
        )  # fmt: skip
        return True
