"""Policies by name: what a pool's queue can do, for comparisons.

A policy (config/snapshot/scheduling.py, `Policy`) has three parts, each a choice of its own in routes.yaml:

    order      who is next: lanes, slack, sjf, fcfs           (`scheduler:`, orders.py)
    placement  on which of the replicas with room             (`placement:`, placements.py)
    binding    late: a request waits in the gateway until a replica has room by the gateway's own books;
               early: it is sent at once, and waits in the engine

`POLICIES` holds the combinations that are worth comparing, under the names that the literature gives them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from gateway.config.snapshot import OrderName, PlacementName, Policy

__all__ = ["POLICIES", "OrderName", "PlacementName", "Policy"]


def _early(placement: PlacementName) -> Policy:
    return Policy(order="fcfs", placement=placement, binding="early", fair=False, shed=frozenset())


def _late(order: OrderName) -> Policy:
    return Policy(order=order, fair=False, shed=frozenset())


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "lanes": Policy(),
        "slack": _late("slack"),
        "sjf": _late("sjf"),
        "fcfs": _late("fcfs"),
        "least_requests": _early("least_requests"),
        "least_tokens": _early("least_tokens"),
        "round_robin": _early("round_robin"),
        "power_of_two": _early("power_of_two"),
        "predicted_ttft": _early("predicted_ttft"),
        "lmetric": _early("lmetric"),
        "prefix": _early("prefix"),
    }
)
"""By name, for comparisons: late binding in some order, or early binding to some replica."""
