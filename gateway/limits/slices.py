"""What a process has of an account: units charged at the parent store, and not spent yet.

How large a slice is, between nothing and its share of the amount, follows demand: it doubles while it lasts
for less than 100 ms and is halved once it lasts for more than 400 ms. A refusal of the parent is believed for
25 ms, or until the units will have drained, whichever is sooner. `leasing` spends and fills them.
"""

from gateway.config.snapshot import Limit
from gateway.limits.arithmetic import drained, period_of, wait_for, window_end, window_of
from gateway.limits.contract import Account, Adjustment, Standing

__all__ = ["BUDGET", "LEVEL", "Lease", "Parcel", "Record", "Slice", "hold", "kind_of", "less", "window_at"]

SHORT_MS, LONG_MS = 100, 400
"""A slice that is used up sooner doubles; one that lasts longer is halved."""
BARE_MS = 25
"""A refusal is believed for at most so long, and no longer than until the units will have drained."""
RATE, BUDGET, LEVEL = range(3)


class Slice:
    """What this process has of one account."""

    __slots__ = (
        "account", "ahead", "bare", "bare_until", "central", "coming", "due", "ends", "filled", "free",
        "full", "held", "kind", "known", "least", "limit", "lots", "low", "pause", "thirsty", "touched",
        "want", "window",
    )  # fmt: skip

    def __init__(self, account: Account, processes: int, share: int) -> None:
        self.account = account
        self.limit = limit = account.limit
        self.kind = kind_of(account)
        self.free = 0
        """Charged at the parent and not spent."""
        self.ahead = 0
        """Units that steps under way may still put here: taken for a request that is not decided yet, or
        asked for beyond what it needs."""
        self.least = 0
        """The least that was free since the last sweep: so many units nobody touched."""
        self.full = limit.amount // (share * processes)
        """`free + ahead` never is above it."""
        self.want = 0
        """What it is filled to; 0: straight through."""
        self.low = 0
        """Below, the background asks."""
        self.coming = 0
        """Steps under way that know this slice."""
        self.held = 0
        """Levels: what requests of this process hold."""
        self.lots: list[Lease] = []
        """Levels: the leases that `free + held` units are held under, the latest last."""
        self.due = 0
        """What is still to be charged to (or, below zero, given back to) the parent, for want of a lease."""
        self.central = 0
        """`used` of the parent as last heard, with what was sent since."""
        self.known = 0
        """When that was heard."""
        self.window: int | None = None
        self.ends = 0
        """Budgets: the window that `free` is of, and its end, ms since 1970."""
        self.filled = -LONG_MS
        self.touched = 0
        self.pause = 0
        self.bare: tuple[int, Standing, int] | None = None
        """Units that the parent had not, how the account stood, and when that was heard."""
        self.bare_until = 0
        self.thirsty = False

    def ask(self, need: int, now: int) -> int:
        """Units to take beyond what a request needs, so that the slice is full again."""
        if self.coming:
            return 0
        since = now - self.filled
        if since < SHORT_MS:
            self.resize(max(2 * self.want, 4 * need))
        elif since >= LONG_MS:
            self.resize(self.want // 2)
        self.filled = now
        return max(0, self.want - self.free - self.ahead)

    def resize(self, want: int) -> None:
        self.want = want if want < self.full else self.full
        self.low = (self.want + 1) // 2

    def used(self, now: int) -> int:
        """The parent's `used` without what lies free here: exact as of the last word, drained since."""
        used = self.central
        if self.kind == RATE:
            limit = self.limit
            assert limit.per is not None, "a rate has a period"
            used -= (now - self.known) * limit.amount // (limit.per * 1000)
            if used < 0:
                used = 0
        used += self.due - self.free
        return used if used > 0 else 0

    def hear(self, standing: Standing, now: int) -> None:
        if standing.window is not None and (self.window is None or standing.window > self.window):
            self.turn(standing.window)
        if standing.window == self.window:
            self.central = standing.used
            self.known = now
            if now < self.bare_until and self.bare is not None:
                if self.limit.amount - standing.used >= self.bare[0]:
                    self.bare_until = 0
                else:
                    self.bare = self.bare[0], standing, now

    def refused(self, missing: int, standing: Standing, now: int) -> None:
        """The parent had not `missing` units, and will not have them for a while unless some come back."""
        if self.kind == LEVEL or not self.limit.enforce:
            return  # slots come back at any moment
        wait = wait_for(self.limit, missing, standing.used, standing.credit, standing.now, standing.window)
        self.bare = missing, standing, now
        self.bare_until = now + (BARE_MS if wait is None else min(wait, BARE_MS))

    def knows_no(self, missing: int, now: int) -> bool:
        """The parent would refuse, as far as is known."""
        return now < self.bare_until and self.bare is not None and missing >= self.bare[0]

    def bare_now(self, now: int) -> Standing:
        """The standing of the refusal that is remembered, as time has gone on since."""
        assert self.bare is not None, "there is one where `knows_no`"
        _, standing, heard = self.bare
        elapsed = now - heard
        used, credit = standing.used, standing.credit
        if self.kind == RATE:
            used, credit = drained(used, credit, elapsed, self.limit.amount, period_of(self.limit))
        return Standing(self.account, None, used, credit, standing.now + elapsed, standing.window)

    def turn(self, window: int) -> None:
        """A new day or month: what is left of the old one is worth nothing, nor is what it is owed."""
        assert self.limit.calendar is not None, "a budget has a calendar"
        if self.window is not None:
            self.free = self.least = self.central = self.due = self.bare_until = 0
        self.window = window
        self.ends = window_end(self.limit.calendar, window)

    def move(self, lease: "Lease", units: int) -> None:
        """The parent holds so many more (or fewer) level units under `lease`."""
        before = lease.levels.get(self, 0)
        if before + units > 0:
            lease.levels[self] = before + units
            if not before:
                self.lots.append(lease)
        elif before:
            del lease.levels[self]
            self.lots.remove(lease)


class Lease:
    """One holding at the parent."""

    __slots__ = ("began", "holding", "levels", "owned")

    def __init__(self, holding: str, owned: bool, now: int) -> None:
        self.holding = holding
        self.began = now
        self.levels: dict[Slice, int] = {}
        """Level units that the parent holds under it."""
        self.owned = owned
        """An open reservation will end it, or pass it on."""


class Record:
    """An open reservation."""

    __slots__ = ("lease", "levels")

    def __init__(self) -> None:
        self.levels: dict[Slice, int] = {}
        self.lease: Lease | None = None
        """The lease that was taken for it, if there was one."""


class Parcel:
    """What goes to the parent at the end of a step."""

    __slots__ = ("levels", "plain", "waits")

    def __init__(self) -> None:
        self.plain: list[tuple[Slice, int]] = []
        """Of rates and budgets: any lease can carry it."""
        self.levels: dict[Lease, list[Adjustment]] = {}
        self.waits = False
        """Some of it can only go once there is a lease."""


def kind_of(account: Account) -> int:
    limit = account.limit
    return RATE if limit.per is not None else BUDGET if limit.calendar is not None else LEVEL


def window_at(limit: Limit, wall: int) -> int:
    assert limit.calendar is not None, "a budget has a calendar"
    return window_of(limit.calendar, wall)


def hold(record: Record, mine: Slice, units: int) -> int:
    """A reservation holds so many more (or fewer) level units; by how many that changed."""
    before = record.levels.get(mine, 0)
    after = max(0, before + units)
    if after:
        record.levels[mine] = after
    else:
        record.levels.pop(mine, None)
    mine.held += after - before
    return after - before


def less(standing: Standing, free: int, granted: int | None = None) -> Standing:
    """A parent's standing as this process sees it: what lies free here is not used."""
    return Standing(
        standing.account,
        granted,
        max(0, standing.used - free),
        standing.credit,
        standing.now,
        standing.window,
    )
