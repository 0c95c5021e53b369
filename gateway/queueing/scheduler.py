"""Who gets which replica of a pool, and when: the rules, without any I/O.

Late binding: a request waits here, not in an engine, until a replica has *room* by the gateway's own ledger:

    requests in flight     below the replica's limit
    unstarted prompts      none, or together with this one at most a dose (90 ms of prefill, 1,024 to 4,096
                           tokens; up to four times that for a prompt which the replica has cached)
    reserved cache         at most 92 % of what it holds
    pace                   prompts take only so much of its time that running answers keep their time per
                           output token (pacing.py); under `lanes`

(replicas.py), so that whoever comes next waits for one dose and not for a queue inside an engine, whose order
nobody can change. The line is ordered by arrival + offset(class) + what its work costs it, up to a cap
(orders.py): short ones first, and still nobody is overtaken by those that came more than the cap later.

Lanes: prompts of more than 2,048 uncached tokens have a line and a set of replicas of their own, as many as
their measured work needs (long_set.py); short ones prefer the others and may use all. A long request whose
turn it is, and for which there is no room, has one replica of the set closed to others until it is served.
Prompts of more than half a dose stand in a third line: small ones need not wait until such a one fits.

Fairness (fairness.py), while there is something to divide (a line of some seconds, or somebody had to be
refused): a tenant far ahead in service goes after the others; one that holds more than its share of slots
finds the last part of each replica closed, and long prompts of the others, up to a dose, may go outside the
long set. Neither blocks anybody else.

Lending: a pool may lend its replicas to others (`lend_to`). One that would lie half idle, while nobody waits
for it here, serves the first of another pool's line who may go there: by that line's order, and only up to
what is open to a tenant above its share, so that whoever comes to this pool next finds room.

Preemption (off unless `Policy.preempt`): an interactive request that finds no room takes back the slots of
batch requests that were sent and have no first token yet, newest first, as many as it needs and each so often
at most. Their holders stop, and offer them again with their arrival, and so their place.

Deadlines: a request of a class that is shed is refused when its first token cannot come in time any more (by
the budget of its class, or by its client's deadline if that is earlier), or when it comes and the work before
it is twice its budget. Refusals say when to come back, from the rate at
which the line drains.

What happens when: a new request is weighed against all replicas, if it is the first of its line; a replica
that gets room is offered the first of each line; `dispatch`, called when replicas come and go and every 20 ms
while somebody waits, looks at everything. All of it costs O(log n) in the number of waiting requests.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count

from gateway.config.snapshot import PriorityClass
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.step_model import REFERENCE, StepModel
from gateway.queueing.drain import Backlog
from gateway.queueing.fairness import Account, Accounts
from gateway.queueing.items import (
    INFINITE,
    LANES,
    LONG,
    MEDIUM,
    SMALL,
    Item,
    Reason,
    Refusal,
    Standing,
)
from gateway.queueing.lines import Line
from gateway.queueing.orders import ORDERS
from gateway.queueing.placements import View
from gateway.queueing.policies import Policy
from gateway.queueing.prefixes import PrefixIndex
from gateway.queueing.replicas import Replicas

__all__ = ["Item", "PoolScheduler", "Reason", "Refusal", "Standing"]

TICK = 0.020
"""Seconds between two looks at everything while somebody waits."""
STILL_CONTENDED = 0.2
"""Part of `fair_after` at which a line that was long is short again, and tenants are let go."""
FAIR_SINCE = 10.0
"""Seconds after a refusal for want of time in which tenants are held to their shares."""
RETRY_LEAST, RETRY_MOST = 1.0, 60.0
OLDEST = 600.0
"""Seconds for which hardly anybody has waited."""
STRICT = 1e7
"""Seconds between the bands of strict classes."""


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
        name: str = "",
        pace: StepModel = REFERENCE,
        prefixes: PrefixIndex | None = None,
        adapters: int | None = None,
    ) -> None:
        """`in_flight` requests at a time and `kv_tokens` of cache, per replica; the rest bounds the line.

        None: unknown, no limit. `pace`: the kind of replica in whose seconds work is counted.
        `prefixes`: what was remembered before, where the replicas are the same. `adapters`: LoRA adapters
        that a replica holds at a time.
        """
        self.name = name
        """The pool's, where it lends or borrows."""
        self.policy = policy
        self._clock = clock
        self._order = ORDERS[policy.order](policy)
        self.replicas = Replicas(
            ledgers,
            policy,
            clock(),
            lanes=self._order.lanes and policy.binding == "late",
            in_flight=in_flight,
            kv_tokens=kv_tokens,
            pace=pace,
            prefixes=prefixes,
            adapters=adapters,
        )
        self.views = self.replicas.views
        self.prefixes = self.replicas.prefixes
        self.pace = pace
        self._max_requests = INFINITE if max_requests is None else max_requests
        self._max_tokens = INFINITE if max_tokens is None else max_tokens
        self._max_bytes = INFINITE if max_bytes is None else max_bytes
        self._pressed_until = -INFINITE
        self._line_is_long = False
        self._accounts = Accounts(policy)
        self._lines: dict[tuple[int, int, frozenset[str], frozenset[str]], Line] = {}
        self._backlog = Backlog(clock)
        self._overdue: list[tuple[float, int, Item]] = []
        self._numbers = count()
        self._long_waiting = 0
        self._waiting = {(priority, size): 0 for priority in PriorityClass for size in range(len(LANES))}
        self._freed: list[View] = []
        self._filling = False
        self._borrowers: list[PoolScheduler] = []
        self._lenders: dict[str, PoolScheduler] = {}
        self.lent = 0
        """Requests of other pools that its replicas took, ever."""
        self._accounts.slots = self.replicas.total_slots
        for ledger in ledgers:
            ledger.watch(self._changed, self.freed)

    def lend_to(self, borrower: "PoolScheduler") -> None:
        """From now on, idle replicas of this pool serve who waits there and may come here."""
        self._borrowers.append(borrower)
        borrower._lenders[self.name] = self

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
        if now >= self.replicas.refresh_at:
            self._refresh(now)
        if self.replicas.expecting:
            self.replicas.expire(now)
        if self._accounts.contended and not self._backlog.requests:
            self._weigh(now)
        self._measure(item)
        if self.replicas.lanes and self.replicas.long_set.arrived(now, item.long, item.work):
            self.replicas.size_long_set(now)
        if item.latest < now:
            if self.policy.overdue == "refuse":
                self._pressed_until = now + FAIR_SINCE
                return Refusal("overloaded", self.retry_after())
            self._demote(item)
        line = self._line(item)
        if not line.count:  # nobody it would have to stand behind
            view = self.replicas.place(item, now, over=self._is_over(item)) or self._preempt(item, now)
            if view is not None:
                self._drop_if_empty(line)
                self._grant(item, view, now, waited=False)
                self._after_preempting(now)
                return None
        refusal = self._refusal(item, now)
        if refusal is not None:
            if refusal.reason == "queue_full" and line.count and self._may_preempt(item):
                self._enter(item, line)  # it need not wait, if it is first and finds room
                self._serve(line, now, only=item)
                if item.flow is None:
                    return None
                self._leave(item)
            self._drop_if_empty(line)
            return refusal
        alone = not line.count
        self._enter(item, line)
        if not alone:
            self._serve(line, now, only=item)
        if item.flow is not None and line.lenders:
            self._borrow(line, now)
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
            self._borrow(line, now)

    def dispatch(self) -> None:
        """Look at everything anew: the first of each line against every replica, until nothing fits."""
        now = self._clock()
        if self.replicas.expecting:
            self.replicas.expire(now)
        if not self._backlog.requests:
            self._weigh(now)
            self._lend_all(now)
            return
        if now >= self.replicas.refresh_at:
            self._refresh(now)
            if self.replicas.lanes:
                self.replicas.size_long_set(now)
        if self.replicas.kept is not None and not (
            self.replicas.kept.long and self.replicas.kept.ledger.usable()
        ):
            self.replicas.kept = None
        self._weigh(now)
        self._shed(now)
        self._serve_all(now)
        for line in tuple(self._lines.values()):
            self._borrow(line, now)

    def _weigh(self, now: float) -> None:
        """Find out whether tenants are held to their shares, and who stands back.

        Once a line was long it must become short: else a flood would keep it just below the threshold, and
        everybody would wait that long.
        """
        after = self.policy.fair_after
        self._line_is_long = self.drain_time() > (after * STILL_CONTENDED if self._line_is_long else after)
        contended = self._line_is_long or now < self._pressed_until or after == 0
        if self._backlog.requests or contended != self._accounts.contended:
            self._accounts.contended = contended
            self._accounts.review()

    def freed(self, ledger: ReplicaLedger) -> None:
        """A replica has more room than before."""
        if self._backlog.requests or self._borrowers:
            self._freed.append(self.replicas.by_ledger[ledger])
            if not self._filling:
                now = self._clock()
                if self._shed(now):
                    self._serve_all(now)  # whoever stood behind may need less room
                self._fill(now)

    def _refresh(self, now: float) -> None:
        """Derive anew what changes slowly."""
        self.replicas.refresh(now)
        self._accounts.slots = self.replicas.total_slots

    def _changed(self) -> None:
        """A replica was drained, found ill, or is well again."""
        self.replicas.refresh_at = -INFINITE
        self.dispatch()

    def next_tick(self) -> float | None:
        """When to call `dispatch` if nothing else happens; None while nobody waits."""
        return self._clock() + TICK if self._backlog.requests else None

    # ------------------------------------------------------------------------------------- being seen

    def expected_wait(self, item: Item) -> float:
        """Seconds until `item`, in line or about to be, is expected to be sent."""
        ahead = self._backlog.ahead(self._order.floor(self._clock()), item.key)
        return ahead / self._backlog.rate(self.replicas.capacity)

    def waiting_by(self) -> Mapping[tuple[str, str], int]:
        """(class, lane) -> how many wait."""
        return {(p.name, LANES[size]): number for (p, size), number in self._waiting.items()}

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of those that wait."""
        return self._backlog.tokens

    def drain_time(self) -> float:
        """Seconds in which the line as it is drains."""
        return (
            self._backlog.work / self._backlog.rate(self.replicas.capacity) if self._backlog.requests else 0.0
        )

    def class_wait(self, priority: PriorityClass) -> float:
        """Seconds in which the work drains that may go before a newcomer of a class, however long it is."""
        backlog, now = self._backlog, self._clock()
        last = self._order.last(now, priority)
        if not backlog.requests or self.policy.strict or last == INFINITE:
            return self.drain_time()
        return backlog.ahead(now - OLDEST, last + backlog.WIDTH) / backlog.rate(self.replicas.capacity)

    def foreseen(self, item: Item) -> tuple[int, float]:
        """Place in line of an item that is in it, and the seconds in which the work ahead of it drains, at a
        glance: to half a second of key, where `standings` walks through the line."""
        floor = self._clock() - OLDEST
        ahead = self._backlog.ahead(floor, item.key)
        return self._backlog.place(floor, item.key), ahead / self._backlog.rate(self.replicas.capacity)

    def retry_after(self) -> float:
        """Seconds in which the line as it is drains, between 1 and 60."""
        return min(max(self.drain_time(), RETRY_LEAST), RETRY_MOST)

    def standings(self) -> list[Standing]:
        """Everybody who waits, by place in line. Walks through the whole line."""
        rate = self._backlog.rate(self.replicas.capacity)
        ahead, rows = 0.0, []
        for position, item in enumerate(sorted(self._items(), key=lambda item: (item.key, item.number)), 1):
            rows.append(Standing(item, position, ahead / rate))
            ahead += item.work
        return rows

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
            item.hits = self.prefixes.hits(prompt, item.prefix, item.session, item.block_tokens)
            item.uncached = prompt - max(item.hits.values(), default=0)
        else:
            item.uncached = prompt
        item.lane = self._lane(item.uncached)
        item.work = self.pace.work(prompt, item.uncached, item.output_tokens)
        item.number = next(self._numbers)
        self._rank(item)
        latest = INFINITE if item.deadline is None else item.deadline
        bare = self.pace.prefill(item.uncached) * self.replicas.fastest
        if item.priority in policy.shed:
            budget = item.budget
            if budget is None:
                budget = policy.time_to_first(item.priority, long=item.long, bare=bare)
            # OpenAI's SDKs always say when they will give up, after 600 s: no leave to keep them so long.
            latest = min(latest, item.since + budget)
        item.latest = latest - bare

    def _rank(self, item: Item) -> None:
        item.key = self._order.key(item.arrival, item.work, item.priority)
        if self.policy.strict:
            item.key += STRICT * (PriorityClass.interactive - item.priority)

    def _lane(self, uncached: int) -> int:
        """Where a prompt of so many uncached tokens belongs."""
        if not self.replicas.lanes:
            return SMALL
        if uncached > self.policy.long_prompt:
            return LONG
        return MEDIUM if 2 * uncached > self.policy.dose[1] else SMALL

    def _line(self, item: Item) -> Line:
        """The line in which it stands: those before it may use the same replicas."""
        band = int(item.priority) if self.policy.reserved else 0
        key = (item.lane, band, item.exclude, item.lenders)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(*key)
        return line

    def _drop_if_empty(self, line: Line) -> None:
        if not line.count and line.exclude:
            del self._lines[line.size, line.priority, line.exclude, line.lenders]

    def _enter(self, item: Item, line: Line) -> None:
        account = self._accounts.of(item.tenant, item.weight)
        self._accounts.joined(account)
        item.account = account
        line.push(item, account)
        self._waiting[item.priority, line.size] += 1
        self._long_waiting += item.long
        self._backlog.add(item.key, item.work, item.prompt_tokens, item.size)
        if item.latest < INFINITE:
            heappush(self._overdue, (item.latest, item.number, item))

    def _leave(self, item: Item) -> None:
        flow, account = item.flow, item.account
        assert flow is not None, "it is in line"
        assert account is not None, "it is in line"
        flow.line.remove(item)
        self._waiting[item.priority, flow.line.size] -= 1
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
        if not self.replicas.eligible(item.exclude, now) and not self.replicas.coming(item.exclude):
            return Refusal("no_replica", RETRY_LEAST)
        backlog = self._backlog
        if not item.preempted and (
            backlog.requests >= self._max_requests
            or (backlog.requests and backlog.tokens + item.prompt_tokens > self._max_tokens)
            or (backlog.requests and backlog.size + item.size > self._max_bytes)
        ):
            return Refusal("queue_full", self.retry_after())
        if item.latest < INFINITE and self.expected_wait(item) > 2 * (item.latest - item.since):
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
            view = self.replicas.place(item, now, over=bool(item.account.standing & 1)) or self._preempt(
                item, now
            )
            if view is not None:
                self._leave(item)
                self._grant(item, view, now, waited=True)
                self._after_preempting(now)
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
                while self._borrowers and not self._backlog.requests and self._lend(view, now):
                    pass
            self._freed.clear()
        finally:
            self._filling = False

    def _give(self, view: View, now: float) -> bool:
        """Hand a slot of this replica to the first, by key, of those whose turn it is in their line."""
        ledger = view.ledger
        if ledger.closed or ledger.in_flight >= view.slots:
            return False
        open_to_all = self.replicas.open_to_over(view)
        avoided = ledger.ready is False or now < ledger.avoid_until
        firsts: list[tuple[bool, float, int, Item]] = []
        for line in self._lines.values():
            if not line.count or (line.exclude and ledger.replica.id in line.exclude):
                continue
            if avoided and view not in self.replicas.eligible(line.exclude, now):
                continue
            item = line.best(open_to_all=open_to_all)
            if item is not None and item.long and not self._may_enter(view, item):
                item = line.best(open_to_all=False)  # who holds less may go where the first may not
                if item is not None and not self._may_enter(view, item):
                    continue
            if item is not None:
                assert item.account is not None, "it waits"
                # A tenant that is ahead lets others go first, but long prompts keep their replicas.
                behind = item.account.standing > 1 and not item.long
                firsts.append((behind, item.key, item.number, item))
        if len(firsts) > 1:
            firsts.sort()
        for place, (_, _, _, item) in enumerate(firsts):
            if self.replicas.kept is view and not item.long:
                continue
            if self.replicas.reserved and ledger.in_flight >= self.replicas.slots_for(view, item):
                continue
            assert item.account is not None, "it waits"
            over = bool(item.account.standing & 1)
            if not self.replicas.late or self.replicas.fits(view, item, now, over=over):
                line = self._line(item)
                self._leave(item)
                self._grant(item, view, now, waited=True)
                following = line.best(open_to_all=True)
                if following is not None and following.prompt_tokens < item.prompt_tokens:
                    while self._serve(line, now):  # it may fit where the one before it did not
                        pass
                return True
            if item.long and place == 0 and self.replicas.kept is None and len(firsts) > 1:
                self.replicas.keep_for(item, now)
        return False

    def _may_enter(self, view: View, item: Item) -> bool:
        """Whether a long prompt of the line may go there: one of a dose anywhere, if its tenant is owed."""
        assert item.account is not None, "it waits"
        owed = item.uncached <= view.dose and self._accounts.owed(item.account)
        return owed or self.replicas.in_set(view, item)

    def _keep_no_more(self) -> None:
        view, self.replicas.kept = self.replicas.kept, None
        if view is not None:
            self._freed.append(view)

    def _grant(self, item: Item, view: View, now: float, *, waited: bool) -> None:
        """Hand `item`, out of the line by now, a slot of the replica."""
        ledger = view.ledger
        prompt, output = item.prompt_tokens, item.output_tokens
        hit = item.hits.get(ledger.replica.id, 0) if item.hits else 0
        account = item.account
        if account is None or item.borrower is not None:
            account = self._accounts.of(item.tenant, item.weight)
        if item.borrower is None:
            item.cost = self._cost(item, hit) if waited or self._backlog.requests else 0.0
        # Who comes from another pool's line has paid there: here nobody waits.
        self._accounts.sent(account, item.cost if item.borrower is None else 0.0)
        self.replicas.feed(view, item, prompt - hit, now, pressed=now < self._pressed_until)
        if waited and item.borrower is None:
            self._backlog.drained(item.work)
        if item.long and view is self.replicas.kept:
            self.replicas.kept = None
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
        if item.priority is PriorityClass.batch and item.preempted < self.policy.preempt:
            self.replicas.batch[view.index][slot] = None
        if not item.streamed:
            slot.expect_first(now + ttft)
            self.replicas.expecting = True
        if self.policy.prefix_tokens:
            self.prefixes.sent(ledger.replica.id, prompt, item.prefix, item.session)
            slot.hit = hit
            slot.on_cached = partial(self.prefixes.told, ledger.replica.id, hit)
        if item.adapter is not None:
            self.replicas.note_adapter(ledger.adapters, item.adapter, now)
        item.granted(slot)

    def _returned(self, view: View, account: Account, item: Item) -> None:
        """A slot came back: settle what the tenant was charged, pass the room on."""
        slot = item.slot
        assert slot is not None, "granted"
        refund = item.cost
        if refund and slot.started:
            pace = (item.borrower or self).pace
            unused = pace.work(item.prompt_tokens, 0, item.output_tokens)
            unused -= pace.work(item.prompt_tokens, 0, slot.streamed)
            refund = unused / pace.token_s
        if not slot.started:
            view.full_until -= item.fill
        if item.borrower is not None and item.account is not None:
            item.borrower._accounts.charge(item.account, -refund)
            refund = 0.0
        self._accounts.ended(account, refund)
        self.replicas.batch[view.index].pop(slot, None)
        view.ledger.freed()

    # --------------------------------------------------------------------------- lending and preempting

    def _borrow(self, line: Line, now: float) -> None:
        """Somebody has to wait: ask those who may serve this line."""
        for name in line.lenders:
            if line.count and (lender := self._lenders.get(name)) is not None:
                lender._lend_all(now)

    def _lend_all(self, now: float) -> None:
        """Offer the room of all replicas, the soonest first, to those who wait elsewhere."""
        if self._filling or self._backlog.requests or not any(each.waiting for each in self._borrowers):
            return
        if now >= self.replicas.refresh_at:
            self._refresh(now)
        if self.replicas.expecting:
            self.replicas.expire(now)
        self._freed += sorted(
            (view for view in self.views if self.replicas.may_lend(view)), key=lambda view: -view.ttft(1)
        )
        self._fill(now)

    def _lend(self, view: View, now: float) -> bool:
        """Hand a slot of this replica to the first who waits for a pool that may borrow it."""
        if not self.replicas.may_lend(view):
            return False
        for borrower in self._borrowers:
            if not borrower.waiting:
                continue
            borrower._shed(now)
            for item in borrower._firsts_for(self.name):
                if self.replicas.takes(view, item, now):
                    line = borrower._line(item)
                    borrower._hand_over(item)
                    self.lent += 1
                    self._grant(item, view, now, waited=True)
                    while borrower._serve(line, now):  # those behind it may need less room
                        pass
                    return True
        return False

    def _firsts_for(self, lender: str) -> list[Item]:
        """Whose turn it is in each line that `lender` may serve, in order."""
        firsts: list[tuple[bool, float, int, Item]] = []
        for line in self._lines.values():
            if lender in line.lenders and (item := line.best(open_to_all=True)) is not None:
                assert item.account is not None, "it waits"
                firsts.append((item.account.standing > 1, item.key, item.number, item))
        return [item for _, _, _, item in sorted(firsts)]

    def _hand_over(self, item: Item) -> None:
        """It leaves the line for another pool's replica; its tenant pays here."""
        account = item.account
        assert account is not None, "it waits"
        self._leave(item)
        self._backlog.drained(item.work)
        item.cost = self._cost(item, 0)
        self._accounts.charge(account, item.cost)
        item.borrower = self

    def _cost(self, item: Item, hit: int) -> float:
        """What a tenant pays for it: its work, told in prompt tokens."""
        prompt = item.prompt_tokens
        return self.pace.work(prompt, prompt - hit, item.output_tokens) / self.pace.token_s

    def _may_preempt(self, item: Item) -> bool:
        return self.policy.preempt > 0 and item.priority is PriorityClass.interactive

    def _preempt(self, item: Item, now: float) -> View | None:
        """Take slots back for `item`, on the replica where the fewest tokens suffice, if anywhere."""
        if not self._may_preempt(item):
            return None
        found = self.replicas.cheapest(item, now)
        if found is None:
            return None
        view, victims = found
        filling, self._filling = self._filling, True  # the room is for `item`
        try:
            for slot in victims:
                slot.take_back()
        finally:
            self._filling = filling
        # Another configuration's line may draw on the replica too, and have been faster.
        taken = view.ledger.in_flight >= view.slots or (
            self.replicas.late and not self.replicas.fits(view, item, now)
        )
        return None if taken else view

    def _after_preempting(self, now: float) -> None:
        """What was taken back may be more than was needed."""
        if self.policy.preempt and self._freed and not self._filling:
            self._fill(now)
