"""Cutting a text at its stop strings, piece by piece.

Triton's TensorRT-LLM models and TGI leave the stop string in the text, and find it by tokens, so that text
may run past it. An OpenAI client sees neither. The cutter holds back what may still become a stop string and
lets the rest go at once. Any division of a text gives what the whole text would give: everything before the
earliest occurrence of any stop string.
"""

from collections.abc import Sequence

__all__ = ["StopCutter"]


class StopCutter:
    """Feed pieces; what comes out may be shown. After `stopped`, nothing comes out any more."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)  # an empty string names no stop string
        self._held = ""
        self.stopped = False
        """A stop string was found; the text is at its end."""

    def feed(self, piece: str) -> str:
        """The text that `piece` makes certain."""
        if self.stopped:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        found = self._first_stop(text)
        doubtful = self._first_doubt(text)
        if found <= doubtful and found < len(text):
            self._held, self.stopped = "", True
            return text[:found]
        # A stop string behind `doubtful` does not count yet: a longer one may turn out to begin before it.
        self._held = text[doubtful:]
        return text[:doubtful]

    def flush(self) -> str:
        """At the end of the text: what was held back, cut."""
        text, self._held = self._held, ""
        found = self._first_stop(text)
        if found < len(text):
            self.stopped = True
        return text[:found]

    def _first_stop(self, text: str) -> int:
        """Where the earliest stop string begins; the length of `text` if there is none."""
        return min((at for stop in self._stops if (at := text.find(stop)) != -1), default=len(text))

    def _first_doubt(self, text: str) -> int:
        """Where the longest tail begins that a stop string begins with; the length of `text` if none does."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return len(text) - longest
