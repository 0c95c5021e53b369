"""Limits: so many units, over time or at a time, for whom."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "requests", "input_tokens", "output_tokens", "tokens", "cost", "concurrent", "tokens_in_flight"
]
"""What a limit counts. `concurrent` and `tokens_in_flight` are given back at a request's end."""

Calendar = Literal["day", "month"]

Share = Literal["tenant", "key", "model", "pool"]

COST_UNIT = 10**10
"""Costs are counted in this fraction of the currency unit that prices are written in: fine enough for
prices of 0.0001 a million tokens, and 900,000 units still are exact in a double, which is what Lua has."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` of `unit`, over time or at a time, for a part of the traffic."""

    name: str
    """Unique in the file; errors, metrics and explain say it."""
    unit: Unit
    amount: int
    """Requests or tokens; of `cost`, in 1 / COST_UNIT."""
    per: int | None = None
    """Seconds in which the amount is refilled, evenly. None for budgets and for what is given back."""
    calendar: Calendar | None = None
    """A budget: it starts anew with each day or month, UTC."""
    tenants: tuple[str, ...] = ()
    """Only requests of these; empty means of any. So are `keys`, `models` and `pools`."""
    keys: tuple[str, ...] = ()
    """Ids of keys of the one tenant that `tenants` names."""
    models: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    each: tuple[Share, ...] = ()
    """The amount is for each of these by itself, e.g. each tenant on each model; else for all together."""
    enforce: bool = True
    """False: it only counts what it would have refused."""
    store_down: Literal["local", "closed", "open"] = "local"
    """When the shared store cannot be asked: this process's share of the amount, refuse, or let through."""
    overrun: Literal["finish", "cut"] = "finish"
    """When an answer outruns its reservation and nothing is left: let it finish, or cut it."""
    clamp: bool = False
    """Where fewer output tokens are left than expected: send a smaller max_tokens instead of refusing."""
