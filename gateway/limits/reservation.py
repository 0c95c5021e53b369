"""A charge that is still an estimate, from the decision to the end of the request.

    reserved   what the request is expected to use, before it is sent
    streamed   an answer that outruns this is charged as it goes, every so many tokens or milliseconds, so
               that everybody sees it at once; and it is cut where nothing is left and its limit says so
    settled    at the end: what it did use, by the engine's own figures; the rest is given back
    refunded   or all of it, the request too: for those who get no answer

It ends once, by whichever way is first.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from gateway.errors import QuotaExceeded
from gateway.limits.arithmetic import MOST
from gateway.limits.contract import Adjustment, LimitStore, Standing
from gateway.limits.plans import Plan, Scoped
from gateway.limits.scopes import UNITS, units_used

__all__ = ["Reservation"]

NOTHING = (0,) * len(UNITS)


class Keeper(Protocol):
    """What a reservation needs of its limiter."""

    store: LimitStore
    settle_tokens: int
    settle_seconds: float

    async def change(self, reservation: "Reservation", pool: str) -> None: ...
    def was_cut(self, limit: str) -> None: ...


class Reservation:
    """Use it as a context manager: left without being settled, it is refunded."""

    __slots__ = (
        "_beyond", "_covered", "_due", "_keeper", "_next", "_open", "_scoped", "choices", "cut", "holding",
        "output", "plan", "pool", "prompt", "refused", "standings",
    )  # fmt: skip

    def __init__(
        self,
        keeper: Keeper,
        plan: Plan,
        pool: str | None,
        holding: str,
        prompt: int,
        output: int,
        choices: int,
    ) -> None:
        """`prompt` and `output` are the tokens that are expected, over all choices."""
        self._keeper = keeper
        self.plan = plan
        self.pool = pool
        """Whose limits it holds."""
        self.holding = holding
        self.prompt = prompt
        self.output = output
        self.choices = choices
        self.cut: str | None = None
        """The limit that wants the answer to end here."""
        self.refused: dict[str, QuotaExceeded] | None = None
        """Pools whose limits said no."""
        self._open = False
        self._scoped: Sequence[Scoped] = ()
        """What it uses, ..."""
        self.standings: Sequence[Standing] = ()
        """... and what was granted of each, and how it stood then."""
        self._beyond: list[int] | None = None
        """What was charged of each beyond that, while it streamed."""
        self._covered = MOST
        """Output tokens that are paid for."""
        self._next = 0
        self._due = 0.0

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.refund()

    # --------------------------------------------------------------------------------------- before

    def charged(
        self, plan: Plan, scoped: Sequence[Scoped], standings: Sequence[Standing], wanted: Sequence[int]
    ) -> None:
        """Take note of what was granted, of the expected use of each of UNITS. What limits that only look on
        did not grant is not followed; where less was granted, the answer is followed from there."""
        if not self._open:
            plan.tally.reserved += self.prompt + self.output
        self._open = True
        self._scoped = (*self._scoped, *scoped) if self._scoped else scoped
        self.standings = (*self.standings, *standings) if self.standings else standings
        if self._beyond is not None:
            self._beyond += [0] * len(scoped)
        if not plan.output:
            return
        if self.output < self._covered:
            self._covered = self.output
        for each, standing in zip(scoped, standings, strict=True):
            granted = standing.granted
            if each.output and granted is not None and granted < wanted[each.unit]:
                self._covered = min(self._covered, self._output_in(each, granted))

    def holds(self, each: Scoped) -> bool:
        return each in self._scoped

    async def move(self, pool: str) -> None:
        """Go on to another pool: take its limits, and give those of the former one back.

        Raises QuotaExceeded where they refuse; the former ones are then still held. StoreUnavailable cannot
        happen here: the limiter tells it as Unavailable.
        """
        if pool == self.pool:
            return
        if self.refused is not None and (refusal := self.refused.get(pool)) is not None:
            raise refusal
        await self._keeper.change(self, pool)

    def moved(self, plan: Plan, pool: str) -> None:
        """Give back what the new pool's plan does not have."""
        self.plan, self.pool = plan, pool
        kept = [at for at, each in enumerate(self._scoped) if each in plan.scoped]
        if len(kept) == len(self._scoped):
            return
        back = []
        for at, (each, standing) in enumerate(zip(self._scoped, self.standings, strict=True)):
            if each not in plan.scoped and standing.granted is not None:
                charged = standing.granted + (0 if self._beyond is None else self._beyond[at])
                back.append(Adjustment(each.account, -charged, standing.window))
        self._scoped = [self._scoped[at] for at in kept]
        self.standings = [self.standings[at] for at in kept]
        if self._beyond is not None:
            self._beyond = [self._beyond[at] for at in kept]
        self._keeper.store.adjust(self.holding, back, final=False)

    def most_output(self) -> tuple[int, str] | None:
        """Output tokens per choice that limits with `clamp` still allow, and the limit that allows the least;
        None where none does."""
        tightest: tuple[int, str] | None = None
        if self.plan.clamps:
            for each, standing in zip(self._scoped, self.standings, strict=True):
                if each.clamps and standing.granted is not None:
                    most = max(1, self._output_in(each, standing.granted + standing.free) // self.choices)
                    if tightest is None or most < tightest[0]:
                        tightest = most, each.account.limit.name
        return tightest

    @property
    def may_cut(self) -> bool:
        """Whether the answer must be seen as it is made."""
        return self.plan.cuts

    # --------------------------------------------------------------------------------- while it streams

    def streamed(self, output: int, clock: Callable[[], float]) -> None:
        """`output` tokens came so far, over all choices. Sets `cut` when the answer has to end.

        Cheap until the reservation is outrun. From then on each settlement interval charges what is beyond.
        """
        if output <= self._covered:
            return
        now = clock()
        if output < self._next and now < self._due:
            return
        self._next = output + self._keeper.settle_tokens
        self._due = now + self._keeper.settle_seconds
        actual = units_used(self.prompt, output, self.plan.prices)
        if self._beyond is None:
            self._beyond = [0] * len(self._scoped)
        more = []
        for at, (each, standing) in enumerate(zip(self._scoped, self.standings, strict=True)):
            if each.output and standing.granted is not None:
                delta = actual[each.unit] - standing.granted - self._beyond[at]
                if delta > 0:
                    self._beyond[at] += delta
                    more.append(Adjustment(each.account, delta))
        self._covered = output
        if more:
            told = self._told if self.plan.cuts else None
            self._keeper.store.adjust(self.holding, more, final=False, told=told)

    def _told(self, standings: Sequence[Standing]) -> None:
        for standing in standings:
            limit = standing.account.limit
            if (
                self.cut is None
                and self._open
                and limit.overrun == "cut"
                and limit.enforce
                and standing.used > limit.amount
            ):
                self.cut = limit.name

    def cut_short(self, limit: str) -> None:
        """The answer was ended for `limit`: count it."""
        self._keeper.was_cut(limit)

    # -------------------------------------------------------------------------------------------- after

    @property
    def open(self) -> bool:
        """Whether something is charged that is not settled yet."""
        return self._open

    def settle(self, prompt: int, output: int, cached: int = 0) -> None:
        """The request is over and used so many tokens; `output` over all choices, `cached` of the prompt.

        The first end counts, later ones do nothing.
        """
        if not self._open:
            return
        self._open = False
        actual = units_used(prompt, output, self.plan.prices, cached)
        self._keeper.store.adjust(self.holding, self._corrections(actual), final=True)
        self.plan.tally.settled += prompt + output

    def refund(self) -> None:
        """Give everything back, the request itself too. Nothing after another end."""
        if not self._open:
            return
        self._open = False
        self._keeper.store.adjust(self.holding, self._corrections(NOTHING), final=True)

    def _corrections(self, actual: Sequence[int]) -> list[Adjustment]:
        """From what is charged to what was used of each of UNITS. Levels are given back by the store."""
        beyond = self._beyond
        corrections = []
        for at, (each, standing) in enumerate(zip(self._scoped, self.standings, strict=True)):
            if standing.granted is None or each.level:
                continue
            delta = actual[each.unit] - standing.granted
            if beyond is not None:
                delta -= beyond[at]
            if delta:
                corrections.append(Adjustment(each.account, delta, standing.window))
        return corrections

    def _output_in(self, each: Scoped, units: int) -> int:
        """Output tokens that so many units of this limit are enough for, beside the prompt."""
        left = units - units_used(self.prompt, 0, self.plan.prices)[each.unit]
        per_token = units_used(0, 1, self.plan.prices)[each.unit]
        return max(0, left) // per_token
