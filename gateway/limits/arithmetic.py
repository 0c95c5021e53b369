"""The arithmetic of accounts: pure, in integers, time in whole milliseconds.

Every store decides by these formulas; the Lua of the Redis store repeats them step by step, and the order of
the steps is such that no intermediate value passes 2^53, beyond which Lua's numbers are not exact.

A rate account holds `used` units, which drain evenly: `amount` in a period of P ms. What has drained of the
next unit is kept as `credit`, in 1 / P units, so nothing is ever rounded away: at any moment the account
holds exactly used - credit / P units.
"""

from gateway.config.snapshot import Calendar, Limit

__all__ = [
    "DAY", "MOST", "added", "drained", "full_in", "granted", "period_of", "wait_for", "window_end",
    "window_of",
]  # fmt: skip

MOST = 2**53 - 1
"""No account holds more, and no charge is larger."""

DAY = 86_400_000
"""Milliseconds."""


def period_of(limit: Limit) -> int:
    """Milliseconds in which a rate is refilled."""
    if limit.per is None:
        raise ValueError(f"{limit.name} is not a rate")
    return limit.per * 1000


def drained(used: int, credit: int, elapsed: int, amount: int, period: int) -> tuple[int, int]:
    """`used` and `credit` after `elapsed` ms; a clock that steps back drains nothing."""
    if used <= 0:
        return 0, 0
    if elapsed < 0:
        elapsed = 0
    full, rest = divmod(elapsed, period)
    if full > used // amount:
        return 0, 0
    x = (amount % period) * rest + credit
    used = used - full * amount
    used = used - (amount // period) * rest
    used = used - x // period
    if used <= 0:
        return 0, 0
    return used, x % period


def granted(wanted: int, least: int, used: int, amount: int) -> int | None:
    """Units of `wanted` that are free; None where they are fewer than `least`."""
    free = amount - used if used < amount else 0
    if least > free:
        return None
    return wanted if wanted <= free else free


def added(used: int, delta: int) -> int:
    """`used` after a charge or a correction: never below zero, never above MOST."""
    used += delta
    return 0 if used < 0 else used if used < MOST else MOST


def window_of(calendar: Calendar, wall: int) -> int:
    """The day or month (UTC) of `wall`, which is ms since 1970: days or months since 1970-01."""
    days = wall // DAY
    if calendar == "day":
        return days
    year, month, _ = _civil(days)
    return (year - 1970) * 12 + month - 1


def window_end(calendar: Calendar, window: int) -> int:
    """When `window` is over and the next one starts, ms since 1970."""
    if calendar == "day":
        return (window + 1) * DAY
    year, month = divmod(window + 1, 12)
    return _days(year + 1970, month + 1) * DAY


def wait_for(
    limit: Limit, need: int, used: int, credit: int, now: int, window: int | None = None
) -> int | None:
    """Milliseconds until `need` units are free, if nobody else takes them; sufficient, and tight to 1 ms.

    None where time alone does not help: `need` is more than the whole limit, or what it counts is given back
    by other requests. `credit`, `now` and `window` are those of the account's standing.
    """
    if need > limit.amount:
        return None
    over = used + need - limit.amount
    if over <= 0:
        return 0
    if limit.calendar is not None:
        assert window is not None, "a budget's standing names its window"
        return max(0, window_end(limit.calendar, window) - now)
    if limit.per is None:
        return None
    return max(0, -((credit - over * period_of(limit)) // limit.amount))


def full_in(limit: Limit, used: int, credit: int, now: int, window: int | None = None) -> int | None:
    """Milliseconds until the whole amount is free; None where time alone does not help."""
    return wait_for(limit, limit.amount, used, credit, now, window)


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of so many days after 1970-01-01.

    (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.)
    """
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153  # months from March on
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    return year, month, day_of_year - (153 * shifted + 2) // 5 + 1


def _days(year: int, month: int) -> int:
    """Days from 1970-01-01 to the first of the month."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468
