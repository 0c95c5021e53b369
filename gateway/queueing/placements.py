"""Placements: which of several replicas gets a request.

    predicted_ttft   least predicted time to first token: b*(unstarted + own) + q*own^2 + c*in_flight + d*kv,
                     each replica with its own coefficients (Block, arXiv 2508.03611, in its linear form)
    lmetric          least (uncached tokens, those pending included) x (batch size), arXiv 2603.15202
    least_tokens     fewest outstanding tokens
    least_requests   fewest requests in flight (LiteLLM's least-busy, nginx's least_conn)
    power_of_two     the better of two at random, by requests in flight
    round_robin      in turn, by weight
    prefix           the replica that holds the longest part of the prompt, if that is over 30 % of it; else,
                     or if loads are apart, the one with the fewest requests (SGLang's cache-aware router)

Every one honours the replicas' weights and their slow start, which shrinks the weight of a newcomer. Where
replicas are equal, outstanding tokens decide, then who has served least so far. To add one: a class with
`choose`, and a line in `PLACEMENTS`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from gateway.fleet.ledger import ReplicaLedger
from gateway.queueing.policies import PlacementName

if TYPE_CHECKING:  # items know accounts, and those lines
    from gateway.queueing.items import Item

__all__ = ["PLACEMENTS", "Placement", "View"]

ADAPTER_LOAD_S = 0.1
"""Seconds that a replica is taken to need for a LoRA adapter that was not sent to it before."""


class View:
    """A replica as the scheduler sees it: its ledger, and what is derived from it now and then."""

    __slots__ = (
        "attention_s", "back_since", "dose", "full_until", "index", "kv_limit", "kv_over", "kv_s", "ledger",
        "long", "sequence_s", "slots", "slots_over", "slowness", "step_s", "token_s", "weight",
    )  # fmt: skip

    def __init__(self, ledger: ReplicaLedger, index: int) -> None:
        self.ledger = ledger
        self.index = index
        self.back_since = ledger.back_since
        self.weight = ledger.replica.weight
        self.slowness = 1.0
        self.token_s = self.attention_s = self.step_s = self.sequence_s = self.kv_s = 0.0
        self.dose = 0.0
        """Unstarted tokens that it may have."""
        self.full_until = float("-inf")
        """Until when it has prompts enough (pacing.py)."""
        self.slots = float("inf")
        """Requests that it may have; `slots_over`: for tenants above their share."""
        self.slots_over = float("inf")
        self.kv_limit = float("inf")
        """Tokens of cache that may be reserved; `kv_over`: for tenants above their share."""
        self.kv_over = float("inf")
        self.long = True
        """Whether it is in the long set."""

    def ttft(self, uncached: int) -> float:
        """Predicted seconds to the first token of a prompt that is sent now."""
        ledger = self.ledger
        return (
            self.token_s * (ledger.unstarted_tokens + uncached)
            + self.attention_s * uncached * uncached
            + self.sequence_s * ledger.in_flight
            + self.kv_s * ledger.kv_seen
        )


class Placement(Protocol):
    def choose(self, item: "Item", views: Sequence[View]) -> View:
        """One of `views` (at least two) for `item`. All may have it, and have room."""


class PredictedTtft:
    def choose(self, item: "Item", views: Sequence[View]) -> View:
        best, least = views[0], float("inf")
        prompt, hits, adapter = item.prompt_tokens, item.hits, item.adapter
        for view in views:
            ledger = view.ledger
            own = prompt - hits.get(ledger.replica.id, 0) if hits else prompt
            seconds = (
                view.token_s * (ledger.unstarted_tokens + own)
                + view.attention_s * own * own
                + view.sequence_s * ledger.in_flight
                + view.kv_s * ledger.kv_seen
            )
            if adapter is not None and adapter not in ledger.adapters:
                seconds += ADAPTER_LOAD_S
            seconds /= view.weight
            if seconds < least or (seconds == least and _tie(view) < _tie(best)):
                best, least = view, seconds
        return best


class LMetric:
    def choose(self, item: "Item", views: Sequence[View]) -> View:
        hits = item.hits

        def score(view: View) -> tuple[float, float, float]:
            ledger = view.ledger
            own = item.prompt_tokens - hits.get(ledger.replica.id, 0)
            return (ledger.unstarted_tokens + own) * (ledger.in_flight + 1) / view.weight, *_tie(view)

        return min(views, key=score)


class LeastTokens:
    def choose(self, item: "Item", views: Sequence[View]) -> View:
        return min(views, key=_tie)


class LeastRequests:
    def choose(self, item: "Item", views: Sequence[View]) -> View:
        return min(views, key=_requests)


class PowerOfTwo:
    def __init__(self) -> None:
        self._random = random.Random(2)

    def choose(self, item: "Item", views: Sequence[View]) -> View:
        one, other = self._random.sample(views, 2)
        return other if _requests(other) < _requests(one) else one


class RoundRobin:
    """Smooth weighted round robin, as nginx's: spread evenly even with unequal weights."""

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}

    def choose(self, item: "Item", views: Sequence[View]) -> View:
        credit = self._credit
        for view in views:
            credit[view.index] = credit.get(view.index, 0.0) + view.weight
        chosen = max(views, key=lambda view: credit[view.index])
        credit[chosen.index] -= sum(view.weight for view in views)
        return chosen


class Prefix:
    MATCH = 0.3
    """Part of the prompt that must be cached for the cache to decide."""
    APART, TIMES = 64, 1.5
    """Loads are apart if the most and the least loaded differ by more than both, in requests."""

    def choose(self, item: "Item", views: Sequence[View]) -> View:
        loads = [view.ledger.in_flight for view in views]
        most, least = max(loads), min(loads)
        hits = item.hits
        if hits and not (most - least > self.APART and most > self.TIMES * least):
            best = max(views, key=lambda view: (hits.get(view.ledger.replica.id, 0), -_requests(view)[0]))
            if hits.get(best.ledger.replica.id, 0) > self.MATCH * item.prompt_tokens:
                return best
        return min(views, key=_requests)


def _tie(view: View) -> tuple[float, float]:
    ledger = view.ledger
    return ledger.outstanding_tokens / view.weight, ledger.requests_total / view.weight


def _requests(view: View) -> tuple[float, float]:
    ledger = view.ledger
    return ledger.in_flight / view.weight, ledger.requests_total / view.weight


PLACEMENTS: Mapping[PlacementName, Callable[[], Placement]] = MappingProxyType(
    {
        "predicted_ttft": PredictedTtft,
        "lmetric": LMetric,
        "least_tokens": LeastTokens,
        "least_requests": LeastRequests,
        "power_of_two": PowerOfTwo,
        "round_robin": RoundRobin,
        "prefix": Prefix,
    }
)
