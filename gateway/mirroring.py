"""Mirrors: a share of a rule's requests is sent to another pool too, and its answers are thrown away.

For trying an engine, a model or a new version on real traffic before anybody depends on it. A copy has no
client: it is never charged to a tenant, and it must cost those who pay as little as can be. So it has a
budget of its own (requests at a time, tokens a minute), beyond which it is left out rather than put off; it
goes as `batch`, behind everything else that waits for that pool; it ends with the time that its pool gives a
request; and what becomes of it is only counted. What the tenant may not use is not mirrored either.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from backends.contract import Delta, Done, EngineError, Generation
from gateway.call import Call, Estimate
from gateway.config.snapshot import Hop, Mirror, PriorityClass, Snapshot
from gateway.errors import GatewayError
from gateway.fallbacks import Attempts
from gateway.queueing.pool_queue import PoolQueue
from gateway.routing.router import Route, Target, target_of
from gateway.routing.splitting import point
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics

__all__ = ["Mirroring"]

log = logging.getLogger("headgate.mirroring")


class Mirroring:
    """The copies of one configuration's requests."""

    def __init__(
        self,
        queues: dict[str, PoolQueue],
        attempts: Attempts,
        tasks: TaskSet,
        leases: AbstractContextManager[None],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """`tasks` own the copies under way; each of them holds one of `leases`, so that the configuration it
        was made under stays until it has ended."""
        self._queues = queues
        self._attempts = attempts
        self._tasks = tasks
        self._leases = leases
        self._metrics = metrics
        self._clock = clock
        self._budgets: dict[str, _Budget] = {}

    def consider(self, snapshot: Snapshot, call: Call, route: Route, expected: Estimate) -> None:
        """Send a copy of `call`, if its rule says so and the mirror's budget allows. Returns at once."""
        mirror = route.rule.mirror
        if mirror is None or point(f"mirror/{call.id}") >= mirror.share:
            return
        target = target_of(snapshot, route.rule, Hop(mirror.pool), call, expected)
        if not target.usable:
            self._count(route, "unusable")
            return
        budget = self._budgets.setdefault(route.rule.name, _Budget(mirror, self._clock()))
        if not budget.take(expected.total, self._clock()):
            self._count(route, "left_out")
            return
        self._tasks.start(self._send(call, route, target, expected, budget), f"mirror {call.id}")

    async def _send(
        self, call: Call, route: Route, target: Target, expected: Estimate, budget: "_Budget"
    ) -> None:
        outcome = "cancelled"
        try:
            with self._leases:
                async with asyncio.timeout(target.pool.timeouts.total) as limit:
                    await self._answer(call, target, expected, limit)
            outcome = "ok"
        except (EngineError, GatewayError, TimeoutError) as error:
            outcome = "failed"
            log.info("the mirror of %s in pool %s failed: %s", call.id, target.pool.name, error)
        finally:
            budget.in_flight -= 1
            self._count(route, outcome)

    async def _answer(self, call: Call, target: Target, expected: Estimate, limit: asyncio.Timeout) -> None:
        """One attempt on one replica, read to its end, within `limit`."""
        pool = target.pool
        request = await self._attempts.request_for(call, target, expected, watched=False)
        slot = await self._queues[pool.name].acquire(
            expected.prompt.tokens,
            expected.total - expected.prompt.tokens,
            wait=pool.queue.max_wait,
            name=f"{call.id} (mirror)",
            priority=PriorityClass.batch,
            streamed=request.stream,
        )
        generation: Generation | None = None
        outcome: Literal["ok", "error", "cancelled"] = "cancelled"
        try:
            generation = await slot.ledger.engine.generate(request)
            done = False
            while not done:
                events = await generation.events()
                slot.progress(sum(event.tokens for event in events if isinstance(event, Delta)))
                done = any(isinstance(event, Done) for event in events)
            outcome = "ok"
        except EngineError:
            outcome = "error"
            raise
        finally:
            if limit.expired():
                outcome = "error"
            self._metrics.mirror_attempts.labels(pool.name, outcome).inc()
            if generation is not None:
                generation.cancel()
            slot.release()

    def _count(self, route: Route, outcome: str) -> None:
        mirror = route.rule.mirror
        assert mirror is not None, "it has a mirror"
        self._metrics.mirrored.labels(route.rule.name, mirror.pool, outcome).inc()


class _Budget:
    """What the copies of one rule may cost: so many at a time, and tokens that come back within a minute."""

    def __init__(self, mirror: Mirror, now: float) -> None:
        self.in_flight = 0
        self._mirror = mirror
        self._left = float(mirror.tokens_per_minute or 0)
        self._seen = now

    def take(self, tokens: int, now: float) -> bool:
        """Whether one more copy may be sent; it is paid for if so."""
        most = self._mirror.tokens_per_minute
        if self.in_flight >= self._mirror.in_flight:
            return False
        if most is not None:
            self._left = min(float(most), self._left + most * max(0.0, now - self._seen) / 60)
            self._seen = now
            if self._left < tokens:
                return False
            self._left -= tokens
        self.in_flight += 1
        return True
