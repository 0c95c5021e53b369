"""What the gateway itself has in flight on each replica, and the leases that keep the books straight.

The ledger is the gateway's own record of what it sent: engines' gauges lag by seconds, this never does.
Every change is synchronous; whoever takes a slot gets a `Slot`, whose `release` is idempotent.

Beside the count of requests, four sums over the slots of a replica tell how busy it is:

    unstarted_tokens    uncached prompt tokens without a first token yet: what a newcomer waits for
    kv_reserved         prompt and expected output: the cache that will be needed
    kv_seen             prompt and output so far: the cache that each step reads
    outstanding_tokens  what is expected still to be computed

The first `progress` of a slot is its first token. An engine that does not stream shows none before the end:
`Slot.expect_first` says when to take it for come.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal

from backends.contract import Engine, EngineError, EngineLimits, ErrorKind, Load, TransportError
from gateway.config.snapshot import PriorityClass, Replica
from gateway.fleet.reported import NO_LOAD, Reported
from gateway.fleet.step_model import StepModel
from gateway.state.overlay import Drain

COOL_DOWN_FIRST = 1.0
COOL_DOWN_MAX = 30.0
"""Seconds that a replica is avoided after it could not be connected to: doubling from first to max."""

LEARN_FROM = 512
"""Uncached prompt tokens below which the time to first token says too little about the engine."""
LEARN_EVERY = 0.05
"""Seconds between two first tokens that a replica's model learns from."""
STRETCH = 8
"""Output tokens over which the time between tokens is measured."""


Hold = Literal["asleep", "warming"]
"""Why a replica that nobody drained gets no requests: its pool sleeps (gateway/activation/), or it is sent
its warm-up requests first."""


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """A replica's books at one moment."""

    id: str
    url: str
    in_flight: int
    outstanding_tokens: int
    """Expected tokens still to be computed for the requests in flight."""
    cooling_for: float
    """Seconds for which the replica is still avoided; 0 when it is not."""
    last_error: str | None
    requests_total: int
    ready: bool | None
    """What the last probe said; None before the first one."""
    drained: Drain | None
    """Who took it out of service, and when; None where nobody did."""
    told: EngineLimits
    """What it said of its limits."""
    unstarted_tokens: int = 0
    """Uncached prompt tokens sent, and no first token seen yet."""
    kv_reserved: int = 0
    """Prompt and expected output tokens in flight."""
    kv_seen: int = 0
    """Prompt and output tokens so far, of the requests in flight."""
    slowness: float = 1.0
    """Its measured prefill time as a multiple of the reference engine's."""
    load: Load = NO_LOAD
    """What it says of its own load, everybody's requests together; each figure as it was told last."""
    load_age: float | None = None
    """Seconds since it told any of that."""
    foreign: int = 0
    """Requests there that are not this gateway's."""
    hold: Hold | None = None
    """Why it gets no requests for now; None: it may have them."""


