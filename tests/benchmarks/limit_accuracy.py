"""How exactly limits hold when two processes with eight tasks each offer twice what is allowed.

    python -m tests.benchmarks.limit_accuracy URL NAMESPACE direct|leased SECONDS     one of the processes

Each task asks again and again for a request (of a limit of requests) and for tokens (of a limit of tokens),
at a pace at which all together offer twice either limit. Tokens are reserved by an estimate, and settled some
milliseconds later at 0.5 to 1.2 times that. What was charged, less what was given back, is written down with
its time and added up over both processes. A bucket that was full allows amount + amount * t / period in t
seconds:

    over       requests above that, at the end (allowed: none)
    used       what was charged of it (wanted: 97 % of either limit)
    beyond     tokens above that; allowed: what the answers in flight cost more than was reserved for them
    burst      the most that was charged in any interval above what a full bucket allows for that interval, in
               parts of the amount. Direct: 0 but for the time that replies take, in which units are counted
               later than they were charged. Leased: at most 1 / SHARE besides.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.config.redis_urls import parse_redis_url
from gateway.config.snapshot import Limit
from gateway.limits.contract import Account, Adjustment, Charge, LimitStore
from gateway.limits.leasing import LeasedStore
from gateway.limits.redis_link import RedisLink
from gateway.limits.redis_nodes import Nodes
from gateway.limits.redis_store import RedisStore
from gateway.tasks import TaskSet
from tests.conftest import REPO

PROCESSES, TASKS = 2, 8
REQUESTS = Account("requests", Limit("requests", "requests", 300, per=1))
TOKENS = Account("tokens", Limit("tokens", "tokens", 40_000, per=1))
ESTIMATES = (60, 340)
"""Tokens that a request is expected to use: between these, 200 on average."""
MOST_OUTRUN = 0.2
HELD_S = (0.002, 0.02)


@dataclass(frozen=True, slots=True)
class Accuracy:
    mode: str
    seconds: float
    requests_over: int
    requests_used: float
    requests_burst: float
    tokens_beyond: int
    tokens_allowed: int
    """How far `tokens_beyond` may go."""
    tokens_used: float
    tokens_burst: float
    asked: int
    round_trips: int
    """How often somebody was asked for units: refusals always do."""


async def offer(
    store: LimitStore, until: float, worker: random.Random, log: list[tuple[str, float, int]]
) -> int:
    """One task: both limits, each at twice its share. Returns how often it asked."""
    pace = {REQUESTS: 1.0, TOKENS: sum(ESTIMATES) / 2}
    due = {
        account: time.monotonic() + worker.random() * pace[account] * TASKS * PROCESSES / account.limit.amount
        for account in pace
    }
    asked = 0

    async def ask(account: Account, amount: int) -> None:
        holding = f"{id(worker)}-{asked}-{uuid.uuid4().hex}"
        verdict = await store.reserve(holding, [Charge(account, amount, amount)])
        if not verdict.granted:
            return
        log.append((account.key, time.monotonic(), amount))
        delta = 0
        if account == TOKENS:
            await asyncio.sleep(worker.uniform(*HELD_S))
            delta = round(amount * worker.uniform(-0.5, MOST_OUTRUN))
            log.append((account.key, time.monotonic(), delta))
        store.adjust(holding, [Adjustment(account, delta)] if delta else [], final=True)

    async with asyncio.TaskGroup() as group:
        while True:
            account = min(due, key=lambda each: due[each])
            if due[account] >= until:
                return asked
            await asyncio.sleep(max(0.0, due[account] - time.monotonic()))
            due[account] += pace[account] * TASKS * PROCESSES / (2 * account.limit.amount)
            asked += 1
            group.create_task(ask(account, 1 if account == REQUESTS else worker.randint(*ESTIMATES)))


async def child(url: str, namespace: str, mode: str, seconds: float) -> dict[str, Any]:
    parsed = parse_redis_url(url)
    link = RedisLink(Nodes(parsed, namespace, 2.0), shown=str(parsed), timeout=2.0)
    redis = RedisStore(link, namespace=namespace)
    tasks = TaskSet()
    tasks.start(redis.run(), "redis")
    store: LimitStore = redis
    await redis.look([REQUESTS, TOKENS])
    print("ready", flush=True)
    sys.stdin.readline()
    redis.beat()
    await redis.look([REQUESTS])
    leased = None
    if mode == "leased":
        store = leased = LeasedStore(redis, processes=lambda: redis.processes)
        assert leased._count == PROCESSES
        tasks.start(leased.run(), "leased")
    log: list[tuple[str, float, int]] = []
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        offers = [group.create_task(offer(store, until, random.Random(), log)) for _ in range(TASKS)]
    asked = sum(each.result() for each in offers)
    await store.aclose()
    await tasks.aclose()
    return {"log": log, "asked": asked, "round_trips": asked if leased is None else leased.round_trips}


def burst_of(account: Account, log: Sequence[tuple[float, int]]) -> float:
    """The most that was charged in any interval beyond what drained in it, less the amount; of the amount."""
    amount, per = account.limit.amount, account.limit.per
    assert per is not None
    busy = most = 0.0
    before = log[0][0]
    for at, units in log:
        busy = max(0.0, busy - (at - before) * amount / per)
        busy = max(0.0, busy + units)
        most, before = max(most, busy), at
    return most / amount - 1


def measure(url: str, mode: str, seconds: float) -> Accuracy:
    """Run both processes to the end."""
    namespace = f"accuracy-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, "-m", "tests.benchmarks.limit_accuracy", url, namespace, mode, str(seconds)]
    children = [
        subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    try:
        for each in children:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in children:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        told = [json.loads(each.communicate(timeout=30 + seconds)[0]) for each in children]
    finally:
        for each in children:
            each.kill()
            each.wait()
    logs = {
        account: sorted((at, units) for one in told for key, at, units in one["log"] if key == account.key)
        for account in (REQUESTS, TOKENS)
    }
    total = {account: sum(units for _, units in log) for account, log in logs.items()}
    allowed = {}
    for account, log in logs.items():
        per = account.limit.per
        assert per is not None
        # A reply takes as long to come as the first charge took to be made, at least.
        allowed[account] = account.limit.amount * (1 + (log[-1][0] - log[0][0] + 0.001) / per)
    return Accuracy(
        mode=mode,
        seconds=seconds,
        requests_over=max(0, total[REQUESTS] - int(allowed[REQUESTS])),
        requests_used=total[REQUESTS] / allowed[REQUESTS],
        requests_burst=burst_of(REQUESTS, logs[REQUESTS]),
        tokens_beyond=max(0, total[TOKENS] - int(allowed[TOKENS])),
        tokens_allowed=round(PROCESSES * TASKS * ESTIMATES[1] * MOST_OUTRUN),
        tokens_used=total[TOKENS] / allowed[TOKENS],
        tokens_burst=burst_of(TOKENS, logs[TOKENS]),
        asked=sum(one["asked"] for one in told),
        round_trips=sum(one["round_trips"] for one in told),
    )


def main() -> None:
    url, namespace, mode, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(child(url, namespace, mode, float(seconds)))))


if __name__ == "__main__":
    main()
