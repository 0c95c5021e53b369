"""Measuring one running engine from outside, by streams alone: what `gateway/planning/fitting.py` needs.

Two kinds of measurement, each for several lengths:

    prefill     one request for one token on an idle engine, by the length of its prompt
    decode      `sequences` answers at once; timed from the moment the last of them has its first token until
                the first of them ends, so that in between every step decodes all of them and reads no prompt

In rounds over all shapes, so that a measurement that is cut short has seen every kind. The first round warms
up (an engine compiles or captures graphs for shapes that are new to it) and counts only where no other came.
Of the rounds of prefill the quickest counts, since a busy network or client can only add time; of those of
decode the median, whose ends are blurred both ways. Each prompt begins with words of its own, else the
engine's prefix cache would answer.

What it may cost the engine is bounded: in requests, in seconds, and in tokens at a time.
"""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from backends.contract import Delta, Engine, EngineError, ErrorKind, GenerateRequest, Usage
from gateway.planning.fitting import Sample

__all__ = ["Calibrator", "CannotMeasure", "Load", "Measured", "Shape"]

PROMPTS = (16, 48, 96, 160, 256, 512, 1024, 2048, 4096, 8192)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (64, 1024, 4096)
OUTPUT = 32
"""Tokens of an answer that is timed; more where many prompts must be read before all of them decode."""
STEADY = 8
"""Tokens that each answer must say while all decode, or the measurement says nothing."""
REQUEST_TIMEOUT = 60.0
BUSY = 0.9
"""Share of one processor beyond which the times are those of this program, not of the engine."""
WORDS = (
    "river", "gate", "water", "field", "canal", "stone", "light", "morning", "village", "bridge", "winter",
    "paper", "silver", "garden", "window", "music", "letter", "summer", "doctor", "market", "forest",
    "island", "number", "circle", "engine", "station", "mountain", "picture", "corner", "history", "table",
    "copper", "wheel",
)  # fmt: skip


class CannotMeasure(Exception):
    """The engine cannot be measured at all; the message says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a measurement may cost the engine."""

    prompt_tokens: int = 8192
    """Longest prompt."""
    sequences: int = 32
    """Requests at a time."""
    tokens: int = 65_536
    """Prompt and output tokens at a time."""
    requests: int = 2000
    seconds: float = 120.0
    """Nothing new is begun after that; what is under way has REQUEST_TIMEOUT to end."""
    rounds: int = 3
    """After the one that warms up."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One thing to measure."""

    sequences: int
    """0: prefill."""
    prompt_tokens: int
    output_tokens: int

    @property
    def requests(self) -> int:
        return max(self.sequences, 1)


