"""What an engine does with time: continuous batching, paged memory and a queue, without any I/O.

The model runs in steps. A step decodes one token for every sequence that is past its prompt and spends
what is left of the step's token budget on prompts, in order of arrival, a long prompt in several chunks.
How long the step takes follows from what is in it:

    T = a + e*min(n, 172) + b*max(0, n - 172) + q*sum(chunk*(context + chunk/2)) + d*KV + host

n counts the prompt tokens and the decoding sequences of the step, KV the cached tokens that the decoding
sequences read. The first 172 tokens are cheap, since the weights must be read for them anyway. The form
and the `h200` constants were fitted to 69 measured steps of an 8-billion-parameter Llama in bf16 on one
NVIDIA H200 (2.7 % rms; own measurement, no production engine was run); `host` is the time of the engine's own
code around a step, 0.5 ms for a tight loop and 6 ms for a slow one.

Memory: a prompt is admitted whole (its cache is taken at admission, as TensorRT-LLM and vLLM do), the
first in the queue before any other, and each decoded token takes one more place. When there is no place
left the youngest sequence gives up its own, goes back to the head of the queue, and computes its prompt
and what it had said again.

There is no clock here. Every call takes `now` in seconds, and `next_event` says when to call `step`: a
live server sleeps until then, a replay jumps there.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

__all__ = [
    "PROFILES",
    "CapacityError",
    "Engine",
    "EngineProfile",
    "EngineStatistics",
    "Phase",
    "Step",
    "profile",
]

Phase = Literal["queued", "prefill", "decode"]
"""Where a sequence is: waiting for room, reading its prompt, or past its first token."""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How fast an engine is and how much it holds. Times are seconds at `speed` 1."""

    name: str
    step_s: float
    """a: reading the weights once, whatever the step holds."""
    light_token_s: float
    """e: per token up to `hinge_tokens`."""
    token_s: float
    """b: per token above `hinge_tokens`."""
    attention_s: float
    """q: per pair of a prompt token and an earlier token that it looks at."""
    kv_token_s: float
    """d: per cached token that a decoding sequence reads."""
    host_s: float
    """The engine's own code, once a step."""
    hinge_tokens: int = 172
    kv_tokens: int = 880_000
    """How many tokens the cache holds, over all sequences."""
    max_sequences: int = 256
    """How many sequences run at once; the others wait."""
    step_tokens: int = 8192
    """Prompt tokens and decoding sequences of one step, at most. Longer prompts come in chunks."""
    speed: float = 1.0
    """Every duration is divided by this."""
    sequence_s: float = 0.0
    """s: per decoding sequence, on top of what its token costs; of engines that decode one by one."""

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed must be above 0, not {self.speed}")
        if self.max_sequences < 1 or self.kv_tokens < 2:
            raise ValueError("an engine needs room for one sequence and two tokens")
        if self.step_tokens <= self.max_sequences:
            raise ValueError("step_tokens must exceed max_sequences, or prompts starve behind decodes")

    def step_time(self, tokens: int, attention: float = 0.0, kv_tokens: int = 0, sequences: int = 0) -> float:
        """Seconds for a step.

        `tokens`: prompt tokens plus decoding sequences; `attention`: sum of chunk*(context + chunk/2) over
        the prompt chunks; `kv_tokens`: cached tokens read by the decoding sequences; `sequences`: those.
        """
        light = min(tokens, self.hinge_tokens)
        seconds = (
            self.step_s
            + self.light_token_s * light
            + self.token_s * (tokens - light)
            + self.attention_s * attention
            + self.kv_token_s * kv_tokens
            + self.sequence_s * sequences
            + self.host_s
        )
        return seconds / self.speed


_H200 = EngineProfile(
    name="h200",
    step_s=4.66e-3,
    light_token_s=6.06e-6,
    token_s=22.3e-6,
    attention_s=1.565e-9,
    kv_token_s=0.0315e-6,
    host_s=0.5e-3,
)

_H200_FA3 = replace(_H200, name="h200-fa3", attention_s=0.85e-9)
"""The same with attention kernels of FlashAttention 3's class for prompts: 0.76 to 0.91 ns were measured."""

_H100 = replace(
    _H200, name="h100", step_s=4.66e-3 * 4.8 / 3.35, kv_token_s=0.0315e-6 * 4.8 / 3.35, kv_tokens=450_000
)
"""Projected, not measured: what is bound by memory takes longer by the ratio of the bandwidths (4.8 and 3.35
TB/s), what is bound by arithmetic does not; 80 GB hold half the cache."""

_SLOW_HOST_S = 6e-3

