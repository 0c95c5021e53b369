"""Roll-outs: which pool of a split a request gets, and whether it is mirrored.

A split is a run of weighted entries in a chain, `[{stable: 95}, {staging: 5}]`. Who draws what is no dice but
a hash of the rule and of who asks: the same key always gets the same pool, from every process and after every
restart, and a growing share takes in new keys without losing those it has. Entries hold the unit interval in
the order in which they are written; a key is a point of it.

A request that has drawn a pool and does not get an answer there may go on to the pools of the split that are
at least as heavy, never to a lighter one: where the stable pool fails, a twentieth of its size must not take
its traffic.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gateway.call import Call
from gateway.config.snapshot import Hop, Rule, Sticky

__all__ = ["Draw", "drawn", "point"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One split of a chain, and what this request got of it."""

    pool: str
    weight: float
    total: float
    by: Sticky
    """What was hashed."""


def drawn(rule: Rule, call: Call) -> tuple[tuple[Hop, ...], tuple[Draw, ...]]:
    """The rule's chain for this call, and its draws. Pure; without splits, the chain as it is."""
    if not rule.splits:
        return rule.chain, ()
    by, who = _who(rule.sticky, call)
    at = point(f"{rule.name}/{by}/{who}")
    chain: list[Hop] = []
    draws: list[Draw] = []
    for weighted, run in groupby(rule.chain, key=lambda hop: hop.weight is not None):
        if not weighted:
            chain.extend(run)
            continue
        hops = list(run)
        chosen, *heavier = _order(hops, at)
        chain += [chosen, *heavier]
        draws.append(Draw(chosen.pool, chosen.weight or 0.0, sum(_weights(hops)), by))
    return tuple(chain), tuple(draws)


def point(text: str) -> float:
    """Where in 0 <= x < 1 a text lies; evenly spread, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56


def _order(hops: Sequence[Hop], at: float) -> list[Hop]:
    """The one whose part of the interval holds `at`, then those at least as heavy, the heaviest first."""
    weights = list(_weights(hops))
    rest = at * sum(weights)
    chosen = max(range(len(hops)), key=lambda index: weights[index])  # if rounding leaves nobody
    for index, weight in enumerate(weights):
        if rest < weight:
            chosen = index
            break
        rest -= weight
    others = [i for i, weight in enumerate(weights) if i != chosen and weight >= weights[chosen]]
    return [hops[chosen], *(hops[i] for i in sorted(others, key=lambda i: -weights[i]))]


def _weights(hops: Sequence[Hop]) -> Iterator[float]:
    for hop in hops:
        yield hop.weight or 0.0


def _who(sticky: Sticky, call: Call) -> tuple[Sticky, str]:
    """Who draws. Where a request has no such name, the next finer one: without keys all would be one."""
    session = call.session
    names: dict[Sticky, str | None] = {
        "tenant": call.tenant.name,
        "key": None if call.key_id is None else f"{call.tenant.name}/{call.key_id}",
        "session": f"{call.tenant.name}/{session}" if session else None,
        "request": call.id,
    }
    order: tuple[Sticky, ...] = ("tenant", "key", "session", "request")
    for by in order[order.index(sticky) :]:
        if (name := names[by]) is not None:
            return by, name
    raise AssertionError("a request has an id")
