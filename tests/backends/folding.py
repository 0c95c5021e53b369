"""Events of a decoder, folded into one result, and the ways to cut bytes that must not change it."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.contract import Decoder, Delta, Done, EngineError, Event, Failure, Usage


@dataclass
class Choice:
    text: str = ""
    finish_reason: str | None = None
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)


@dataclass
class Result:
    """What a client could know of an answer, apart from where its pieces were cut."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, int | None] | None = None
    complete: bool = False
    error: EngineError | None = None

    def comparable(self) -> tuple[Any, ...]:
        error = self.error and (self.error.kind, self.error.message, self.error.retryable, self.error.status)
        return self.choices, self.usage, self.complete, error


def fold(events: Sequence[Event]) -> Result:
    result = Result()
    for event in events:
        assert not result.complete, "an event after Done"
        assert result.error is None, "an event after Failure"
        match event:
            case Delta():
                assert event.text or event.tool_calls or event.extra or event.finish_reason or event.logprobs
                choice = result.choices.setdefault(event.index, Choice())
                assert choice.finish_reason is None, "a delta after the finish reason of its choice"
                choice.text += event.text
                choice.finish_reason = event.finish_reason or choice.finish_reason
                for call in event.tool_calls or ():
                    whole = choice.tool_calls.setdefault(call["index"], {"name": "", "arguments": ""})
                    for key in whole:
                        whole[key] += call.get("function", {}).get(key, "")
            case Usage():
                result.usage = result.usage or dict.fromkeys(
                    ("prompt_tokens", "completion_tokens", "cached_tokens")
                )
                for key in result.usage:
                    if (value := getattr(event, key)) is not None:
                        result.usage[key] = value
            case Done():
                result.complete = True
            case Failure(error=error):
                result.error = error
    return result


def decode(decoder: Decoder, status: int, headers: Mapping[str, str], pieces: Sequence[bytes]) -> list[Event]:
    """The events of an answer that came in these pieces."""
    decoder.head(status, headers)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    events += decoder.end()
    assert decoder.feed(b"data: {}\n\n") == []
    assert decoder.end() == []
    return events


def decode_body(decoder: Decoder, body: bytes, status: int = 200) -> list[Event]:
    """The events of an answer that came in one piece."""
    return decode(decoder, status, {}, [body])


def cuts(body: bytes, name: str) -> Iterator[list[bytes]]:
    """`body` whole, byte by byte, in two at every place, and at 50 seeded random places."""
    yield [body]
    yield [body[at : at + 1] for at in range(len(body))]
    for at in range(1, len(body)):
        yield [body[:at], body[at:]]
    for k in range(50):
        rng = random.Random(f"{name}:{k}")
        places = (
            sorted(rng.sample(range(1, len(body)), rng.randrange(1, min(len(body), 20))))
            if len(body) > 2
            else []
        )
        yield [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
