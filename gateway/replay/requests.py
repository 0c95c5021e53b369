"""What is replayed: requests with their true lengths, which only the simulated engines get to see."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gateway.config.snapshot import PriorityClass

__all__ = [
    "SHORT",
    "TraceRequest",
    "compressed",
    "with_classes",
    "with_flood",
    "with_max_tokens",
    "with_streams",
    "with_tenants",
]

SHORT = 2048
"""Prompt and output tokens up to which a request counts as short."""

GENEROUS = 4096
"""What careless clients leave as max_tokens."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    at: float
    """Seconds from the beginning of the trace."""
    tenant: str
    prompt_tokens: int
    output_tokens: int
    """What the model will say. No policy sees it."""
    max_tokens: int | None = None
    """What the client asked for; None where the trace does not say."""
    blocks: tuple[int, ...] = ()
    """Hashes of the prompt's leading blocks; equal ones mean equal text up to there."""
    priority: PriorityClass = PriorityClass.interactive
    streamed: bool = True
    model: str | None = None
    flood: bool = False
    """Added by `with_flood`."""

    @property
    def short(self) -> bool:
        return self.prompt_tokens + self.output_tokens <= SHORT


def with_max_tokens(requests: Iterable[TraceRequest], rng: random.Random) -> list[TraceRequest]:
    """Fill in what clients would have asked for: 4096 for 40 %, else the next power of two at or above the
    true output."""
    return [
        request
        if request.max_tokens is not None
        else replace(request, max_tokens=_asked(request.output_tokens, rng))
        for request in requests
    ]


def _asked(output: int, rng: random.Random) -> int:
    exact = 1 << (output - 1).bit_length()
    return max(GENEROUS, exact) if rng.random() < 0.4 else exact


def compressed(requests: Sequence[TraceRequest], rate: float) -> list[TraceRequest]:
    """The same with time stretched so that `rate` requests a second arrive on average; bursts stay bursts."""
    first, last = requests[0].at, requests[-1].at
    if last <= first:
        return list(requests)
    factor = len(requests) / rate / (last - first)
    return [replace(request, at=(request.at - first) * factor) for request in requests]


def with_classes(
    requests: Iterable[TraceRequest], shares: dict[PriorityClass, float], rng: random.Random
) -> list[TraceRequest]:
    """Give each request a priority class by lot."""
    classes, weights = list(shares), list(shares.values())
    return [replace(request, priority=rng.choices(classes, weights)[0]) for request in requests]


def with_tenants(requests: Iterable[TraceRequest], count: int, rng: random.Random) -> list[TraceRequest]:
    """Forget whose the requests were; deal them out to `count` equal tenants."""
    return [replace(request, tenant=f"t{rng.randint(1, count)}") for request in requests]


def with_streams(
    requests: Iterable[TraceRequest], nonstream: float, rng: random.Random
) -> list[TraceRequest]:
    """Let that share of the requests be answered in one piece."""
    return [replace(request, streamed=rng.random() >= nonstream) for request in requests]


def with_flood(
    requests: Sequence[TraceRequest], tenant: str, rate: float, rng: random.Random
) -> list[TraceRequest]:
    """`tenant` sends `rate` requests a second more in the middle third of the time, evenly by lot, drawn from
    all the requests of the trace (from its own, if it has any)."""
    own = [request for request in requests if request.tenant == tenant] or list(requests)
    first, last = requests[0].at, requests[-1].at
    start, end = first + (last - first) / 3, first + 2 * (last - first) / 3
    added = []
    at = start
    while (at := at + rng.expovariate(rate)) < end:
        added.append(replace(rng.choice(own), at=at, tenant=tenant, flood=True))
    return sorted([*requests, *added], key=lambda request: request.at)
