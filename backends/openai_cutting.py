"""OpenAI's answers of engines that leave the stop string in the text: TGI's Messages API, Triton's frontend.

The text of each choice is cut here as if the engine had done it; what may still become a stop string is held
back, and what held-back pieces counted in tokens goes with the next piece.
"""

from collections.abc import Sequence

from backends.contract import Delta, Event
from backends.decoding import Classify
from backends.openai_dialect import OpenAiDecoder
from backends.stopping import StopCutter

__all__ = ["CuttingDecoder"]


class CuttingDecoder(OpenAiDecoder):
    """OpenAI's shapes, each choice cut at the stop strings."""

    def __init__(self, choices: int, classify: Classify, stops: Sequence[str]) -> None:
        super().__init__(choices, classify)
        self._stops = tuple(stop for stop in stops if stop)
        self._cutters: dict[int, StopCutter] = {}
        self._tokens: dict[int, int] = {}
        self._ended: set[int] = set()

    def emit(self, event: Event) -> None:
        if self._stops and isinstance(event, Delta):
            self._cut(event)
        else:
            super().emit(event)

    def before_failure(self) -> None:
        self._release()

    def before_end(self) -> None:
        self._release()

    def _cut(self, delta: Delta) -> None:
        index = delta.index
        if index in self._ended:
            return
        cutter = self._cutters.setdefault(index, StopCutter(self._stops))
        delta.text = cutter.feed(delta.text)
        if delta.finish_reason is not None:
            delta.text += cutter.flush()
        if cutter.stopped:
            delta.finish_reason = "stop"
        if delta.finish_reason is not None:
            self._ended.add(index)
        delta.tokens += self._tokens.pop(index, 0)
        if delta.text or delta.finish_reason or delta.tool_calls or delta.extra or delta.logprobs:
            super().emit(delta)
        else:
            self._tokens[index] = delta.tokens

    def _release(self) -> None:
        """What was held back for a stop string that never came."""
        for index, cutter in self._cutters.items():
            if index not in self._ended and (text := cutter.flush()):
                super().emit(Delta(index=index, text=text, tokens=self._tokens.pop(index, 0)))
