"""Who gets which replica of a pool, and when: the rules, without any I/O.

Late binding: a request waits here, not in an engine, until a replica has *room* by the gateway's own ledger:

    requests in flight     below the replica's limit
    unstarted prompts      none, or together with this one at most a dose (90 ms of prefill, 1,024 to 4,096
                           tokens; up to four times that for a prompt which the replica has cached)
    reserved cache         at most 92 % of what it holds

so that whoever comes next waits for one dose and not for a queue inside an engine, whose order nobody can
change. The line is ordered by arrival + offset(class) + min(kappa * work, cap) (orders.py): short ones first,
and still nobody is overtaken by those that came more than the cap later.

Lanes: prompts of more than 4,096 uncached tokens have a line and a set of replicas of their own, as many as
their measured work needs (long_set.py); short ones prefer the others and may use all. A long request whose
turn it is, and for which there is no room, has one replica of the set closed to others until it is served.
Prompts of more than half a dose stand in a third line: small ones need not wait until such a one fits.

Fairness (fairness.py), while there is something to divide (a line of some seconds, or somebody had to be
refused): a tenant far ahead in service goes after the others; one that holds more than its share of slots
finds the last part of each replica closed. Neither blocks anybody else.

Deadlines: a request of a class that is shed is refused when its first token cannot come in time any more, or
when it comes and the work before it is twice its budget. Refusals say when to come back, from the rate at
which the line drains.

What happens when: a new request is weighed against all replicas, if it is the first of its line; a replica
that gets room is offered the first of each line; `dispatch`, called when replicas come and go and every 20 ms
while somebody waits, looks at everything. All of it costs O(log n) in the number of waiting requests.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from types import MappingProxyType
from typing import Literal

from gateway.config.snapshot import PriorityClass
from gateway.fleet.ledger import ReplicaLedger, Slot
from gateway.fleet.step_model import REFERENCE
from gateway.queueing.drain import Backlog
from gateway.queueing.fairness import Account, Accounts
from gateway.queueing.lines import Flow, Line
from gateway.queueing.long_set import LongSet
from gateway.queueing.orders import ORDERS
from gateway.queueing.placements import PLACEMENTS, View
from gateway.queueing.policies import Policy
from gateway.queueing.prefixes import PrefixIndex

__all__ = ["Item", "PoolScheduler", "Reason", "Refusal", "Standing"]

Reason = Literal["no_replica", "queue_full", "overloaded"]

TICK = 0.020
"""Seconds between two looks at everything while somebody waits."""
REFRESH = 0.5
"""Seconds for which what is derived from a replica's ledger holds."""
FAIR_SINCE = 10.0
"""Seconds after a refusal for want of time in which tenants are held to their shares."""
SLOTS = 256
"""Requests at a time of a replica whose limit is not known: what engines run by default."""
SLOW_START = 30.0
"""Seconds in which a replica that joined or came back grows from a tenth of its weight to all of it."""
RETRY_LEAST, RETRY_MOST = 1.0, 60.0
STRICT = 1e7
"""Seconds between the bands of strict classes."""
SMALL, MEDIUM, LONG = range(3)
"""Sizes of requests that have a line of their own."""
NO_HITS: Mapping[str, int] = MappingProxyType({})
INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not (or no longer) in line."""

    reason: Reason
    """`no_replica`: all are excluded or drained; `queue_full`: a bound is reached; `overloaded`: its budget
    cannot be met (shed)."""
    retry_after: float
    """Seconds after which the line is expected to be short enough, from the rate at which it drains."""


@dataclass(slots=True, eq=False, kw_only=True)
class Item:
    """A request that wants a replica: what is known of it, and whom to tell. One offer per item."""

    arrival: float
    """Seconds on the scheduler's clock; a request that is tried again keeps its own, and so its place."""
    prompt_tokens: int
    output_tokens: int
    """Expected, over all choices."""
    granted: Callable[[Slot], None]
    """Called once, inside `offer` or a later dispatch: the slot is the item's."""
    refused: Callable[[Refusal], None]
    """Called once, if the item is dropped from the line after `offer` had returned None."""
    name: str = ""
    """The request's id, for people who look at the line."""
    tenant: str = ""
    weight: float = 1.0
    """The tenant's weight."""
    priority: PriorityClass = PriorityClass.standard
    deadline: float | None = None
    """When the first token must have come, seconds on the clock; None: the class budget of the policy."""
    exclude: frozenset[str] = frozenset()
    """Ids of replicas it must not get."""
    prefix: tuple[int, ...] = ()
    """Chained hashes of its prompt's leading blocks (`Policy.prefix_tokens` tokens each)."""
    session: str | None = None
    """Session id or `prompt_cache_key`: requests that share one share a prefix."""
    adapter: str | None = None
    """LoRA adapter, where the pool serves several."""
    size: int = 0
    """Bytes held while it waits."""
    streamed: bool = True
    """Whether the engine streams: without a stream no first token is seen, its time is predicted."""

    # The scheduler's own, from `offer` on:
    hits: Mapping[str, int] = field(default_factory=lambda: NO_HITS, init=False)
    """Replica id -> tokens of the prompt that it probably holds."""
    uncached: int = field(default=0, init=False)
    """Prompt tokens to compute on the replica that holds most of it."""
    long: bool = field(default=False, init=False)
    work: float = field(default=0.0, init=False)
    key: float = field(default=0.0, init=False)
    number: int = field(default=-1, init=False)
    latest: float = field(default=INFINITE, init=False)
    """When it must have been sent."""
    flow: Flow | None = field(default=None, init=False)
    """Set while it is in line."""
    account: Account | None = field(default=None, init=False)
    slot: Slot | None = field(default=None, init=False)
    charged: bool = field(default=False, init=False)
    """Whether it counts in its tenant's service: somebody waited when it was sent."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One waiting request: its position (from 1) and how long it is expected to wait."""

    item: Item
    position: int
    expected_wait: float


