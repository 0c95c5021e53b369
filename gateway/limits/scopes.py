"""Which limits hold for a request, and which account of each is its.

A limit says for whom it is (`tenants`, `keys`, `models`, `pools`) and whether its amount is for all of these
together or for `each` by itself. Models are those that clients ask for, also where another one answers.
"""

import hashlib
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from gateway.config.snapshot import Limit, Prices, Snapshot, Unit
from gateway.limits.arithmetic import MOST
from gateway.limits.contract import Account

__all__ = ["LEVELS", "TOKENS", "UNITS", "account_of", "accounts_of", "holds", "units_used"]

UNITS: tuple[Unit, ...] = (
    "requests", "input_tokens", "output_tokens", "tokens", "cost", "concurrent", "tokens_in_flight",
)  # fmt: skip
"""In the order of `units_used`."""

LEVELS: frozenset[Unit] = frozenset({"concurrent", "tokens_in_flight"})
"""Given back at a request's end."""

TOKENS: frozenset[Unit] = frozenset({"tokens", "input_tokens", "output_tokens"})
"""Counted over time."""

LONGEST_KEY = 200
"""Characters of an account's key; longer ones end in a digest of the whole."""


def units_used(
    prompt: int, output: int, prices: Prices | None, cached: int = 0
) -> tuple[int, int, int, int, int, int, int]:
    """What a request of so many tokens uses of each of UNITS. `output` is over all choices; `cached` are the
    prompt tokens that the engine had in its cache."""
    tokens = prompt + output
    cost = 0
    if prices is not None:
        cached = min(cached, prompt)
        cost = (prompt - cached) * prices.input + cached * prices.cached_input + output * prices.output
        cost = min(cost, MOST)
    return 1, prompt, output, tokens, cost, 1, tokens


def holds(limit: Limit, tenant: str, key_id: str | None, model: str, pool: str | None) -> bool:
    """Whether `limit` is for such a request. `pool` None: it has none, and no pool's limits are for it."""
    if limit.tenants and tenant not in limit.tenants:
        return False
    if limit.keys and key_id not in limit.keys:
        return False
    if limit.models and model not in limit.models:
        return False
    if limit.pools and pool not in limit.pools:
        return False
    return pool is not None or "pool" not in limit.each


def account_of(limit: Limit, tenant: str, key_id: str | None, model: str, pool: str | None) -> Account:
    """The account that such a request uses of a limit that holds for it.

    A key is told by its tenant and id, so keys that were made at run time have theirs; requests without a key
    (`authentication: off`) share one.
    """
    if not limit.each:
        return Account(limit.name, limit)
    values = {"tenant": tenant, "key": f"{tenant}:{key_id or ''}", "model": model, "pool": pool or ""}
    key = "/".join((limit.name, *(quote(values[share], safe=":") for share in limit.each)))
    if len(key) > LONGEST_KEY:
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        key = f"{key[: LONGEST_KEY - 33]}~{digest}"
    return Account(key, limit)


def accounts_of(snapshot: Snapshot, tenant: str | None = None) -> Iterator[Account]:
    """All accounts that requests with the names of the file and the keys in force can use; with `tenant`,
    those of its requests."""
    tenants = list(snapshot.tenants) if tenant is None else [tenant]
    keys: dict[str, list[str | None]] = {name: [] for name in tenants}
    for owner, key in snapshot.keys.values():
        if owner.name in keys and key.id not in keys[owner.name]:
            keys[owner.name].append(key.id)
    for limit in snapshot.limits:
        seen: set[Account] = set()
        for name in _varying(tenants, "tenant" in limit.each or "key" in limit.each, limit.tenants):
            of_tenant = keys.get(name) or [None]
            for key_id in _varying(of_tenant, "key" in limit.each, limit.keys):
                for model in _varying(snapshot.models, "model" in limit.each, limit.models):
                    for pool in _varying(snapshot.pools, "pool" in limit.each, limit.pools):
                        if holds(limit, name, key_id, model, pool):
                            account = account_of(limit, name, key_id, model, pool)
                            if account not in seen:
                                seen.add(account)
                                yield account


def _varying(names: Iterable[str | None], varies: bool, only: tuple[str, ...]) -> list[str]:
    """The names that make a difference: one stands for all where the limit does not tell them apart."""
    fitting = [name for name in names if not only or name in only]
    return fitting if varies else fitting[:1]  # type: ignore[return-value]  # None is a key that is not there
