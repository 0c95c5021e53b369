"""The digital twin: the gateway's own scheduler over simulated engines, in virtual time, without sockets.

One loop over four kinds of events, in order of time: a request arrives; one that was granted a slot reaches
its engine, `NETWORK` seconds later; an engine ends a stretch of steps; somebody has waited for a tick. Each
sets the clock and calls the same code that serves live traffic: `PoolScheduler.offer`, `Slot.progress`,
`Slot.release`, `PoolScheduler.dispatch`. What a policy sees is what it sees live: counted prompts,
`max_tokens`, lengths of past answers, and its own books.

A request has one outcome: completed, shed (refused for want of time or room), limited (refused by the limits
of the file, where it has some), or unfinished when the replay was given up, `patience` seconds after the last
arrival. Some are taken back on the way (`Policy.preempt`): their engine drops what it has computed for them,
and they stand in line again.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Literal, Protocol

from backends.simulated.engine import CapacityError, EngineProfile
from backends.simulated.leaping import LeapingEngine
from gateway.config.snapshot import HopReason, PriorityClass, Replica, Slo
from gateway.errors import QuotaExceeded
from gateway.fleet.ledger import ReplicaLedger, Slot
from gateway.limits.reservation import Reservation
from gateway.queueing.policies import Policy
from gateway.queueing.scheduler import Item, PoolScheduler, Refusal
from gateway.replay.fleet import ReplayReplica, Speaker
from gateway.replay.requests import TraceRequest
from gateway.tokens.estimating import ASSUMED_OUTPUT, OutputLengths

__all__ = [
    "NETWORK",
    "Journey",
    "Limits",
    "ReplayPool",
    "Replayed",
    "Router",
    "Sample",
    "Sight",
    "Stop",
    "Twin",
    "capacity",
    "expected_output",
    "pool_of",
    "replay",
]

NETWORK = 0.002
"""Seconds from the gateway to an engine."""
PATIENCE = 900.0
"""Seconds after the last arrival at which a replay is given up."""
SAMPLE_LEAST = 0.1
"""Seconds between two looks at the fleet, at least."""
NEVER = float("inf")
NOBODY: Mapping[str, int | None] = MappingProxyType({})

Outcome = Literal["completed", "shed", "limited", "failed", "unfinished"]
Budget = Callable[[int, int, Slo], float]
NOTHING = Slo()


@dataclass(frozen=True, slots=True)
class ReplayPool:
    """A pool of the twin: engines behind one scheduler."""

    name: str
    engines: tuple[EngineProfile, ...]
    policy: Policy
    in_flight: int | None = None
    """Requests at a time per engine, as the gateway knows it; None: unknown."""
    kv_tokens: int | None = None
    max_requests: int | None = None
    lends_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """One pool on a request's way, and when it goes on to the next one."""

    pool: str
    on: frozenset[HopReason] = frozenset()
    patience: float = float("inf")
    """Seconds that it waits there."""
    expected: int | None = None
    """Output tokens expected of it; None: the twin's own estimate."""
    max_tokens: int | None = None
    """What is sent, where the pool leaves less than was asked for."""
    lenders: Mapping[str, int | None] = field(default_factory=lambda: NOBODY)
    """Pools that may serve it while it waits here, each with its `max_tokens`."""
    priority: PriorityClass | None = None
    """The class as which it waits; None: its own."""
    spared: int | None = None
    """A brown-out has taken something from it: output tokens that were expected of it before. Its budget is
    still that of the request as it was asked."""
    slo: Slo = NOTHING
    """What the request was promised, where its way began; the same at each stop."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a router sees of the gateway."""

    lengths: OutputLengths = field(default_factory=OutputLengths)
    lines: Mapping[str, PoolScheduler] = field(default_factory=lambda: MappingProxyType({}))
    """By pool."""
    clock: Callable[[], float] = float


Router = Callable[[TraceRequest, Sight], Sequence[Stop]]
"""A request, and what there is to see, to its way; empty where no pool can take it."""


class Limits(Protocol):
    """What requests may use, in the twin's time."""

    def reserve(self, request: TraceRequest, way: Sequence[Stop]) -> Reservation:
        """Charge what a request is expected to use, at the first pool of its way whose limits grant it.

        Raises QuotaExceeded.
        """
        ...

    def move(self, reservation: Reservation, pool: str) -> None:
        """Hold the limits of this pool, and of no other. Raises QuotaExceeded."""
        ...


