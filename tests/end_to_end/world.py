"""A whole world on loopback: simulated engines, a gateway on real uvicorn, and the invariants between them.

`world(...)` starts it, and checks at the end that everything came back: slots, tokens, reservations,
connections, tasks and descriptors (docs/invariants.md). A test that passes has also kept the books.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from backends.simulated.server import SimulatedServer, serve
from backends.simulated.tokens import EngineTokenizer
from gateway.admin.admin_key import AdminKey
from gateway.app import Gateway, load_snapshot
from gateway.limits.memory import MemoryStore
from gateway.limits.saying import LimitRow
from gateway.reloading import Source
from gateway.serving import Addresses, bind, listening
from gateway.state.store import StateStore
from gateway.telemetry.tracing import Tracing
from gateway.tenants.authentication import digest_of
from gateway.tokens.counting import Counting

TOKENIZER = Path(__file__).resolve().parents[2] / "deploy" / "tokenizers" / "headgate-mini"
KEY = "hg-test-tenant-0123456789abcdef0123456789"
OTHER_KEY = "hg-test-other-0123456789abcdef0123456789"
ADMIN_KEY = "hg-test-admin-0123456789abcdef0123456789"

FD_SLACK = 5
"""Descriptors that may differ from the baseline: interpreters open and close some of their own."""


def routes(
    pools: Mapping[str, Mapping[str, Any]],
    *,
    rules: Sequence[Mapping[str, Any]] | None = None,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    tenants: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Sequence[Mapping[str, Any]] = (),
    server: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A routes file as a dict: by default one model `m`, one rule over all pools, two tenants."""
    model = {
        "tokenizer": {"kind": "huggingface", "path": str(TOKENIZER)},
        "context": 16384,
        "max_tokens": {"default": 64, "ceiling": 8192},
    }
    return {
        "version": 1,
        "server": {"listen": "127.0.0.1:8080", "admin": "127.0.0.1:8081", **(server or {})},
        "models": {name: {**model, **(given or {})} for name, given in (models or {"m": {}}).items()},
        "pools": {name: dict(pool) for name, pool in pools.items()},
        "rules": [dict(rule) for rule in rules or [{"name": "all", "pools": list(pools)}]],
        "tenants": {
            name: {**tenant, "keys": [{"id": f"{name}-1", "hash": f"sha256:{digest_of(key)}"}]}
            for (name, tenant), key in zip(
                (tenants or {"tenant": {}, "other": {}}).items(), (KEY, OTHER_KEY), strict=False
            )
        },
        "limits": [dict(limit) for limit in limits],
    }


@dataclass
class World:
    gateway: Gateway
    addresses: Addresses
    engines: dict[str, SimulatedServer] = field(default_factory=dict)
    """By replica id."""
    file: Path = Path("routes.yaml")
    """What the gateway was loaded from."""

    def sdk(self, key: str = KEY, **options: Any) -> openai.AsyncOpenAI:
        """The official SDK, pointed at this gateway. No retries unless asked for."""
        return openai.AsyncOpenAI(
            base_url=f"{self.addresses.data}/v1", api_key=key, **{"max_retries": 0, "timeout": 20, **options}
        )

    def http(self, key: str | None = KEY) -> httpx.AsyncClient:
        """A plain client of the data listener."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.addresses.data, headers=headers, timeout=20, trust_env=False)

    def admin(self, key: str | None = ADMIN_KEY) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.addresses.admin, headers=headers, timeout=20, trust_env=False)

    def engine(self) -> SimulatedServer:
        """The only engine there is."""
        (engine,) = self.engines.values()
        return engine

    def in_flight(self) -> int:
        return sum(ledger.in_flight for _, ledger in self.gateway.runtime.ledgers())

    async def limits(self) -> dict[str, LimitRow]:
        """How the limits' accounts stand, by account."""
        runtime = self.gateway.runtime
        return {row.account: row for row in await runtime.limiter.rows(runtime.snapshot)}

    def faults(self) -> list[str]:
        """What is not at rest, in words; empty where everything came back (invariants I1 to I4, I7)."""
        wrong = []
        book = self.gateway.book
        if len(book):
            wrong.append(f"live records: {[record.as_row(0.0) for record in book]}")
        if book.accepted != sum(book.outcomes.values()):
            wrong.append(f"accepted {book.accepted}, ended {dict(book.outcomes)}")
        for pool, ledger in self.gateway.runtime.ledgers():
            if ledger.in_flight or ledger.outstanding_tokens:
                wrong.append(f"{pool}: {ledger.statistics()}")
        for pool, queue in self.gateway.runtime.queues.items():
            if queue.statistics().waiting:
                wrong.append(f"{pool}: {queue.statistics().waiting} waiting")
        if self.gateway.older_in_use:
            wrong.append(f"{self.gateway.older_in_use} older configurations in use")
        store = self.gateway.runtime.limiter.store
        if isinstance(store, MemoryStore) and (store.open or store.held()):
            wrong.append(f"limits: {store.open} reservations open, held: {store.held()}")
        for transport in self.gateway.transports():
            if transport.statistics().in_use:
                wrong.append(f"transport: {transport.statistics()}")
        for name, engine in self.engines.items():
            statistics = engine.statistics()
            if statistics.running or statistics.waiting or statistics.in_flight:
                wrong.append(f"engine {name}: {statistics.running} running, {statistics.waiting} waiting")
        return wrong

    async def wait_at_rest(self, seconds: float = 2.0) -> None:
        """Wait until everything came back; AssertionError with what did not."""
        end = asyncio.get_running_loop().time() + seconds
        while wrong := self.faults():
            assert asyncio.get_running_loop().time() < end, wrong
            await asyncio.sleep(0.005)


