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


class Prober:
    """Keeps `ReplicaLedger.ready` true to life."""

    def __init__(self, targets: Iterable[tuple[ReplicaLedger, Endpoint, Callable[[], None]]]) -> None:
        """Each target: the replica, where it is, and what to call when it becomes ready."""
        self._targets = tuple(targets)

    async def run(self) -> None:
        """Probe every replica, for ever."""
        async with asyncio.TaskGroup() as group:
            for ledger, endpoint, became_ready in self._targets:
                group.create_task(self._watch(ledger, endpoint, became_ready))

    async def _watch(
        self, ledger: ReplicaLedger, endpoint: Endpoint, became_ready: Callable[[], None]
    ) -> None:
        verify = await asyncio.to_thread(_ssl_context, endpoint)
        async with httpx.AsyncClient(verify=verify, timeout=TIMEOUT, trust_env=False) as client:
            while True:
                await self.probe(client, ledger, endpoint, became_ready)
                await asyncio.sleep(INTERVAL)

    async def probe(
        self,
        client: httpx.AsyncClient,
        ledger: ReplicaLedger,
        endpoint: Endpoint,
        became_ready: Callable[[], None],
    ) -> None:
        """One probe."""
        adapter = ledger.engine.adapter
        question = adapter.health_request()
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await client.request(
                    question.method,
                    endpoint.base_url + question.path,
                    headers={**endpoint.headers, **question.headers},
                    content=question.body,
                )
            ready = adapter.read_health(answer.status_code, answer.content).ready
            why = f"health answers {answer.status_code}"
        except (httpx.HTTPError, TimeoutError) as error:
            ready, why = False, f"health: {str(error) or type(error).__name__}"
        before = ledger.ready
        ledger.ready = ready
        if ready:
            if before is False:
                ledger.reached()
                log.info("replica is ready again", extra={"fields": {"replica": ledger.replica.id}})
            became_ready()
            return
        ledger.last_error = why
        if before is not False:
            log.warning("replica is not ready", extra={"fields": {"replica": ledger.replica.id, "why": why}})


def _ssl_context(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """Loading CA files takes milliseconds: call it off the loop."""
    if not endpoint.base_url.startswith("https:"):
        return False
    return ssl.create_default_context(cafile=endpoint.ca_file)