class Journey:
    """One request through the twin. Times are virtual seconds; NEVER where it did not come to that."""

    __slots__ = (
        "blocks",
        "bounded",
        "cached",
        "chain",
        "closed",
        "degraded",
        "end",
        "expected",
        "first",
        "item",
        "joined",
        "outcome",
        "output_tokens",
        "over",
        "position",
        "prompt_tokens",
        "replica",
        "request",
        "reservation",
        "sent",
        "slot",
        "streamed",
        "taken_back",
        "told",
    )  # fmt: skip

    def __init__(self, request: TraceRequest, expected: int, chain: Sequence[Stop] = ()) -> None:
        self.request = request
        self.chain = chain
        self.position = 0
        self.prompt_tokens = request.prompt_tokens
        self.output_tokens = request.output_tokens
        self.blocks = request.blocks
        self.streamed = request.streamed
        self.expected = expected
        self.outcome: Outcome = "unfinished"
        self.sent = self.first = self.end = NEVER
        self.replica = -1
        self.item: Item
        self.slot: Slot
        self.told = 0
        self.joined = -1
        self.over = False
        self.cached = 0
        self.degraded = False
        self.taken_back = 0
        """How often its slot was."""
        self.reservation: Reservation | None = None
        self.bounded = False
        """A limit bounded its answer (`clamp`), or ended it (`overrun: cut`)."""
        self.closed: frozenset[str] = frozenset()
        """Lenders whose limits refused it."""

    @property
    def promised(self) -> Slo:
        return self.chain[0].slo if self.chain else NOTHING

    @property
    def cut(self) -> bool:
        """Whether a brown-out made its answer shorter than the model had it."""
        return self.degraded and self.output_tokens < self.request.output_tokens

    @property
    def limit_cut(self) -> bool:
        """Whether a limit made its answer shorter than the model had it."""
        return self.bounded and self.output_tokens < self.request.output_tokens

    @property
    def ttft(self) -> float:
        return self.first - self.request.at

    @property
    def e2e(self) -> float:
        return self.end - self.request.at

    @property
    def tpot(self) -> float:
        """Seconds per token after the first one; 0 for an answer of one token."""
        return (self.end - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment."""

    at: float
    waiting: int
    """In the gateway."""
    queued: int
    """In the engines, without their first token."""
    running: int
    oldest: float
    """Seconds for which the oldest request without a first token has waited."""


@dataclass(slots=True)
class Replayed:
    """What came of a replay."""

    journeys: list[Journey]
    samples: list[Sample] = field(default_factory=list)
    ended: float = 0.0
    """Virtual time at the end."""
    hit_share: float = 0.0
    """Prompt tokens that engines had cached, of all."""
    preempted: int = 0
    refused: int = 0
    """Requests that no pool could take, for their length; they are in no other figure."""


def replay(
    requests: Sequence[TraceRequest],
    fleet: Sequence[EngineProfile],
    policy: Policy,
    *,
    weights: dict[str, float] | None = None,
    budget: Budget | None = None,
    prefix_cache: int = 0,
    network: float = NETWORK,
    patience: float = PATIENCE,
    samples: int = 200,
) -> Replayed:
    """Send `requests`, in order of time, to one pool of engines.

    `budget`: seconds to the first token that a request has, by its prompt and expected output tokens and by
    what it was promised, where the policy sheds its class; None: the policy's own. `prefix_cache`: tokens
    that each engine remembers of prompts whose blocks the trace names.
    """
    twin = Twin(
        [pool_of("fleet", fleet, policy)],
        lambda request, sight: _ONLY,
        weights=weights,
        budget=budget,
        prefix_cache=prefix_cache,
        network=network,
    )
    return twin.run(requests, patience=patience, samples=samples)


_ONLY = (Stop("fleet"),)


def pool_of(name: str, engines: Iterable[EngineProfile], policy: Policy) -> ReplayPool:
    """A pool whose limits are its engines' own."""
    fleet = tuple(engines)
    if policy.binding == "early":
        return ReplayPool(name, fleet, policy)  # it knows no limits: it sends at once, and engines queue
    return ReplayPool(
        name, fleet, policy, max(p.max_sequences for p in fleet), min(p.kv_tokens for p in fleet)
    )


class Twin:
    """A fleet of pools in virtual time. For one replay."""

    def __init__(
        self,
        pools: Sequence[ReplayPool],
        router: Router,
        *,
        weights: dict[str, float] | None = None,
        budget: Budget | None = None,
        prefix_cache: int = 0,
        network: float = NETWORK,
        limits: Callable[[Callable[[], float]], Limits] | None = None,
    ) -> None:
        """`limits`: makes them, by the twin's clock; None: there are none."""
        self.now = 0.0
        self.router = router
        self.limits = None if limits is None else limits(self.clock)
        self.budget = budget
        self.pools = {pool.name: pool for pool in pools}
        self.replicas: list[ReplayReplica] = []
        self.schedulers: dict[str, PoolScheduler] = {}
        self.pool_of: dict[ReplicaLedger, str] = {}
        for pool in pools:
            own = [
                ReplayReplica(
                    Replica(f"{pool.name}-{number}", f"http://{pool.name}-{number}.simulated"),
                    profile,
                    self.clock,
                    prefix_cache=prefix_cache,
                )
                for number, profile in enumerate(pool.engines, 1)
            ]
            self.replicas += own
            self.schedulers[pool.name] = PoolScheduler(
                [replica.ledger for replica in own],
                pool.policy,
                self.clock,
                in_flight=pool.in_flight,
                kv_tokens=pool.kv_tokens,
                max_requests=pool.max_requests,
                name=pool.name,
            )
            self.pool_of.update((replica.ledger, pool.name) for replica in own)
        for pool in pools:
            for name in pool.lends_to:
                self.schedulers[pool.name].lend_to(self.schedulers[name])
        self.index = {replica.ledger: number for number, replica in enumerate(self.replicas)}
        self.weights = weights or {}
        self.network = network
        self.lengths = OutputLengths()
        self.sight = Sight(self.lengths, self.schedulers, self.clock)
        self.sending: deque[tuple[float, Journey]] = deque()
        self.losing: list[tuple[float, int, Item, Journey]] = []  # (when patience ends, tie, which wait, who)
        self.again: deque[Journey] = deque()  # they have lost their slots, and stand in line anew
        self.due = [NEVER] * len(self.replicas)
        """When each engine has something to tell."""
        self.ties = count()
        self.open = 0
        self.refused = 0
        self._oldest = 0  # of the journeys: all before it have their first token, or were refused

    def clock(self) -> float:
        return self.now

    def run(
        self, requests: Sequence[TraceRequest], *, patience: float = PATIENCE, samples: int = 0
    ) -> Replayed:
        """Send `requests`, in order of time."""
        result = Replayed([])
        journeys, sending, losing, replicas = result.journeys, self.sending, self.losing, self.replicas
        schedulers = tuple(self.schedulers.values())
        due = self.due
        total = len(requests)
        at = requests[0].at if requests else 0.0
        give_up = (requests[-1].at if requests else 0.0) + patience
        every = max((requests[-1].at - at) / samples, SAMPLE_LEAST) if samples and total else NEVER
        look = at + every
        tick = NEVER
        number = 0
        while number < total or self.open:
            arrival = requests[number].at if number < total else NEVER
            reaching = sending[0][0] if sending else NEVER
            first = min(due)
            lost = losing[0][0] if losing else NEVER
            now = min(arrival, reaching, first, lost, tick)
            if now > give_up:
                break
            while look <= now:
                result.samples.append(self._sample(look, journeys))
                look += every
            self.now = now
            if arrival <= now:
                journey = self._arrive(requests[number])
                if journey is not None:
                    journeys.append(journey)
                number += 1
            elif reaching <= now:
                journey = sending.popleft()[1]
                replica = replicas[journey.replica]
                try:
                    replica.submit(now, journey)
                except CapacityError:
                    journey.slot.release()
                    self._close(journey, "shed")
                else:
                    due[journey.replica] = replica.engine.next_event(now) or now
            elif first <= now:
                which = due.index(first)
                replica = replicas[which]
                replica.advance(now, self._started, self._finished)
                self._listen(which)
                if self.limits is not None:
                    self._follow(replica)
            elif lost <= now:
                _, _, item, journey = heapq.heappop(losing)
                if journey.item is item and journey.sent == NEVER and journey.outcome == "unfinished":
                    self.schedulers[journey.chain[journey.position].pool].withdraw(item)
                    self._go_on(journey, "overloaded", "shed")
            else:
                tick = NEVER
                for scheduler in schedulers:
                    scheduler.dispatch()
            while self.again:
                self._come_again(self.again.popleft())
            if tick == NEVER:
                for scheduler in schedulers:
                    following = scheduler.next_tick()
                    if following is not None and following < tick:
                        tick = following
        result.ended = self.now
        result.refused = self.refused
        prompt = sum(journey.prompt_tokens for journey in journeys if journey.sent < NEVER)
        result.hit_share = sum(replica.hit_tokens for replica in replicas) / max(prompt, 1)
        result.preempted = sum(replica.engine.statistics().preempted for replica in replicas)
        for scheduler in schedulers:
            scheduler.close()
        return result

    def _arrive(self, request: TraceRequest) -> Journey | None:
        chain = self.router(request, self.sight)
        if not chain:
            self.refused += 1
            return None
        journey = Journey(request, expected_output(request, self.lengths), chain)
        self.open += 1
        if self.limits is not None:
            try:
                journey.reservation = self.limits.reserve(request, chain)
            except QuotaExceeded:
                self._close(journey, "limited")
                return journey
        self._offer(journey)
        return journey

    def _offer(self, journey: Journey) -> None:
        """Let it stand in the line of the pool it has come to."""
        request, stop = journey.request, journey.chain[journey.position]
        pool = self.pools[stop.pool]
        if stop.expected is not None:
            journey.expected = stop.expected
        if not self._hold(journey, stop.pool):
            self._go_on(journey, "overloaded", "limited")
            return
        self._bound(journey, stop.max_tokens)
        expected = journey.expected
        priority = request.priority if stop.priority is None else stop.priority
        journey.degraded = stop.spared is not None
        budget = None
        if self.budget is not None and priority in pool.policy.shed:
            whole = expected if stop.spared is None else stop.spared
            budget = self.budget(request.prompt_tokens, whole, journey.promised)
        journey.item = Item(
            arrival=request.at,
            prompt_tokens=request.prompt_tokens,
            output_tokens=expected,
            granted=lambda slot: self._granted(journey, slot),
            refused=lambda refusal: self._refused(journey, refusal),
            tenant=request.tenant,
            weight=self.weights.get(request.tenant, 1.0),
            priority=priority,
            budget=budget,
            prefix=request.blocks,
            streamed=request.streamed,
            lenders=frozenset(stop.lenders) - journey.closed,
            preempted=journey.taken_back,
        )
        refusal = self.schedulers[stop.pool].offer(journey.item)
        if refusal is not None:
            self._refused(journey, refusal)
        elif stop.patience < NEVER and journey.sent == NEVER:
            heapq.heappush(self.losing, (self.now + stop.patience, next(self.ties), journey.item, journey))

    def _hold(self, journey: Journey, pool: str) -> bool:
        """Have it hold the limits of this pool, and of no other. Returns whether they grant it."""
        if self.limits is not None and journey.reservation is not None:
            try:
                self.limits.move(journey.reservation, pool)
            except QuotaExceeded:
                return False
        return True

    def _bound(self, journey: Journey, most: int | None) -> None:
        """It says what the model has to say, but no more than is sent as `max_tokens`."""
        output = journey.request.output_tokens
        journey.output_tokens = output if most is None else min(output, most)
        journey.bounded = False
        if (
            journey.reservation is not None
            and (left := journey.reservation.most_output()) is not None
            and left[0] < journey.output_tokens
        ):
            journey.output_tokens, journey.bounded = left[0], True

    def _go_on(self, journey: Journey, reason: HopReason, outcome: Outcome) -> None:
        """To the next pool of its chain, or home with this outcome."""
        if reason in journey.chain[journey.position].on and journey.position + 1 < len(journey.chain):
            journey.position += 1
            self._offer(journey)
        else:
            self._close(journey, outcome)

    def _granted(self, journey: Journey, slot: Slot) -> None:
        journey.slot = slot
        journey.sent = self.now
        stop, name = journey.chain[journey.position], self.pool_of[slot.ledger]
        if name != stop.pool:
            if not self._hold(journey, name):  # it waits on, for the others
                journey.closed |= {name}
                self.again.append(journey)
                return
            most = stop.lenders.get(name)
            # The lender's own bound, not the pool's where it waited.
            self._bound(journey, stop.max_tokens if most is None else most)
        journey.replica = self.index[slot.ledger]  # type: ignore[index]  # our scheduler has only our ledgers
        self.sending.append((self.now + self.network, journey))
        if self.pools[name].policy.preempt:
            slot.stop = partial(self._taken_back, journey)

    def _taken_back(self, journey: Journey) -> None:
        """Its slot went to another request. The time that the engine takes to hear of it is left out."""
        journey.taken_back += 1
        if self.replicas[journey.replica].has(journey):
            self.replicas[journey.replica].drop(self.now, journey)
            self._listen(journey.replica)
        else:
            self.sending.remove(next(each for each in self.sending if each[1] is journey))
        self.again.append(journey)

    def _come_again(self, journey: Journey) -> None:
        journey.slot.release()
        journey.sent = NEVER
        self._offer(journey)

    def _listen(self, which: int) -> None:
        following = self.replicas[which].engine.next_event(self.now)
        self.due[which] = NEVER if following is None else following

    def _follow(self, replica: ReplayReplica) -> None:
        """Charge answers that outrun their reservations as they go; end those that limits cut."""
        for who, said in replica.speaking():
            assert isinstance(who, Journey), "we submit nothing else"
            reservation = who.reservation
            if reservation is None:
                continue
            reservation.streamed(said, self.clock)
            if reservation.cut is not None and said < who.output_tokens:
                who.output_tokens, who.bounded = said, True
                replica.drop(self.now, who)
                self._listen(who.replica)
                who.slot.release()
                self._finished(who)

    def _refused(self, journey: Journey, refusal: Refusal) -> None:
        self._go_on(journey, "unavailable" if refusal.reason == "no_replica" else "overloaded", "shed")

    def _started(self, who: Speaker) -> None:
        assert isinstance(who, Journey), "we submit nothing else"
        who.first = self.now
        who.slot.stop = None

    def _finished(self, who: Speaker) -> None:
        assert isinstance(who, Journey), "we submit nothing else"
        who.end = self.now
        request = who.request
        reservation = who.reservation
        if reservation is not None:
            reservation.settle(who.prompt_tokens, who.output_tokens, who.cached)
        if not who.degraded and (reservation is None or reservation.cut is None):
            self.lengths.observe(request.tenant, request.model or "", who.prompt_tokens, who.output_tokens)
        self._close(who, "completed")

    def _close(self, journey: Journey, outcome: Outcome) -> None:
        journey.outcome = outcome
        journey.end = self.now
        self.open -= 1
        if journey.reservation is not None:
            journey.reservation.refund()  # but for what was settled

    def _sample(self, at: float, journeys: list[Journey]) -> Sample:
        in_flight = sum(replica.ledger.in_flight for replica in self.replicas)
        queued = sum(replica.engine.statistics().waiting for replica in self.replicas)
        waiting = self.open - in_flight
        while self._oldest < len(journeys) and (
            journeys[self._oldest].first < NEVER or journeys[self._oldest].outcome != "unfinished"
        ):
            self._oldest += 1
        oldest = at - journeys[self._oldest].request.at if self._oldest < len(journeys) else 0.0
        return Sample(at, waiting, queued, in_flight - queued, max(0.0, oldest))


def expected_output(request: TraceRequest, lengths: OutputLengths) -> int:
    """As `tokens.estimating` has it: the p90 of past answers, no more than was asked for."""
    learned = lengths.predict(request.tenant, request.model or "", request.prompt_tokens)
    expected = ASSUMED_OUTPUT if learned is None else learned.p90
    asked = request.max_tokens
    return expected if asked is None or asked > expected else asked


def capacity(requests: Sequence[TraceRequest], fleet: Sequence[EngineProfile]) -> float:
    """Requests a second of the fleet with everything queued at time 0: an engine takes the next one as soon
    as nobody waits in front of it."""
    engines = [LeapingEngine(profile) for profile in fleet]
    due = [0.0] * len(engines)
    ended = 0.0
    left = iter(range(len(requests)))
    number = next(left, None)
    while min(due) < NEVER:
        now = min(due)
        which = due.index(now)
        engine = engines[which]
        if engine.advance(now) is not None:
            ended = now
        while number is not None and not engine.waiting:
            request = requests[number]
            engine.submit(now, number, request.prompt_tokens, request.output_tokens)
            number = next(left, None)
        following = engine.next_event(now)
        due[which] = NEVER if following is None else following
    return len(requests) / ended if ended else 0.0
