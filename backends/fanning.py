"""Fanning out: one request as several calls to the same engine, and their answers as one.

A completion may have a list of prompts, and any request several choices for each. Engines differ in what they
take in one call (`contract.Takes`); the rest is sent in parts, a few at a time, and put together again:

    choice     the j-th of prompt i is choice i x n + j of the whole, as OpenAI counts
    usage      completion tokens are summed over all parts, prompt tokens over the prompts: a prompt that is
               sent again for another choice counts once. A figure that one part does not tell is untold
    seed       the j-th choice of a prompt gets the seed + j, as vLLM does it; where the client gave none, all
               but the first get one made of the request's id, for TensorRT-LLM draws the same numbers for
               every request that brings no seed, and would give the same choice n times
    id         the request's own and the part's number, so that each part can be cancelled by it
    failure    of one part is that of the whole: the other parts are stopped. Nothing is handed out before
               each of the first few parts has shown its first events: what fails there can be sent elsewhere

Nothing is read ahead: of each part, one batch of events at most lies here.
"""

import asyncio
import itertools
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.contract import (
    Delta,
    Done,
    EngineError,
    ErrorKind,
    Event,
    GenerateRequest,
    Generation,
    Prompt,
    Takes,
    Usage,
)

__all__ = ["AT_A_TIME", "FannedGeneration", "Part", "first_part", "parts_of"]

AT_A_TIME = 4
"""Parts of one request that are under way together. The ledger knows one request on one replica, whatever it
is made of: a long list must not become a crowd at an engine that counts heads."""


@dataclass(frozen=True, slots=True)
class Part:
    """One call of several."""

    request: GenerateRequest
    choices: Sequence[int]
    """By the number of a choice in its answer, the number in the whole."""
    counts_prompt: bool = True
    """False: another part tells the length of the same prompts."""


def parts_of(request: GenerateRequest, takes: Takes) -> list[Part]:
    """`request` in calls that the engine takes, in the order of their choices; itself where that is one."""
    prompts = _prompts(request.prompt)
    per_call = len(prompts) if takes.prompts is None else takes.prompts
    each = request.n if takes.choices is None else min(takes.choices, request.n)
    if per_call >= len(prompts) and each == request.n:
        return [Part(request, range(len(prompts) * request.n))]
    parts: list[Part] = []
    for first in range(0, len(prompts), per_call):
        some = prompts[first : first + per_call]
        for choice in range(0, request.n, each):
            count = min(each, request.n - choice)
            numbers = [
                (first + i) * request.n + choice + j
                for i, j in itertools.product(range(len(some)), range(count))
            ]
            fields: dict[str, Any] = {"request_id": f"{request.request_id}.{len(parts)}", "n": count}
            if request.prompt is not None:
                fields["prompt"] = some[0] if len(some) == 1 else some
            if choice:
                fields["parameters"] = {**request.parameters, "seed": _seed(request, choice)}
            parts.append(Part(msgspec.structs.replace(request, **fields), numbers, choice == 0))
    return parts


def first_part(request: GenerateRequest, takes: Takes) -> GenerateRequest:
    """A call as the engine would get it: what one of them may not ask, none may."""
    prompts = _prompts(request.prompt)
    prompt: Any = request.prompt
    if takes.prompts is not None and len(prompts) > takes.prompts:
        prompt = prompts[0] if takes.prompts == 1 else prompts[: takes.prompts]
    n = request.n if takes.choices is None else min(takes.choices, request.n)
    if prompt is request.prompt and n == request.n:
        return request
    return msgspec.structs.replace(request, prompt=prompt, n=n)


