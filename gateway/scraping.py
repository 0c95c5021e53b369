"""What the metrics read when somebody scrapes them: the gateway's parts, as they are at that moment."""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from backends.contract import Load
from gateway.limits.stores import Kept
from gateway.planning.shares import parts_of
from gateway.reloading import Reloader
from gateway.runtime import Runtime
from gateway.telemetry.records import RecordBook


class GatewayGauges:
    """What one gateway's metrics read: `telemetry.gauges.Gauges`."""

    def __init__(
        self, runtime: Callable[[], Runtime], book: RecordBook, reloader: Reloader, kept: Kept
    ) -> None:
        """`runtime`: the one in force. `kept`: where limits are kept."""
        self._runtime = runtime
        self._book = book
        self._reloader = reloader
        self._kept = kept

    def replicas(self) -> Iterator[tuple[str, str, int, int, bool]]:
        for pool, ledger in self._runtime().ledgers():
            yield (
                pool,
                ledger.replica.id,
                ledger.in_flight,
                ledger.outstanding_tokens,
                ledger.usable(),
            )

    def warming(self) -> Iterator[tuple[str, str, bool]]:
        for pool, ledger in self._runtime().ledgers():
            yield pool, ledger.replica.id, ledger.hold == "warming"

    def sleepers(self) -> Iterator[tuple[str, str, int]]:
        for pool, sleeper in self._runtime().sleepers.items():
            statistics = sleeper.statistics()
            yield pool, statistics.state, statistics.held

    def engine_loads(self) -> Iterator[tuple[str, str, Load, float, int]]:
        for pool, ledger in self._runtime().ledgers():
            statistics = ledger.statistics()
            if statistics.load_age is not None:
                yield pool, ledger.replica.id, statistics.load, statistics.load_age, statistics.foreign

    def drained(self) -> Iterator[tuple[str, str, bool]]:
        for pool, ledger in self._runtime().ledgers():
            yield pool, ledger.replica.id, ledger.drained is not None

    def config(self) -> tuple[str, bool, float]:
        last = self._reloader.last
        return self._runtime().snapshot.hash, last.ok, last.at

    def queues(self) -> Iterator[tuple[str, Mapping[tuple[str, str], int], Mapping[str, float]]]:
        for name, queue in self._runtime().queues.items():
            yield name, queue.waiting_by(), queue.expected_waits()

    def shares(self) -> Iterator[tuple[str, float, float]]:
        for share in parts_of(self._runtime().shares()):
            yield share.pool, share.work, share.capacity

    def overload(self) -> Iterator[tuple[str, str, str, int]]:
        for row in self._runtime().pipeline.brownout.rows():
            yield row.of, row.pool, row.priority_class, row.active

    def counted_bytes(self) -> tuple[int, int]:
        cache = self._runtime().counting.statistics().cache
        return cache.bytes_counted, cache.bytes_remembered

    def forced_estimates(self) -> Mapping[str, int]:
        estimated = self._runtime().counting.statistics().estimated
        return {str(reason): times for reason, times in estimated.items()}

    def live_requests(self) -> int:
        return len(self._book)

    def limit_store(self) -> tuple[bool, int, int, int] | None:
        link = self._kept.link
        return None if link is None else (link.up, link.opened, link.kept, link.dropped)

    def pool_limits(self) -> Iterator[tuple[str, str, int | None, int]]:
        runtime = self._runtime()
        for name, pool in runtime.snapshot.pools.items():
            configured = runtime.queues[name].pool.limits
            for limit in ("prompt", "total"):
                if (tokens := getattr(pool.limits, limit)) is not None:
                    yield name, limit, getattr(configured, limit), tokens

    def info(self) -> dict[str, str]:
        return {"version": version("headgate"), "config": self._runtime().snapshot.hash[:12]}
