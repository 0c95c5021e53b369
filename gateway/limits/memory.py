"""Limits kept in this process: the store of one gateway by itself, and the reference for all others.

Everything is decided between two awaits, so a step is atomic without a lock, and nothing can be lost between
the decision and its caller: a caller that is cancelled either never got so far, or has its verdict.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from gateway.config.snapshot import Limit
from gateway.limits.arithmetic import added, drained, granted, window_of
from gateway.limits.contract import Account, Adjustment, Charge, Standing, Verdict

__all__ = ["MemoryStore"]

TIDY_AFTER = 10_000
"""Accounts, from which on those that hold nothing are dropped now and then."""


class _Rate:
    __slots__ = ("credit", "limit", "seen", "used")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        """By which it was drained last."""
        self.used = 0
        self.credit = 0
        self.seen = -1
        """Milliseconds; -1: never."""

    def drain(self, limit: Limit, now: int) -> None:
        seen = self.seen
        if now <= seen:
            # The same millisecond, or a clock that steps back: nothing drains. One that was set back by more
            # than a period is believed, lest nothing drain until it is where it was.
            if not self.used or (limit.per is not None and seen - now > limit.per * 1000):
                self.seen = now
            return
        self.seen = now
        self.limit = limit
        if self.used:
            assert limit.per is not None, "a rate has a period"
            self.used, self.credit = drained(
                self.used, self.credit, now - seen, limit.amount, limit.per * 1000
            )

    def add(self, delta: int) -> None:
        self.used = added(self.used, delta)
        if not self.used:
            self.credit = 0


class _Budget:
    __slots__ = ("used", "window")

    def __init__(self) -> None:
        self.used = 0
        self.window = 0

    def turn(self, window: int) -> None:
        """A later window starts with nothing used; a clock that steps back stays in one that is used."""
        if window > self.window or not self.used:
            self.used, self.window = 0, window


class _Level:
    __slots__ = ("holders", "used")

    def __init__(self) -> None:
        self.used = 0
        self.holders: dict[str, int] = {}

    def change(self, holding: str, delta: int) -> None:
        before = self.holders.get(holding, 0)
        after = added(before, delta)
        self.used += after - before
        if after:
            self.holders[holding] = after
        else:
            self.holders.pop(holding, None)


_State = _Rate | _Budget | _Level
_S = TypeVar("_S", _Rate, _Budget, _Level)


class MemoryStore:
    """A LimitStore without a server. Not for threads: one event loop uses it.

    `clock` is monotonic seconds, `wall` is seconds since 1970: budgets go by the date.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._states: dict[str, _State] = {}
        self._open: dict[str, list[_Level]] = {}
        """Open reservations, each with the levels that it may hold something of."""
        self._tidy_at = TIDY_AFTER

    async def reserve(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        return self.reserve_now(holding, charges)

    def reserve_now(self, holding: str, charges: Sequence[Charge]) -> Verdict:
        """`reserve`, without an await."""
        now = self._now()
        if len(self._states) > self._tidy_at:
            self._tidy(now)
        find = self._states.get
        charged: list[_State] = []
        standings: list[Standing] = []
        refused: list[Account] = []
        denied = False
        for charge in charges:
            account = charge.account
            limit = account.limit
            state = find(account.key)
            if type(state) is _Rate and limit.per is not None:  # by far the most frequent
                if now != state.seen:
                    state.drain(limit, now)
            else:
                state = self._current(account, now)
            used = state.used
            grant: int | None = charge.amount
            if used + charge.amount > limit.amount:
                grant = granted(charge.amount, charge.least, used, limit.amount)
            charged.append(state)
            if grant is None:
                refused.append(account)
                denied = denied or limit.enforce
                standings.append(self._standing(account, None, used, state, now))
            elif type(state) is _Rate:
                standings.append(Standing(account, grant, used + grant, state.credit, now))
            else:
                standings.append(self._standing(account, grant, used + grant, state, now))
        if denied:
            return Verdict(False, tuple(self._without(standings, charged, now)), tuple(refused))
        levels = self._open.get(holding)
        if levels is None:
            levels = self._open[holding] = []
        for state, standing in zip(charged, standings, strict=True):
            if standing.granted is not None:
                if type(state) is _Level:
                    state.change(holding, standing.granted)
                    levels.append(state)
                else:
                    state.used += standing.granted
        return Verdict(True, tuple(standings), tuple(refused))

    def adjust(
        self,
        holding: str,
        adjustments: Sequence[Adjustment],
        *,
        final: bool,
        told: Callable[[Sequence[Standing]], None] | None = None,
    ) -> None:
        levels = self._open.pop(holding, None) if final else self._open.get(holding)
        if levels is None:
            return  # ended already, or never begun
        now = self._now()
        standings = []
        for adjustment in adjustments:
            account, delta = adjustment.account, adjustment.delta
            state: _State | None = self._states.get(account.key)
            if type(state) is _Rate and account.limit.per is not None:
                if now != state.seen:
                    state.drain(account.limit, now)
            else:
                state = self._current(account, now, settles=True)
            if type(state) is _Level:
                state.change(holding, delta)
                levels.append(state)
            elif type(state) is _Rate:
                state.add(delta)
            elif type(state) is _Budget and (
                delta > 0 or adjustment.window is None or adjustment.window >= state.window
            ):
                state.used = added(state.used, delta)
            if told is not None:
                standings.append(self._standing(account, None, state.used, state, now))
        if final:
            for level in levels:
                level.change(holding, -level.holders.get(holding, 0))
        if told is not None:
            told(standings)

    async def look(self, accounts: Sequence[Account]) -> Sequence[Standing]:
        now = self._now()
        states = [self._current(account, now, keep=False) for account in accounts]
        return [
            self._standing(account, None, state.used, state, now)
            for account, state in zip(accounts, states, strict=True)
        ]

    async def aclose(self) -> None:
        """Nothing waits to be sent."""

    @property
    def open(self) -> int:
        """Reservations that have not ended."""
        return len(self._open)

    def held(self) -> dict[str, int]:
        """What is held of levels, by account key; empty at rest."""
        return {
            key: state.used for key, state in self._states.items() if type(state) is _Level and state.used
        }

    def _now(self) -> int:
        """Whole milliseconds. Half a microsecond is added lest 1.001 s, in floats, be 1000 ms."""
        return int(self._clock() * 1000.0 + 0.0005)

    def _current(self, account: Account, now: int, *, settles: bool = False, keep: bool = True) -> _State:
        """The account's state at `now`; a new one where there is none.

        A limit may have become one of another kind under its old name: its account starts anew then, unless
        this is an old configuration's request that `settles`.
        """
        limit = account.limit
        state: _State | None = self._states.get(account.key)
        if limit.per is not None:
            if type(state) is not _Rate:
                state = self._new(account, _Rate(limit), keep and not (settles and state))
            state.drain(limit, now)
            return state
        if limit.calendar is not None:
            if type(state) is not _Budget:
                state = self._new(account, _Budget(), keep and not (settles and state))
            state.turn(window_of(limit.calendar, int(self._wall() * 1000.0)))
            return state
        if type(state) is not _Level:
            state = self._new(account, _Level(), keep and not (settles and state))
        return state

    def _new(self, account: Account, state: _S, keep: bool) -> _S:
        if keep:
            self._states[account.key] = state
        return state

    def _tidy(self, now: int) -> None:
        """Drop what is empty by now: an account that is asked for again starts empty anyway."""
        for state in self._states.values():
            if type(state) is _Rate:
                state.drain(state.limit, now)
        self._states = {key: state for key, state in self._states.items() if state.used}
        self._tidy_at = max(TIDY_AFTER, 2 * len(self._states))

    def _standing(self, account: Account, grant: int | None, used: int, state: _State, now: int) -> Standing:
        if type(state) is _Rate:
            return Standing(account, grant, used, state.credit, now)
        if type(state) is _Budget:
            return Standing(account, grant, used, 0, int(self._wall() * 1000.0), state.window)
        return Standing(account, grant, used, 0, now)

    def _without(
        self, standings: Sequence[Standing], states: Sequence[_State], now: int
    ) -> Iterator[Standing]:
        """The standings after all, as nothing was charged."""
        for standing, state in zip(standings, states, strict=True):
            yield self._standing(standing.account, None, state.used, state, now)
