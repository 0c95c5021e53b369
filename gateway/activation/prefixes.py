"""The system prompts that a pool sees most often, within bounds. Nothing else of a request is kept.

Counting is Space-Saving (Metwally et al., 2005): a fixed number of counters, and whoever is not counted
takes over the smallest, with its count, which is known to be too much by that. What is frequent is certainly
among them; what is rare comes and goes. A counter knows a text by its hash; the text itself is kept once it
was seen SEEN times. Every AGE prompts all counts are halved, so that yesterday's prompts make room.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Prefixes", "system_prompt"]

COUNTERS = 64
"""Prompts that are counted."""
LONGEST = 64 * 1024
"""Characters of a prompt beyond which it is not remembered."""
MOST = 512 * 1024
"""Characters of all that are remembered."""
SEEN = 3
"""Times after which a prompt counts as common."""
AGE = 4096


class _Counter:
    __slots__ = ("count", "model", "over", "text")

    def __init__(self, model: str, inherited: int) -> None:
        self.model = model
        self.count = inherited + 1
        self.over = inherited
        """By how much the count is too high at most."""
        self.text: str | None = None

    @property
    def surely(self) -> int:
        return self.count - self.over


class Prefixes:
    """Texts by how often they were seen. A note costs a hash of the text and a look-up."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, int], _Counter] = {}
        self._until_aged = AGE
        self.characters = 0
        """What all remembered texts have together."""

    def __len__(self) -> int:
        return len(self._counters)

    def note(self, model: str, text: str) -> None:
        """A request for `model` began with `text`."""
        key = model, hash(text)
        counter = self._counters.get(key)
        if counter is None:
            self._counters[key] = _Counter(model, self._make_room())
        else:
            counter.count += 1
            if counter.text is None and counter.surely >= SEEN:
                self._remember(counter, text)
        self._until_aged -= 1
        if not self._until_aged:
            self._until_aged = AGE
            for each in self._counters.values():
                each.count //= 2
                each.over //= 2

    def common(self, most: int) -> list[tuple[str, str]]:
        """(model, text) of those seen most often, the most frequent first."""
        known = [(each.count, each.model, each.text) for each in self._counters.values() if each.text]
        known.sort(key=lambda each: -each[0])
        return [(model, text) for _, model, text in known[:most]]

    def _make_room(self) -> int:
        """Room for one more counter; the count that it takes over."""
        if len(self._counters) < COUNTERS:
            return 0
        least = min(self._counters, key=lambda key: self._counters[key].count)
        gone = self._counters.pop(least)
        self.characters -= len(gone.text or "")
        return gone.count

    def _remember(self, counter: _Counter, text: str) -> None:
        if len(text) > LONGEST:
            return
        others = sorted(
            (each for each in self._counters.values() if each.text is not None), key=lambda each: each.count
        )
        while others and self.characters + len(text) > MOST and others[0].count < counter.count:
            rarest = others.pop(0)
            self.characters -= len(rarest.text or "")
            rarest.text = None
        if self.characters + len(text) <= MOST:
            counter.text = text
            self.characters += len(text)


def system_prompt(messages: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The text that a chat begins with where that is a system's or developer's; None where there is none."""
    if not messages:
        return None
    first = messages[0]
    if first.get("role") not in ("system", "developer"):
        return None
    content = first.get("content")
    return content if isinstance(content, str) and content else None
