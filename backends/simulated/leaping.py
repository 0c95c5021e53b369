"""The same engine as engine.py, for replays: it jumps over the steps in which nothing happens.

`Engine` touches every running sequence in every step. Here a sequence is touched when it is admitted, at its
first token and at its end. While the same sequences decode and no prompt is read, the i-th of k steps takes

    c + d*(K + A*i)        c: all that does not depend on the cache; A sequences that read K tokens at first

so the k steps take k*(c + d*K) + d*A*k*(k-1)/2. Such a stretch lasts until the first of them has said its
last token or the cache is full; whatever is submitted or cancelled meanwhile cuts it at the end of the step
under way, which is when a step-by-step engine would look at it too. Steps with prompts in them are taken one
by one.

A sequence's own count is not kept: it joins the decoding ones at some value of the engine's count of decode
steps, and leaves at another.
"""

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from backends.simulated.engine import CapacityError, EngineProfile, EngineStatistics

__all__ = ["LeapingEngine", "Stretch"]


@dataclass(slots=True)
class Stretch:
    """Some steps of an engine in a row; only the last one of them may have told anything."""

    start: float
    end: float
    steps: int
    started: list[Hashable]
    """Sequences whose first token came at `end`."""
    resumed: list[Hashable]
    """Sequences that gave way once and said another token at `end`."""
    finished: list[Hashable]
    """Sequences whose last token came at `end`; they hold nothing any more."""
    preempted: list[Hashable]
    """Sequences that went back to the queue at `start`."""


class _Sequence:
    __slots__ = (
        "cached", "computed", "dropped", "id", "joined", "leaves", "max_tokens", "prompt", "said", "target",
    )  # fmt: skip

    def __init__(self, id: Hashable, prompt: int, max_tokens: int, cached: int) -> None:  # noqa: A002  # its name
        self.id = id
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.target = prompt
        self.cached = cached
        self.computed = 0
        self.said = 0
        """Tokens until it last joined."""
        self.joined = -1
        """The engine's decode steps when it joined the decoding ones; -1: it does not decode."""
        self.leaves = -1
        self.dropped = False


