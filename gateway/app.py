"""The composition root: builds every part once, wires them, owns start and end.

Nothing else in the gateway imports `backends.registry`, the transport or the engine client.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from backends.client import EngineClient
from backends.contract import Answer, Endpoint, Engine, EngineAdapter, HttpRequest
from backends.registry import REGISTRY
from backends.transport import AiohttpTransport
from gateway.activation.prefixes import Prefixes
from gateway.activation.sleeping import Sleepers
from gateway.activation.warming import Warming
from gateway.admin.admin_key import AdminKey, find_admin_key
from gateway.api.probes import is_loopback
from gateway.config.loading import load_with_warnings
from gateway.config.problems import Problem
from gateway.config.snapshot import Pool, Replica, Snapshot
from gateway.examining.discovery import EMPTY, Discovery
from gateway.fallbacks import Attempts, RetryBudget
from gateway.fleet.engine_limits import Shortfall, narrowed, shortfalls
from gateway.fleet.fleet import Fleet, endpoint_of
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.load_polling import polling
from gateway.fleet.probing import Prober, Target
from gateway.limits.limiter import Limiter
from gateway.limits.stores import kept
from gateway.listeners import Listeners
from gateway.mirroring import Mirroring
from gateway.pipeline import Pipeline
from gateway.queueing.pool_queue import PoolQueue, lend
from gateway.reloading import Reloader, Source
from gateway.routing.degrading import Brownout
from gateway.runtime import Leases, Runtime
from gateway.scraping import GatewayGauges
from gateway.settings import Settings
from gateway.state.live import LiveState
from gateway.state.overlay import Overlay
from gateway.state.store import StateStore
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from gateway.telemetry.tracing import NoTracing, Tracing, tracing_of
from gateway.tenants.authentication import Authenticator
from gateway.tenants.keys import keys_in_force
from gateway.tokens.counting import Counting
from gateway.tokens.engine_counts import Askable, EngineCounts, answer_over
from gateway.tokens.estimating import OutputLengths

log = logging.getLogger("headgate.app")


def load_snapshot(
    path: str | Path,
    *,
    environ: Mapping[str, str] = os.environ,
    force_open: bool = False,
    content: bytes | None = None,
) -> tuple[Snapshot, tuple[Problem, ...]]:
    """routes.yaml -> Snapshot, with the engines there are, and what is odd in it. Raises ConfigInvalid.

    `content` is read in place of the file.
    """
    return load_with_warnings(path, REGISTRY, environ=environ, force_open=force_open, content=content)


def discovery_of(urls: Iterable[str], headers: Mapping[str, str] = EMPTY) -> Discovery:
    """Looks for engines at `urls`, recognising all that there are; `headers` go with every question."""
    return Discovery(urls, REGISTRY, headers=headers)


@asynccontextmanager
async def engine_at(
    url: str, kind: str, options: Mapping[str, Any], headers: Mapping[str, str]
) -> AsyncIterator[Engine]:
    """One engine without a gateway, for tools that measure it. Raises OptionError, KeyError."""
    adapter = REGISTRY.adapter(kind, options)
    transport = AiohttpTransport()
    try:
        yield EngineClient(adapter, transport, Endpoint(url, headers))
    finally:
        await transport.aclose()


class Gateway:
    """One gateway: its two ASGI applications and everything behind them.

    Use `async with`: entering starts the background work, leaving ends it and closes every connection.
    `clock` is monotonic seconds; not the loop's own, which uvloop rounds to milliseconds.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        counting: Counting,
        admin_key: AdminKey,
        *,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
        probe: bool = True,
        store: StateStore | None = None,
        source: Source | None = None,
        warnings: tuple[Problem, ...] = (),
    ) -> None:
        """`store`: what outlives the process, closed with the gateway; None for one in memory. `source`:
        where to load the configuration again from; `warnings` are those of the first time."""
        self.clock = clock
        self.tracing: Tracing = NoTracing() if tracing is None else tracing
        self.admin_key = admin_key
        self.metrics = Metrics(clock)
        self.book = RecordBook()
        self.tasks = TaskSet()
        self._draining = False
        self._probe = probe
        self._transports: dict[float, AiohttpTransport] = {}
        self._lengths = OutputLengths()
        self._budget = RetryBudget(clock)
        self._file = snapshot  # as the file says; the runtime's has the overlay on it
        self._older: list[Runtime] = []  # replaced, but still used by requests in flight
        self._shortfalls: frozenset[Shortfall] = frozenset()
        self._probing = TaskSet()
        self._endings = TaskSet()
        self._prefixes: dict[str, Prefixes] = {}
        self._sleepers = Sleepers(clock, self.metrics, self._learned_wake)
        self._limiting = TaskSet()
        self._mirrors = TaskSet()
        self.kept = kept(
            snapshot.server.limits,
            clock,
            seconds=self.metrics.limit_store_seconds.observe,
            note=lambda policy: self.metrics.limit_store_down.labels(policy).inc(),
        )
        """Where limits are kept, for as long as the process lives."""
        self.state = LiveState(StateStore.in_memory() if store is None else store, self._apply)
        self.runtime = self._build(snapshot, counting)
        self.reloader = Reloader(source, self._current, self._adopt, warnings)
        self.metrics.watch(GatewayGauges(self._current, self.book, self.reloader, self.kept))
        listeners = Listeners(
            self._current,
            Authenticator(admin_key.digest),
            self.metrics,
            clock,
            draining=lambda: self._draining,
            degraded=lambda: self.kept.degraded,
        )
        self.data_app = listeners.data_app(self.book, started=int(time.time()))
        self.admin_app = listeners.admin_app(
            self.book,
            self.state,
            self.reloader,
            written=lambda: self._file,
            older_in_use=lambda: self.older_in_use,
        )

    @classmethod
    async def create(
        cls,
        snapshot: Snapshot,
        settings: Settings | None = None,
        *,
        probe: bool = True,
        source: Source | None = None,
        warnings: tuple[Problem, ...] = (),
    ) -> "Gateway":
        """Load the tokenizers off the loop, find the admin key, open the state store, and build.

        Raises AdminKeyRefused, StateUnusable.
        """
        settings = settings if settings is not None else Settings()
        counting = await asyncio.to_thread(Counting.build, snapshot)
        admin_key = await asyncio.to_thread(
            find_admin_key,
            settings.admin_key,
            Path(snapshot.server.state),
            loopback=is_loopback(snapshot.server.admin[0]),
        )
        tracing = tracing_of(settings.traces)
        store = await asyncio.to_thread(StateStore.at, Path(snapshot.server.state))
        if store.warning is not None:
            log.warning("%s", store.warning)
        return cls(
            snapshot,
            counting,
            admin_key,
            tracing=tracing,
            probe=probe,
            store=store,
            source=source,
            warnings=warnings,
        )

    async def __aenter__(self) -> "Gateway":
        try:
            await self.state.refresh()
            await self._forget_what_is_gone()
        except BaseException:
            await asyncio.to_thread(self.state.store.close)
            raise
        for work in self.kept.work:
            self._limiting.start(work(), "limits")
        self.tasks.start(self.state.watch(), "state")
        self.tasks.start(self.reloader.watch(), "configuration file")
        self._sleepers.start(await asyncio.to_thread(self.state.store.wakes))
        self._warm_up()
        self._start_probing()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sleepers.aclose()
        await self.tasks.aclose()
        await self._mirrors.aclose()
        await self._probing.aclose()
        await self._endings.wait(seconds=5)
        await self._endings.aclose()
        for runtime in (self.runtime, *self._older):
            await runtime.counting.aclose()
        await self.kept.store.aclose()
        await self._limiting.aclose()
        await asyncio.to_thread(self.state.store.close)
        for transport in self._transports.values():
            await transport.aclose()
        await asyncio.to_thread(self.tracing.close)

    @property
    def older_in_use(self) -> int:
        """How many configurations that were replaced still have requests in flight."""
        return len(self._older)

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Refuse new requests from now on; those in flight go on."""
        self._draining = True

    def cut(self) -> None:
        """End what is still in flight after the drain; its clients are told."""
        for record in self.book:
            if record.task is not None:
                record.cut_off = True
                record.task.cancel("the drain is over")

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until no request is in flight, at most `seconds`; whether it came to that."""
        end = self.clock() + seconds
        while len(self.book) and self.clock() < end:  # noqa: ASYNC110  # only while draining
            await asyncio.sleep(0.05)
        return not len(self.book)

    def transports(self) -> tuple[AiohttpTransport, ...]:
        """The upstream connection pools, for statistics."""
        return tuple(self._transports.values())

    # ----------------------------------------------------------------------------------------- changes

    def reload_soon(self, by: str) -> None:
        """Load the configuration again, in a task of its own. Nothing where there is no file."""
        if self.reloader.possible:
            self.tasks.start(self._reload(by), "reload")

    async def _reload(self, by: str) -> None:
        await self.reloader.reload(by)

    def _apply(self, overlay: Overlay) -> None:
        """Put an overlay in force: whole, in one step. Keys first, then drains.

        With it goes what engines tell of their limits: each snapshot in force is made here.
        """
        keys = keys_in_force(self._file, overlay)
        found = shortfalls(self._file.pools, self.runtime.ledgers())
        self.runtime = self.runtime.on(narrowed(replace(self._file, keys=keys), found))
        self._note(found)
        for _, ledger in self.runtime.ledgers():
            before, ledger.drained = ledger.drained, overlay.drains.get(ledger.replica.id)
            if before is not None and ledger.drained is None:
                ledger.changed()  # those in line may have it

    def _learned(self) -> None:
        """Some engine told other limits than before."""
        self._apply(self.state.overlay)

    def _note(self, found: tuple[Shortfall, ...]) -> None:
        """Log what has changed about limits that engines do not hold."""
        before, self._shortfalls = self._shortfalls, frozenset(found)
        for each in self._shortfalls - before:
            if each.configured is None:
                log.info("an engine's limit holds where the file sets none", extra={"fields": asdict(each)})
            else:
                log.warning(
                    "pools.%s.limits.%s is %d, but replica %s takes %d: the smaller is used",
                    each.pool, each.limit, each.configured, each.replica, each.takes,
                    extra={"fields": asdict(each)},
                )  # fmt: skip
        held = {(each.pool, each.limit) for each in found}
        for each in before:
            if (each.pool, each.limit) not in held and each.pool in self._file.pools:
                log.info("the engines of pool %s hold its limits.%s again", each.pool, each.limit)

    async def _adopt(self, snapshot: Snapshot, counting: Counting) -> None:
        """Put another configuration in force: whole, in one step. Requests in flight keep the old one."""
        old = self.runtime
        self._file = snapshot
        self.runtime = self._build(snapshot, counting, old)
        self._apply(self.state.overlay)
        self._older.append(old)
        old.leases.when_gone(partial(self._retire, old))
        self._warm_up({ledger for _, ledger in old.ledgers()})
        await self._probing.aclose()
        self._start_probing()
        await self._forget_what_is_gone()

    def _retire(self, runtime: Runtime) -> None:
        """Nobody uses `runtime` any more: end what is its alone."""
        self._older = [other for other in self._older if other is not runtime]
        for queue in runtime.queues.values():
            queue.close()
        unused = []
        if not self._older:
            # Not before: a replica that stayed gets its engine anew, so an older configuration's requests may
            # use a newer one's connections.
            used = {pool.timeouts.connect for pool in self.runtime.snapshot.pools.values()}
            unused = [self._transports.pop(connect) for connect in self._transports.keys() - used]
        self._endings.start(_end(runtime.counting, unused), "end of a configuration")

    async def _forget_what_is_gone(self) -> None:
        """A replica that the file no longer names loses its overlay."""
        known = {ledger.replica.id for _, ledger in self.runtime.ledgers()}
        gone = self.state.overlay.drains.keys() - known
        if gone:
            store = self.state.store
            await self.state.change(partial(store.forget_drains, gone, at=time.time(), who="reload"))

    def _start_probing(self) -> None:
        if not self._probe:
            return
        targets = self.runtime.targets
        self._probing.start(Prober(targets).run(), "probing")
        for target in targets:
            ledger = target.ledger
            self._probing.start(
                polling(ledger, target.endpoint, ledger.changed), f"load of {ledger.replica.id}"
            )

    # -------------------------------------------------------------------------------------- the parts

    def _build(self, snapshot: Snapshot, counting: Counting, old: Runtime | None = None) -> Runtime:
        """`old` gives what stays: the books of replicas. What limits hold stays in the store."""
        fleet = Fleet(snapshot, self._make_engine, self.clock, () if old is None else old.ledgers())
        earlier = {} if old is None else old.queues
        queues = {
            name: PoolQueue(pool, fleet.pools[name], old=earlier.get(name), watch=self.metrics)
            for name, pool in snapshot.pools.items()
        }
        lend(queues)
        limiter = Limiter(snapshot, self.kept.store, self.metrics, self.clock)
        askable = {name: _askable(queue) for name, queue in queues.items()}
        counting = counting.asking(EngineCounts(askable, self._ask, self.clock))
        warmings = {name: self._warming(pool, snapshot, counting) for name, pool in snapshot.pools.items()}
        targets = {
            name: tuple(self._target(pool, ledger, warmings[name]) for ledger in fleet.pools[name])
            for name, pool in snapshot.pools.items()
        }
        sleepers = self._sleepers.configure(
            (pool, targets[name], queues[name], warmings[name]) for name, pool in snapshot.pools.items()
        )
        prefixes = {name: self._prefixes[name] for name, pool in snapshot.pools.items() if _remembers(pool)}
        attempts = Attempts(
            queues, counting, self._budget, self.metrics, self.clock, sleepers=sleepers, prefixes=prefixes
        )
        leases = Leases()
        mirroring = Mirroring(queues, attempts, self._mirrors, leases, self.metrics, self.clock)
        pipeline = Pipeline(
            snapshot=snapshot,
            counting=counting,
            lengths=self._lengths,
            brownout=Brownout({name: queue.scheduler for name, queue in queues.items()}, self.clock),
            limiter=limiter,
            attempts=attempts,
            mirroring=mirroring,
            metrics=self.metrics,
            tracing=self.tracing,
            clock=self.clock,
        )
        return Runtime(
            snapshot,
            queues,
            limiter,
            counting,
            pipeline,
            leases,
            sleepers=sleepers,
            warmings=warmings,
            targets=tuple(each for of_pool in targets.values() for each in of_pool),
        )

    def _warming(self, pool: Pool, snapshot: Snapshot, counting: Counting) -> Warming:
        prefixes = self._prefixes.setdefault(pool.name, Prefixes())
        if not _remembers(pool):
            prefixes = self._prefixes[pool.name] = Prefixes()  # what was remembered is forgotten
        return Warming(pool, snapshot.models, counting.render, prefixes, self.tasks, self.metrics)

    def _target(self, pool: Pool, ledger: ReplicaLedger, warming: Warming) -> Target:
        """What probing wants to know of a replica, and whom it tells."""
        if pool.activation is None and ledger.hold == "asleep":
            ledger.hold = None  # an older configuration had it sleep
        return Target(
            ledger,
            endpoint_of(pool, ledger.replica),
            tuple(pool.serves.values()),
            ledger.changed,
            self._learned,
            partial(warming.start, ledger),
        )

    def _warm_up(self, known: Collection[ReplicaLedger] = ()) -> None:
        """Warm up the replicas that are not `known`. Those of a pool that may sleep are when it wakes."""
        for pool, ledger in self.runtime.ledgers():
            if ledger not in known and pool not in self.runtime.sleepers:
                self.runtime.warmings[pool].start(ledger)

    def _learned_wake(self, pool: str, seconds: float) -> None:
        """How long a wake took is known after a restart too."""
        self.tasks.start(self._keep_wake(pool, seconds), "state")

    async def _keep_wake(self, pool: str, seconds: float) -> None:
        try:
            await asyncio.to_thread(self.state.store.note_wake, pool, seconds, at=time.time())
        except sqlite3.Error as error:
            log.warning("the time that a wake took is not kept: %s", error)

    def _make_engine(self, adapter: EngineAdapter, endpoint: Endpoint, pool: Pool) -> Engine:
        """The engine of one replica."""
        return EngineClient(adapter, self._transport(pool), endpoint, at_a_time=pool.limits.in_flight)

    def _transport(self, pool: Pool) -> AiohttpTransport:
        """Replicas with one connect timeout share a connection pool."""
        connect = pool.timeouts.connect
        transport = self._transports.get(connect)
        if transport is None:
            transport = self._transports[connect] = AiohttpTransport(connect_timeout=connect)
        return transport

    async def _ask(self, pool: Pool, replica: Replica, question: HttpRequest) -> Answer | None:
        """A question that generates nothing, the way that requests go."""
        return await answer_over(self._transport(pool), endpoint_of(pool, replica), question)

    def _current(self) -> Runtime:
        return self.runtime


def _remembers(pool: Pool) -> bool:
    """Whether the pool's common system prompts are wanted."""
    return pool.warm_up is not None and pool.warm_up.common_prefixes > 0


def _askable(queue: PoolQueue) -> Askable:
    """The replicas that a request would be sent to now; of a cold pool none."""

    def replicas() -> list[Replica]:
        if queue.pool.state == "cold" and queue.pool.activation is None:
            return []
        return [ledger.replica for ledger in queue.candidates() if ledger.usable()]

    return Askable(queue.pool, replicas)


async def _end(counting: Counting, transports: Iterable[AiohttpTransport]) -> None:
    await counting.aclose()
    for transport in transports:
        await transport.aclose()