@dataclass(slots=True)
class Measured:
    samples: list[Sample] = field(default_factory=list)
    requests: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What went otherwise than it should, in sentences."""


@dataclass(slots=True)
class _Heard:
    """One answer, by the client's clock."""

    sent: float
    pieces: list[tuple[float, float]] = field(default_factory=list)
    """(time, tokens said by then)."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    ended: float = 0.0

    @property
    def first(self) -> float:
        return self.pieces[0][0]

    def between(self, start: float, end: float) -> tuple[float, float]:
        """Tokens and seconds from the first piece in that time to the last one."""
        inside = [piece for piece in self.pieces if start <= piece[0] <= end]
        if len(inside) < 2:
            return 0.0, 0.0
        return inside[-1][1] - inside[0][1], inside[-1][0] - inside[0][0]

    def said(self, at: float) -> float:
        """Tokens said by then."""
        return max((tokens for time, tokens in self.pieces if time <= at), default=0.0)


def shapes_of(load: Load, context: int | None, prompt: int | None, at_a_time: int | None) -> list[Shape]:
    """What to measure within those bounds: an engine's context and longest prompt in tokens, and how many
    requests it takes at a time; None is untold. Most telling first, should the time run out."""
    longest = min(x for x in (load.prompt_tokens, prompt, context and context - OUTPUT, load.tokens) if x)
    most = min(x for x in (load.sequences, at_a_time) if x)
    lengths = [length for length in PROMPTS if length <= longest]
    if not lengths or longest > 1.25 * lengths[-1]:
        lengths.append(longest)
    prefill = [Shape(0, length, 1) for length in lengths]
    decode = []
    for length, sequences in itertools.product(CONTEXTS, SEQUENCES):
        output = OUTPUT + min(sequences * length // 1024, 224)
        if (
            sequences <= most
            and length <= longest
            and sequences * (length + output) <= load.tokens
            and length + output <= (context or length + output)
        ):
            decode.append(Shape(sequences, length, output))
    return [*prefill, *decode]


class Calibrator:
    """Measures one engine. `clock`: monotonic seconds; `cpu_clock`: seconds of processor that this program
    has used; `told` hears of progress."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        load: Load,
        *,
        clock: Callable[[], float],
        cpu_clock: Callable[[], float],
        told: Callable[[str], None] = lambda text: None,
        seed: int = 0,
    ) -> None:
        self._engine = engine
        self._model = model
        self._load = load
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._told = told
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._chat = False
        self._parameters: Mapping[str, Any] = {}
        self._fixed, self._per_word = 0.0, 1.2
        """Tokens of a prompt without words, and of a word: learned from the engine's own counts."""
        self._counts = True

    async def measure(self, shapes: Sequence[Shape]) -> Measured:
        """Measure them all, as far as the load allows. Raises CannotMeasure, EngineError."""
        measured = Measured()
        began = self._clock()
        await self._get_acquainted(measured, longest=max(shape.prompt_tokens for shape in shapes))
        taken: dict[tuple[Shape, bool], list[Sample]] = defaultdict(list)
        failed: set[Shape] = set()
        for number, shape in self._rounds(shapes):
            if shape in failed:
                continue
            if self._clock() - began > self._load.seconds:
                measured.notes.append(f"the {self._load.seconds:g} s were over in round {number}")
                break
            if measured.requests + shape.requests > self._load.requests:
                measured.notes.append(f"{self._load.requests} requests were made in round {number}")
                break
            sample = await self._take(shape, measured)
            if sample is None:
                failed.add(shape)
                continue
            taken[shape, number > 0].append(sample)
            self._told(f"round {number} of {self._load.rounds}: {sample}: {1e3 * sample.seconds:.2f} ms")
        for shape in dict.fromkeys(shapes):
            if found := taken[shape, True] or taken[shape, False]:
                found.sort(key=lambda sample: sample.seconds)
                measured.samples.append(found[(len(found) - 1) // 2 if shape.sequences else 0])
        measured.seconds = self._clock() - began
        if not self._counts:
            measured.notes.append("the engine does not count tokens: prompts are taken for 1.2 tokens a word")
        return measured

    def _rounds(self, shapes: Sequence[Shape]) -> Iterator[tuple[int, Shape]]:
        for number in range(self._load.rounds + 1):
            for shape in shapes:
                yield number, shape

    # ------------------------------------------------------------------------------------ one measurement

    async def _take(self, shape: Shape, measured: Measured) -> Sample | None:
        """None where it says nothing; a note says why."""
        before, cpu_before = self._clock(), self._cpu_clock()
        heard: list[_Heard] = []
        why = ""
        try:
            heard = await self._together(shape, measured)
        except* EngineError as group:
            why = _first(group)
        except* TimeoutError:
            why = f"no answer in {REQUEST_TIMEOUT:g} s"
        if why:
            measured.notes.append(f"not measured: {_named(shape)}: {why}")
            return None
        if not shape.sequences:
            only = heard[0]
            # A token may complete no text; then the end of the answer is when it came.
            came = only.first if only.pieces else only.ended
            return Sample("prefill", came - only.sent, only.prompt_tokens)
        if any(not each.pieces for each in heard):
            measured.notes.append(f"not measured: {_named(shape)}: an answer had no text")
            return None
        busy = (self._cpu_clock() - cpu_before) / max(self._clock() - before, 1e-9)
        if busy > BUSY:
            measured.notes.append(f"not measured: {_named(shape)}: this program was too busy to time it")
            return None
        return self._decode(shape, heard, measured)

    def _decode(self, shape: Shape, heard: list[_Heard], measured: Measured) -> Sample | None:
        start = max(each.first for each in heard)
        end = min(each.pieces[-1][0] for each in heard)
        spans = [each.between(start, end) for each in heard]
        if min(tokens for tokens, _ in spans) < STEADY:
            measured.notes.append(f"not measured: {_named(shape)}: too few tokens while all of them decoded")
            return None
        middle = (start + end) / 2
        cached = sum(each.prompt_tokens + each.said(middle) for each in heard)
        seconds = median(seconds / tokens for tokens, seconds in spans)
        return Sample("decode", seconds, heard[0].prompt_tokens, len(heard), cached)

    async def _together(self, shape: Shape, measured: Measured) -> list[_Heard]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._ask(shape.prompt_tokens, shape.output_tokens, measured))
                for _ in range(shape.requests)
            ]
        return [task.result() for task in tasks]

    # ------------------------------------------------------------------------------------ one request

    async def _get_acquainted(self, measured: Measured, longest: int) -> None:
        """Find a form of request that the engine takes, and how many tokens it counts for how many words."""
        forms = [(chat, given) for chat in (False, True) for given in ({"ignore_eos": True}, {})]
        refused: EngineError | None = None
        for self._chat, self._parameters in forms:
            try:
                few = await self._ask(16, 4, measured)
            except EngineError as error:
                if error.kind not in (ErrorKind.CLIENT, ErrorKind.UNSUPPORTED, ErrorKind.NOT_FOUND):
                    raise
                refused = error
                continue
            except TimeoutError:
                raise CannotMeasure(f"no answer in {REQUEST_TIMEOUT:g} s") from None
            break
        else:
            assert refused is not None
            raise CannotMeasure(f"it refuses every form of request: {refused.message[:200]}")
        if not few.pieces:
            raise CannotMeasure("its answers have no text")
        words_few, words_many = self._words(16), self._words(min(longest, 512))
        many = await self._ask(min(longest, 512), 1, measured)
        if self._counts and words_many > words_few:
            self._per_word = (many.prompt_tokens - few.prompt_tokens) / (words_many - words_few)
            self._fixed = max(0.0, few.prompt_tokens - self._per_word * words_few)
        streamed = await self._ask(16, 16, measured)
        if len(streamed.pieces) < 2:
            raise CannotMeasure("its answers come in one piece: steps cannot be seen")

    async def _ask(self, prompt_tokens: int, output_tokens: int, measured: Measured) -> _Heard:
        """One streamed answer. Raises EngineError, TimeoutError."""
        number = next(self._numbers)
        text = self._text(self._words(prompt_tokens))
        request = GenerateRequest(
            request_id=f"headgate-calibration-{number}",
            model=self._model,
            stream=True,
            messages=[{"role": "user", "content": text}] if self._chat else None,
            prompt=None if self._chat else text,
            max_tokens=output_tokens,
            parameters=self._parameters,
        )
        if (reason := self._engine.adapter.unsupported(request)) is not None:
            raise EngineError(ErrorKind.UNSUPPORTED, reason.message, retryable=False, reached=False)
        measured.requests += 1
        heard = _Heard(self._clock())
        async with asyncio.timeout(REQUEST_TIMEOUT):
            generation = await self._engine.generate(request)
            try:
                await self._listen(generation, heard)
            finally:
                generation.cancel()  # no more than a formality, unless it was cut short
        if heard.output_tokens and heard.pieces:
            # A token that completes no character is not seen when it comes: spread those over the others.
            factor = heard.output_tokens / heard.pieces[-1][1]
            heard.pieces = [(at, tokens * factor) for at, tokens in heard.pieces]
        if not heard.prompt_tokens:
            self._counts = False
            heard.prompt_tokens = round(self._fixed + self._per_word * self._words(prompt_tokens))
        measured.output_tokens += heard.output_tokens or len(heard.pieces)
        return heard

    async def _listen(self, generation: Any, heard: _Heard) -> None:
        said = 0.0
        ended = False
        while not ended:
            events = await generation.events()
            now = self._clock()
            for event in events:
                if isinstance(event, Delta):
                    if event.tokens and (event.text or event.extra):
                        said += event.tokens
                        heard.pieces.append((now, said))
                elif isinstance(event, Usage):
                    heard.prompt_tokens = event.prompt_tokens or heard.prompt_tokens
                    heard.output_tokens = event.completion_tokens or heard.output_tokens
                else:
                    ended = True
                    heard.ended = now

    def _words(self, tokens: int) -> int:
        return max(1, round((tokens - self._fixed) / self._per_word))

    def _text(self, words: int) -> str:
        """So many words; the first ones are like those of no other prompt."""
        return " ".join(self._random.choices(WORDS, k=words))


def _first(group: BaseExceptionGroup[EngineError]) -> str:
    """The words of one of them."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.message[:120] if isinstance(error, EngineError) else str(error)


def _named(shape: Shape) -> str:
    if not shape.sequences:
        return f"first token of {shape.prompt_tokens} tokens"
    return f"{shape.sequences} decoding after {shape.prompt_tokens} tokens each"
