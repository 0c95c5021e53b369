"""The requests that a replica gets before traffic: configured prompts, and the pool's common system prompts.

They build what an engine builds at its first requests (kernels, graphs), and put into its prefix cache what
most requests begin with. Until they are answered, or the time for them is over, the replica is on hold: who
could only go there waits in line. They are in no books, nobody is charged, and their answers are read and
dropped. A replica that fails them gets traffic all the same; it is for probes and requests to say it is ill.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import count
from typing import Literal

import msgspec

from backends.contract import Done, EngineError, GenerateRequest
from gateway.activation.prefixes import Prefixes
from gateway.config.snapshot import Model, Pool, WarmUp
from gateway.errors import GatewayError
from gateway.fleet.ledger import ReplicaLedger
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics

__all__ = ["Warming"]

log = logging.getLogger("headgate.activation")

Render = Callable[[Model, GenerateRequest, bool], Awaitable[str]]
"""`Counting.render`: a chat as text, for engines that take no chats."""

Outcome = Literal["done", "failed", "timeout"]


class Warming:
    """Warms up the replicas of one pool. Without `warm_up` in its configuration it does nothing, at once."""

    def __init__(
        self,
        pool: Pool,
        models: Mapping[str, Model],
        render: Render,
        prefixes: Prefixes,
        tasks: TaskSet,
        metrics: Metrics,
    ) -> None:
        """`models`: all of the configuration, by name."""
        self._pool = pool
        self._models = models
        self._render = render
        self._prefixes = prefixes
        self._tasks = tasks
        self._metrics = metrics
        self._numbers = count(1)

    def start(self, ledger: ReplicaLedger) -> None:
        """Hold the replica and warm it up in the background. Nothing where it is on hold already."""
        if self._pool.warm_up is not None and ledger.hold is None:
            ledger.hold = "warming"
            self._tasks.start(self._hold(ledger), f"warm-up of {ledger.replica.id}")

    async def _hold(self, ledger: ReplicaLedger) -> None:
        try:
            await self.run(ledger)
        finally:
            if ledger.hold == "warming":
                ledger.hold = None
                ledger.changed()

    async def run(self, ledger: ReplicaLedger) -> None:
        """Send the replica its requests, one after the other. Takes as long as `timeout_s` at most."""
        settings = self._pool.warm_up
        if settings is None:
            return
        began = ledger.clock()
        outcome: Outcome = "done"
        why = ""
        try:
            async with asyncio.timeout(settings.timeout):
                for model, request in self._requests(settings, ledger.replica.id):
                    await self._send(ledger, model, request)
        except TimeoutError:
            outcome, why = "timeout", f"not done in {settings.timeout:g} s"
        except EngineError as error:
            outcome, why = "failed", f"{error.kind.value} {error.status or ''}".strip()
        except GatewayError as error:
            outcome, why = "failed", error.message
        seconds = ledger.clock() - began
        self._metrics.warm_ups.labels(self._pool.name, outcome).inc()
        self._metrics.warm_up_seconds.labels(self._pool.name).observe(seconds)
        fields = {"pool": self._pool.name, "replica": ledger.replica.id, "seconds": round(seconds, 3)}
        if outcome == "done":
            log.info("replica is warmed up", extra={"fields": fields})
        else:
            log.warning("replica gets traffic without its warm-up", extra={"fields": {**fields, "why": why}})

    def _requests(self, settings: WarmUp, replica: str) -> Iterator[tuple[Model, GenerateRequest]]:
        served = [name for name in self._pool.serves if name != "*" and name in self._models]
        chats = [
            (name, [{"role": "user", "content": prompt}]) for prompt in settings.prompts for name in served
        ]
        chats += [
            (name, [{"role": "system", "content": text}, {"role": "user", "content": "."}])
            for name, text in self._prefixes.common(settings.common_prefixes)
            if name in served
        ]
        for name, messages in chats:
            yield (
                self._models[name],
                GenerateRequest(
                    request_id=f"warm-up-{replica}-{next(self._numbers)}",
                    model=self._pool.serves[name],
                    stream=False,
                    messages=messages,
                    max_tokens=settings.max_tokens,
                ),
            )

    async def _send(self, ledger: ReplicaLedger, model: Model, request: GenerateRequest) -> None:
        """Raises EngineError; GatewayError where the chat cannot be rendered."""
        adapter = self._pool.adapter
        if not adapter.applies_template:
            rendered = await self._render(model, request, adapter.adds_bos)
            request = msgspec.structs.replace(request, rendered=rendered)
        generation = await ledger.engine.generate(request)
        try:
            while not isinstance((await generation.events())[-1], Done):
                pass
        finally:
            generation.cancel()