class PoolScheduler:
    """Who gets which replica of a pool, and when. Synchronous; time only through `clock`.

    offer(item)      -> None: the item is in line, or has been granted a slot already (inside the call);
                        Refusal: it was never in line
    withdraw(item)   leave the line; no effect on an item that was granted, refused or never offered
    dispatch()       look at everything anew: call when a replica comes, goes, or time has passed
    next_tick()      when to call `dispatch` for time's sake; None while nobody waits
    close()          hear no more of the ledgers

    It watches the ledgers: a Slot's first `progress` and its `release` lead to further grants by themselves.
    """

    def __init__(
        self,
        ledgers: Sequence[ReplicaLedger],
        policy: Policy,
        clock: Callable[[], float],
        *,
        in_flight: int | None = None,
        kv_tokens: int | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """`in_flight` requests at a time and `kv_tokens` of cache, per replica; the rest bounds the line.

        None: unknown, no limit.
        """
        self.policy = policy
        self.views = tuple(View(ledger, i) for i, ledger in enumerate(ledgers))
        self._clock = clock
        self._in_flight = in_flight
        self._kv_tokens = kv_tokens
        self._max_requests = INFINITE if max_requests is None else max_requests
        self._max_tokens = INFINITE if max_tokens is None else max_tokens
        self._max_bytes = INFINITE if max_bytes is None else max_bytes
        self._late = policy.binding == "late"
        self._reserved = bool(policy.reserved)
        self._order = ORDERS[policy.order](policy)
        self._lanes = self._order.lanes and self._late
        self._placement = PLACEMENTS[policy.placement]()
        self._prefixes = PrefixIndex(policy.prefix_tokens or 1)
        self._pressed_until = -INFINITE
        self._accounts = Accounts(policy)
        self._long_set = LongSet(policy.long_margin)
        self._lines: dict[tuple[int, int, frozenset[str]], Line] = {}
        self._backlog = Backlog(clock)
        self._overdue: list[tuple[float, int, Item]] = []
        self._numbers = count()
        self._by_ledger = {view.ledger: view for view in self.views}
        self._refresh_at = -INFINITE
        self._capacity = 0.0
        self._fastest = 1.0
        self._expecting = False
        self._long_waiting = 0
        self._kept: View | None = None
        """Closed to all but long prompts, until it has got one."""
        self._freed: list[View] = []
        self._filling = False
        self._refresh(clock())
        for ledger in ledgers:
            ledger.watch(self._changed, self.freed)

    def close(self) -> None:
        """Hear no more of the ledgers. For a scheduler that nobody will use again."""
        for view in self.views:
            view.ledger.unwatch(self._changed)

    # ------------------------------------------------------------------------------------- in and out

    @property
    def waiting(self) -> int:
        return self._backlog.requests

    def offer(self, item: Item) -> Refusal | None:
        """Take `item` in: a slot at once, a place in line, or a refusal."""
        now = self._clock()
        if now >= self._refresh_at:
            self._refresh(now)
        if self._expecting:
            self._expire(now)
        self._measure(item)
        if self._lanes and self._long_set.arrived(now, item.long, item.work):
            self._size_long_set(now)
        if item.latest < now:
            if self.policy.overdue == "refuse":
                self._pressed_until = now + FAIR_SINCE
                return Refusal("overloaded", self.retry_after())
            self._demote(item)
        line = self._line(item)
        if not line.count:  # nobody it would have to stand behind
            view = self._place(item, now, over=self._is_over(item))
            if view is not None:
                self._drop_if_empty(line)
                self._grant(item, view, now, waited=False)
                return None
        refusal = self._refusal(item, now)
        if refusal is not None:
            self._drop_if_empty(line)
            return refusal
        alone = not line.count
        self._enter(item, line)
        if not alone:
            self._serve(line, now, only=item)
        return None

    def withdraw(self, item: Item) -> None:
        """Take `item` out of the line, if it is in it."""
        if item.flow is None:
            return
        line = item.flow.line
        first = line.best(open_to_all=True) is item
        self._leave(item)
        if first and line.count:  # those behind it may need less room
            now = self._clock()
            while self._serve(line, now):
                pass

    def dispatch(self) -> None:
        """Look at everything anew: the first of each line against every replica, until nothing fits."""
        now = self._clock()
        if self._expecting:
            self._expire(now)
        if not self._backlog.requests:
            return
        if now >= self._refresh_at:
            self._refresh(now)
            if self._lanes:
                self._size_long_set(now)
        if self._kept is not None and not (self._kept.long and self._kept.ledger.usable()):
            self._kept = None
        after = self.policy.fair_after
        self._accounts.contended = now < self._pressed_until or self.drain_time() > after or after == 0
        self._accounts.review()
        self._shed(now)
        self._serve_all(now)

    def freed(self, ledger: ReplicaLedger) -> None:
        """A replica has more room than before."""
        if self._backlog.requests:
            self._freed.append(self._by_ledger[ledger])
            if not self._filling:
                now = self._clock()
                if self._shed(now):
                    self._serve_all(now)  # whoever stood behind may need less room
                self._fill(now)

    def _expire(self, now: float) -> None:
        """Prompts of answers that are not streamed, whose predicted time has come, have been read."""
        for view in self.views:
            view.ledger.expire(now)
        self._expecting = any(view.ledger.next_expected() is not None for view in self.views)

    def _changed(self) -> None:
        """A replica was drained, found ill, or is well again."""
        self._refresh_at = -INFINITE
        self.dispatch()

    def next_tick(self) -> float | None:
        """When to call `dispatch` if nothing else happens; None while nobody waits."""
        return self._clock() + TICK if self._backlog.requests else None

    # ------------------------------------------------------------------------------------- being seen

    def expected_wait(self, item: Item) -> float:
        """Seconds until `item`, in line or about to be, is expected to be sent."""
        ahead = self._backlog.ahead(self._order.floor(self._clock()), item.key)
        return ahead / self._backlog.rate(self._capacity)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of those that wait."""
        return self._backlog.tokens

    def drain_time(self) -> float:
        """Seconds in which the line as it is drains."""
        return self._backlog.work / self._backlog.rate(self._capacity) if self._backlog.requests else 0.0

    def retry_after(self) -> float:
        """Seconds in which the line as it is drains, between 1 and 60."""
        return min(max(self.drain_time(), RETRY_LEAST), RETRY_MOST)

    def standings(self) -> list[Standing]:
        """Everybody who waits, by place in line. Walks through the whole line."""
        rate = self._backlog.rate(self._capacity)
        ahead, rows = 0.0, []
        for position, item in enumerate(sorted(self._items(), key=lambda item: (item.key, item.number)), 1):
            rows.append(Standing(item, position, ahead / rate))
            ahead += item.work
        return rows

    def preference(self, exclude: frozenset[str] = frozenset()) -> list[View]:
        """Replicas that may be chosen, best first for a small request, whether or not they have room."""
        return sorted(
            self._eligible(exclude, self._clock()),
            key=lambda view: (view.ttft(1) / view.weight, view.ledger.load(), view.ledger.in_flight,
                              view.ledger.requests_total / view.ledger.replica.weight),
        )  # fmt: skip

    def has_room(self, view: View) -> bool:
        """Whether a small request could be sent to the replica now, by the ledger alone."""
        ledger = view.ledger
        return (
            ledger.drained is None
            and ledger.in_flight < view.slots
            and (not self._late or ledger.unstarted_tokens <= 0 or ledger.unstarted_tokens < view.dose)
            and (ledger.kv_reserved < view.kv_limit or not ledger.in_flight)
        )

    def _items(self) -> Iterator[Item]:
        for line in self._lines.values():
            for flow in line.flows.values():
                for _, number, item in flow.heap:
                    if item.flow is flow and item.number == number:
                        yield item

    # --------------------------------------------------------------------------------- what a request is

    def _measure(self, item: Item) -> None:
        policy = self.policy
        prompt = item.prompt_tokens
        if policy.prefix_tokens and (item.prefix or item.session is not None):
            item.hits = self._prefixes.hits(prompt, item.prefix, item.session)
            item.uncached = prompt - max(item.hits.values(), default=0)
        else:
            item.uncached = prompt
        item.long = self._lanes and item.uncached > policy.long_prompt
        item.work = REFERENCE.work(prompt, item.uncached, item.output_tokens)
        item.number = next(self._numbers)
        self._rank(item)
        latest = item.deadline
        if latest is None and item.priority in policy.shed:
            bare = REFERENCE.prefill(item.uncached) * self._fastest
            budget = policy.budget_long if item.long else policy.budget
            latest = item.arrival + max(budget, policy.budget_stretch * bare)
        if latest is not None:
            item.latest = latest - REFERENCE.prefill(item.uncached) * self._fastest

    def _rank(self, item: Item) -> None:
        item.key = self._order.key(item.arrival, item.work, item.priority)
        if self.policy.strict:
            item.key += STRICT * (PriorityClass.interactive - item.priority)

    def _line(self, item: Item) -> Line:
        """The line in which it stands: those before it may use the same replicas."""
        size = LONG if item.long else SMALL
        if size == SMALL and 2 * item.uncached > self.policy.dose[1] and self._lanes:
            size = MEDIUM
        band = int(item.priority) if self.policy.reserved else 0
        key = (size, band, item.exclude)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(size, band, item.exclude)
        return line

    def _drop_if_empty(self, line: Line) -> None:
        if not line.count and line.exclude:
            del self._lines[line.size, line.priority, line.exclude]

    def _enter(self, item: Item, line: Line) -> None:
        account = self._accounts.of(item.tenant, item.weight)
        self._accounts.joined(account)
        item.account = account
        line.push(item, account)
        self._long_waiting += item.long
        self._backlog.add(item.key, item.work, item.prompt_tokens, item.size)
        if item.latest < INFINITE:
            heappush(self._overdue, (item.latest, item.number, item))

    def _leave(self, item: Item) -> None:
        flow, account = item.flow, item.account
        assert flow is not None, "it is in line"
        assert account is not None, "it is in line"
        flow.line.remove(item)
        self._drop_if_empty(flow.line)
        self._accounts.left(account)
        self._backlog.remove(item.key, item.work, item.prompt_tokens, item.size)
        if item.long:
            self._long_waiting -= 1
            if not self._long_waiting:
                self._keep_no_more()

    # --------------------------------------------------------------------------------------- refusing

    def _refusal(self, item: Item, now: float) -> Refusal | None:
        """Why `item` may not wait, if so."""
        if not self._eligible(item.exclude, now):
            return Refusal("no_replica", RETRY_LEAST)
        backlog = self._backlog
        if (
            backlog.requests >= self._max_requests
            or (backlog.requests and backlog.tokens + item.prompt_tokens > self._max_tokens)
            or (backlog.requests and backlog.size + item.size > self._max_bytes)
        ):
            return Refusal("queue_full", self.retry_after())
        if item.latest < INFINITE and self.expected_wait(item) > 2 * (item.latest - item.arrival):
            if self.policy.overdue == "refuse":
                self._pressed_until = now + FAIR_SINCE
                return Refusal("overloaded", self.retry_after())
            self._demote(item)
        return None

    def _demote(self, item: Item) -> None:
        item.priority = PriorityClass.batch
        item.latest = INFINITE
        self._rank(item)

    def _shed(self, now: float) -> bool:
        """Refuse, or put among `batch`, who cannot be served in time any more. Returns whether any left."""
        overdue, shed = self._overdue, False
        while overdue and (overdue[0][0] < now or overdue[0][2].flow is None):
            _, number, item = heappop(overdue)
            if item.flow is None or item.number != number:
                continue
            self._leave(item)
            shed = True
            self._pressed_until = now + FAIR_SINCE
            if self.policy.overdue == "refuse":
                item.refused(Refusal("overloaded", self.retry_after()))
            else:
                item.number = next(self._numbers)
                self._demote(item)
                self._enter(item, self._line(item))
        return shed

    # --------------------------------------------------------------------------------------- replicas

    def _refresh(self, now: float) -> None:
        """Derive anew what changes slowly: speeds, doses, limits."""
        self._refresh_at = now + REFRESH
        policy = self.policy
        capacity = slots = 0.0
        for view in self.views:
            ledger = view.ledger
            model = ledger.model
            view.slowness = model.slowness
            view.token_s, view.attention_s = model.token_s, model.attention_s
            view.sequence_s, view.kv_s = model.sequence_s, model.kv_s
            warm = 1.0
            if ledger.back_since is not None:
                warm = min(max(0.1, (now - ledger.back_since) / SLOW_START), 1.0)
            view.weight = ledger.replica.weight * warm
            least, most = policy.dose
            view.dose = min(max(1.5 * policy.tpot_target / model.token_s, least), most)
            limit = INFINITE if self._in_flight is None else self._in_flight
            view.slots = limit if warm == 1.0 else max(1.0, min(limit, SLOTS) * warm)
            view.slots_over = max(1.0, min(limit, SLOTS) * (1 - policy.headroom))
            if self._late and self._kv_tokens is not None:
                view.kv_limit = policy.kv_guard * self._kv_tokens
                view.kv_over = view.kv_limit * (1 - policy.headroom)
            if ledger.drained is None and not ledger.cooling():
                capacity += 1 / view.slowness
                slots += min(limit, SLOTS)
        self._capacity = max(capacity, 1e-3)
        self._accounts.slots = slots
        self._fastest = min(view.slowness for view in self.views)

    def _size_long_set(self, now: float) -> None:
        usable = [view for view in self.views if view.ledger.usable()]
        self._long_set.resize(now, usable or self.views)

    def _eligible(self, exclude: frozenset[str], now: float) -> list[View]:
        """Replicas that may be chosen: neither drained nor excluded; avoided ones where there is no other."""
        well: list[View] = []
        left: list[View] = []
        for view in self.views:
            ledger = view.ledger
            if ledger.drained is not None or (exclude and ledger.replica.id in exclude):
                continue
            (left if ledger.ready is False or now < ledger.avoid_until else well).append(view)
        return well or left

    def _fits(self, view: View, item: Item) -> bool:
        """Whether the unstarted prompts and the cache of the replica leave room for `item`."""
        ledger = view.ledger
        pending = ledger.unstarted_tokens
        if pending > 0:
            prompt = item.prompt_tokens
            hit = item.hits.get(ledger.replica.id, 0) if item.hits else 0
            if pending + prompt - hit > view.dose * (1 + 3 * hit / prompt if hit else 1):
                return False
        return (
            ledger.kv_reserved + item.prompt_tokens + item.output_tokens <= view.kv_limit
            or not ledger.in_flight
        )

    def _slots(self, view: View, item: Item) -> float:
        """Slots of the replica for this class: all, less those kept for more urgent ones."""
        slots = view.slots
        for priority, kept in self.policy.reserved.items():
            if priority > item.priority:
                slots -= max(0, kept - view.ledger.by_class[priority])
        return slots

    def _open_to_over(self, view: View) -> bool:
        """Whether a tenant above its share may use the replica."""
        return view.ledger.in_flight < view.slots_over and view.ledger.kv_reserved < view.kv_over

    def _in_set(self, view: View, item: Item) -> bool:
        """Whether a long prompt may go there: a replica of the long set, idle, or with most of it cached."""
        return (
            view.long
            or not view.ledger.in_flight
            or bool(item.exclude)  # its second attempt
            or (bool(item.hits) and 2 * item.hits.get(view.ledger.replica.id, 0) >= item.prompt_tokens)
        )

    def _place(self, item: Item, now: float, *, over: bool) -> View | None:
        """The best replica with room for `item`; None where there is none."""
        exclude = item.exclude
        late, long = self._late, item.long
        kept = None if long else self._kept
        found: list[View] = []
        avoided: list[View] = []
        for view in self.views:
            ledger = view.ledger
            if ledger.in_flight >= view.slots or view is kept or ledger.drained is not None:
                continue
            if late and not self._fits(view, item):
                continue
            if exclude and ledger.replica.id in exclude:
                continue
            if long and not self._in_set(view, item):
                continue
            if over and not self._open_to_over(view):
                continue
            if self._reserved and ledger.in_flight >= self._slots(view, item):
                continue
            (avoided if ledger.ready is False or now < ledger.avoid_until else found).append(view)
        if not found and avoided and avoided[0] in self._eligible(exclude, now):
            found = avoided  # there is no other, with room or without
        if self._lanes and not long and len(found) > 1:
            found = _outside(found)
        if len(found) < 2:
            return found[0] if found else None
        return self._placement.choose(item, found)

    def _is_over(self, item: Item) -> bool:
        """Whether the tenant of an item that does not wait holds more than its share."""
        if not self.policy.fair:
            return False
        account = self._accounts.of(item.tenant, item.weight)
        self._accounts.judge(account)
        return bool(account.standing & 1)

    # --------------------------------------------------------------------------------------- granting

    def _in_order(self) -> list[Line]:
        """Lines that are not empty, by their first's key."""
        firsts = [(line.best(open_to_all=True), line) for line in self._lines.values() if line.count]
        return [
            line
            for _, _, line in sorted(
                (first.key, first.number, line) for first, line in firsts if first is not None
            )
        ]

    def _serve_all(self, now: float) -> None:
        """The first of each line against every replica, in order, until nothing fits."""
        served = True
        while served:
            served = any(self._serve(line, now) for line in self._in_order())

    def _serve(self, line: Line, now: float, only: Item | None = None) -> bool:
        """Hand a slot to the first of a line, if a replica has room; `only`: if it is this one.

        Where it belongs to a tenant above its share, the first of the others may have what is closed to it.
        """
        first = line.best(open_to_all=True)
        if first is None:
            return False
        assert first.account is not None, "it waits"
        for item in (first, line.best(open_to_all=False) if first.account.standing & 1 else None):
            if item is None or item is not (only or item):
                continue
            assert item.account is not None, "it waits"
            view = self._place(item, now, over=bool(item.account.standing & 1))
            if view is not None:
                self._leave(item)
                self._grant(item, view, now, waited=True)
                return True
        return False

    def _fill(self, now: float) -> None:
        """Give the room of the replicas in `_freed`, until none of them has room for anybody's turn."""
        self._filling = True
        try:
            while self._freed:
                view = self._freed.pop()
                while self._backlog.requests and self._give(view, now):
                    pass
            self._freed.clear()
        finally:
            self._filling = False

    def _give(self, view: View, now: float) -> bool:
        """Hand a slot of this replica to the first, by key, of those whose turn it is in their line."""
        ledger = view.ledger
        if ledger.drained is not None or ledger.in_flight >= view.slots:
            return False
        open_to_all = self._open_to_over(view)
        avoided = ledger.ready is False or now < ledger.avoid_until
        firsts: list[tuple[bool, float, int, Item]] = []
        for line in self._lines.values():
            if not line.count or (line.exclude and ledger.replica.id in line.exclude):
                continue
            if avoided and view not in self._eligible(line.exclude, now):
                continue
            item = line.best(open_to_all=open_to_all)
            if item is not None:
                assert item.account is not None, "it waits"
                # A tenant that is ahead lets others go first, but long prompts keep their replicas.
                behind = item.account.standing > 1 and not item.long
                firsts.append((behind, item.key, item.number, item))
        if len(firsts) > 1:
            firsts.sort()
        for place, (_, _, _, item) in enumerate(firsts):
            if item.long and not self._in_set(view, item):
                continue
            if self._kept is view and not item.long:
                continue
            if self._reserved and ledger.in_flight >= self._slots(view, item):
                continue
            if not self._late or self._fits(view, item):
                line = self._line(item)
                self._leave(item)
                self._grant(item, view, now, waited=True)
                following = line.best(open_to_all=True)
                if following is not None and following.prompt_tokens < item.prompt_tokens:
                    while self._serve(line, now):  # it may fit where the one before it did not
                        pass
                return True
            if item.long and place == 0 and self._kept is None and len(firsts) > 1:
                self._keep(item, now)
        return False

    def _keep(self, item: Item, now: float) -> None:
        """It is a long request's turn, and there is no room: close the replica that will soonest have it."""
        views = [view for view in self._eligible(item.exclude, now) if view.long]
        if len(views) > 1:
            self._kept = min(views, key=lambda view: view.ledger.unstarted_tokens * view.token_s)

    def _keep_no_more(self) -> None:
        view, self._kept = self._kept, None
        if view is not None:
            self._freed.append(view)

    def _grant(self, item: Item, view: View, now: float, *, waited: bool) -> None:
        """Hand `item`, out of the line by now, a slot of the replica."""
        ledger = view.ledger
        prompt, output = item.prompt_tokens, item.output_tokens
        hit = item.hits.get(ledger.replica.id, 0) if item.hits else 0
        account = item.account
        if account is None:
            account = self._accounts.of(item.tenant, item.weight)
        item.charged = waited or self._backlog.requests > 0
        self._accounts.sent(account, prompt, output, charged=item.charged)
        if waited:
            self._backlog.drained(item.work)
        if item.long and view is self._kept:
            self._kept = None
        ttft = 0.0 if item.streamed else view.ttft(prompt - hit) + ledger.model.step_s
        slot = ledger.take(
            prompt,
            output,
            partial(self._returned, view, account, item),
            uncached=prompt - hit,
            long=item.long,
            priority=item.priority,
        )
        item.slot = slot
        if not item.streamed:
            slot.expect_first(now + ttft)
            self._expecting = True
        if self.policy.prefix_tokens:
            self._prefixes.sent(ledger.replica.id, prompt, item.prefix, item.session)
        if item.adapter is not None:
            ledger.adapters[item.adapter] = now
        item.granted(slot)

    def _returned(self, view: View, account: Account, item: Item) -> None:
        """A slot came back: settle what the tenant was charged, pass the room on."""
        slot = item.slot
        assert slot is not None, "granted"
        refund = 0.0
        if item.charged:
            refund = self._accounts.refund(item.output_tokens, slot.streamed)
            if not slot.started:
                refund += item.prompt_tokens
        self._accounts.ended(account, refund)
        view.ledger.freed()


def _outside(views: list[View]) -> list[View]:
    """For a short request: replicas outside the long set; else those without an unstarted long prompt."""
    outside = [view for view in views if not view.long]
    if outside:
        return outside
    clear = [view for view in views if not view.ledger.unstarted_long]
    return clear or views
