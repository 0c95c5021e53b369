"""An answer under way: one object that holds what must be given back."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal

from backends.contract import Delta, Done, Event, GenerateRequest, Generation, Usage
from gateway.answering.budgets import Budget
from gateway.call import Call, PromptCount
from gateway.errors import EngineFailed
from gateway.fleet.ledger import Slot
from gateway.routing.router import Target
from gateway.telemetry.tracing import NO_SPAN, Span

BYTES_PER_TOKEN = 4
"""For the text of answers whose engine tells no count."""
MOST_CHARACTERS, FIRST_CHARACTERS = 8, 64
"""Characters per token that no answer has, beyond its first few: events with more hold several tokens."""
OVERRUN = 4
SLACK = 1024
"""An engine is not believed, nor heard, beyond OVERRUN times what was counted or asked, plus SLACK."""
MOST = 10_000_000
"""Output tokens that no answer has, where nothing bounds it."""


LostBy = Literal["client", "timeout", "failed", "shutdown"]
"""Why an answer does not end well: its client left; the engine fell silent; the engine broke, or we did; the
gateway ended what its drain had left."""

SendOutcome = Literal["ok", "abandoned", "error", "shutdown"]
"""Of an answer that has begun: it ended as it should, or by a limit; nobody waited for its end; it broke; the
gateway ended it with itself."""

_OUTCOMES: Mapping[LostBy, SendOutcome] = {
    "client": "abandoned", "timeout": "error", "failed": "error", "shutdown": "shutdown",
}  # fmt: skip


class Answer:
    """An answer under way: the lease on a replica's slot and on the upstream connection.

    Use it as a context manager: leaving it, by whichever way, ends both. `first` holds the first events.
    """

    def __init__(
        self,
        call: Call,
        target: Target,
        slot: Slot,
        generation: Generation,
        sent: int | None,
        prompt: PromptCount,
        on_end: Callable[[SendOutcome], None],
    ) -> None:
        """`on_end` is told once how it ended."""
        self.call = call
        self.target = target
        self.slot = slot
        self.generation = generation
        self.sent_max_tokens = sent
        self.choices = call.request.n * prompt.prompts
        self._prompt = prompt
        self._on_end: Callable[[SendOutcome], None] | None = on_end
        self._most = None if sent is None else sent * self.choices
        """Output tokens that were asked for at most."""
        self.span: Span = NO_SPAN
        self.first: list[Event] = []
        """None where its time was over before anything came."""
        self.budget: Budget | None = None
        self.watched = False
        """A limit may end it early."""
        self.request: GenerateRequest = call.request
        """As the engine got it."""
        self.delivered_tokens = 0
        """Of those that came, what the client has been sent."""
        self.lost_by: LostBy = "client"
        """Why it does not end well, if it does not."""
        self.prompt_tokens: int | None = None
        """As the engine told; None as long as it has not."""
        self.reported_tokens: int | None = None
        """Output tokens over all choices, as the engine told."""
        self.cached_tokens: int | None = None
        self.counted_tokens = 0
        """Output tokens as the gateway saw them pass."""
        self.guessed = False
        """Part of that count is a guess by the length of the text: the engine told nothing."""
        self._characters = 0
        self._bytes = 0
        """Of the text whose tokens the engine did not tell."""
        self.ended = False
        self.cut_by: str | None = None
        """The limit, or the time budget, that ended it before the engine did."""
        self.ends: list[Delta] = []
        """What we said then, in the engine's place."""
        self._finished: set[int] = set()
        """Choices that have said why they end."""
        self._filled: set[int] = set()
        """Of these, those that ended at their bound."""

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def note(self, events: list[Event]) -> None:
        """Keep the books of what came: tokens, usage, the end."""
        tokens = 0
        for event in events:
            if isinstance(event, Delta):
                self._characters += len(event.text)
                if event.text and not 0 < event.tokens <= self._believable():
                    size = len(event.text.encode(errors="replace"))
                    self._bytes += size
                    tokens += max(1, size // BYTES_PER_TOKEN)
                    self.guessed = True
                else:
                    tokens += event.tokens
                if event.finish_reason is not None:
                    self._finished.add(event.index)
                    if event.finish_reason == "length":
                        self._filled.add(event.index)
                if event.index >= self.choices:
                    raise EngineFailed("The engine sent more choices than it was asked for.")
            elif isinstance(event, Usage):
                self._note_usage(event)
            elif isinstance(event, Done):
                self.ended = True
        if (least := (self._characters - FIRST_CHARACTERS) // MOST_CHARACTERS) > self.counted_tokens + tokens:
            # An OpenAI-dialect event counts as one token, and may hold many where an engine speculates or
            # gathers: a client must not pay for events.
            tokens = least - self.counted_tokens
            self.guessed = True
        self.counted_tokens += tokens
        self.slot.progress(tokens)
        if self.counted_tokens > self._believable():
            raise EngineFailed("The engine sent far more than it was asked for.")

    @property
    def may_be_cut(self) -> bool:
        """Whether `cut` may be called."""
        return self.watched or self.budget is not None

    def overdue(self, events: list[Event], now: float) -> str | None:
        """The time budget that is used up at `now`, or was when a generation had no more events to give."""
        over = self.budget is not None and (not events or now >= self.budget.ends)
        return self.budget.by if over and self.budget is not None else None

    def cut(self, limit: str) -> list[Event]:
        """End the answer here, because of `limit`: what is to follow the events so far. Nothing where the
        engine has ended it."""
        if self.ended:
            return []
        self.ended, self.cut_by = True, limit
        left = (index for index in range(self.choices) if index not in self._finished)
        self.ends = [Delta(index=index, finish_reason="length") for index in left]
        return [*self.ends, Done()]

    def _believable(self) -> int:
        """Output tokens beyond which this is no answer to what was asked."""
        return MOST if self._most is None else OVERRUN * self._most + SLACK

    def _note_usage(self, usage: Usage) -> None:
        """Take the engine's latest figures, as far as they can be true: they are what a tenant pays."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        most = OVERRUN * self._prompt_at_most() + SLACK
        if prompt is not None and prompt <= most:
            self.prompt_tokens = prompt
        if completion is not None and completion <= self._believable():
            self.reported_tokens = completion
        cached = usage.cached_tokens  # a part of the prompt
        if cached is not None and cached <= (most if self.prompt_tokens is None else self.prompt_tokens):
            self.cached_tokens = cached

    def _prompt_at_most(self) -> int:
        """Tokens that the prompt was counted to have; of an estimate, one for each byte."""
        weighed = self._prompt.weighed
        return self._prompt.tokens if weighed is None else max(self._prompt.tokens, weighed.size)

    @property
    def completion_tokens(self) -> int:
        """The engine's figure where it gave one (zero is a figure), else what was seen to pass.

        That is never more than was asked for. A guess is never less than the bounds of the choices that ended
        at theirs, unless the text is too short for so many tokens: the context may have ended them.
        """
        if self.reported_tokens is not None:
            return self.reported_tokens
        if self.sent_max_tokens is None or self._most is None:
            return self.counted_tokens
        filled = self.sent_max_tokens * len(self._filled) if self.guessed else 0
        return min(max(self.counted_tokens, min(filled, max(self._bytes, self._characters))), self._most)

    @property
    def outcome(self) -> SendOutcome:
        """How it ended, if it ends here."""
        return "ok" if self.ended else _OUTCOMES[self.lost_by]

    def release(self) -> None:
        """Stop the engine if it still runs, give the slot back. Idempotent."""
        self.generation.cancel()
        self.slot.release()
        if self._on_end is not None:
            self._on_end(self.outcome)
            self._on_end = None
        self.span.end(
            {
                "gen_ai.usage.input_tokens": self.prompt_tokens,
                "gen_ai.usage.output_tokens": self.completion_tokens,
            },
            None if self.ended else "incomplete",
        )
