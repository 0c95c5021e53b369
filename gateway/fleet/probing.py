"""Probing: ask each replica, now and then, whether it is well.

Probes use httpx: they are control plane, few, and wanted readable. A probe's answer only moves a replica
to the front or the back of the queue; traffic itself tells more (an engine can be dead behind a healthy
HTTP server), so a replica that is not ready is avoided, never forbidden.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable

import httpx

from backends.contract import Endpoint
from gateway.fleet.ledger import ReplicaLedger

log = logging.getLogger("headgate.probing")

INTERVAL = 5.0
TIMEOUT = 3.0
"""Seconds between two probes of a replica, and for one of them."""
MAX_ANSWER = 65536
"""Bytes of a health answer that are looked at."""


class Prober:
    """Keeps `ReplicaLedger.ready` true to life."""

    def __init__(self, targets: Iterable[tuple[ReplicaLedger, Endpoint, Callable[[], None]]]) -> None:
        """Each target: the replica, where it is, and what to call after a probe."""
        self._targets = tuple(targets)

    async def run(self) -> None:
        """Probe every replica, for ever."""
        async with asyncio.TaskGroup() as group:
            for ledger, endpoint, changed in self._targets:
                group.create_task(self._watch(ledger, endpoint, changed))

    async def _watch(self, ledger: ReplicaLedger, endpoint: Endpoint, changed: Callable[[], None]) -> None:
        while True:
            try:
                verify = await asyncio.to_thread(ssl_context, endpoint)
                async with httpx.AsyncClient(verify=verify, timeout=TIMEOUT, trust_env=False) as client:
                    while True:
                        await self.probe(client, ledger, endpoint, changed)
                        await asyncio.sleep(INTERVAL)
            except (OSError, ValueError) as error:  # a CA file that is not there or is none
                self._note(ledger, False, f"health: {error}")
            await asyncio.sleep(INTERVAL)

    async def probe(
        self,
        client: httpx.AsyncClient,
        ledger: ReplicaLedger,
        endpoint: Endpoint,
        changed: Callable[[], None],
    ) -> None:
        """One probe; calls `changed` after it."""
        adapter = ledger.engine.adapter
        question = adapter.health_request()
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                client.stream(
                    question.method,
                    endpoint.base_url + question.path,
                    headers={**endpoint.headers, **question.headers},
                    content=question.body,
                ) as answer,
            ):
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > MAX_ANSWER:
                        break
            ready = adapter.read_health(answer.status_code, body).ready
            why = f"health answers {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            ready, why = False, f"health: {str(error) or type(error).__name__}"
        self._note(ledger, ready, why)
        changed()

    def _note(self, ledger: ReplicaLedger, ready: bool, why: str) -> None:
        before, ledger.ready = ledger.ready, ready
        fields = {"fields": {"replica": ledger.replica.id, "why": why}}
        if ready and before is False:
            ledger.reached()
            log.info("replica is ready again", extra=fields)
        if not ready:
            ledger.last_error = why
            if before is not False:
                log.warning("replica is not ready", extra=fields)


def ssl_context(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """Loading CA files takes milliseconds: call it off the loop."""
    if not endpoint.base_url.startswith("https:"):
        return False
    return ssl.create_default_context(cafile=endpoint.ca_file)
