"""What an admission costs: to reserve from a number of limits, and to settle.

    python -m tests.benchmarks.admission [--smoke] [--rounds N] [--json FILE] [--profile STORE LIMITS]

Subjects, each asked for 1, 10 and 100 limits a request (tokens and requests a minute, a budget of tokens,
requests in flight, in turns), one request after the other and 16 at a time:

    memory     MemoryStore: the limits of one process
    redis      RedisStore: one round trip for each admission, one script for each settlement
    leased     LeasedStore over RedisStore: slices, spent locally

A settlement gives back a part of what was reserved. All amounts are so large that nothing is refused. Rounds
are interleaved, a figure is the median over the rounds.

How to read it. CPU is that of the process which asks (time.process_time), and beside it that of redis-server
(as the kernel keeps it), per admission. Wall is the time per admission: one after the other, the latency of a
reservation and what is left of its settlement; 16 at a time, what remains when round trips overlap. p99 is of
the reservations alone. Ratios are those within one run, to the memory store; microseconds are those of this
machine at this moment. Redis is on the same machine: over a network, wall grows by a round trip for `redis`,
CPU does not.

Then the accuracy of limits that two processes share (limit_accuracy.py).
"""

import argparse
import asyncio
import contextlib
import cProfile
import gc
import json
import os
import pstats
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from gateway.config.redis_urls import parse_redis_url
from gateway.config.snapshot import Limit
from gateway.limits.contract import Account, Adjustment, Charge, LimitStore
from gateway.limits.leasing import LeasedStore
from gateway.limits.memory import MemoryStore
from gateway.limits.redis_link import RedisLink
from gateway.limits.redis_nodes import Nodes
from gateway.limits.redis_store import RedisStore
from gateway.tasks import TaskSet
from tests.benchmarks import limit_accuracy
from tests.benchmarks.limit_accuracy import Accuracy
from tests.benchmarks.measuring import cpu_seconds, cpus, pin
from tests.conftest import REPO
from tests.redis_server import RedisServer, redis_is_here, running_redis

RESULTS = REPO / "loadtest" / "results" / "admission.json"
LIMITS = (1, 10, 100)
AT_A_TIME = (1, 16)
TOKENS, GIVEN_BACK = 600, 200


@dataclass(frozen=True, slots=True)
class Figure:
    """Microseconds per admission."""

    cpu: float
    server_cpu: float
    wall: float
    p99: float
    """Of the reservations' latencies."""


@dataclass(frozen=True, slots=True)
class Sizes:
    rounds: int
    seconds: float
    accuracy_seconds: float


def limits_of(count: int) -> list[tuple[Charge, Adjustment | None]]:
    """What a request is charged, and what of it is given back."""
    kinds: tuple[tuple[Limit, int], ...] = (
        (Limit("tokens", "tokens", 10**11, per=60), TOKENS),
        (Limit("requests", "requests", 10**9, per=60), 1),
        (Limit("budget", "tokens", 10**12, calendar="day"), TOKENS),
        (Limit("held", "concurrent", 10**6), 1),
    )
    made = []
    for index in range(count):
        limit, amount = kinds[index % len(kinds)]
        account = Account(f"{limit.name}-{index}", limit)
        back = None if amount == 1 else Adjustment(account, -GIVEN_BACK)
        made.append((Charge(account, amount, amount), back))
    return made


@contextlib.asynccontextmanager
async def stores(server: RedisServer | None) -> AsyncIterator[dict[str, LimitStore]]:
    made: dict[str, LimitStore] = {"memory": MemoryStore()}
    tasks = TaskSet()
    if server is not None:
        for name in ("redis", "leased"):
            parsed = parse_redis_url(server.url)
            namespace = f"bench-{uuid.uuid4().hex[:8]}"
            link = RedisLink(Nodes(parsed, namespace, 5.0), shown=str(parsed), timeout=5.0)
            redis = RedisStore(link, namespace=namespace)
            tasks.start(redis.run(), name)
            if name == "leased":
                leased = LeasedStore(redis, processes=lambda redis=redis: redis.processes)  # type: ignore[misc]
                tasks.start(leased.run(), name)
                made[name] = leased
            else:
                made[name] = redis
    try:
        yield made
    finally:
        for store in made.values():
            await store.aclose()
        await tasks.aclose()


async def admit(
    store: LimitStore,
    wanted: list[tuple[Charge, Adjustment | None]],
    at_a_time: int,
    seconds: float,
    name: str,
) -> list[float]:
    """Admit and settle for so long; the latencies of the reservations, seconds."""
    charges = [charge for charge, _ in wanted]
    back = [adjustment for _, adjustment in wanted if adjustment is not None]
    latencies: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds

    async def one(worker: int) -> None:
        number = 0
        while (began := clock()) < end or not number:
            number += 1
            holding = f"{name}-{worker}-{number}"
            verdict = await store.reserve(holding, charges)
            latencies.append(clock() - began)
            assert verdict.granted
            if at_a_time > 1:
                await asyncio.sleep(0)
            store.adjust(holding, back, final=True)

    async with asyncio.TaskGroup() as group:
        for worker in range(at_a_time):
            group.create_task(one(worker))
    return latencies