class LeapingEngine:
    """One engine, as `Engine`, but told by `advance` what happened at the end of each stretch."""

    def __init__(self, profile: EngineProfile, *, longest: int = 1 << 30) -> None:
        """`longest`: steps of a stretch at most, for a caller that wants to look now and then."""
        self.profile = profile
        self._longest = longest
        self._waiting: OrderedDict[Hashable, _Sequence] = OrderedDict()
        self._running: OrderedDict[Hashable, _Sequence] = OrderedDict()  # in order of admission
        self._reading: list[_Sequence] = []  # of these, the ones whose prompt is not computed; in that order
        self._ends: list[tuple[int, int, _Sequence]] = []  # (value of _decoded, tie, who)
        self._tie = 0
        self._decoding = 0
        self._decoded = 0  # decode steps ever made
        self._kv_read = 0  # cache of the decoding ones
        self._kv_used = 0
        self._dropped: list[_Sequence] = []
        self._stretch: Stretch | None = None
        self._prompted: list[_Sequence] = []  # their prompts end with the step under way
        self._steps = 0
        self._busy_s = 0.0
        self._submitted = 0
        self._finished = 0
        self._cancelled = 0
        self._preempted = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        p = profile
        self._kv_s = p.kv_token_s / p.speed
        self._bare_s: dict[int, float] = {}  # sequences -> seconds of a decode step that reads no cache

    def __repr__(self) -> str:
        return (
            f"<LeapingEngine {self.profile.name}: {len(self._running)} running, {len(self._waiting)} waiting>"
        )

    # ------------------------------------------------------------------------------------ requests

    def submit(
        self, now: float, sequence: Hashable, prompt_tokens: int, max_tokens: int, cached_tokens: int = 0
    ) -> None:
        """As `Engine.submit`. `cached_tokens` of the prompt need no computing (at most all but one).

        `advance` must have been called up to `now`.
        """
        if sequence in self._waiting or sequence in self._running:
            raise ValueError(f"sequence {sequence!r} is here already")
        if prompt_tokens < 1 or max_tokens < 1:
            raise ValueError("a sequence needs at least one token of prompt and one of output")
        if prompt_tokens + max_tokens > self.profile.kv_tokens:
            raise CapacityError(
                f"{prompt_tokens} + {max_tokens} tokens exceed the cache of {self.profile.kv_tokens}"
            )
        cached = min(cached_tokens, prompt_tokens - 1)
        self._waiting[sequence] = _Sequence(sequence, prompt_tokens, max_tokens, cached)
        self._submitted += 1
        self._cut(now)

    def cancel(self, now: float, sequence: Hashable) -> bool:
        """As `Engine.cancel`: a token of the step under way is lost. False if it is not here, or if that step
        is its last."""
        item = self._waiting.pop(sequence, None)
        if item is not None:
            self._cancelled += 1
            self._cut(now)  # whoever stood behind it may fit
            return True
        item = self._running.get(sequence)
        if item is None or item.dropped:
            return False
        self._cut(now)
        stretch = self._stretch
        if stretch is not None and (
            (item.joined >= 0 and item.leaves == self._decoded + stretch.steps)
            or (item.max_tokens - item.said == 1 and item in self._prompted)
        ):
            return False
        item.dropped = True
        self._cancelled += 1
        if stretch is None:
            self._drop(item)
        else:
            self._dropped.append(item)
        return True

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def streamed(self, now: float) -> int:
        """Decode steps ended by `now` in all: the difference of two values is what any sequence, that decoded
        at both times, has said in between."""
        stretch = self._stretch
        if stretch is None or not self._decoding or now <= stretch.start:
            return self._decoded
        return self._decoded + self._ended(now, stretch)

    # ---------------------------------------------------------------------------------------- time

    def next_event(self, now: float) -> float | None:
        """When to call `advance`: the end of the stretch under way, or `now`; None while there is no work.

        Earlier than it was said before, if a sequence was submitted or cancelled since.
        """
        if self._stretch is not None:
            return self._stretch.end
        return now if self._running or self._waiting else None

    def advance(self, now: float) -> Stretch | None:
        """End the stretch that ends at `now`, if there is one, and begin the next. Returns what has ended."""
        ended = self._stretch
        if ended is not None:
            if now < ended.end:
                raise ValueError(f"the stretch under way ends at {ended.end}, not before {now}")
            self._end(ended)
            now = ended.end
        self._stretch = self._begin(now) if self._running or self._waiting else None
        return ended

    def statistics(self) -> EngineStatistics:
        """As of the end of the last stretch."""
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

    # -------------------------------------------------------------------------------------- inside

    def _begin(self, now: float) -> Stretch:
        preempted: list[Hashable] = []
        if self._kv_used + self._decoding > self.profile.kv_tokens:
            self._make_room(preempted)
        reading = self._reading
        if reading or (self._waiting and not preempted and self._fits()):
            return self._read(now, preempted)
        count = self._decoding
        steps = self._longest
        ends = self._ends
        while ends[0][2].leaves != ends[0][0] or ends[0][2].joined < 0:
            heapq.heappop(ends)  # cancelled or sent back since
        steps = min(steps, ends[0][0] - self._decoded, (self.profile.kv_tokens - self._kv_used) // count)
        if preempted:
            steps = 1  # whoever gave way may fit again in the next step
        return Stretch(now, now + self._seconds(steps), steps, [], [], [], preempted)

    def _read(self, now: float, preempted: list[Hashable]) -> Stretch:
        """One step with prompts in it."""
        decoding = self._decoding
        budget = self.profile.step_tokens - decoding
        tokens = 0
        attention = 0.0
        reading, prompted = self._reading, self._prompted
        index = 0
        while budget > 0:
            if index == len(reading):
                if preempted or not self._waiting or not self._fits():
                    break
                self._admit()
            item = reading[index]
            chunk = item.target - item.computed
            if chunk > budget:
                chunk = budget
            attention += chunk * (item.computed + chunk / 2)
            item.computed += chunk
            tokens += chunk
            budget -= chunk
            if item.computed == item.target:
                prompted.append(item)
            index += 1
        if prompted:
            del reading[: len(prompted)]
        self._prompt_tokens += tokens
        seconds = self.profile.step_time(tokens + decoding, attention, self._kv_read, decoding)
        return Stretch(now, now + seconds, 1, [], [], [], preempted)

    def _end(self, stretch: Stretch) -> None:
        steps = stretch.steps
        self._stretch = None
        self._steps += steps
        self._busy_s += stretch.end - stretch.start
        if self._decoding:
            self._decoded += steps
            added = steps * self._decoding
            self._kv_read += added
            self._kv_used += added
            self._output_tokens += added
            ends, decoded = self._ends, self._decoded
            while ends and ends[0][0] <= decoded:
                _, _, item = heapq.heappop(ends)
                if item.leaves == decoded and item.joined >= 0:
                    self._leave(item)
                    del self._running[item.id]
                    stretch.finished.append(item.id)
        for item in self._prompted:
            self._output_tokens += 1
            item.said += 1
            (stretch.started if item.said == 1 else stretch.resumed).append(item.id)
            if item.said == item.max_tokens:
                del self._running[item.id]
                self._kv_used -= item.target
                stretch.finished.append(item.id)
                continue
            item.joined = self._decoded
            item.leaves = self._decoded + item.max_tokens - item.said
            self._decoding += 1
            self._kv_read += item.target
            self._tie += 1
            heapq.heappush(self._ends, (item.leaves, self._tie, item))
        self._prompted.clear()
        self._finished += len(stretch.finished)
        if self._dropped:
            for item in self._dropped:
                self._drop(item)
            self._dropped.clear()

    def _leave(self, item: _Sequence) -> None:
        """It decodes no more; gives back its cache."""
        said = self._decoded - item.joined
        item.said += said
        item.joined = -1
        held = item.target + said
        self._decoding -= 1
        self._kv_read -= held
        self._kv_used -= held

    def _drop(self, item: _Sequence) -> None:
        del self._running[item.id]
        if item.joined >= 0:
            self._leave(item)
        else:
            self._reading.remove(item)
            self._kv_used -= item.target

    def _fits(self) -> bool:
        if len(self._running) >= self.profile.max_sequences:
            return False
        taken = self._kv_used + self._decoding  # the decoding ones take their places first
        return taken + next(iter(self._waiting.values())).target <= self.profile.kv_tokens

    def _admit(self) -> None:
        _, item = self._waiting.popitem(last=False)
        self._running[item.id] = item
        self._reading.append(item)
        self._kv_used += item.target
        item.computed = item.cached

    def _make_room(self, preempted: list[Hashable]) -> None:
        while self._kv_used + self._decoding > self.profile.kv_tokens and len(self._running) > 1:
            _, victim = self._running.popitem(last=True)
            if victim.joined >= 0:
                self._leave(victim)
            else:
                self._reading.remove(victim)
                self._kv_used -= victim.target
            victim.target = victim.prompt + victim.said
            victim.cached = victim.computed = 0
            self._waiting[victim.id] = victim
            self._waiting.move_to_end(victim.id, last=False)
            preempted.append(victim.id)
            self._preempted += 1

    def _cut(self, now: float) -> None:
        """Let the stretch under way end with the step under way."""
        stretch = self._stretch
        if stretch is None or stretch.steps == 1:
            return
        done = self._ended(now, stretch)
        steps = min(done + 1, stretch.steps)
        if done and stretch.start + self._seconds(done) >= now:
            steps = done  # `now` is the very end of a step
        stretch.steps = steps
        stretch.end = stretch.start + self._seconds(steps)

    def _ended(self, now: float, stretch: Stretch) -> int:
        """How many of its steps have ended by `now`."""
        if now >= stretch.end:
            return stretch.steps
        if stretch.steps == 1:
            return 0
        first = self._seconds(1)
        steps = min(int((now - stretch.start) / first), stretch.steps)  # no step is shorter than the first
        while steps and stretch.start + self._seconds(steps) > now:
            steps -= 1
        return steps

    def _seconds(self, steps: int) -> float:
        """What so many decode steps take from here."""
        count = self._decoding
        bare = self._bare_s.get(count)
        if bare is None:
            bare = self._bare_s[count] = self.profile.step_time(count, sequences=count)
        return steps * (bare + self._kv_s * self._kv_read) + self._kv_s * count * (steps * (steps - 1) // 2)
