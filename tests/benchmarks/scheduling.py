"""What a request costs the scheduler, in CPU: offer, grant, first token, release, and its part of the ticks.

    python -m tests.benchmarks.scheduling [--smoke] [--rounds N] [--json FILE]

No sockets, no event loop: the scheduler, its ledgers and a clock that is set by hand. Two states of a pool:

    idle     8 replicas, 200 requests in flight, nobody waits
    busy    32 replicas, all full, 5,000 requests of 20 tenants and three classes wait

In each, requests come at 500 a second and as many leave; `dispatch` is called every 20 ms while somebody
waits, as the live queue does. A figure is the CPU of this process divided by requests: the median of the
rounds. The goals are 20 us (idle) and 60 us (busy) per request.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config.snapshot import PriorityClass, Replica
from gateway.fleet.ledger import ReplicaLedger, Slot
from gateway.queueing.policies import POLICIES, Policy
from gateway.queueing.scheduler import Item, PoolScheduler, Refusal
from tests.gateway.builders import Clock, NoEngine, a_pool

RATE = 500.0
TICK = 0.020


@dataclass(frozen=True)
class State:
    name: str
    replicas: int
    in_flight: int
    """Per replica, at most."""
    held: int
    """Requests in flight, over all replicas."""
    waiting: int
    goal_us: float


STATES = (
    State("idle", replicas=8, in_flight=256, held=200, waiting=0, goal_us=20.0),
    State("busy", replicas=32, in_flight=64, held=32 * 64, waiting=5000, goal_us=60.0),
)


class Bench:
    """A pool in one state, kept there while requests pass."""

    def __init__(self, state: State, policy: Policy) -> None:
        self.state = state
        self.clock = Clock(1000.0)
        engine = NoEngine(a_pool().adapter)
        ledgers = [
            ReplicaLedger(Replica(f"r{i}", f"http://r{i}"), engine, self.clock) for i in range(state.replicas)
        ]
        self.scheduler = PoolScheduler(
            ledgers, policy, self.clock, in_flight=state.in_flight, kv_tokens=880_000
        )
        self.granted: deque[Slot] = deque()
        self.new: deque[Slot] = deque()
        self.random = random.Random(5)
        self.items = deque(self._item() for _ in range(20_000))
        self.ticked = self.clock.now
        while len(self.granted) < state.held:
            self.clock.tick(1 / RATE)
            self._offer()
            self._start()
        while self.scheduler.waiting < state.waiting:
            self.clock.tick(1e-4)
            self._offer()

    def run(self, requests: int) -> float:
        """CPU microseconds per request."""
        while len(self.items) < requests:
            self.items.append(self._item())
        began = time.process_time()
        for _ in range(requests):
            self.clock.now += 1 / RATE
            self._offer()
            self.granted.popleft().release()
            self._start()
            if self.scheduler.waiting and self.clock.now - self.ticked >= TICK:
                self.ticked = self.clock.now
                self.scheduler.dispatch()
        spent = time.process_time() - began
        for _ in range(requests):
            self.items.append(self._item())
        return spent / requests * 1e6

    def _item(self) -> Item:
        prompt = min(int(self.random.lognormvariate(6.5, 1.2)) + 1, 30_000)
        return Item(
            arrival=0.0,
            prompt_tokens=prompt,
            output_tokens=200,
            granted=self._grant,
            refused=self._refuse,
            tenant=f"t{self.random.randrange(20)}",
            priority=self.random.choice(list(PriorityClass)),
        )

    def _offer(self) -> None:
        item = self.items.popleft()
        item.arrival = self.clock.now
        self.scheduler.offer(item)

    def _start(self) -> None:
        """First tokens for all that were granted since; which may lead to further grants."""
        while self.new:
            slot = self.new.popleft()
            slot.progress(1)
            self.granted.append(slot)

    def _grant(self, slot: Slot) -> None:
        self.new.append(slot)

    def _refuse(self, refusal: Refusal) -> None:
        """Gone; the next one takes its place."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a moment, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=5000, help="per round")
    parser.add_argument("--policies", default="lanes,sjf,fcfs,least_requests,lmetric")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    rounds, requests = (1, 300) if asked.smoke else (asked.rounds, asked.requests)
    rows: list[dict[str, Any]] = []
    print(f"{'policy':<16}{'state':<8}{'replicas':>9}{'waiting':>9}{'us/request':>12}{'goal':>7}")
    for name in asked.policies.split(","):
        policy = POLICIES[name]
        for state in STATES:
            bench = Bench(state, policy)
            bench.run(300)
            waiting = bench.scheduler.waiting
            cost = statistics.median(bench.run(requests) for _ in range(rounds))
            rows.append(
                {"policy": name, "state": state.name, "replicas": state.replicas, "waiting": waiting,
                 "us_per_request": round(cost, 2), "goal_us": state.goal_us}
            )  # fmt: skip
            print(
                f"{name:<16}{state.name:<8}{state.replicas:>9}{waiting:>9}{cost:>12.1f}{state.goal_us:>7.0f}"
            )
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