def _prompts(prompt: Prompt | None) -> Sequence[Any]:
    """The single prompts: texts, or lists of token ids. A chat has one."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt]


def _seed(request: GenerateRequest, choice: int) -> int:
    given = request.parameters.get("seed")
    if type(given) is int:
        return given + choice if given < 2**63 - choice else given - choice
    return zlib.crc32(f"{request.request_id}/{choice}".encode()) & 0x7FFF_FFFF


class FannedGeneration:
    """`contract.Generation` over several, each opened when its turn comes."""

    def __init__(
        self,
        parts: Sequence[Part],
        open_part: Callable[[GenerateRequest], Awaitable[Generation]],
        at_a_time: int = AT_A_TIME,
    ) -> None:
        self._parts = parts
        self._open_part = open_part
        self._at_a_time = max(1, at_a_time)
        self._waiting = deque(range(len(parts)))
        self._reading: dict[asyncio.Task[list[Event]], int] = {}
        """The parts that are under way, each with the task that waits for its next events."""
        self._generations: dict[int, Generation] = {}
        self._usages: dict[int, Usage] = {}
        self._error: EngineError | None = None
        self._begun = False
        self._delivered = False
        self._over = False
        """All has come, or nothing more is wanted."""

    async def events(self) -> list[Event]:
        """As `Generation.events`. Cancelling it loses no event: it may be called again."""
        if self._over and self._error is None:
            raise RuntimeError("events() called after Done")
        events: list[Event] = []
        while not events:
            if self._error is not None:
                raise self._error
            if self._begun or not self._reading:
                self._ask_on()
            # At first until all have something or one has failed: the tasks keep what came meanwhile.
            until = asyncio.FIRST_COMPLETED if self._begun else asyncio.FIRST_EXCEPTION
            await asyncio.wait(self._reading, return_when=until)
            self._begun = True
            events = self._gather()
        self._delivered = True
        return events

    def _ask_on(self) -> None:
        """Wait for each part that is under way, and begin others where there is room."""
        for number in self._generations.keys() - set(self._reading.values()):
            self._ask(number)
        while self._waiting and len(self._reading) < self._at_a_time:
            self._ask(self._waiting.popleft())

    def _ask(self, number: int) -> None:
        name = f"part {self._parts[number].request.request_id}"
        task = asyncio.get_running_loop().create_task(self._read(number), name=name)
        task.add_done_callback(_look_at)
        self._reading[task] = number

    async def _read(self, number: int) -> list[Event]:
        if number not in self._generations:
            generation = await self._open_part(self._parts[number].request)
            if self._over:
                generation.cancel()
                return []
            self._generations[number] = generation
        return await self._generations[number].events()

    def _gather(self) -> list[Event]:
        """The events of all parts that have some; with the last of all, the whole's usage and its end.

        A part that failed ends the whole: what others have goes out first, unless nothing went out before.
        """
        events: list[Event] = []
        for task, number in [each for each in self._reading.items() if each[0].done()]:
            del self._reading[task]
            if (failure := task.exception()) is None:
                events += self._translated(number, task.result())
            elif isinstance(failure, EngineError):
                self._fail(failure)
            else:
                raise failure
        if self._error is not None:
            self._stop()
            return events if self._delivered else []
        if not (self._generations or self._waiting or self._reading):
            self._over = True
            events += [*self._usage(), Done()]
        return events

    def _translated(self, number: int, events: list[Event]) -> list[Event]:
        """A part's events as the whole's: with its numbers; usage and end are kept back."""
        part = self._parts[number]
        translated: list[Event] = []
        for event in events:
            if isinstance(event, Delta):
                if event.index >= len(part.choices):
                    self._fail(EngineError(ErrorKind.ENGINE, "a choice too many", retryable=True))
                    break
                translated.append(msgspec.structs.replace(event, index=part.choices[event.index], raw=None))
            elif isinstance(event, Usage):
                self._usages[number] = event
            elif isinstance(event, Done):
                del self._generations[number]
        return translated

    def _usage(self) -> list[Event]:
        told = [self._usages.get(number, Usage()) for number in range(len(self._parts))]
        counting = [usage for usage, part in zip(told, self._parts, strict=True) if part.counts_prompt]
        usage = Usage(
            prompt_tokens=_sum([each.prompt_tokens for each in counting]),
            completion_tokens=_sum([each.completion_tokens for each in told]),
            cached_tokens=_sum([each.cached_tokens for each in counting]),
        )
        return [] if usage == Usage() else [usage]

    def _fail(self, error: EngineError) -> None:
        """The first failure is the whole's. Once something was handed out, nothing may be sent again."""
        if self._error is None:
            error.retryable = error.retryable and not self._delivered
            self._error = error

    def _stop(self) -> None:
        self._over = True
        for task in self._reading:
            task.cancel()
        for generation in self._generations.values():
            generation.cancel()
        self._reading.clear()
        self._generations.clear()
        self._waiting.clear()

    def cancel(self) -> None:
        """Tell the engine to stop all that is under way. Idempotent; a no-op after the end."""
        if not self._over:
            self._error = EngineError(ErrorKind.ENGINE, "cancelled", retryable=False)
            self._stop()


def _look_at(task: "asyncio.Task[list[Event]]") -> None:
    """So that nobody complains of a failure that came after another had ended the whole."""
    if not task.cancelled():
        task.exception()


def _sum(figures: list[int | None]) -> int | None:
    told = [figure for figure in figures if figure is not None]
    return sum(told) if len(told) == len(figures) else None
