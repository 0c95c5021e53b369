"""What OpenAI's routes answer with: whole answers, events of streams, usage, log probabilities, model cards.

Servers that speak a dialect of it override the shapes in which they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.simulated.dialects.common import Dialect, sse
from backends.simulated.dialects.openai_requests import Ask
from backends.simulated.live import Piece

__all__ = ["Choice", "OpenAIShapes"]


@dataclass(slots=True)
class Choice:
    """What has come of one choice; in a stream, what has come and was not sent yet."""

    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)
    finish_reason: str | None = None
    stopped_by: str | int | None = None

    def sent(self) -> None:
        """What has come was sent."""
        self.text = self.reasoning = ""
        self.pieces.clear()


class OpenAIShapes(Dialect):
    """The bodies of answers; who asks, and when, is `OpenAIDialect`'s."""

    owned_by = "openai-compatible"
    reasoning_key: str | None = None
    """The field of a message or delta that holds the reasoning."""

    def head(self, ask: Ask, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if ask.chat else "text_completion"
        return {"id": ask.id, "object": kind, "created": ask.created, "model": ask.model}

    def opening(self, ask: Ask, index: int) -> bytes:
        """The event that opens a choice of a chat."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return sse({**self.head(ask, chunk=True), "choices": [choice]})

    def chunks(self, ask: Ask, index: int, choice: Choice) -> list[dict[str, Any]]:
        """The events that say what `choice` has not sent yet."""
        return [self.chunk(ask, index, choice)]

    def chunk(self, ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
        """An event with what `choice` has not sent yet."""
        body: dict[str, Any] = {"index": index}
        if ask.chat:
            body["delta"] = {"content": choice.text, **self.reasoning(choice)}
        else:
            body["text"] = choice.text
        body["logprobs"] = self.logprobs(ask, choice)
        body["finish_reason"] = choice.finish_reason
        if choice.finish_reason is not None or not ask.chat:
            body["stop_reason"] = choice.stopped_by
        return {**self.head(ask, chunk=True), "choices": [body]}

    def usage_chunk(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        return {**self.head(ask, chunk=True), "choices": [], "usage": self.usage(ask, choices)}

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer that is not streamed."""
        bodies = []
        for index, choice in enumerate(choices):
            body: dict[str, Any] = {"index": index}
            if ask.chat:
                body["message"] = {
                    "role": "assistant",
                    "content": choice.text,
                    **self.reasoning(choice),
                    "tool_calls": [],
                }
            else:
                body["text"] = choice.text
            body["logprobs"] = self.logprobs(ask, choice)
            body["finish_reason"] = choice.finish_reason
            body["stop_reason"] = choice.stopped_by
            bodies.append(body)
        return {**self.head(ask, chunk=False), "choices": bodies, "usage": self.usage(ask, choices)}

    def reasoning(self, choice: Choice) -> dict[str, Any]:
        if not choice.reasoning or self.reasoning_key is None:
            return {}
        return {self.reasoning_key: choice.reasoning}

    def usage(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        prompt = sum(len(ids) for ids in ask.prompts)
        output = sum(choice.tokens for choice in choices)
        return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}

    def logprobs(self, ask: Ask, choice: Choice) -> dict[str, Any] | None:
        if not ask.logprobs:
            return None
        pieces = [(self.tokenizer.pieces[piece.token_id], piece.logprob) for piece in choice.pieces]
        if ask.chat:
            return {
                "content": [
                    {
                        "token": token.decode(errors="replace"),
                        "logprob": logprob,
                        "bytes": list(token),
                        "top_logprobs": [],
                    }
                    for token, logprob in pieces
                ]
            }
        return {
            "text_offset": [],
            "token_logprobs": [logprob for _, logprob in pieces],
            "tokens": [token.decode(errors="replace") for token, _ in pieces],
            "top_logprobs": None,
        }

    def model_card(self) -> dict[str, Any]:
        return {
            "id": self.options.model,
            "object": "model",
            "created": 1_750_784_198,
            "owned_by": self.owned_by,
            "max_model_len": self.options.max_total_tokens,
        }