class ReplicaLedger:
    """One replica: its engine, what is in flight on it, and whether it is avoided for now."""

    def __init__(
        self,
        replica: Replica,
        engine: Engine,
        clock: Callable[[], float],
        model: StepModel | None = None,
    ) -> None:
        """`model`: what is known of its pace; None: nothing yet."""
        self.replica = replica
        self.engine = engine
        self.in_flight = 0
        self.outstanding_tokens = 0
        self.unstarted_tokens = 0
        self.unstarted_long = 0
        """Requests of the long lane without a first token."""
        self.kv_reserved = 0
        self.kv_seen = 0
        self.by_class: Counter[PriorityClass] = Counter()
        """Requests in flight per class, as far as their schedulers say."""
        self.sent_tokens = 0
        """Uncached prompt tokens ever sent."""
        self.model = model or StepModel()
        self.adapters: dict[str, float] = {}
        """LoRA adapter -> when it was last sent here."""
        self.back_since: float | None = None
        """When it joined a fleet that was running, or came back to it; None: it was here from the start."""
        self.requests_total = 0
        self.last_error: str | None = None
        self.ready: bool | None = None
        self.closed = False
        """It gets no new requests, whatever becomes of the others: it is drained, or on hold."""
        self._drained: Drain | None = None
        self._hold: Hold | None = None
        self.told = EngineLimits()
        """What it said of its limits when it was last asked."""
        self.reported = Reported()
        """What it said of its load."""
        self.clock = clock
        self.avoid_until = 0.0
        self._watchers: list[tuple[Callable[[], None], Callable[[ReplicaLedger], None] | None]] = []
        self._expected: list[tuple[float, int, Slot]] = []
        self._order = count()
        self._probe: Slot | None = None
        self._learn_at = float("-inf")
        self._failures = 0

    @property
    def drained(self) -> Drain | None:
        """Who took it out of service, and when; None where nobody did."""
        return self._drained

    @drained.setter
    def drained(self, drained: Drain | None) -> None:
        self._drained = drained
        self.closed = drained is not None or self._hold is not None

    @property
    def hold(self) -> "Hold | None":
        """Why it gets no requests for now, though nobody took it out of service; None: it may have them."""
        return self._hold

    @hold.setter
    def hold(self, hold: "Hold | None") -> None:
        self._hold = hold
        self.closed = hold is not None or self._drained is not None

    @property
    def absent(self) -> bool:
        """Whether nobody should wait for it: drained, or asleep. One that is warmed up is there soon."""
        return self._drained is not None or self._hold == "asleep"

    def cooling(self) -> bool:
        """Whether the replica failed to answer lately and should be left alone if others can serve."""
        return self.ready is False or self.clock() < self.avoid_until

    def failed(self, error: EngineError) -> None:
        """Note an attempt that failed, unless the request was at fault.

        An engine may quote its client, so its words are kept only where they are our own transport's.
        """
        if error.kind.is_refusal:
            return
        told = isinstance(error.__cause__, TransportError) or error.kind is ErrorKind.TIMEOUT
        self.last_error = error.kind.value
        if told:
            self.last_error += f": {error.message[:200]}"
        elif error.status is not None:
            self.last_error += f": status {error.status}"

    def avoid(self) -> float:
        """Leave the replica alone for a while: it could not be reached, or did not answer in time.

        Returns the seconds of it. Requests that fail together count once: while the replica is avoided
        already, nothing is added.
        """
        now = self.clock()
        if now >= self.avoid_until:
            self.avoid_until = now + min(COOL_DOWN_FIRST * 2**self._failures, COOL_DOWN_MAX)
            self._failures = min(self._failures + 1, 16)
        return self.avoid_until - now

    def reached(self) -> None:
        """Note that the replica answers again."""
        if self._failures:
            self.back_since = self.clock()
        self.last_error = None
        self._failures = 0
        self.avoid_until = 0.0

    def usable(self) -> bool:
        """Whether the replica should be tried: neither drained, nor on hold, nor avoided."""
        return not self.closed and not self.cooling()

    def watch(
        self, changed: Callable[[], None], freed: "Callable[[ReplicaLedger], None] | None" = None
    ) -> None:
        """Call `freed` when this replica has more room than before (a slot came back, a prompt is computed),
        `changed` when it may have become better or worse in any other way; without `freed`, both alike.

        More than one queue may draw on a replica: after a reload, that of each configuration still in use.
        """
        self._watchers.append((changed, freed))

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers = [each for each in self._watchers if each[0] != changed]

    def changed(self) -> None:
        """Tell those that wait for this replica; the oldest configuration first."""
        for changed, _ in tuple(self._watchers):
            changed()

    def freed(self) -> None:
        """Tell those that wait for this replica that it has more room; the oldest configuration first."""
        for changed, freed in self._watchers if len(self._watchers) == 1 else tuple(self._watchers):
            if freed is None:
                changed()
            else:
                freed(self)

    def expire(self, now: float) -> bool:
        """Take for come the first tokens that were expected by `now`. Returns whether there were any."""
        found = False
        while self._expected and self._expected[0][0] <= now:
            found = heapq.heappop(self._expected)[2].start() or found
        return found

    def next_expected(self) -> float | None:
        """When `expire` has something to do."""
        return self._expected[0][0] if self._expected else None

    def load(self) -> float:
        """Outstanding tokens per unit of weight; the picker takes the least."""
        return self.outstanding_tokens / self.replica.weight

    def take(
        self,
        prompt_tokens: int,
        output_tokens: int,
        on_release: Callable[[], None],
        *,
        uncached: int | None = None,
        long: bool = False,
        priority: PriorityClass | None = None,
    ) -> "Slot":
        """Enter a request of that many expected tokens into the books.

        `uncached`: prompt tokens that the engine must compute; None for all of them.
        """
        return Slot(
            self,
            prompt_tokens,
            output_tokens,
            on_release,
            prompt_tokens if uncached is None else uncached,
            long,
            priority,
        )

    def statistics(self) -> ReplicaStatistics:
        now = self.clock()
        age = self.reported.age(now)
        return ReplicaStatistics(
            id=self.replica.id,
            url=self.replica.url,
            in_flight=self.in_flight,
            outstanding_tokens=self.outstanding_tokens,
            cooling_for=round(max(0.0, self.avoid_until - now), 3),
            last_error=self.last_error,
            requests_total=self.requests_total,
            ready=self.ready,
            drained=self.drained,
            told=self.told,
            unstarted_tokens=self.unstarted_tokens,
            kv_reserved=self.kv_reserved,
            kv_seen=self.kv_seen,
            slowness=round(self.model.slowness, 3),
            load=self.reported.load,
            load_age=None if age is None else round(age, 3),
            foreign=self.reported.foreign(now),
            hold=self.hold,
        )


