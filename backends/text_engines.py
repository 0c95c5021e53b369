"""What engines that take and give one text have in common: Triton's classic models, TGI's native routes.

`plain_text` is the prompt; `VisibleText` is the text of a choice as a client may see it. What such engines
make of parameters: `text_parameters.py`.
"""

from collections.abc import Sequence

from backends.contract import Delta, FinishReason, GenerateRequest, Prompt
from backends.stopping import StopCutter

__all__ = ["EVENTS_AFTER_STOP", "VisibleText", "only_text", "plain_text"]

EVENTS_AFTER_STOP = 4
"""Events read behind a stop string for the engine's own end and its counts, before we end the answer."""


def plain_text(request: GenerateRequest) -> str:
    """The rendered chat or the only prompt. Raises ValueError for what the tables do not let pass."""
    if request.rendered is not None:
        return request.rendered
    if (text := only_text(request.prompt)) is None:
        raise ValueError("neither rendered messages nor one text prompt")
    return text


def only_text(prompt: Prompt | None) -> str | None:
    """`prompt` if it is one text, also as a list of one."""
    only: object = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
    return only if isinstance(only, str) else None


class VisibleText:
    """The text of a single choice, cut at its stop strings; pieces in, deltas out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._cutter = StopCutter(stops)
        self._tokens = 0
        self._after_stop = 0

    @property
    def stopped(self) -> bool:
        return self._cutter.stopped

    def add(self, piece: str, tokens: int) -> Delta | None:
        """A piece and the output tokens behind it. The delta that finds a stop string ends the choice."""
        if self.stopped:
            return None
        text = self._cutter.feed(piece)
        self._tokens += tokens
        reason = self._reason(None)
        return self._delta(text, reason) if text or reason else None

    def end(self, reason: FinishReason) -> Delta | None:
        """The rest, with `reason` unless a stop string is in it. None where a stop string has ended it."""
        if self.stopped:
            return None
        text = self._cutter.flush()
        return self._delta(text, self._reason(reason))

    def end_at(self, stop: str, taken_back: int) -> Delta | None:
        """The rest, where the engine ended the text before `stop` and may have let out how that begins.

        `taken_back`: how many characters of that its last event took back. Where it took none, as many are
        cut as `stop` explains: an engine that decodes token by token has no way to take them back.
        """
        if self.stopped:
            return None
        text = self._cutter.flush()
        if not taken_back:
            taken_back = next((size for size in range(len(stop), 0, -1) if text.endswith(stop[:size])), 0)
        return self._delta(text[: max(0, len(text) - taken_back)], "stop")

    def whole(self, text: str, tokens: int, reason: FinishReason, *, echo: str = "") -> Delta:
        """All of it at once. `echo` is text before it that is shown but not searched for stop strings."""
        visible = self._cutter.feed(text) + self._cutter.flush()
        return Delta(text=echo + visible, finish_reason=self._reason(reason), tokens=tokens)

    def abandon(self) -> Delta | None:
        """The rest of a text that will not end well."""
        text = "" if self.stopped else self._cutter.flush()
        return self._delta(text, None) if text else None

    def has_waited_enough(self) -> bool:
        """Count an event behind the stop string; whether there have been enough of them."""
        self._after_stop += 1
        return self._after_stop >= EVENTS_AFTER_STOP

    def _reason(self, reason: FinishReason | None) -> FinishReason | None:
        return "stop" if self._cutter.stopped else reason

    def _delta(self, text: str, reason: FinishReason | None) -> Delta:
        tokens, self._tokens = self._tokens, 0
        return Delta(text=text, finish_reason=reason, tokens=tokens)
