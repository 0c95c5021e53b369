"""Polling: ask each replica, every few seconds, how busy it says that it is.

Apart from the probes: an engine that answers this slowly (an idle trtllm-serve takes two seconds) must not
keep us from knowing whether it is well. What it tells is shown (`headgate_engine_*`, /admin/replicas) and
corrects the ledger (reported.py); nothing waits for it. An engine that refuses, has its metrics off, or names
them otherwise is asked again, ever less often.
"""

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import httpx

from backends.contract import Endpoint
from gateway.asking import NoAnswer, ask, client_for
from gateway.fleet.ledger import ReplicaLedger

__all__ = ["INTERVAL", "poll", "polling", "with_port"]

INTERVAL = 5.0
RARELY = 60.0
"""Seconds between two questions; after answers that tell nothing, up to so many."""
TIMEOUT = 4.0
MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of an answer: an engine with many series has megabytes of metrics."""


async def polling(ledger: ReplicaLedger, endpoint: Endpoint, polled: Callable[[], None]) -> None:
    """Ask one replica for ever; `polled` is called after each answer that told something. Ends at once where
    its engine cannot be asked."""
    adapter = ledger.engine.adapter
    if adapter.load_request() is None:
        return
    where = with_port(endpoint, adapter.load_port)
    pause = INTERVAL
    while True:
        try:
            async with client_for(where) as client:
                while True:
                    if await poll(client, ledger, where):
                        pause = INTERVAL
                        polled()
                    else:
                        pause = min(2 * pause, RARELY)
                    await asyncio.sleep(pause)
        except (OSError, ValueError):  # a CA file that is not there or is none: the probe says so
            await asyncio.sleep(RARELY)


async def poll(client: httpx.AsyncClient, ledger: ReplicaLedger, endpoint: Endpoint) -> bool:
    """One question; whether it was answered."""
    adapter = ledger.engine.adapter
    question = adapter.load_request()
    if question is None:
        return False
    own = ledger.in_flight
    try:
        answer = await ask(client, endpoint, question, seconds=TIMEOUT, most=MAX_ANSWER)
    except NoAnswer:
        return False
    load = await asyncio.to_thread(adapter.read_load, answer.status, answer.body)
    if load is None:
        return False
    ledger.reported.note(load, ledger.clock(), max(own, ledger.in_flight))
    return True


def with_port(endpoint: Endpoint, port: int | None) -> Endpoint:
    """The same host at another port; credentials go along, for it is the same server's."""
    if port is None:
        return endpoint
    parts = urlsplit(endpoint.base_url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return Endpoint(
        urlunsplit((parts.scheme, f"{host}:{port}", "", "", "")), endpoint.headers, endpoint.ca_file
    )