class Slot:
    """A lease on a replica: one request, and the tokens it is still expected to cost there."""

    __slots__ = (
        "_before", "_kv", "_long", "_mark", "_marked_at", "_marked_sent", "_on_release", "_output",
        "_priority", "_prompt", "_sent_mark", "_step", "_uncached", "_unstarted", "hit", "ledger",
        "on_cached", "reserved", "sent", "stop", "streamed", "taken_back",
    )  # fmt: skip

    def __init__(
        self,
        ledger: ReplicaLedger,
        prompt_tokens: int,
        output_tokens: int,
        on_release: Callable[[], None],
        uncached: int,
        long: bool,
        priority: PriorityClass | None,
    ) -> None:
        self.ledger = ledger
        self.sent = ledger.clock()
        """When the slot was taken."""
        self.hit = 0
        """Tokens of the prompt that its engine is taken to have in its cache."""
        self.on_cached: Callable[[int | None], None] | None = None
        """To be called, where it is set, when the engine has told how much of the prompt it had in its cache;
        None: it told its usage, and nothing of that."""
        self.streamed = 0
        """Output tokens so far."""
        self.reserved = prompt_tokens + output_tokens
        """Cache held for it in the books, tokens."""
        self.stop: Callable[[], None] | None = None
        """Set by its holder while it can be taken back: makes the holder give up what it has sent. Must not
        ask for another slot before it returns."""
        self.taken_back = False
        self._prompt = prompt_tokens
        self._output = output_tokens
        self._unstarted = True
        self._uncached = uncached
        self._long = long
        self._priority = priority
        self._kv = prompt_tokens
        self._before = ledger.unstarted_tokens
        self._step = ledger.model.step(ledger.in_flight, ledger.kv_seen)
        self._on_release: Callable[[], None] | None = on_release
        self._mark = 0
        self._marked_at = 0.0
        self._marked_sent = -1
        ledger.in_flight += 1
        ledger.requests_total += 1
        ledger.outstanding_tokens += prompt_tokens + output_tokens
        ledger.unstarted_tokens += uncached
        ledger.unstarted_long += long
        ledger.kv_reserved += self.reserved
        ledger.kv_seen += prompt_tokens
        ledger.sent_tokens += uncached
        self._sent_mark = ledger.sent_tokens
        if priority is not None:
            ledger.by_class[priority] += 1

    @property
    def started(self) -> bool:
        """Whether the prompt has been computed, as far as can be seen."""
        return not self._unstarted

    @property
    def unstarted_tokens(self) -> int:
        """Prompt tokens that are still to be computed, as far as can be seen."""
        return self._uncached if self._unstarted else 0

    def take_back(self) -> None:
        """Release it under its holder, who is told to stop. Only while `stop` is set."""
        stop, self.stop = self.stop, None
        assert stop is not None, "its holder lets it go"
        self.taken_back = True
        self.release()
        stop()

    def progress(self, tokens: int) -> None:
        """`tokens` output tokens came; the first of them shows that the prompt has been computed."""
        if self._on_release is None:
            return
        ledger = self.ledger
        self.streamed += tokens
        self._kv += tokens
        ledger.kv_seen += tokens
        if self._kv > self.reserved:
            ledger.kv_reserved += self._kv - self.reserved
            self.reserved = self._kv
        done = tokens if tokens < self._output else self._output
        ledger.outstanding_tokens -= self._prompt + done
        self._prompt = 0
        self._output -= done
        if self._unstarted:
            self._learn_prefill()
            self.start()
            ledger.freed()
        elif ledger._probe is self:
            self._learn_step()
        elif ledger._probe is None:
            ledger._probe = self

    def expect_first(self, at: float) -> None:
        """Take the prompt for computed at that time, for want of a stream that shows it."""
        heapq.heappush(self.ledger._expected, (at, next(self.ledger._order), self))

    def start(self) -> bool:
        """The prompt has been computed. Returns whether that is news. Tells nobody."""
        if not self._unstarted:
            return False
        self._unstarted = False
        self.ledger.unstarted_tokens -= self._uncached
        self.ledger.unstarted_long -= self._long
        return True

    def release(self) -> None:
        """Give the slot back. Idempotent; never waits."""
        on_release, self._on_release = self._on_release, None
        if on_release is None:
            return
        ledger = self.ledger
        if ledger._probe is self:
            ledger._probe = None
        if self._unstarted:
            # Not `start`: `started` goes on telling how far it came.
            ledger.unstarted_tokens -= self._uncached
            ledger.unstarted_long -= self._long
            self._uncached, self._long = 0, False
        ledger.in_flight -= 1
        ledger.outstanding_tokens -= self._prompt + self._output
        ledger.kv_reserved -= self.reserved
        ledger.kv_seen -= self._kv
        if self._priority is not None:
            ledger.by_class[self._priority] -= 1
        on_release()

    def _learn_prefill(self) -> None:
        """The first token came. Of use if this prompt was nearly alone before the engine all the time."""
        ledger, tokens = self.ledger, self._uncached
        others = self._before + ledger.sent_tokens - self._sent_mark
        if tokens < LEARN_FROM or others > 0.3 * tokens:
            return
        now = ledger.clock()
        if now < ledger._learn_at:
            return
        ledger._learn_at = now + LEARN_EVERY
        # It came in the middle of a step, and in its own step there were decodes too.
        seconds = now - self.sent - (1.5 if ledger.in_flight > 1 else 1.0) * self._step
        ledger.model.observe_prefill(tokens + others // 2, max(seconds, 0.1 * ledger.model.prefill(tokens)))

    def _learn_step(self) -> None:
        """Some tokens later: the time between them, if no prompt came in between."""
        done = self.streamed - self._mark
        if done < STRETCH:
            return
        ledger = self.ledger
        now = ledger.clock()
        if self._marked_sent == ledger.sent_tokens:
            ledger.model.observe_step(ledger.in_flight, ledger.kv_seen, (now - self._marked_at) / done)
        self._mark = self.streamed
        self._marked_at = now
        self._marked_sent = -1 if ledger.unstarted_tokens else ledger.sent_tokens