@functools.cache
def tokenizer() -> EngineTokenizer:
    """The engines' tokenizer, loaded once: it takes milliseconds, and there are many engines."""
    return EngineTokenizer.load(TOKENIZER)


class Complaints(logging.Handler):
    """Errors that the gateway, its server or the event loop log: tracebacks, 500s, lost tasks."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = record.name == "headgate.config"  # a file that cannot be loaded is its author's error
        if record.name.startswith(("headgate", "uvicorn", "asyncio")) and not told:
            self.heard.append(self.format(record))

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path,
    engines: Mapping[str, Mapping[str, Any]],
    *,
    pools: Mapping[str, Mapping[str, Any]] | None = None,
    probe: bool = False,
    tracing: Tracing | None = None,
    at_rest: bool = True,
    durable: bool = False,
    **given: Any,
) -> AsyncIterator[World]:
    """Engines by pool, each `{kind, replicas?, and options of simulated.serve}`; a gateway before them.

    `{kind, url, served}` is an engine that runs already, and the name of its model; nothing is simulated.
    `durable` keeps the state in `tmp_path`, as `headgate serve` does, else it is in memory.
    `pools` adds to what routes.yaml says of a pool. Replicas are called `<pool>-1`, `<pool>-2`, ...
    """
    tasks_before, descriptors_before = len(asyncio.all_tasks()), descriptors()
    complaints = Complaints()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(complaints)
        started: dict[str, SimulatedServer] = {}
        written: dict[str, dict[str, Any]] = {}
        for pool, options in engines.items():
            options = {"speed": 20.0, **options}
            kind, count = options.pop("kind"), options.pop("replicas", 1)
            served = options.pop("served", "ensemble" if kind == "triton" else "m")
            url = options.pop("url", None)
            replicas = []
            for name in [f"{pool}-{number}" for number in range(1, count + 1)]:
                if url is None:
                    started[name] = await stack.enter_async_context(
                        serve(kind, **{"model": served, "tokenizer": tokenizer(), **options})
                    )
                replicas.append({"id": name, "url": url or started[name].url})
            written[pool] = {"engine": kind, "serves": {"m": served}, "replicas": replicas}
            written[pool].update((pools or {}).get(pool, {}))
        path = tmp_path / "routes.yaml"
        path.write_text(yaml.safe_dump(routes(written, **given), sort_keys=False))
        snapshot, _ = load_snapshot(path)
        counting = await asyncio.to_thread(Counting.build, snapshot)
        gateway = Gateway(
            snapshot,
            counting,
            AdminKey(digest_of(ADMIN_KEY)),
            tracing=tracing,
            probe=probe,
            store=StateStore.at(Path(snapshot.server.state)) if durable else None,
            source=Source(path, partial(load_snapshot, path), snapshot.server),
        )
        sockets = bind(("127.0.0.1", 0), "--port"), bind(("127.0.0.1", 0), "--admin-port")
        addresses = await stack.enter_async_context(listening(gateway, *sockets))
        here = World(gateway, addresses, started, path)
        yield here
        if at_rest:
            await here.wait_at_rest()
    assert not complaints.heard, "\n".join(complaints.heard)
    gc.collect()
    await asyncio.sleep(0)
    end = asyncio.get_running_loop().time() + 2
    while len(asyncio.all_tasks()) > tasks_before or descriptors() > descriptors_before + FD_SLACK:
        assert asyncio.get_running_loop().time() < end, (
            f"tasks {tasks_before} -> {[task.get_name() for task in asyncio.all_tasks()]}, "
            f"descriptors {descriptors_before} -> {descriptors()}"
        )
        await asyncio.sleep(0.01)
