"""Probing: ask each replica, now and then, whether it is well, and what it takes.

Probes are control plane, few, and wanted readable. A probe's answer only moves a replica to the front or the
back of the queue; traffic itself tells more (an engine can be dead behind a healthy HTTP server), so a
replica that is not ready is avoided, never forbidden.

A replica that is well is also asked for its limits: when probing begins (at the start, after a reload), when
it comes back (a restarted engine may have others), and now and then, for it may restart between two probes.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import httpx

from backends.contract import Endpoint
from gateway.asking import NoAnswer, ask, ask_all, client_for
from gateway.fleet.engine_limits import first_name, limits_for
from gateway.fleet.ledger import ReplicaLedger

log = logging.getLogger("headgate.probing")

INTERVAL = 5.0
TIMEOUT = 3.0
"""Seconds between two probes of a replica, and for one of them."""
MAX_ANSWER = 65536
"""Bytes of a health answer; an engine whose answer is longer is not well."""
MAX_METADATA = 1024 * 1024
"""Bytes of an answer about models and limits; a longer one tells nothing."""
ASK_EVERY = 12
"""Probes after which a replica that stayed well is asked for its limits again."""


@dataclass(frozen=True, slots=True)
class Target:
    """A replica to be probed."""

    ledger: ReplicaLedger
    endpoint: Endpoint
    serves: tuple[str, ...]
    """Models that are meant there, as the engine calls them."""
    probed: Callable[[], None]
    """Called after each probe."""
    learned: Callable[[], None]
    """Called when it told other limits than before."""
    returned: Callable[[], None] = lambda: None
    """Called when it is well after it was not, before anybody else hears of it."""


class Prober:
    """Keeps `ReplicaLedger.ready` and `ReplicaLedger.told` true to life."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)

    async def run(self) -> None:
        """Probe every replica, for ever."""
        async with asyncio.TaskGroup() as group:
            for target in self._targets:
                group.create_task(self._watch(target))

    async def _watch(self, target: Target) -> None:
        while True:
            try:
                async with client_for(target.endpoint) as client:
                    await self._keep_asking(client, target)
            except (OSError, ValueError) as error:  # a CA file that is not there or is none
                self._note(target, False, f"health: {error}")
            await asyncio.sleep(INTERVAL)

    async def _keep_asking(self, client: httpx.AsyncClient, target: Target) -> None:
        until_limits = 0  # probes
        while True:
            if not await self.probe(client, target):
                until_limits = 0
            elif until_limits:
                until_limits -= 1
            elif await self.ask_limits(client, target):
                until_limits = ASK_EVERY
            await asyncio.sleep(INTERVAL)

    async def probe(self, client: httpx.AsyncClient, target: Target) -> bool:
        """One probe; whether the replica is well."""
        adapter = target.ledger.engine.adapter
        try:
            answer = await ask(
                client, target.endpoint, adapter.health_request(), seconds=TIMEOUT, most=MAX_ANSWER
            )
            ready = adapter.read_health(answer.status, answer.body).ready
            why = f"health answers {answer.status}"
        except NoAnswer as reason:
            ready, why = False, f"health: {reason}"
        self._note(target, ready, why)
        target.probed()
        return ready

    async def ask_limits(self, client: httpx.AsyncClient, target: Target) -> bool:
        """Ask what it takes; whether it answered. Where it does not, what it told before stays."""
        adapter = target.ledger.engine.adapter
        questions = adapter.metadata_requests(first_name(target.serves))
        answers = await ask_all(client, target.endpoint, questions, seconds=TIMEOUT, most=MAX_METADATA)
        told = limits_for(adapter.read_metadata(answers), target.serves)
        telling = told.context_tokens is not None or told.prompt_tokens is not None
        statuses = [answer.status for answer in answers.values()]
        whole = len(statuses) == len(questions) and all(200 <= status < 300 for status in statuses)
        if (telling or whole) and told != target.ledger.told:
            target.ledger.told = told
            target.learned()
        return len(statuses) == len(questions) and max(statuses, default=0) < 500

    def _note(self, target: Target, ready: bool, why: str) -> None:
        ledger = target.ledger
        before, ledger.ready = ledger.ready, ready
        fields = {"fields": {"replica": ledger.replica.id, "why": why}}
        if ready and before is False:
            ledger.reached()
            target.returned()
            log.info("replica is ready again", extra=fields)
        if not ready:
            ledger.last_error = why
            if before is not False:
                # Of one that sleeps, nothing else is to be expected.
                level = logging.INFO if ledger.hold == "asleep" else logging.WARNING
                log.log(level, "replica is not ready", extra=fields)
