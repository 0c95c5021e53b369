"""Limits spent from slices: most requests are admitted without asking the shared store.

A process takes a slice of an account from its parent store, spends it locally, and asks again before it is
used up. Whatever is spent here was charged there before: over its whole life an account never gives more
than the parent's arithmetic allows. What slices change is when: what lies in slices now can be spent in one
burst, beside what the parent grants afterwards.

    The bound: over any interval of t seconds, what all processes spend, less what they give back, is at most
    amount + amount * t / period + processes * slice, and processes * slice <= amount / 8.

    Why: what a process spends in an interval lay in its slice at the beginning or was taken from the parent
    in the interval. The parent gives at most amount + amount * t / period, and no slice ever is larger than
    `amount // (8 * processes)`: what goes beyond is given back in the same step.

How large a slice is, between nothing and that bound, follows demand: it doubles while it lasts for less than
100 ms and is halved once it lasts for more than 400 ms. So a limit too small to be cut in slices, or asked
for only now and then, goes straight through and is exact, one round trip for each request. Units that nobody
touched for a second go back, so that an idle process starves no busy one.

A request takes what there is in each slice; if anything is short, one `reserve` of the parent asks for all
that is missing, with new slices on top, and whatever it answers is the answer for the whole request: refused,
unavailable or cancelled, everything goes back to where it was. Once a slice is below half, a task in the
background asks first, so that requests seldom wait.

A refusal is believed for 25 ms, or until the units will have drained, whichever is sooner: a client that does
not wait as it is told costs the parent 40 questions a second, not thousands. (Not of levels, where a slot may
come back at any moment; nor of what this process gives back itself.)

The parent knows units under leases, one for each `reserve` that it was asked. A lease is the holding of the
level units that came with it, and carries corrections: its end, which has its effect exactly once, brings
back what is left over and what answers cost beyond their slice.

Whether an answer that outruns its reservation must end is told by the parent, wherever it was charged there:
other processes may have used the account since it was last heard of. What a slice covers was charged before,
takes the parent's account no further, and is told from here.
"""

import time
from asyncio import Event, timeout
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from secrets import token_hex

from gateway.limits.contract import (
    Account,
    Adjustment,
    Charge,
    LimitStore,
    Standing,
    StoreUnavailable,
    Verdict,
)
from gateway.limits.slices import (
    BUDGET,
    LEVEL,
    Lease,
    Parcel,
    Record,
    Slice,
    hold,
    kind_of,
    less,
    window_at,
)

__all__ = ["SHARE", "LeasedStore"]

SHARE = 8
"""All slices of an account together are at most this part of its amount."""
IDLE_MS = 1000
"""Units that nobody touched for this long go back; it is also how often each slice is looked at."""
FORGET_MS = 10_000
"""An empty slice that nobody asked for this long is forgotten."""
PAUSE_MS = 100
"""After the parent had not what was asked for, or could not tell, the background leaves it alone."""
SWEEP_S = 0.25
SWEEP_MOST = 2000
"""Slices looked at in one go, lest the loop stand still."""
BATCH = 100
"""Accounts in one call of the parent that no request waits for."""
SPARE, SPARE_MS = 4, 60_000
"""Leases kept for carrying corrections, and for how long."""


