"""Limits for requests: what a request is charged, and who says no.

    request ─▶ plan (which accounts) ─▶ charges ─▶ store: all or none ─▶ Reservation, or QuotaExceeded

One limiter serves one configuration; the store behind it serves the process and outlives reloads, so what was
used stays used.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

from gateway.call import Call, Estimate
from gateway.config.snapshot import Snapshot
from gateway.errors import QuotaExceeded, Unavailable
from gateway.limits.arithmetic import drained, period_of
from gateway.limits.contract import Charge, LimitStore, Standing, StoreUnavailable
from gateway.limits.plans import Plan, Scoped, plan_of, scoped_of
from gateway.limits.reservation import Reservation
from gateway.limits.saying import LimitRow, Trial, refusal_of, row_of, trial_of
from gateway.limits.scopes import TOKENS, accounts_of, holds, units_used
from gateway.telemetry.metrics import Metrics

__all__ = ["Limiter"]

PLANS = 8192
"""Combinations of tenant, key, model and pool whose plans are remembered; the least used is forgotten."""

MOST_ROWS = 10_000

MOST_HEARD = 100_000


class Limiter:
    """The limits of one configuration."""

    def __init__(
        self,
        snapshot: Snapshot,
        store: LimitStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = snapshot.server.limits
        self.store = store
        self.settle_tokens = settings.settle_tokens
        self.settle_seconds = settings.settle_seconds
        self._limits = snapshot.limits
        self._models = snapshot.models
        self._metrics = metrics
        self._clock = clock
        self._heard: dict[str, tuple[Standing, float]] = {}
        """The last that was heard of accounts of tokens, by key, and when."""
        self._prefix = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._plan = lru_cache(PLANS)(self._make_plan)
        for limit in snapshot.limits:  # a counter that is there from the start can be alerted on
            metrics.limit_refusals.labels(limit.name, limit.unit, str(limit.enforce).lower())

    # ----------------------------------------------------------------------------------------- deciding

    async def reserve(self, call: Call, expected: Estimate, pools: Sequence[str] = ()) -> Reservation:
        """Charge what `call` is expected to use to all of its limits, those of the pool included.

        `pools` are the pools to try, in order: the limits of the first one that grants are held. Raises
        QuotaExceeded, or Unavailable where limits that must hold cannot be asked.
        """
        prompt, output, choices = (
            expected.prompt.tokens,
            expected.total - expected.prompt.tokens,
            expected.choices,
        )
        refused: dict[str, QuotaExceeded] = {}
        first: QuotaExceeded | None = None
        for pool in pools or (None,):
            plan = self._plan(call.tenant.name, call.key_id, call.model.name, pool)
            reservation = Reservation(self, plan, pool, self._holding(), prompt, output, choices)
            if not plan.scoped:
                break
            refusal = await self._charge(reservation, plan, plan.scoped)
            if refusal is None:
                break
            first = first or refusal
            if pool is None or not refusal.of_pool:
                raise refusal
            refused[pool] = refusal
        else:
            assert first is not None, "there is at least one pool, or None"
            raise first
        if refused:
            reservation.refused = refused
        return reservation

    async def change(self, reservation: Reservation, pool: str) -> None:
        """Take the limits of `pool` and give back those of the reservation's former one.

        Raises as `reserve` does; nothing has changed then.
        """
        former = reservation.plan
        plan = self._plan(former.tenant, former.key_id, former.model, pool)
        fresh = [each for each in plan.scoped if each.pooled and not reservation.holds(each)]
        if fresh and (refusal := await self._charge(reservation, plan, fresh)) is not None:
            reservation.refused = {**(reservation.refused or {}), pool: refusal}
            raise refusal
        reservation.moved(plan, pool)

    async def _charge(
        self, reservation: Reservation, plan: Plan, scoped: Sequence[Scoped]
    ) -> QuotaExceeded | None:
        """None where all were charged, else who said no."""
        prompt, output = reservation.prompt, reservation.output
        wanted = units_used(prompt, output, plan.prices)
        least = units_used(prompt, min(output, reservation.choices), plan.prices)
        charges = [_charge_of(each, wanted[each.unit], least[each.unit]) for each in scoped]
        try:
            verdict = await self.store.reserve(reservation.holding, charges)
        except StoreUnavailable as error:
            raise Unavailable("Limits cannot be checked at the moment.", reason="limits_unknown") from error
        if plan.tokens:
            self._hear(verdict.standings)
        if verdict.refused:
            for limit in (account.limit for account in verdict.refused):
                self._metrics.limit_refusals.labels(limit.name, limit.unit, str(limit.enforce).lower()).inc()
        if verdict.granted:
            reservation.charged(plan, scoped, verdict.standings, wanted)
            return None
        no = {account.key for account in verdict.refused if account.limit.enforce}
        saying = [
            (each, charge, standing)
            for each, charge, standing in zip(scoped, charges, verdict.standings, strict=True)
            if each.account.key in no
        ]
        return refusal_of(saying, verdict.standings)

    def was_cut(self, limit: str) -> None:
        self._metrics.limit_cuts.labels(limit).inc()

    # ------------------------------------------------------------------------------------------ looking

    def room(self, call: Call) -> int | None:
        """Tokens that the tightest token limit still grants such a call, as far as this process knows; None
        where it has no enforced one. Of a limit that nothing was heard of yet: its whole amount."""
        least: int | None = None
        now = None
        for each in self._plan(call.tenant.name, call.key_id, call.model.name, None).scoped:
            limit = each.account.limit
            if limit.unit not in TOKENS or not limit.enforce:
                continue
            free = limit.amount
            if (heard := self._heard.get(each.account.key)) is not None:
                standing, then = heard
                used = standing.used
                if limit.per is not None:
                    now = self._clock() if now is None else now
                    elapsed = int((now - then) * 1000)
                    used, _ = drained(used, standing.credit, elapsed, limit.amount, period_of(limit))
                free = max(0, limit.amount - used)
            least = free if least is None or free < least else least
        return least

    async def rows(self, snapshot: Snapshot, tenant: str | None = None) -> list[LimitRow]:
        """How all accounts stand, or those of one tenant; at most MOST_ROWS. Raises StoreUnavailable."""
        accounts = list(itertools.islice(accounts_of(snapshot, tenant), MOST_ROWS))
        return [row_of(standing) for standing in await self.store.look(accounts)]

    async def try_(
        self, tenant: str, key_id: str | None, model: str, pool: str | None, prompt: int, output: int
    ) -> list[Trial]:
        """What each limit would answer to a request of so many tokens; nothing is charged.

        Raises StoreUnavailable.
        """
        plan = self._plan(tenant, key_id, model, pool)
        wanted = units_used(prompt, output, plan.prices)
        least = units_used(prompt, min(output, 1), plan.prices)
        standings = await self.store.look([each.account for each in plan.scoped])
        return [
            trial_of(standing, _charge_of(each, wanted[each.unit], least[each.unit]))
            for each, standing in zip(plan.scoped, standings, strict=True)
        ]

    # ---------------------------------------------------------------------------------------- the parts

    def _hear(self, standings: Sequence[Standing]) -> None:
        now = None
        for standing in standings:
            if standing.account.limit.unit in TOKENS:
                now = self._clock() if now is None else now
                self._heard[standing.account.key] = standing, now
        if len(self._heard) > MOST_HEARD:
            self._heard.clear()

    def _holding(self) -> str:
        return f"{self._prefix}-{next(self._numbers):x}"

    def _make_plan(self, tenant: str, key_id: str | None, model: str, pool: str | None) -> Plan:
        known = self._models.get(model)
        prices = None if known is None else known.prices
        return plan_of(
            tenant,
            key_id,
            model,
            tuple(
                scoped_of(limit, tenant, key_id, model, pool, prices)
                for limit in self._limits
                if holds(limit, tenant, key_id, model, pool)
            ),
            prices,
            self._metrics.limit_tokens.of(tenant, model),
        )


def _charge_of(each: Scoped, wanted: int, least: int) -> Charge:
    """What a limit is asked for by a request that is expected to use `wanted` units, and uses `least` where
    each of its answers is one token long.

    How long answers become is a guess: an amount that the shortest ones fit into is never asked for more
    than all of it. Such a request passes while nothing is used, and is followed from there
    (`Reservation.charged`).
    """
    if each.clamps:
        return Charge(each.account, wanted, least)
    if wanted > (amount := each.account.limit.amount):
        wanted = max(amount, least)
    return Charge(each.account, wanted, wanted)
