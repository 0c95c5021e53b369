"""What the gateway itself has in flight on each replica, and the leases that keep the books straight.

The ledger is the gateway's own record of what it sent: engines' gauges lag by seconds, this never does.
Every change is synchronous; whoever takes a slot gets a `Slot`, whose `release` is idempotent.
"""

from collections.abc import Callable
from dataclasses import dataclass

from backends.contract import Engine, EngineError, EngineLimits, ErrorKind, TransportError
from gateway.config.snapshot import Replica
from gateway.state.overlay import Drain

COOL_DOWN_FIRST = 1.0
COOL_DOWN_MAX = 30.0
"""Seconds that a replica is avoided after it could not be connected to: doubling from first to max."""


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """A replica's books at one moment."""

    id: str
    url: str
    in_flight: int
    outstanding_tokens: int
    """Expected tokens still to be computed for the requests in flight."""
    cooling_for: float
    """Seconds for which the replica is still avoided; 0 when it is not."""
    last_error: str | None
    requests_total: int
    ready: bool | None
    """What the last probe said; None before the first one."""
    drained: Drain | None
    """Who took it out of service, and when; None where nobody did."""
    told: EngineLimits
    """What it said of its limits."""


class ReplicaLedger:
    """One replica: its engine, what is in flight on it, and whether it is avoided for now."""

    def __init__(self, replica: Replica, engine: Engine, clock: Callable[[], float]) -> None:
        self.replica = replica
        self.engine = engine
        self.in_flight = 0
        self.outstanding_tokens = 0
        self.requests_total = 0
        self.last_error: str | None = None
        self.ready: bool | None = None
        self.drained: Drain | None = None
        """Set: it gets no new requests, whatever becomes of the others."""
        self.told = EngineLimits()
        """What it said of its limits when it was last asked."""
        self._watchers: list[Callable[[], None]] = []
        self._clock = clock
        self._failures = 0
        self._avoid_until = 0.0

    def cooling(self) -> bool:
        """Whether the replica failed to answer lately and should be left alone if others can serve."""
        return self.ready is False or self._clock() < self._avoid_until

    def failed(self, error: EngineError) -> None:
        """Note an attempt that failed, unless the request was at fault.

        An engine may quote its client, so its words are kept only where they are our own transport's.
        """
        if error.kind in (ErrorKind.CLIENT, ErrorKind.CONTEXT_LENGTH, ErrorKind.UNSUPPORTED):
            return
        told = isinstance(error.__cause__, TransportError) or error.kind is ErrorKind.TIMEOUT
        self.last_error = error.kind.value
        if told:
            self.last_error += f": {error.message[:200]}"
        elif error.status is not None:
            self.last_error += f": status {error.status}"

    def avoid(self) -> float:
        """Leave the replica alone for a while: it could not be reached, or did not answer in time.

        Returns the seconds of it. Requests that fail together count once: while the replica is avoided
        already, nothing is added.
        """
        now = self._clock()
        if now >= self._avoid_until:
            self._avoid_until = now + min(COOL_DOWN_FIRST * 2**self._failures, COOL_DOWN_MAX)
            self._failures = min(self._failures + 1, 16)
        return self._avoid_until - now

    def reached(self) -> None:
        """Note that the replica answers again."""
        self.last_error = None
        self._failures = 0
        self._avoid_until = 0.0

    def usable(self) -> bool:
        """Whether the replica should be tried: neither drained nor avoided."""
        return self.drained is None and not self.cooling()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a slot comes back or the replica may have become better.

        More than one queue may draw on a replica: after a reload, that of each configuration still in use.
        """
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        if changed in self._watchers:
            self._watchers.remove(changed)

    def changed(self) -> None:
        """Tell those that wait for this replica; the oldest configuration first."""
        for changed in tuple(self._watchers):
            changed()

    def load(self) -> float:
        """Outstanding tokens per unit of weight; the picker takes the least."""
        return self.outstanding_tokens / self.replica.weight

    def take(self, prompt_tokens: int, output_tokens: int, on_release: Callable[[], None]) -> "Slot":
        """Enter a request of that many expected tokens into the books."""
        return Slot(self, prompt_tokens, output_tokens, on_release)

    def statistics(self) -> ReplicaStatistics:
        return ReplicaStatistics(
            id=self.replica.id,
            url=self.replica.url,
            in_flight=self.in_flight,
            outstanding_tokens=self.outstanding_tokens,
            cooling_for=round(max(0.0, self._avoid_until - self._clock()), 3),
            last_error=self.last_error,
            requests_total=self.requests_total,
            ready=self.ready,
            drained=self.drained,
            told=self.told,
        )


class Slot:
    """A lease on a replica: one request, and the tokens it is still expected to cost there."""

    __slots__ = ("_on_release", "_output", "_prompt", "ledger")

    def __init__(
        self, ledger: ReplicaLedger, prompt_tokens: int, output_tokens: int, on_release: Callable[[], None]
    ) -> None:
        self.ledger = ledger
        self._prompt = prompt_tokens
        self._output = output_tokens
        self._on_release: Callable[[], None] | None = on_release
        ledger.in_flight += 1
        ledger.requests_total += 1
        ledger.outstanding_tokens += prompt_tokens + output_tokens

    def progress(self, tokens: int) -> None:
        """`tokens` output tokens came; the first of them shows that the prompt has been computed."""
        if self._on_release is None:
            return
        done = min(tokens, self._output)
        self.ledger.outstanding_tokens -= self._prompt + done
        self._prompt = 0
        self._output -= done

    def release(self) -> None:
        """Give the slot back. Idempotent; never waits."""
        on_release, self._on_release = self._on_release, None
        if on_release is None:
            return
        self.ledger.in_flight -= 1
        self.ledger.outstanding_tokens -= self._prompt + self._output
        on_release()