class LeasedStore:
    """A LimitStore that spends slices of `parent`'s accounts. It closes its parent.

    `processes`: how many processes share the parent, this one included; asked now and then. `share`: all
    slices together are at most amount / share. `clock` is monotonic seconds, `wall` seconds since 1970.
    `run` is its background work: without it nothing is asked for early, and nothing idle goes back.
    """

    def __init__(
        self,
        parent: LimitStore,
        *,
        processes: Callable[[], int] = lambda: 1,
        share: int = SHARE,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._parent = parent
        self._processes = processes
        self._share = share
        self._clock = clock
        self._wall = wall
        self._slices: dict[str, Slice] = {}
        self._watch: deque[tuple[int, Slice]] = deque()
        """Every slice once, with when to look at it, in that order."""
        self._open: dict[str, Record] = {}
        self._thirsty: list[Slice] = []
        self._due: set[Slice] = set()
        self._waiting: list[Callable[[], None]] = []
        """Who is to be told when what is due was charged."""
        self._spare: deque[Lease] = deque()
        """Leases that hold nothing any more."""
        self._leases: set[Lease] = set()
        """Those that hold levels, or belong to an open reservation."""
        self._name = token_hex(8)
        self._asked = 0
        self._count = max(1, processes())
        self._wake = Event()
        self._closed = False
        self.round_trips = 0
        """Calls of the parent so far that asked for units."""
        self.local = 0
        """Reservations so far that asked nobody."""

    # ------------------------------------------------------------------------------ the store's contract

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        now = self._now()
        wall: int | None = None
        slices = self._slices
        parts: list[tuple[Slice, Charge, int]] = []
        short = False
        for charge in charges:
            account = charge.account
            mine = slices.get(account.key)
            if mine is None or mine.limit is not account.limit:
                mine = self._current(account, now)
            if mine.kind == BUDGET:
                if wall is None:
                    wall = int(self._wall() * 1000.0)
                if wall >= mine.ends:
                    mine.turn(window_at(mine.limit, wall))
            wanted, free = charge.amount, mine.free
            if wanted <= free:
                taken = wanted
            else:
                taken, short = free, True
            mine.free = free = free - taken
            if free < mine.least:
                mine.least = free
            if free < mine.low and not mine.thirsty:
                mine.thirsty = True
                self._thirsty.append(mine)
            mine.touched = now
            parts.append((mine, charge, taken))
        if short:
            return await self._reserve_short(holding, parts, now)
        self.local += 1
        if self._thirsty:
            self._wake.set()
        record = self._open.get(holding)
        if record is None:
            record = self._open[holding] = Record()
        standings = []
        for mine, charge, taken in parts:
            if mine.kind == LEVEL:
                hold(record, mine, taken)
            at = wall if wall is not None and mine.kind == BUDGET else now
            standings.append(Standing(charge.account, taken, mine.used(now), 0, at, mine.window))
        return Verdict(True, tuple(standings))

    def adjust(
        self,
        holding: str,
        adjustments: Sequence[Adjustment],
        *,
        final: bool,
        told: Callable[[Sequence[Standing]], None] | None = None,
    ) -> None:
        record = self._open.pop(holding, None) if final else self._open.get(holding)
        if record is None:
            return  # ended already, or never begun
        now = self._now()
        parcel = Parcel()
        for adjustment in adjustments:
            account, delta = adjustment.account, adjustment.delta
            mine = self._slices.get(account.key)
            if mine is None or mine.kind == BUDGET:
                mine = self._current(account, now, ours=False)
            if mine.limit is not account.limit and mine.kind != kind_of(account):
                continue  # it has become a limit of another kind
            if mine.kind == LEVEL:
                delta = hold(record, mine, delta)
            elif (
                delta < 0
                and mine.window is not None
                and adjustment.window is not None
                and adjustment.window < mine.window
            ):
                continue
            if delta > 0:
                self._spend(mine, delta, record.lease, parcel, now)
            elif mine.free - delta + mine.ahead <= mine.full:
                mine.free -= delta
            else:
                self._put(mine, -delta, parcel, record.lease)
        if final and record.levels:
            for mine, units in list(record.levels.items()):
                self._put(mine, -hold(record, mine, -units), parcel, record.lease)

        own = record.lease
        if final and own is not None:
            own.owned = False
        heard = None
        if told is not None:
            accounts = [adjustment.account for adjustment in adjustments]
            heard = partial(self._tell, told, accounts)
        if parcel.plain or parcel.levels or heard is not None:
            self._send(parcel, own, heard)
        if final and own is not None:
            self._rest(own)

    async def look(self, accounts: Sequence[Account]) -> Sequence[Standing]:
        standings = await self._parent.look(accounts)
        now = self._now()
        answer = []
        for standing in standings:
            mine = self._slices.get(standing.account.key)
            if mine is None or mine.kind != kind_of(standing.account):
                answer.append(standing)
            else:
                mine.hear(standing, now)
                answer.append(less(standing, mine.free - mine.due))
        return answer

    async def aclose(self) -> None:
        """Give everything back, and close the parent."""
        self._closed = True
        self._wake.set()
        parcel = Parcel()
        for mine in self._slices.values():
            free, mine.free, mine.full, mine.want = mine.free, 0, 0, 0
            self._put(mine, free, parcel, None)
        self._send(parcel, None, None)
        if self._due:
            await self._fetch_more([])
        for lease in (*self._leases, *self._spare):
            self._parent.adjust(lease.holding, (), final=True)
        self._leases.clear()
        self._spare.clear()
        await self._parent.aclose()

    # ------------------------------------------------------------------------------ what the caller may see

    def free(self) -> dict[str, int]:
        """Units that lie in slices, by account key."""
        return {key: mine.free for key, mine in self._slices.items() if mine.free}

    @property
    def open(self) -> int:
        """Reservations that have not ended."""
        return len(self._open)

    # ------------------------------------------------------------------------------ in the background

    async def run(self) -> None:
        """Refill and give back, until cancelled or closed."""
        wait = SWEEP_S
        while not self._closed:
            try:
                async with timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                wait = self.sweep()
            self._wake.clear()
            if (self._thirsty or self._due) and not self._closed:
                await self.refill()

    async def refill(self) -> None:
        """Send what waits for a lease, and ask for what slices that are below half lack."""
        if self._due:
            await self._fetch_more([])  # first: it is used already
        now = self._now()
        thirsty, self._thirsty = self._thirsty, []
        asked: list[tuple[Slice, int]] = []
        for mine in thirsty:
            mine.thirsty = False
            if now >= mine.pause and mine.free < mine.low and (units := mine.ask(0, now)):
                asked.append((mine, units))
        for start in range(0, len(asked), BATCH):
            await self._fetch_more(asked[start : start + BATCH])

    async def _fetch_more(self, asked: list[tuple[Slice, int]]) -> None:
        lease = self._new_lease(owned=False)
        now = self._now()
        for mine, units in asked:
            mine.coming += 1
            mine.ahead += units
        got = False
        try:
            self.round_trips += 1
            verdict = await self._parent.reserve(
                lease.holding, [Charge(mine.account, units, 0) for mine, units in asked]
            )
            got = verdict.granted
        except StoreUnavailable:
            self._waiting.clear()  # the next interval of an answer asks again
            return  # whoever needs units finds out by itself
        finally:
            for mine, units in asked:
                mine.coming -= 1
                mine.ahead -= units
                if not got:
                    mine.pause = now + PAUSE_MS
        if not got:
            return
        parcel = Parcel()
        now = self._now()
        for (mine, units), standing in zip(asked, verdict.standings, strict=True):
            granted = standing.granted or 0
            if granted < units:
                mine.pause = now + PAUSE_MS
            self._land(mine, standing, granted, granted, lease, parcel, now)
        self._leases.add(lease)
        self._send(parcel, None, self._flush_due(lease, parcel))
        self._rest(lease)

    def sweep(self) -> float:
        """Give back what nobody touched for a second, forget what is empty; seconds until it should be called
        again."""
        now = self._now()
        if (count := max(1, self._processes())) != self._count:
            self._count = count
            for mine in self._slices.values():
                mine.full = mine.limit.amount // (self._share * count)
                mine.resize(mine.want)
        parcel = Parcel()
        watch = self._watch
        for _ in range(SWEEP_MOST):
            if not watch or watch[0][0] > now:
                break
            _, mine = watch.popleft()
            if self._slices.get(mine.account.key) is not mine:
                continue
            quiet = now - mine.touched
            idle = mine.least if quiet >= IDLE_MS else mine.least - mine.low
            over = mine.free - mine.full
            if now - mine.filled >= IDLE_MS:
                mine.resize(0 if quiet >= IDLE_MS else mine.want // 2)
            if (idle := min(mine.free, max(idle, over))) > 0:
                mine.free -= idle
                self._return(mine, idle, parcel, None)
            mine.least = mine.free
            kept = mine.free or mine.held or mine.coming or mine.due or mine.thirsty or idle > 0
            if quiet >= FORGET_MS and not kept:
                del self._slices[mine.account.key]
            else:
                watch.append((now + IDLE_MS, mine))
        self._send(parcel, None, None)
        self._end_spare(SPARE)
        return 0.01 if watch and watch[0][0] <= now else SWEEP_S

    # ------------------------------------------------------------------------------ steps

    async def _reserve_short(self, holding: str, parts: list[tuple[Slice, Charge, int]], now: int) -> Verdict:
        """Ask the parent for what is missing. `parts`: each charge, and what its slice gave already."""
        if all(
            taken == charge.amount or mine.knows_no(charge.least - taken, now)
            for mine, charge, taken in parts
        ):
            return self._refuse(parts, now)
        lease = self._new_lease(owned=True)
        asked: list[Charge] = []
        places: list[int | None] = []
        aheads: list[int] = []
        for mine, charge, taken in parts:
            need = charge.amount - taken
            mine.ahead += taken
            beyond = 0
            if (need or mine.free < mine.low) and now >= mine.pause:
                # What is low goes with it: one round trip, and none in the background.
                beyond = mine.ask(need, now)
            if need or beyond:
                places.append(len(asked))
                least = max(0, charge.least - taken) if need else 0
                asked.append(Charge(charge.account, need + beyond, least))
            else:
                places.append(None)
            aheads.append(taken + beyond)
            mine.ahead += beyond
            mine.coming += 1
        windows = [mine.window for mine, _, _ in parts]
        verdict: Verdict | None = None
        parcel = Parcel()
        try:
            self.round_trips += 1
            verdict = await self._parent.reserve(lease.holding, asked)
        finally:
            now = self._now()
            for (mine, _, _), ahead in zip(parts, aheads, strict=True):
                mine.coming -= 1
                mine.ahead -= ahead
            if verdict is None or not verdict.granted:
                for (mine, _, taken), window in zip(parts, windows, strict=True):
                    if taken and mine.window == window:
                        self._put(mine, taken, parcel, None)
                self._send(parcel, None, None)
        heard = verdict.standings
        if not verdict.granted:
            answer = []
            for (mine, charge, taken), place in zip(parts, places, strict=True):
                if place is None:
                    answer.append(self._standing(mine, charge.account, None, now))
                else:
                    mine.hear(heard[place], now)
                    if charge.account in verdict.refused and charge.amount > taken:
                        mine.refused(charge.least - taken, heard[place], now)
                    answer.append(less(heard[place], mine.free - mine.due))
            return Verdict(False, tuple(answer), verdict.refused)
        record = self._open.get(holding)
        if record is None:
            record = self._open[holding] = Record()
        if record.lease is None:
            record.lease = lease
        else:
            lease.owned = False
        self._leases.add(lease)
        totals: list[int | None] = []
        for (mine, charge, taken), place in zip(parts, places, strict=True):
            total: int | None = taken
            if place is not None:
                granted = heard[place].granted
                need = charge.amount - taken
                if granted is None:  # a limit that is not enforced would have refused
                    total, granted = (None, 0) if need else (taken, 0)
                    self._land(mine, heard[place], 0, taken if need else 0, lease, parcel, now)
                else:
                    given = min(granted, need)
                    self._land(mine, heard[place], granted, granted - given, lease, parcel, now)
                    total = taken + given
                if granted < asked[place].amount:
                    mine.pause = now + PAUSE_MS
            if total is not None and mine.kind == LEVEL:
                hold(record, mine, total)
            totals.append(total)
        answer = []
        for (mine, charge, _), place, total in zip(parts, places, totals, strict=True):
            if place is None:
                answer.append(self._standing(mine, charge.account, total, now))
            else:
                answer.append(less(heard[place], mine.free - mine.due, total))
        self._send(parcel, None, self._flush_due(lease, parcel) if self._due else None)
        if not lease.owned:
            self._rest(lease)
        return Verdict(True, tuple(answer), verdict.refused)

    def _refuse(self, parts: list[tuple[Slice, Charge, int]], now: int) -> Verdict:
        """Say no for the parent, which just said so: a flood of requests above a limit does not reach it."""
        self.local += 1
        standings, refused = [], []
        for mine, charge, taken in parts:
            mine.free += taken
            if taken == charge.amount:
                standings.append(self._standing(mine, charge.account, None, now))
            else:
                standings.append(less(mine.bare_now(now), mine.free - mine.due))
                refused.append(charge.account)
        return Verdict(False, tuple(standings), tuple(refused))

    def _land(
        self,
        mine: Slice,
        standing: Standing,
        came: int,
        spare: int,
        lease: Lease,
        parcel: Parcel,
        now: int,
    ) -> None:
        """The parent granted `came` units under `lease`; `spare` units nobody needs now."""
        mine.hear(standing, now)
        if mine.kind == LEVEL and came:
            mine.move(lease, came)
        if standing.window is None or standing.window == mine.window:
            self._put(mine, spare, parcel, lease)
        # else the parent's clock is behind, and units of yesterday are worth nothing tomorrow

    def _put(self, mine: Slice, units: int, parcel: Parcel, own: Lease | None) -> None:
        """Units are free again; those that the slice must not keep go back."""
        mine.free += units
        if mine.free + mine.ahead > mine.full:
            keep = max(0, mine.want - mine.ahead)
            over = mine.free - keep
            if over > 0:
                mine.free = keep
                self._return(mine, over, parcel, own)

    def _return(self, mine: Slice, units: int, parcel: Parcel, own: Lease | None) -> None:
        """`units` are no longer free here: to the parent."""
        if mine.free < mine.least:
            mine.least = mine.free
        mine.bare_until = 0
        mine.central = max(0, mine.central - units)
        if mine.kind != LEVEL:
            parcel.plain.append((mine, -units))
            return
        while units > 0 and mine.lots:
            lease = own if own is not None and mine in own.levels else mine.lots[-1]
            some = min(units, lease.levels[mine])
            mine.move(lease, -some)
            parcel.levels.setdefault(lease, []).append(Adjustment(mine.account, -some))
            units -= some

    def _spend(self, mine: Slice, units: int, own: Lease | None, parcel: Parcel, now: int) -> None:
        """An answer costs more than was reserved: from the slice, and what is missing from the parent."""
        here = min(units, mine.free)
        mine.free -= here
        if mine.free < mine.least:
            mine.least = mine.free
        mine.touched = now
        if mine.free < mine.low and not mine.thirsty:
            mine.thirsty = True
            self._thirsty.append(mine)
            self._wake.set()
        units -= here
        if not units:
            return
        mine.central += units
        if mine.kind != LEVEL:
            parcel.plain.append((mine, units))
            return
        lease = own if own is not None and own in self._leases else mine.lots[-1] if mine.lots else None
        if lease is None:
            self._owe(mine, units)
            parcel.waits = True
        else:
            mine.move(lease, units)
            parcel.levels.setdefault(lease, []).append(Adjustment(mine.account, units))

    def _owe(self, mine: Slice, units: int) -> None:
        """There is no lease to charge `units` under: the background opens one."""
        mine.central -= units
        mine.due += units
        self._due.add(mine)
        self._wake.set()

    def _send(self, parcel: Parcel, own: Lease | None, heard: Callable[[], None] | None) -> None:
        """Send a parcel, by leases that end where that can be. `heard` is called when the parent has answered
        to all of it; at once where nothing is sent; never where that is lost on the way."""
        plain = parcel.plain
        steps: list[tuple[Lease, list[Adjustment], bool]] = []
        for lease, corrections in parcel.levels.items():
            ends = not lease.levels and not lease.owned
            if ends:
                corrections += [Adjustment(mine.account, units, mine.window) for mine, units in plain]
                plain = []
                self._leases.discard(lease)
            steps.append((lease, corrections, ends))
        if plain:
            carrier, ends = self._carrier(own)
            if carrier is None:
                parcel.waits = True
                for mine, units in plain:
                    self._owe(mine, units)
            else:
                for start in range(0, len(plain), BATCH):
                    corrections = [
                        Adjustment(mine.account, units, mine.window)
                        for mine, units in plain[start : start + BATCH]
                    ]
                    steps.append((carrier, corrections, ends and start + BATCH >= len(plain)))
        if heard is not None:
            if parcel.waits:
                self._waiting.append(heard)
                heard = None
            elif not steps:
                heard()
        for at, (lease, corrections, ends) in enumerate(steps, 1):
            told = None if heard is None else partial(self._heard, heard if at == len(steps) else None)
            self._parent.adjust(lease.holding, corrections, final=ends, told=told)

    def _heard(self, then: Callable[[], None] | None, standings: Sequence[Standing]) -> None:
        """The parent tells how accounts stand after a correction; `then`: it was the last of its parcel."""
        now = self._now()
        for standing in standings:
            mine = self._slices.get(standing.account.key)
            if mine is not None and mine.kind == kind_of(standing.account):
                mine.hear(standing, now)
        if then is not None:
            then()

    def _carrier(self, own: Lease | None) -> tuple[Lease | None, bool]:
        """A lease for a correction of rates and budgets, and whether it ends with it."""
        if own is not None and own in self._leases:
            if not own.levels and not own.owned:
                self._leases.discard(own)
                return own, True
            if own.owned or not self._spare:
                return own, False
        if len(self._spare) > 1:
            return self._spare.popleft(), True
        if self._spare:
            return self._spare[0], False
        return next(iter(self._leases), None), False

    def _flush_due(self, lease: Lease, parcel: Parcel) -> Callable[[], None] | None:
        """There is a lease: what waited for one goes into the parcel. Who must be told when it was heard."""
        owing, self._due = self._due, set()
        waiting, self._waiting = self._waiting, []
        for mine in owing:
            units, mine.due = mine.due, 0
            mine.central = max(0, mine.central + units)
            if not units:
                continue
            if mine.kind != LEVEL:
                parcel.plain.append((mine, units))
            else:
                mine.move(lease, units)
                parcel.levels.setdefault(lease, []).append(Adjustment(mine.account, units))
        return partial(_call_all, waiting) if waiting else None

    def _rest(self, lease: Lease) -> None:
        """Nobody owns the lease any more: keep it for corrections, or end it."""
        if lease.levels or lease not in self._leases:
            return
        self._leases.discard(lease)
        self._spare.append(lease)
        self._end_spare(SPARE)

    def _end_spare(self, keep: int) -> None:
        """The parent may forget a lease after a day, and with it the corrections that come by it."""
        spare, now = self._spare, self._now()
        while spare and (len(spare) > keep or now - spare[0].began >= SPARE_MS):
            self._parent.adjust(spare.popleft().holding, (), final=True)

    def _new_lease(self, *, owned: bool) -> Lease:
        self._asked += 1
        return Lease(f"{self._name}.{self._asked}", owned, self._now())

    def _tell(self, told: Callable[[Sequence[Standing]], None], accounts: Sequence[Account]) -> None:
        now = self._now()
        told(
            [
                self._standing(self._current(account, now, ours=False), account, None, now)
                for account in accounts
            ]
        )

    def _standing(self, mine: Slice, account: Account, granted: int | None, now: int) -> Standing:
        """What is known here: the parent's last word, drained since, without what lies free here."""
        if mine.kind == BUDGET:
            return Standing(account, granted, mine.used(now), 0, int(self._wall() * 1000.0), mine.window)
        return Standing(account, granted, mine.used(now), 0, now)

    def _current(self, account: Account, now: int, *, ours: bool = True) -> Slice:
        """The slice of an account as it is today, with the limit as it is now.

        `ours` False: an old configuration's request settles, and changes nothing of the limit.
        """
        mine = self._slices.get(account.key)
        if mine is not None and ours and mine.limit is not account.limit:
            if mine.kind != kind_of(account):
                self._drop(mine)
                mine = None
            else:
                mine.account, mine.limit = account, account.limit
                mine.full = account.limit.amount // (self._share * self._count)
                mine.bare_until = 0
                mine.resize(mine.want)
                if mine.free > mine.full:
                    parcel = Parcel()
                    self._put(mine, 0, parcel, None)
                    self._send(parcel, None, None)
        if mine is None:
            mine = self._slices[account.key] = Slice(account, self._count, self._share)
            mine.touched = mine.known = now
            self._watch.append((now + IDLE_MS, mine))
        if mine.kind == BUDGET:
            wall = int(self._wall() * 1000.0)
            if wall >= mine.ends:
                mine.turn(window_at(mine.limit, wall))
        return mine

    def _drop(self, mine: Slice) -> None:
        """A limit has become one of another kind: give back what there is of the old one."""
        parcel = Parcel()
        free, mine.free, mine.full, mine.want = mine.free, 0, 0, 0
        mine.low = mine.due = 0
        self._due.discard(mine)
        self._put(mine, free, parcel, None)
        self._send(parcel, None, None)

    def _now(self) -> int:
        """Whole milliseconds, as MemoryStore has them."""
        return int(self._clock() * 1000.0 + 0.0005)


def _call_all(waiting: Iterable[Callable[[], None]]) -> None:
    for heard in waiting:
        heard()
