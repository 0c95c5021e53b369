"""An answer under way: one object that holds what must be given back."""

from types import TracebackType

from backends.contract import Delta, Done, Event, Generation, Usage
from gateway.call import Call
from gateway.fleet.ledger import Slot
from gateway.routing.router import Target
from gateway.telemetry.tracing import NO_SPAN, Span


class Answer:
    """An answer under way: the lease on a replica's slot and on the upstream connection.

    Use it as a context manager: leaving it, by whichever way, ends both. `first` holds the first events.
    """

    def __init__(
        self, call: Call, target: Target, slot: Slot, generation: Generation, sent: int | None
    ) -> None:
        self.call = call
        self.target = target
        self.slot = slot
        self.generation = generation
        self.sent_max_tokens = sent
        self.span: Span = NO_SPAN
        self.first: list[Event] = []
        self.prompt_tokens: int | None = None
        """As the engine told; None as long as it has not."""
        self.reported_tokens: int | None = None
        """Output tokens over all choices, as the engine told."""
        self.cached_tokens: int | None = None
        self.counted_tokens = 0
        """Output tokens as the gateway saw them pass."""
        self.ended = False

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
                tokens += event.tokens
            elif isinstance(event, Usage):
                self.prompt_tokens = _latest(event.prompt_tokens, self.prompt_tokens)
                self.reported_tokens = _latest(event.completion_tokens, self.reported_tokens)
                self.cached_tokens = _latest(event.cached_tokens, self.cached_tokens)
            elif isinstance(event, Done):
                self.ended = True
        self.counted_tokens += tokens
        self.slot.progress(tokens)

    @property
    def completion_tokens(self) -> int:
        """The engine's figure where it gave one (zero is a figure), else what was seen to pass."""
        return self.counted_tokens if self.reported_tokens is None else self.reported_tokens

    def release(self) -> None:
        """Stop the engine if it still runs, give the slot back. Idempotent."""
        self.generation.cancel()
        self.slot.release()
        self.span.end(
            {
                "gen_ai.usage.input_tokens": self.prompt_tokens,
                "gen_ai.usage.output_tokens": self.completion_tokens,
            },
            None if self.ended else "incomplete",
        )


def _latest(new: int | None, old: int | None) -> int | None:
    return old if new is None else new
