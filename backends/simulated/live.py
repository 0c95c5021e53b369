"""The engine model on the event loop's clock: sequences go in, pieces of text come out in time.

There is no task here. A step is decided when it begins and delivered by a timer when it ends; the next
step begins at the same moment. Where timers come late the next step starts at the time at which the last
one should have ended, so that a coarse clock does not slow the engine down, unless it is more than
`_MAX_LAG_S` late: then the engine, like any other, is as slow as its host.
"""

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backends.simulated.engine import Engine, EngineProfile, EngineStatistics, Phase, Step
from backends.simulated.speech import Recital, Speaker, Speech, Transcript

__all__ = ["Ending", "LiveEngine", "Output", "Piece"]

_MAX_LAG_S = 0.05

Ending = Literal["eos", "stop", "length"]
"""Why an answer ended: its end-of-turn token, a stop string or stop token, or `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of one answer."""

    choice: int
    token_id: int
    number: int
    """1 for the first token of the answer."""
    text: str
    """What the token completes; "" in the middle of a character and for special tokens."""
    visible: str
    """The same with stop strings cut, held back while a stop string may be under way."""
    logprob: float
    ending: Ending | None
    stopped_by: str | int | None = None
    """The stop string or token id, where `ending` is `stop`."""


@dataclass(slots=True)
class _Voice:
    """One sequence of the engine and what it says."""

    id: int
    output: "Output"
    choice: int
    max_tokens: int
    speech: Speech | Recital
    transcript: Transcript
    stop_ids: frozenset[int]
    ignore_eos: bool
    prompt: Sequence[int]
    salt: object
    said: int = 0


@dataclass(slots=True)
class Output:
    """The answers to one HTTP request, merged in the order in which tokens come."""

    engine: "LiveEngine"
    _pieces: deque[Piece] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[int] = field(default_factory=set)
    produced: int = 0
    """Tokens said, over all choices."""
    cached: int = 0
    """Prompt tokens that needed no computing, over all sequences."""
    on_token: Callable[[], None] | None = None
    """Called when a token was made for this request, whether or not anyone reads it."""

    async def next(self) -> list[Piece]:
        """The next pieces, at least one; [] once all answers have ended. Waits without bound, as clients of
        an engine do: closing the connection is what ends the wait."""
        while not self._pieces:
            if not self._open:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    @property
    def running(self) -> bool:
        """Whether the engine still computes some of it."""
        return bool(self._open)

    @property
    def phase(self) -> Phase | None:
        """The furthest phase of the sequences that are still open; `decode` once any token was made."""
        if not self._open:
            return None
        if self.produced:
            return "decode"
        phases = {self.engine.model.phase(sequence) for sequence in self._open}
        # The model counts what the step under way will produce; it is not there until the step ends.
        return "queued" if phases == {"queued"} else "prefill"

    def cancel(self) -> bool:
        """Drop what is still running. Idempotent; False if nothing was."""
        dropped = [self.engine.cancel(sequence) for sequence in tuple(self._open)]
        return any(dropped)


class PrefixBlocks:
    """What an engine keeps of past prompts: blocks of tokens; the longest unused go first."""

    TOKENS = 16

    def __init__(self, tokens: int) -> None:
        self._most = tokens // self.TOKENS
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hit(self, prompt: Sequence[int], salt: object) -> int:
        """Tokens of the leading blocks that are there."""
        known = 0
        for block in self._chain(prompt, salt):
            if block not in self._blocks:
                break
            known += 1
        return known * self.TOKENS

    def add(self, prompt: Sequence[int], salt: object) -> None:
        if not self._most:
            return
        for block in reversed(list(self._chain(prompt, salt))):  # the ends of prompts are the first to go
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def _chain(self, prompt: Sequence[int], salt: object) -> Iterator[int]:
        running = hash(salt)
        for start in range(0, len(prompt) - self.TOKENS + 1, self.TOKENS):
            running = hash((running, *prompt[start : start + self.TOKENS]))
            yield running


