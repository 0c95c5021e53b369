"""The simulated side of a replay: engines that leap, and ledgers that hear of it as a live gateway would.

A live gateway enters every streamed token in its ledger. Here a replica's tokens are entered all at once
after each stretch of its engine (at most LISTEN steps); the slots themselves are told when something happens
to them: at their first token, when they have said what was expected of them, and at their end. One slot of
each replica is told after every stretch, so that its step model learns from it.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from backends.contract import EngineAdapter, GenerateRequest, Generation
from backends.simulated.engine import EngineProfile
from backends.simulated.leaping import LeapingEngine
from gateway.config.snapshot import Replica
from gateway.fleet.ledger import ReplicaLedger, Slot

__all__ = ["BLOCK", "PrefixCache", "ReplayLedger", "ReplayReplica", "Speaker", "bare_prefill"]

LISTEN = 8
"""Steps after which the ledger hears what was streamed, at the latest."""
BLOCK = 512
"""Prompt tokens per hashed block of a trace (Mooncake's)."""


class _NoEngine:
    """Stands where a live gateway has its HTTP client. Nothing is sent in a replay."""

    adapter: EngineAdapter

    async def generate(self, request: GenerateRequest) -> Generation:
        raise NotImplementedError("a replay sends nothing")


class ReplayLedger(ReplicaLedger):
    """A replica's books, to which the tokens of all its slots are told in one."""

    def __init__(self, replica: Replica, clock: Callable[[], float]) -> None:
        super().__init__(replica, _NoEngine(), clock)

    def streamed(self, steps: int, under: int, over: int) -> None:
        """`under` slots that have said less than was expected, and `over` that have said it all, said `steps`
        tokens more, each; the slots do not know."""
        self.kv_seen += steps * (under + over)
        self.outstanding_tokens -= steps * under
        self.kv_reserved += steps * over

    def forget(self, tokens: int, *, over: bool) -> None:
        """Take back so many tokens of one slot, which is about to be told of them itself."""
        self.kv_seen -= tokens
        if over:
            self.kv_reserved -= tokens
        else:
            self.outstanding_tokens += tokens


class PrefixCache:
    """What an engine remembers of prompts: blocks, the one that was unused for longest goes first."""

    def __init__(self, tokens: int) -> None:
        self._capacity = tokens // BLOCK
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hit(self, blocks: Sequence[int]) -> int:
        """Tokens of the leading blocks that are there."""
        known = 0
        for block in blocks:
            if block not in self._blocks:
                break
            known += 1
        for block in reversed(blocks[:known]):  # the ends of prompts are the first to go
            self._blocks.move_to_end(block)
        return known * BLOCK

    def add(self, blocks: Sequence[int]) -> None:
        if not self._capacity:
            return
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


class Speaker(Hashable, Protocol):
    """A request while an engine has it. What the replica keeps in it is below."""

    slot: Slot
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    streamed: bool

    told: int
    """Tokens that the slot knows of."""
    joined: int
    """The replica's count of decode steps when it had said `told` tokens; -1: it does not decode."""
    over: bool
    """It has said what was expected of it."""
    expected: int
    cached: int
    """Tokens of its prompt that the engine had."""


class _Seat:
    """One attempt of a request, as the engine knows it."""

    __slots__ = ("gone", "who")

    def __init__(self, who: Speaker) -> None:
        self.who = who
        self.gone = False
        """It was dropped: what the engine still tells of it is of no interest."""


class ReplayReplica:
    """An engine, its ledger, and what the gateway hears of one from the other."""

    def __init__(
        self,
        replica: Replica,
        profile: EngineProfile,
        clock: Callable[[], float],
        *,
        prefix_cache: int = 0,
    ) -> None:
        self.profile = profile
        self.engine = LeapingEngine(profile, longest=LISTEN)
        self.ledger = ReplayLedger(replica, clock)
        self.cache = PrefixCache(prefix_cache)
        self.hit_tokens = 0
        self._seats: dict[Speaker, _Seat] = {}
        self._decoded = 0
        self._under = self._over = 0
        self._passing: list[tuple[int, int, Speaker]] = []  # (value of _decoded, tie, who)
        self._tie = 0
        self._heard: dict[Speaker, None] = {}  # streams that decode, oldest first
        self._talker: Speaker | None = None

    def submit(self, now: float, who: Speaker) -> None:
        """Put it in the engine's queue. Raises CapacityError."""
        hit = self.cache.hit(who.blocks) if who.blocks else 0
        hit = min(hit, who.prompt_tokens - 1)
        self.hit_tokens += hit
        who.cached = hit
        seat = _Seat(who)
        self.engine.submit(now, seat, who.prompt_tokens, who.output_tokens, hit)
        self._seats[who] = seat

    def has(self, who: Speaker) -> bool:
        """Whether the engine has it."""
        return who in self._seats

    def drop(self, now: float, who: Speaker) -> None:
        """Its connection is closed: what the engine has computed for it is lost, and no more is heard."""
        seat = self._seats.pop(who)
        seat.gone = True
        self.engine.cancel(now, seat)
        self._leave(who)

    def speaking(self) -> list[tuple[Speaker, int]]:
        """Who streams, oldest first, and the tokens of each so far."""
        return [(who, who.told + self._decoded - who.joined) for who in self._heard]

    def advance(
        self, now: float, started: Callable[[Speaker], None], finished: Callable[[Speaker], None]
    ) -> None:
        """Let the engine go on; tell the ledger, and then the caller, of what has come."""
        stretch = self.engine.advance(now)
        if stretch is None:
            return
        for who in _present(stretch.preempted):
            self._leave(who)
        self._decoded += stretch.steps
        if self._under or self._over:
            self.ledger.streamed(stretch.steps, self._under, self._over)
            while self._passing and self._passing[0][0] <= self._decoded:
                _, _, who = heapq.heappop(self._passing)
                self._pass(who)
            if self._talker is not None:
                self._tell(self._talker)
        for who in _present(stretch.resumed):
            if who.streamed:
                who.slot.progress(1)
                who.told += 1
                self._join(who)
        for who in _present(stretch.started):
            self.cache.add(who.blocks)
            if who.streamed:
                who.told = 1
                self._join(who)
                who.slot.progress(1)
            started(who)
        for who in _present(stretch.finished):
            del self._seats[who]
            self._leave(who)
            rest = who.output_tokens - who.told
            if rest:
                who.slot.start()
                who.slot.progress(rest)
            if who.slot.on_cached is not None:
                who.slot.on_cached(who.cached)
            who.slot.release()
            finished(who)
        if self._talker is None and self._heard:
            self._talker = next(iter(self._heard))
            self._tell(self._talker)

    def _join(self, who: Speaker) -> None:
        who.joined = self._decoded
        who.over = who.told >= who.expected
        if who.over:
            self._over += 1
        else:
            self._under += 1
            self._tie += 1
            heapq.heappush(self._passing, (self._decoded + who.expected - who.told, self._tie, who))
        self._heard[who] = None

    def _leave(self, who: Speaker) -> None:
        """It decodes no more; its slot is told what it has said."""
        if who.joined < 0:
            return
        if who is self._talker:
            self._talker = None
        self._tell(who)
        who.joined = -1
        del self._heard[who]
        if who.over:
            self._over -= 1
        else:
            self._under -= 1

    def _tell(self, who: Speaker) -> None:
        tokens = self._decoded - who.joined
        if tokens:
            who.joined = self._decoded
            who.told += tokens
            self.ledger.forget(tokens, over=who.over)
            who.slot.progress(tokens)

    def _pass(self, who: Speaker) -> None:
        """It has just said what was expected of it, and perhaps a little more."""
        if who.joined < 0 or who.over or who.told + self._decoded - who.joined < who.expected:
            return
        self._tell(who)
        who.over = True
        self._under -= 1
        self._over += 1


def _present(seats: Iterable[Hashable]) -> Iterator[Speaker]:
    """Who they are, of those that were not dropped."""
    for seat in seats:
        assert isinstance(seat, _Seat), "we submit nothing else"
        if not seat.gone:
            yield seat.who


def bare_prefill(profile: EngineProfile, tokens: int) -> float:
    """Seconds to the first token on an idle engine, in chunks of its step budget."""
    seconds, read = 0.0, 0
    while read < tokens:
        chunk = min(profile.step_tokens, tokens - read)
        seconds += profile.step_time(chunk, chunk * (read + chunk / 2))
        read += chunk
    return seconds


def fleet_of(speeds: Sequence[float], profile: EngineProfile) -> list[EngineProfile]:
    """One profile per replica; a speed of 2.2 is that of an engine that takes 2.2 times as long."""
    return [replace(profile, speed=profile.speed / slowness) for slowness in speeds]
