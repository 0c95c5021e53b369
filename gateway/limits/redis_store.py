"""Limits kept in Redis, shared by all processes that have its address and namespace.

Each step is one script and one round trip (`lua/`), by the server's clock. What a process holds of levels is
leased: its heartbeat renews it every BEAT seconds for LEASE seconds, so what a killed process held is free
again within LEASE. A charge whose answer never came is taken back, or kept from happening, by an `undo` that
has its effect once; so have settlements, which wait until Redis is back if it is away.

Keys, all with the hash tag {namespace}, so that one server has them and one script may decide about any
number:

    {ns}:live           open reservations, by when they began
    {ns}:processes      processes, by when they count as dead
    {ns}:granted:<step> what was granted, where it is not what was wanted; until the reservation ends
    {ns}:a:<account>    a rate or a budget: `r used credit seen`, `b used window`
    {ns}:h:<account>    a level: who holds some, until when;  {ns}:n:<account>: how much each holds
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from gateway.config.snapshot import Limit
from gateway.limits.contract import Account, Adjustment, Charge, Standing, Verdict
from gateway.limits.redis_link import Call, NotAnswered, RedisLink, Script

__all__ = ["BEAT", "LEASE", "RedisStore"]

LEASE = 25.0
"""Seconds for which a process holds what it holds without saying so again."""
BEAT = 8.0
"""Seconds between two heartbeats: two may be lost."""
HOLDERS_A_BEAT = 200
"""Renewals in one script, which keeps the server busy for less than a millisecond."""


class _Held:
    """An open reservation."""

    __slots__ = ("levels", "owed", "steps")

    def __init__(self) -> None:
        self.steps: list[str] = []
        """Ids of the reserving calls that were granted. Each has its own, so that it can be taken back by
        itself."""
        self.levels: dict[str, int] = {}
        """Account key -> units, as far as known here."""
        self.owed: list[tuple[Account, int, int | None]] = []
        """Corrections that could not be sent on the way; they go with the next one."""


class RedisStore:
    """A LimitStore. `run` is its background work; nothing is sent before it runs.

    `clock` gives the time in ms since 1970 in place of the server's, for tests.
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        namespace: str,
        lease: float = LEASE,
        beat: float = BEAT,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.link = link
        self.processes = 1
        """How many processes share these limits, this one included, when last heard."""
        self._prefix = f"{{{namespace}}}:"
        self._lease = round(lease * 1000)
        self._beat = beat
        self._clock = clock
        self._me = secrets.token_hex(8)
        self._open: dict[str, _Held] = {}
        self._steps = 0
        """Calls of `reserve` so far: they name its steps, which nobody else's can be taken for."""
        self._reserve, self._adjust, self._look, self._say = (
            Script.load(name) for name in ("reserve", "adjust", "look", "beat")
        )
        self._live = self._prefix + "live"

    async def run(self) -> None:
        """Keep the connection and the heartbeat, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self.link.run(self._greeting))
            both.create_task(self._keep_alive())

    # ------------------------------------------------------------------------------------ LimitStore

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        self._steps += 1
        step = f"{self._me}.{self._steps:x}"
        keys = [self._live, self._given(step)]
        args: list[str | int] = [holding, step, self._now(), self._lease, len(charges)]
        for charge in charges:
            account = charge.account
            self._add_keys(keys, account)
            args += (*_described(account.limit), int(account.limit.enforce), charge.amount, charge.least)
        call = self.link.submit(self._reserve, keys, args)
        assert call.reply is not None, "submit gives one"
        try:
            now, outcome, *numbers = await call.reply
        except asyncio.CancelledError:
            if call.reply.done() and not call.reply.cancelled():
                call.reply.exception()  # it was seen
            if call.sent:
                self._undo(holding, step, charges)
            raise
        except NotAnswered as error:
            if error.perhaps:
                self._undo(holding, step, charges)
            raise
        if outcome < 0:
            raise NotAnswered("the charge was given up", perhaps=False)
        if not outcome:
            return _refusal(charges, now, numbers)
        held = self._open.setdefault(holding, _Held())
        held.steps.append(step)
        standings = []
        for charge, (granted, used, credit, window) in zip(charges, _by_four(numbers), strict=True):
            account = charge.account
            grant = None if granted < 0 else granted
            standings.append(_standing(account, grant, used, credit, now, window))
            if grant is not None and _is_level(account.limit):
                held.levels[account.key] = held.levels.get(account.key, 0) + grant
        refused = tuple([standing.account for standing in standings if standing.granted is None])
        return Verdict(True, tuple(standings), refused)

    def adjust(
        self,
        holding: str,
        adjustments: Sequence[Adjustment],
        *,
        final: bool,
        told: Callable[[Sequence[Standing]], None] | None = None,
    ) -> None:
        held = self._open.pop(holding, None) if final else self._open.get(holding)
        if held is None:
            return  # ended already, or never begun
        for adjustment in adjustments:
            if not final and _is_level(adjustment.account.limit):
                key = adjustment.account.key
                held.levels[key] = max(0, held.levels.get(key, 0) + adjustment.delta)
        named = {adjustment.account.key for adjustment in adjustments}
        rest = [key for key in held.levels if final and key not in named]
        changes = [(each.account, each.delta, each.window) for each in adjustments]
        changes, held.owed = [*held.owed, *changes], []
        self._send(
            "end" if final else "more",
            holding,
            held.steps if final else held.steps[:1],
            changes,
            lost=None if final else lambda: held.owed.extend(changes),
            rest=rest,
            told=told,
        )

    async def look(self, accounts: Sequence[Account]) -> Sequence[Standing]:
        keys: list[str] = []
        args: list[str | int] = [self._now(), len(accounts)]
        for account in accounts:
            self._add_keys(keys, account)
            args += _described(account.limit)
        call = self.link.submit(self._look, keys, args)
        assert call.reply is not None, "submit gives one"
        try:
            now, _, *numbers = await call.reply
        except asyncio.CancelledError:
            if call.reply.done() and not call.reply.cancelled():
                call.reply.exception()  # it was seen
            raise
        return _standings(accounts, now, numbers)

    async def aclose(self) -> None:
        """Say goodbye, and wait until all was sent: a second at most, and not while Redis is away."""
        if self.link.up:
            self.link.post(self._say, *self._alive([], lease=0))
        await self.link.drained(1.0)

    # -------------------------------------------------------------------------------------- the rest

    @property
    def open(self) -> int:
        """Reservations of this process that have not ended."""
        return len(self._open)

    def _undo(self, holding: str, step: str, charges: Sequence[Charge]) -> None:
        wanted = [(charge.account, charge.amount, None) for charge in charges]
        self._send("undo", holding, [step], wanted)

    def _send(
        self,
        what: str,
        holding: str,
        steps: Sequence[str],
        changes: Sequence[tuple[Account, int, int | None]],
        *,
        rest: Sequence[str] = (),
        told: Callable[[Sequence[Standing]], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        """`rest`: levels of which the reservation may hold something besides; it is given back."""
        keys = [self._live, self._given(steps[0])]
        args: list[str | int] = [what, holding, self._now(), self._lease, len(changes) + len(rest)]
        for account, delta, window in changes:
            self._add_keys(keys, account)
            args += (*_described(account.limit), delta, -1 if window is None else window)
        for key in rest:
            keys += (f"{self._prefix}h:{key}", f"{self._prefix}n:{key}")
            args += ("l", 0, 0, 0, -1)
        args += steps
        accounts = [account for account, _, _ in changes]

        def then(reply: list[Any]) -> None:
            now, was_open, *numbers = reply
            if told is not None and was_open:
                told(_standings(accounts, now, numbers[: 4 * len(accounts)]))

        self.link.post(self._adjust, keys, args, then, lost, lasting=what != "more")

    def _now(self) -> str:
        return "" if self._clock is None else str(self._clock())

    def _given(self, step: str) -> str:
        return f"{self._prefix}granted:{step}"

    def _add_keys(self, keys: list[str], account: Account) -> None:
        if _is_level(account.limit):
            keys += (f"{self._prefix}h:{account.key}", f"{self._prefix}n:{account.key}")
        else:
            keys.append(f"{self._prefix}a:{account.key}")

    # ----------------------------------------------------------------------------------- the heartbeat

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._beat)
            self.beat()

    def beat(self) -> None:
        """Renew what is held, now."""
        holders = [
            (holding, level, n) for holding, it in self._open.items() for level, n in it.levels.items()
        ]
        for at in range(0, len(holders) or 1, HOLDERS_A_BEAT):
            self.link.post(self._say, *self._alive(holders[at : at + HOLDERS_A_BEAT]), self._heard)

    def _greeting(self) -> Call:
        """The first words on a connection: a beat without holders; the next beat has them."""
        return Call(self._say, *self._alive([]), then=self._welcomed)

    def _welcomed(self, reply: list[Any]) -> None:
        self._heard(reply)
        if any(held.levels for held in self._open.values()):
            self.beat()  # what is held may have run out while Redis was away

    def _heard(self, reply: list[Any]) -> None:
        self.processes = max(1, reply[2])

    def _alive(
        self, holders: Sequence[tuple[str, str, int]], *, lease: int | None = None
    ) -> tuple[list[str], list[str | int]]:
        keys = [self._live, self._prefix + "processes"]
        index: dict[str, int] = {}
        said: list[str | int] = []
        for holding, level, units in holders:
            if level not in index:
                index[level] = len(index) + 1
                keys += (f"{self._prefix}h:{level}", f"{self._prefix}n:{level}")
            said += (self._open[holding].steps[0], holding, index[level], units)
        args: list[str | int] = [self._me, self._now(), self._lease if lease is None else lease, len(index)]
        return keys, args + said


def _is_level(limit: Limit) -> bool:
    return limit.per is None and limit.calendar is None


def _described(limit: Limit) -> tuple[str, int, int]:
    """Kind, amount and period in ms, as the scripts take them."""
    if limit.per is not None:
        return "r", limit.amount, limit.per * 1000
    if limit.calendar is not None:
        return limit.calendar[0], limit.amount, 0
    return "l", limit.amount, 0


def _by_four(numbers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    four = iter(numbers)
    return list(zip(four, four, four, four, strict=True))


def _standing(account: Account, grant: int | None, used: int, credit: int, now: int, window: int) -> Standing:
    return Standing(account, grant, used, credit, now, None if window < 0 else window)


def _standings(accounts: Sequence[Account], now: int, numbers: Sequence[int]) -> list[Standing]:
    return [
        _standing(account, None, used, credit, now, window)
        for account, (_, used, credit, window) in zip(accounts, _by_four(numbers), strict=True)
    ]


def _refusal(charges: Sequence[Charge], now: int, numbers: Sequence[int]) -> Verdict:
    accounts = [charge.account for charge in charges]
    refused = [
        account for account, (granted, *_) in zip(accounts, _by_four(numbers), strict=True) if granted < 0
    ]
    return Verdict(False, tuple(_standings(accounts, now, numbers)), tuple(refused))