class LiveEngine:
    """One engine in real time. Use it from one event loop, and `close` it."""

    def __init__(
        self,
        profile: EngineProfile,
        speaker: Speaker,
        on_step: Callable[[Step], None],
        *,
        prefix_cache: int = 0,
    ) -> None:
        """`prefix_cache`: tokens of past prompts that it keeps."""
        self.model = Engine(profile)
        self.prefixes = PrefixBlocks(prefix_cache)
        self._speaker = speaker
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self.script: str | None = None
        """What every answer says, word for word; None: a hash of its context."""
        self.spells = False
        """Whether given words are said byte by byte."""
        self._ids = itertools.count(1)
        self._voices: dict[int, _Voice] = {}
        self._timer: asyncio.TimerHandle | None = None

    def statistics(self) -> EngineStatistics:
        return self.model.statistics()

    def output(self) -> Output:
        """An empty output, to which `say` adds answers."""
        return Output(self)

    def say(
        self,
        output: Output,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        choice: int = 0,
        variant: int = 0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        ignore_eos: bool = False,
        salt: object = None,
        text: str | None = None,
    ) -> None:
        """Queue one more answer: `text`, else the script, else the speaker's own.

        `choice` is its index in the response, `variant` tells several answers to the same prompt apart;
        prompts of different `salt` share no cache. Raises CapacityError, or ValueError for an empty prompt.
        """
        words = self.script if text is None else text
        sequence = next(self._ids)
        cached = min(self.prefixes.hit(prompt, salt), len(prompt) - 1)
        self.model.submit(self._loop.time(), sequence, len(prompt), max_tokens, cached)
        output.cached += cached
        self._voices[sequence] = _Voice(
            id=sequence,
            output=output,
            choice=choice,
            max_tokens=max_tokens,
            speech=self._speaker.speak(prompt, seed=seed, choice=variant)
            if words is None
            else Recital(self._speaker.tokenizer, words, spelled=self.spells),
            transcript=Transcript(self._speaker.tokenizer, stop),
            stop_ids=stop_ids,
            ignore_eos=ignore_eos,
            prompt=prompt,
            salt=salt,
        )
        output._open.add(sequence)
        if self._timer is None:
            # Not at once: what arrives in the same turn of the loop belongs into the same step.
            self._timer = self._loop.call_at(self._loop.time(), self._begin, self._loop.time())

    def cancel(self, sequence: int) -> bool:
        """Drop one sequence. False if it is not here."""
        voice = self._voices.pop(sequence, None)
        if voice is None:
            return False
        voice.output._open.discard(sequence)
        voice.output._arrived.set()
        return self.model.cancel(self._loop.time(), sequence)

    def close(self) -> None:
        """Stop the clock and drop everything. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sequence in tuple(self._voices):
            self.cancel(sequence)

    def _begin(self, due: float) -> None:
        now = self._loop.time()
        step = self.model.step(due if now - due < _MAX_LAG_S else now)
        if step is None:
            self._timer = None
            return
        self._timer = self._loop.call_at(step.end, self._end, step)

    def _end(self, step: Step) -> None:
        for sequence in step.produced:
            voice = self._voices.get(sequence)  # type: ignore[call-overload]  # our ids are integers
            if voice is not None:
                self._speak(voice)
        self._on_step(step)
        self._begin(step.end)

    def _speak(self, voice: _Voice) -> None:
        token_id = voice.speech.next(may_end=not voice.ignore_eos)
        voice.said += 1
        if voice.said == 1:
            self.prefixes.add(voice.prompt, voice.salt)
        full = voice.said == voice.max_tokens
        is_eos = token_id == self._speaker.tokenizer.eos_id
        text, visible = voice.transcript.add(token_id, last=full or is_eos)
        ending: Ending | None = "length" if full else None
        stopped_by: str | int | None = None
        if token_id in voice.stop_ids:
            ending, stopped_by = "stop", token_id
        elif is_eos:
            ending = "eos"
        elif voice.transcript.stopped_by is not None:
            ending, stopped_by = "stop", voice.transcript.stopped_by
        output = voice.output
        output.produced += 1
        output._pieces.append(
            Piece(
                choice=voice.choice,
                token_id=token_id,
                number=voice.said,
                text=text,
                visible=visible,
                logprob=voice.speech.logprob,
                ending=ending,
                stopped_by=stopped_by,
            )
        )
        if ending is not None:
            del self._voices[voice.id]
            output._open.discard(voice.id)
            if not full:  # the model has ended the full ones by itself
                self.model.finish(self._loop.time(), voice.id)
        output._arrived.set()
        if output.on_token is not None:
            output.on_token()
