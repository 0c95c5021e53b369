"""The limits of a routes.yaml in the twin: the limiter that serves live traffic, on virtual time.

Its store is the one in this process's memory, whose coroutines never suspend. So they can be run to their
ends by whoever is no coroutine himself (`at_once`), and a replay stays one loop without an event loop.

Time is the trace's: it begins at midnight, on the first of a month. Each tenant's keys are used in turn.
"""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import cycle
from typing import Any, TypeVar

from msgspec.structs import replace

from gateway.call import Estimate
from gateway.config.snapshot import Snapshot
from gateway.limits.limiter import Limiter
from gateway.limits.memory import MemoryStore
from gateway.limits.reservation import Reservation
from gateway.replay.requests import TraceRequest
from gateway.replay.routed import as_called
from gateway.replay.twin import Stop
from gateway.telemetry.metrics import Metrics

__all__ = ["FileLimits", "at_once"]

T = TypeVar("T")


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing. Raises what it raises; RuntimeError if it waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits, and there is no event loop here")


class FileLimits:
    """The limits of one configuration, for one replay."""

    def __init__(self, snapshot: Snapshot, clock: Callable[[], float]) -> None:
        self.store = MemoryStore(clock, clock)
        self.limiter = Limiter(snapshot, self.store, Metrics(clock), clock)
        self._snapshot = snapshot
        self._keys: dict[str, Iterator[str]] = {
            name: cycle([key.id for key in tenant.keys])
            for name, tenant in snapshot.tenants.items()
            if tenant.keys
        }

    def reserve(self, request: TraceRequest, way: Sequence[Stop]) -> Reservation:
        """As step 7 of a request's way (pipeline.py). Raises QuotaExceeded."""
        call, prompt, bound = as_called(self._snapshot, request)
        if (keys := self._keys.get(request.tenant)) is not None:
            call = replace(call, key_id=next(keys))
        output = way[0].expected or 0
        expected = Estimate(prompt, bound, output, "trace", prompt.tokens + output)
        pools = [stop.pool for stop in way if stop.pool in self._snapshot.pools]
        if "overloaded" not in way[0].on:
            del pools[1:]
        return at_once(self.limiter.reserve(call, expected, pools))

    def move(self, reservation: Reservation, pool: str) -> None:
        """Hold the limits of this pool, and of no other; of one that the file does not have (`merged`), none.

        Raises QuotaExceeded.
        """
        if pool in self._snapshot.pools:
            at_once(reservation.move(pool))
