"""What is said of limits: to clients that are refused, in headers, and to operators."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.config.snapshot import COST_UNIT, Limit
from gateway.errors import BudgetExceeded, QuotaExceeded
from gateway.limits.arithmetic import full_in, wait_for, window_end
from gateway.limits.contract import Charge, Standing
from gateway.limits.plans import Scoped
from gateway.limits.scopes import TOKENS

__all__ = [
    "LimitRow", "Trial", "duration", "rate_headers", "refusal_of", "row_of", "said", "trial_of",
]  # fmt: skip

TRY_AGAIN = 1.0
"""Seconds after which to come back where a limit counts what others hold: nobody knows when they end."""

_PERIODS = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}


@dataclass(frozen=True, slots=True)
class LimitRow:
    """How one account stands, for people. `cost` is in the prices' currency unit."""

    limit: str
    account: str
    unit: str
    per: str | None
    amount: float
    used: float
    free: float
    reset: float | None
    """Seconds until all of it is free, by time alone; None for what other requests give back."""
    enforce: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """What one limit would answer to a request."""

    limit: str
    account: str
    unit: str
    per: str | None
    needs: float
    """What it would reserve: at most the whole limit, as long as the shortest answer fits into that."""
    amount: float
    free: float
    answer: str
    """`grant`, `clamp`, `refuse`, `would refuse` (not enforced) or `never` (the prompt and the shortest
    answer are more than the whole limit)."""
    wait: float | None
    """Seconds after which it would grant, if nobody else asked; None where that is not known."""


def rate_headers(standings: Iterable[Standing]) -> list[tuple[str, str]]:
    """OpenAI's `x-ratelimit-*`: of the limits on requests, and on tokens, the one with the least left."""
    headers = []
    for name, units in (("requests", frozenset({"requests"})), ("tokens", TOKENS)):
        tightest: Standing | None = None
        for standing in standings:
            limit = standing.account.limit
            if limit.unit in units and limit.enforce and (tightest is None or standing.free < tightest.free):
                tightest = standing
        if tightest is not None:
            reset = _in(tightest, full_in)
            headers += [
                (f"x-ratelimit-limit-{name}", str(tightest.account.limit.amount)),
                (f"x-ratelimit-remaining-{name}", str(tightest.free)),
                (f"x-ratelimit-reset-{name}", duration(reset or 0)),
            ]
    return headers


def duration(milliseconds: int) -> str:
    """As Go writes durations, and OpenAI resets: 12ms, 1.5s, 1m3s, 6h0m0s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def refusal_of(
    saying: Sequence[tuple[Scoped, Charge, Standing]], standings: Sequence[Standing]
) -> QuotaExceeded:
    """What to tell the client when these limits said no: the one that says it for longest.

    First those that can never grant, then budgets, then those that take longest to have room.
    """
    of_pool = all(each.pooled for each, _, _ in saying)
    worst: tuple[tuple[int, float], QuotaExceeded] | None = None
    for each, charge, standing in saying:
        limit = each.account.limit
        name = f"The limit {limit.name!r} ({said(limit)})"
        left = f"{_units(limit, standing.free)} left, {_units(limit, charge.least)} needed"
        wait = _in(standing, wait_for, charge.least)
        error: QuotaExceeded
        if charge.least > limit.amount:
            error = QuotaExceeded(
                f"{name} is smaller than this request, which needs at least {_units(limit, charge.least)}: "
                "it can never pass.",
                limit=limit.name,
                hopeless=True,
            )
            rank = (2, 0.0)
        elif limit.calendar is not None:
            error = BudgetExceeded(
                f"{name} is used up: {left}. It starts anew on {_date(standing)} (UTC).",
                limit=limit.name,
                hopeless=True,
            )
            rank = (1, float(wait or 0))
        else:
            after = TRY_AGAIN if wait is None else max(wait, 1) / 1000
            error = QuotaExceeded(
                f"{name} is reached: {left}. "
                + ("Other requests hold the rest." if wait is None else f"Try again in {duration(wait)}."),
                limit=limit.name,
                retry_after=after,
            )
            rank = (0, after)
        if worst is None or rank > worst[0]:
            worst = rank, error
    assert worst is not None, "a refusal has somebody who refuses"
    error = worst[1]
    error.of_pool = of_pool
    error.rate_headers = rate_headers(standings)
    return error


def said(limit: Limit) -> str:
    """A limit in words: `100000 tokens per minute`, `8 requests at a time`."""
    over = per(limit)
    what = "requests" if limit.unit == "concurrent" else limit.unit.replace("_", " ")
    if limit.unit == "tokens_in_flight":
        what = "tokens"
    amount = f"{limit.amount} {what}" if limit.unit != "cost" else f"a cost of {_units(limit, limit.amount)}"
    return f"{amount} at a time" if over is None else f"{amount} per {over}"


def per(limit: Limit) -> str | None:
    """The period in words; None for what is held at a time."""
    if limit.calendar is not None:
        return f"calendar {limit.calendar}"
    return None if limit.per is None else _PERIODS.get(limit.per, f"{limit.per} s")


def amount_of(limit: Limit, units: int) -> float:
    """Units for people: money in the prices' currency, all else as it is."""
    return units / COST_UNIT if limit.unit == "cost" else units


def _date(standing: Standing) -> str:
    """When a budget's next window starts."""
    calendar, window = standing.account.limit.calendar, standing.window
    assert calendar is not None and window is not None, "only budgets have windows"  # noqa: PT018  # one fact
    return datetime.fromtimestamp(window_end(calendar, window) / 1000, UTC).strftime("%Y-%m-%d")


def _units(limit: Limit, units: int) -> str:
    return f"{amount_of(limit, units):.10g}" if limit.unit == "cost" else str(units)


def row_of(standing: Standing) -> LimitRow:
    limit = standing.account.limit
    reset = _in(standing, full_in)
    return LimitRow(
        limit=limit.name,
        account=standing.account.key,
        unit=limit.unit,
        per=per(limit),
        amount=amount_of(limit, limit.amount),
        used=amount_of(limit, standing.used),
        free=amount_of(limit, standing.free),
        reset=None if reset is None else reset / 1000,
        enforce=limit.enforce,
    )


def trial_of(standing: Standing, charge: Charge) -> Trial:
    limit = standing.account.limit
    wanted, least = charge.amount, charge.least
    wait = _in(standing, wait_for, least)
    if least > limit.amount:
        answer = "never"
    elif wanted <= standing.free:
        answer = "grant"
    elif least <= standing.free:
        answer = "clamp"
    else:
        answer = "refuse"
    if answer in ("never", "refuse") and not limit.enforce:
        answer = "would refuse"
    return Trial(
        limit=limit.name,
        account=standing.account.key,
        unit=limit.unit,
        per=per(limit),
        needs=amount_of(limit, wanted),
        amount=amount_of(limit, limit.amount),
        free=amount_of(limit, standing.free),
        answer=answer,
        wait=None if wait is None else wait / 1000,
    )


def _in(standing: Standing, when: Callable[..., int | None], *need: int) -> int | None:
    """Milliseconds, by one of the formulas, from a standing."""
    limit = standing.account.limit
    return when(limit, *need, standing.used, standing.credit, standing.now, standing.window)