PROFILES: Mapping[str, EngineProfile] = MappingProxyType(
    {
        **{each.name: each for each in (_H200, _H200_FA3, _H100)},
        **{
            f"{each.name}-slow-host": replace(each, name=f"{each.name}-slow-host", host_s=_SLOW_HOST_S)
            for each in (_H200, _H200_FA3, _H100)
        },
        # For eyes, not for claims: brisk answers, and so few places that queues can be seen by hand.
        "demo": replace(_H200, name="demo", token_s=10e-6, kv_tokens=60_000, max_sequences=16),
    }
)
"""The named profiles. profiles.py reads others from files."""


def profile(name: str, **changes: float) -> EngineProfile:
    """The profile called `name` with some fields changed, e.g. `profile("h200", speed=50)`.

    Raises KeyError for an unknown name, TypeError for an unknown field, ValueError for a bad value.
    """
    # mypy cannot know that each field is given a value of its own type; __post_init__ checks the values.
    return replace(PROFILES[name], **changes)  # type: ignore[arg-type]


class CapacityError(ValueError):
    """A sequence that could never fit: prompt and output exceed the whole cache."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine. It is decided at `start`; what it produced can be seen at `end`."""

    number: int
    start: float
    end: float
    admitted: tuple[Hashable, ...]
    """Sequences that left the queue."""
    produced: tuple[Hashable, ...]
    """Sequences that got one more token, the first one included."""
    finished: tuple[Hashable, ...]
    """Those of `produced` whose `max_tokens` is reached; they hold nothing any more."""
    preempted: tuple[Hashable, ...]
    """Sequences sent back to the queue for want of memory."""
    prompt_tokens: int
    """Prompt tokens computed, recomputed ones included."""
    decoding: int
    """Sequences that decoded."""
    kv_tokens: int
    """Cached tokens that they read."""
    kv_used: int
    """Cache in use at the end."""

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A snapshot. `submitted == finished + cancelled + running + waiting` holds at any time."""

    running: int
    waiting: int
    kv_used: int
    kv_capacity: int
    steps: int
    busy_s: float
    submitted: int
    finished: int
    cancelled: int
    preempted: int
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class _Sequence:
    id: Hashable
    prompt: int
    max_tokens: int
    target: int
    """Tokens to compute before the next token can come: the prompt, after a preemption also the output."""
    computed: int = 0
    produced: int = 0
    held: int = 0


class Engine:
    """One engine. Not thread-safe; nothing in it waits."""

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self._waiting: OrderedDict[Hashable, _Sequence] = OrderedDict()
        self._running: OrderedDict[Hashable, _Sequence] = OrderedDict()  # in order of admission
        self._kv_used = 0
        self._busy_until = 0.0
        self._steps = 0
        self._busy_s = 0.0
        self._submitted = 0
        self._finished = 0
        self._cancelled = 0
        self._preempted = 0
        self._prompt_tokens = 0
        self._output_tokens = 0

    def __repr__(self) -> str:
        return f"<Engine {self.profile.name}: {len(self._running)} running, {len(self._waiting)} waiting>"

    # ------------------------------------------------------------------------------------ requests

    def submit(
        self, now: float, sequence: Hashable, prompt_tokens: int, max_tokens: int, cached_tokens: int = 0
    ) -> None:
        """Put a sequence at the end of the queue. `n` answers to one prompt are `n` sequences.
        `cached_tokens` of the prompt need no computing (at most all but one).

        The output has exactly `max_tokens` tokens unless `finish` or `cancel` comes first: what is said,
        and so where it ends, is the caller's to know. Raises CapacityError, or ValueError for an id in use
        or a count below 1.
        """
        if sequence in self._waiting or sequence in self._running:
            raise ValueError(f"sequence {sequence!r} is here already")
        if prompt_tokens < 1 or max_tokens < 1:
            raise ValueError("a sequence needs at least one token of prompt and one of output")
        if prompt_tokens + max_tokens > self.profile.kv_tokens:
            raise CapacityError(
                f"{prompt_tokens} + {max_tokens} tokens exceed the cache of {self.profile.kv_tokens}"
            )
        self._waiting[sequence] = _Sequence(
            sequence,
            prompt_tokens,
            max_tokens,
            target=prompt_tokens,
            computed=min(cached_tokens, prompt_tokens - 1),
        )
        self._submitted += 1

    def finish(self, now: float, sequence: Hashable) -> bool:
        """The sequence said its last token (end of turn, stop string) before `max_tokens`; frees its place.

        False, and nothing happens, if it is not here.
        """
        found = self._remove(sequence)
        self._finished += found
        return found

    def cancel(self, now: float, sequence: Hashable) -> bool:
        """Drop the sequence, wherever it is. A token of the step under way is lost. False if not here."""
        found = self._remove(sequence)
        self._cancelled += found
        return found

    def phase(self, sequence: Hashable) -> Phase | None:
        """Where the sequence will be at the end of the step under way; None if it is not here.

        A preempted one that has spoken is in `decode`.
        """
        item = self._waiting.get(sequence)
        if item is not None:
            return "decode" if item.produced else "queued"
        item = self._running.get(sequence)
        if item is None:
            return None
        return "decode" if item.produced else "prefill"

    # --------------------------------------------------------------------------------------- steps

    def next_event(self, now: float) -> float | None:
        """When to call `step`: the end of the step under way, or `now`; None while there is no work."""
        if not self._running and not self._waiting:
            return None
        return max(now, self._busy_until)

    def step(self, now: float) -> Step | None:
        """Begin a step at `now`; None if there is no work. Raises ValueError while one is under way."""
        if now < self._busy_until:
            raise ValueError(f"the step under way ends at {self._busy_until}, not before {now}")
        if not self._running and not self._waiting:
            return None
        decoding = [item for item in self._running.values() if item.computed == item.target]
        preempted = self._make_room(decoding)
        kv_tokens = sum(item.held for item in decoding)
        for item in decoding:
            item.held += 1
        self._kv_used += len(decoding)

        budget = self.profile.step_tokens - len(decoding)
        prompt_tokens = 0
        attention = 0.0
        prompted: list[_Sequence] = []
        admitted: list[Hashable] = []
        unread = [item for item in self._running.values() if item.computed < item.target]
        while budget > 0:
            if unread:
                item = unread.pop(0)
            elif not preempted and (head := self._admit()) is not None:
                admitted.append(head.id)
                item = head
            else:
                break
            chunk = min(budget, item.target - item.computed)
            attention += chunk * (item.computed + chunk / 2)
            item.computed += chunk
            prompt_tokens += chunk
            budget -= chunk
            if item.computed == item.target:
                prompted.append(item)

        produced = decoding + prompted
        finished: list[Hashable] = []
        for item in produced:
            item.produced += 1
            if item.produced == item.max_tokens:
                finished.append(item.id)
        for sequence in finished:
            self._remove(sequence)

        duration = self.profile.step_time(prompt_tokens + len(decoding), attention, kv_tokens, len(decoding))
        self._busy_until = now + duration
        self._busy_s += duration
        self._steps += 1
        self._finished += len(finished)
        self._preempted += len(preempted)
        self._prompt_tokens += prompt_tokens
        self._output_tokens += len(produced)
        return Step(
            number=self._steps,
            start=now,
            end=self._busy_until,
            admitted=tuple(admitted),
            produced=tuple(item.id for item in produced),
            finished=tuple(finished),
            preempted=tuple(preempted),
            prompt_tokens=prompt_tokens,
            decoding=len(decoding),
            kv_tokens=kv_tokens,
            kv_used=self._kv_used,
        )

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_used=self._kv_used,
            kv_capacity=self.profile.kv_tokens,
            steps=self._steps,
            busy_s=self._busy_s,
            submitted=self._submitted,
            finished=self._finished,
            cancelled=self._cancelled,
            preempted=self._preempted,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )

    def _admit(self) -> _Sequence | None:
        """The head of the queue with the cache for its whole prompt, or None if it does not fit yet."""
        if not self._waiting or len(self._running) >= self.profile.max_sequences:
            return None
        item = next(iter(self._waiting.values()))
        if self._kv_used + item.target > self.profile.kv_tokens:
            return None
        del self._waiting[item.id]
        self._running[item.id] = item
        item.held = item.target
        self._kv_used += item.held
        return item

    def _make_room(self, decoding: list[_Sequence]) -> list[Hashable]:
        """Take the cache of the youngest until each of `decoding` (shortened in place) can get a token more.

        The oldest always stays: `submit` lets nothing in that does not fit alone.
        """
        preempted: list[Hashable] = []
        while self._kv_used + len(decoding) > self.profile.kv_tokens and len(self._running) > 1:
            _, victim = self._running.popitem(last=True)
            self._kv_used -= victim.held
            victim.target = victim.prompt + victim.produced
            victim.computed = victim.held = 0
            self._waiting[victim.id] = victim
            self._waiting.move_to_end(victim.id, last=False)
            preempted.append(victim.id)
            if decoding and decoding[-1] is victim:  # both lists are in order of admission
                decoding.pop()
        return preempted

    def _remove(self, sequence: Hashable) -> bool:
        item = self._running.pop(sequence, None) or self._waiting.pop(sequence, None)
        if item is None:
            return False
        self._kv_used -= item.held
        return True
