"""Orders: who is next. One number per request, fixed when it comes; the lowest goes first.

    lanes, slack    arrival + offset(class) + min(kappa * work, slack cap)
    sjf             work + offset(class)
    fcfs            arrival + offset(class)

*work* is the predicted seconds of a replica that the request takes up (`StepModel.work`). Under `lanes` and
`slack` nobody is overtaken by a request that came more than offset + slack cap later; under `sjf` there is no
bound. `lanes` also keeps long prompts in a line of their own, on a part of the replicas (scheduler.py).

To add one: a class with these two methods, and a line in `ORDERS`.
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


class Slack:
    """Shorter first, aged; with or without lanes."""

    def __init__(self, policy: Policy) -> None:
        self.lanes = policy.order == "lanes"
        self._kappa = policy.kappa
        self._cap = policy.slack_cap
        self._offsets = policy.offsets

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        slack = self._kappa * work
        return arrival + self._offsets[priority] + (slack if slack < self._cap else self._cap)

    def floor(self, now: float) -> float:
        return now - 60.0


class ShortestFirst:
    lanes = False

    def __init__(self, policy: Policy) -> None:
        self._offsets = policy.offsets

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        return work + self._offsets[priority]

    def floor(self, now: float) -> float:
        return 0.0


class FirstCome:
    lanes = False

    def __init__(self, policy: Policy) -> None:
        self._offsets = policy.offsets

    def key(self, arrival: float, work: float, priority: PriorityClass) -> float:
        return arrival + self._offsets[priority]

    def floor(self, now: float) -> float:
        return now - 60.0


ORDERS: Mapping[OrderName, Callable[[Policy], Order]] = MappingProxyType(
    {"lanes": Slack, "slack": Slack, "sjf": ShortestFirst, "fcfs": FirstCome}
)
