"""Orders: who is next. One number per request, fixed when it comes; the lowest goes first.

    lanes, slack    arrival + offset(class) + slack / (1 + slack / cap), where slack = kappa * work
    sjf             work + offset(class)
    fcfs            arrival + offset(class)

*work* is the predicted seconds of a replica that the request takes up (`StepModel.work`). Under `lanes` and
`slack` nobody is overtaken by a request that came more than offset + slack cap later; under `sjf` there is no
bound. The cap is approached, not reached: among requests that are all long, the longest still gives way most.
`lanes` also keeps long prompts in a line of their own, on a part of the replicas (scheduler.py).

To add one: a class with these methods, and a line in `ORDERS`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from gateway.config.snapshot import PriorityClass
from gateway.queueing.policies import OrderName, Policy

__all__ = ["ORDERS", "Order"]


class Order(Protocol):
    lanes: bool
    """Whether long prompts have a line and replicas of their own."""

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        """The place in line of a request."""

    def floor(self, now: float) -> float:
        """A key below which there is hardly anybody: where sums over the line begin."""

    def last(self, now: float, priority: PriorityClass) -> float:
        """The highest key that a request of this class may get now, however long it is."""


class Slack:
    """Shorter first, aged; with or without lanes."""

    def __init__(self, policy: Policy) -> None:
        self.lanes = policy.order == "lanes"
        self._kappa = policy.kappa
        self._cap = policy.slack_cap
        self._offsets = policy.offsets

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        slack = self._kappa * work
        return arrival + self._offsets[priority] + slack * self._cap / (slack + self._cap)

    def floor(self, now: float) -> float:
        return now - 60.0

    def last(self, now: float, priority: PriorityClass) -> float:
        return now + self._offsets[priority] + self._cap


class ShortestFirst:
    lanes = False

    def __init__(self, policy: Policy) -> None:
        self._offsets = policy.offsets

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        return work + self._offsets[priority]

    def floor(self, now: float) -> float:
        return 0.0

    def last(self, now: float, priority: PriorityClass) -> float:
        return float("inf")


class FirstCome:
    lanes = False

    def __init__(self, policy: Policy) -> None:
        self._offsets = policy.offsets

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        return arrival + self._offsets[priority]

    def floor(self, now: float) -> float:
        return now - 60.0

    def last(self, now: float, priority: PriorityClass) -> float:
        return now + self._offsets[priority]


ORDERS: Mapping[OrderName, Callable[[Policy], Order]] = MappingProxyType(
    {"lanes": Slack, "slack": Slack, "sjf": ShortestFirst, "fcfs": FirstCome}
)