async def run(sizes: Sizes, server: RedisServer | None) -> dict[str, dict[str, list[Figure]]]:
    """case -> subject -> a figure for each round."""
    figures: dict[str, dict[str, list[Figure]]] = {}
    async with stores(server) as subjects:
        gc.collect()
        gc.freeze()
        for turn in range(-1, sizes.rounds):  # the first warms up
            for count in LIMITS:
                wanted = limits_of(count)
                for at_a_time in AT_A_TIME:
                    case = f"{count} limit{'s' * (count > 1)}, {at_a_time} at a time"
                    for name, store in subjects.items():
                        figure = await measure(
                            store, wanted, at_a_time, sizes.seconds, f"{turn}-{case}", server
                        )
                        if turn >= 0:
                            figures.setdefault(case, {}).setdefault(name, []).append(figure)
    return figures


async def measure(
    store: LimitStore,
    wanted: list[tuple[Charge, Adjustment | None]],
    at_a_time: int,
    seconds: float,
    name: str,
    server: RedisServer | None,
) -> Figure:
    of_server = 0.0 if server is None else cpu_seconds(server.process.pid)
    cpu, began = time.process_time(), time.perf_counter()
    latencies = await admit(store, wanted, at_a_time, seconds, name)
    await store.look(
        [wanted[0][0].account]
    )  # what was settled is sent before this, and is done when it answers
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    of_server = 0.0 if server is None else cpu_seconds(server.process.pid) - of_server
    each = 1e6 / len(latencies)
    latencies.sort()
    return Figure(cpu * each, of_server * each, wall * each, 1e6 * latencies[len(latencies) * 99 // 100])


def middle(rounds: Sequence[Figure]) -> Figure:
    return Figure(
        *(statistics.median(getattr(figure, field) for figure in rounds) for field in Figure.__slots__)
    )


def show(figures: dict[str, dict[str, list[Figure]]], accuracies: Sequence[Accuracy]) -> None:
    for case, subjects in figures.items():
        head = f"{'CPU us':>10} {'/memory':>8} {'server us':>10} {'wall us':>10} {'/memory':>8} {'p99 us':>9}"
        print(f"\n{case:26} {head}")
        memory = subjects["memory"]
        for name, rounds in subjects.items():
            figure = middle(rounds)
            cpu, wall = (
                statistics.median(
                    getattr(a, field) / getattr(b, field) for a, b in zip(rounds, memory, strict=True)
                )
                for field in ("cpu", "wall")
            )
            print(
                f"  {name:24} {figure.cpu:10.1f} {cpu:8.1f} {figure.server_cpu:10.1f} {figure.wall:10.1f} "
                f"{wall:8.1f} {figure.p99:9.1f}"
            )
    for each in accuracies:
        print(
            f"\n{each.mode}: 2 processes x 8 tasks offer twice the limit for {each.seconds:.0f} s: "
            f"{each.requests_over} requests over, {each.requests_used:.1%} used; "
            f"{each.tokens_beyond} tokens beyond ({each.tokens_allowed} allowed), "
            f"{each.tokens_used:.1%} used; "
            f"burst {each.requests_burst:+.1%} and {each.tokens_burst:+.1%}; "
            f"{each.round_trips} round trips for {each.asked} requests"
        )


def profile(name: str, count: int) -> None:
    """Where the CPU goes, one request after the other."""

    async def profiled() -> None:
        with contextlib.ExitStack() as stack:
            server = None if name == "memory" else stack.enter_context(running_redis())
            async with stores(server) as subjects:
                await admit(subjects[name], limits_of(count), 1, 0.5, "warm")
                sampler = cProfile.Profile()
                sampler.enable()
                latencies = await admit(subjects[name], limits_of(count), 1, 2.0, "profiled")
                sampler.disable()
        print(f"{name}, {count} limits: {len(latencies)} admissions")
        pstats.Stats(sampler).sort_stats("tottime").print_stats(16)

    uvloop.run(profiled())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="seconds, not figures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="%(default)s")
    parser.add_argument("--profile", nargs=2, metavar=("STORE", "LIMITS"), help="e.g. leased 10")
    given = parser.parse_args()
    if given.profile is not None:
        profile(given.profile[0], int(given.profile[1]))
        return
    sizes = Sizes(1, 0.02, 0.5) if given.smoke else Sizes(given.rounds, 0.3, 4.0)
    began = time.monotonic()
    accuracies: list[Accuracy] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_redis()) if redis_is_here() else None
        ours, others = cpus()
        pin(ours)
        if server is not None:
            pin(others, server.process.pid)
        figures = uvloop.run(run(sizes, server))
        if server is not None:
            if ours is not None and others is not None:
                os.sched_setaffinity(0, {ours, others})
            accuracies = [
                limit_accuracy.measure(server.url, mode, sizes.accuracy_seconds)
                for mode in ("direct", "leased")
            ]
    show(figures, accuracies)
    if server is None:
        print("NOT RUN: Redis: this machine has no redis-server on PATH")
    print(f"\n{sizes.rounds} rounds, {time.monotonic() - began:.0f} s, Python {sys.version.split()[0]}")
    if not given.smoke:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {
            "unit": "microseconds per admission (reserve and final settlement)",
            "python": sys.version.split()[0],
            "median": {
                case: {name: asdict(middle(rounds)) for name, rounds in by.items()}
                for case, by in figures.items()
            },
            "rounds": {
                case: {name: [asdict(f) for f in rounds] for name, rounds in by.items()}
                for case, by in figures.items()
            },
            "accuracy": [asdict(each) for each in accuracies],
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
