"""Pools that may sleep: the asyncio shell around their states (machine.py) and activators (activators.py).

A request passes `admit` before it stands in its pool's line. Where the pool is asleep that starts one wake,
whoever else comes meanwhile, and by `while_waking` the request is held or leaves at once. The pool is awake
once its activator has done its work and a replica says that it is awake, answers its readiness probe and has
had its warm-up requests. Replicas of which that is not so are on hold: nothing is sent there, not even as a
last resort, because a request can kill an engine that sleeps.

Every few seconds the pool is looked at: one that was woken by somebody else is in service, one that fell
asleep or went away is woken by the next request. Nobody is put to sleep while a request is in flight or in
line here, or while the engine says that it computes for somebody else.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from backends.contract import Endpoint, Load
from gateway.activation.activators import ActivationFailed, Activator, activator_of
from gateway.activation.machine import Machine, State
from gateway.activation.warming import Warming
from gateway.asking import NoAnswer, ask, client_for
from gateway.config.snapshot import Activation, Pool
from gateway.errors import Conflict, Unavailable
from gateway.fleet.ledger import ReplicaLedger
from gateway.fleet.probing import Prober, Target
from gateway.queueing.pool_queue import PoolQueue
from gateway.tasks import TaskSet
from gateway.telemetry.metrics import Metrics

__all__ = ["Sleeper", "SleeperStatistics", "Sleepers", "StillAsleep"]

log = logging.getLogger("headgate.activation")

LOOK = 5.0
"""Seconds between two looks at a pool from outside."""
TICK = 1.0
"""Most seconds between two looks at the time."""
LOST = 3
"""Looks in a row at which no replica is well, after which an awake pool is taken for gone."""
POLL_FIRST, POLL_MOST = 0.05, 1.0
"""Seconds between two questions to an engine that wakes: from first to most."""
COOL_SECONDS = 60.0
"""For putting a pool to sleep, or as long as a wake may take where that is more."""
QUESTION = 3.0
MAX_LOAD = 4 * 1024 * 1024
"""Seconds for, and bytes of, what an engine tells of its load."""


class StillAsleep(Exception):
    """A request does not get into a pool that sleeps. `final`: nor should it go anywhere else."""

    def __init__(self, error: Unavailable, *, final: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.final = final


@dataclass(frozen=True, slots=True)
class SleeperStatistics:
    """How a pool that may sleep stands. Seconds."""

    state: State
    since_s: float
    """For how long."""
    wake_seconds: float | None
    """What a wake takes, as far as that is known: the median of the last ones."""
    held: int
    """Requests that wait for the wake."""
    sleeps_in_s: float | None
    """When it will be put to sleep if nobody comes; None: it will not, or it is asleep."""
    tries_again_in_s: float | None
    """For how long no request starts a wake, after one that failed."""
    problem: str | None
    """What went wrong the last time; None: nothing did since."""


class Sleeper:
    """One pool that may sleep. It outlives a configuration where the next one has it alike."""

    def __init__(
        self,
        pool: Pool,
        targets: Sequence[Target],
        queue: PoolQueue,
        warming: Warming,
        activator: Activator,
        *,
        clock: Callable[[], float],
        tasks: TaskSet,
        metrics: Metrics,
        past: Iterable[float] = (),
        learned: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`past`: seconds that earlier wakes took; `learned` is told of each new one."""
        self._activator = activator
        self._clock = clock
        self._tasks = tasks
        self._metrics = metrics
        self._learned = learned
        self._waiters: dict[asyncio.Future[bool], None] = {}  # in the order in which they came
        self._rousing = 0
        self._retired = False
        self._put_to_sleep = False
        """We did; else it should be awake, if it is a hot one."""
        self._was_down = True
        """It was seen to be down since it fell asleep: if it is well now, then somebody woke it. (Pods that
        are to end are well for a while.)"""
        self._absences = 0
        self.machine = Machine(clock(), past=past)
        self._set(pool, targets, queue, warming)
        for target in self._targets:
            target.ledger.hold = "asleep"

    def _set(self, pool: Pool, targets: Sequence[Target], queue: PoolQueue, warming: Warming) -> None:
        assert pool.activation is not None, "else it cannot sleep"
        self.pool = pool
        self.settings: Activation = pool.activation
        self._targets = tuple(targets)
        self._queue = queue
        self._warming = warming
        self._prober = Prober(self._targets)
        self.machine.idle_after = self.settings.idle_after if self._activator.can_cool else None

    def alike(self, pool: Pool, targets: Sequence[Target]) -> bool:
        """Whether it serves for another configuration: the same replicas, woken in the same way."""
        return (
            pool.activation is not None
            and pool.activation.wake == self.settings.wake
            and (dict(pool.serves), pool.upstream) == (dict(self.pool.serves), self.pool.upstream)
            and [each.ledger for each in targets] == [each.ledger for each in self._targets]
        )

    def reconfigure(self, pool: Pool, targets: Sequence[Target], queue: PoolQueue, warming: Warming) -> None:
        """Go on for another configuration, in the state as it is."""
        self._set(pool, targets, queue, warming)

    def retire(self) -> None:
        """Another one is in charge. A wake under way is ended for those who wait for it."""
        self._retired = True

    # -------------------------------------------------------------------------------------- requests

    async def admit(self, wait: float) -> None:
        """Return at once where the pool is awake; else wake it, and wait as configured, `wait` seconds at
        most. Raises StillAsleep. Cancelling leaves nothing behind, but the wake goes on."""
        while True:
            answer = self._ask()
            if answer == "awake":
                return
            if answer == "not_yet":
                raise StillAsleep(self._unavailable("could not be woken"))
            if self.settings.while_waking != "hold":
                final = self.settings.while_waking == "refuse"
                raise StillAsleep(self._unavailable("is being woken"), final=final)
            if len(self._waiters) >= self.pool.queue.max_requests:
                raise StillAsleep(self._unavailable("is being woken, and too many wait for it"))
            began = self._clock()
            if not await self._woken(wait):
                raise StillAsleep(self._unavailable("could not be woken"))
            wait -= self._clock() - began

    async def _woken(self, wait: float) -> bool:
        """Whether the wake under way, or the one that follows, came to a good end."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        try:
            async with asyncio.timeout(max(wait, 0.0)):
                return await future
        except TimeoutError:
            raise StillAsleep(self._unavailable(f"was not awake in {wait:.3g} s")) from None
        finally:
            self._waiters.pop(future, None)

    def _ask(self, *, by_hand: bool = False) -> Literal["awake", "start", "wait", "not_yet"]:
        answer = self.machine.ask(self._clock(), by_hand=by_hand)
        if answer == "start":
            self._start_wake()
        return answer

    def _unavailable(self, what: str) -> Unavailable:
        after = round(self.machine.retry_after(self._clock()), 3)
        return Unavailable(f"pool {self.pool.name} {what}", reason="asleep", retry_after=after)

    def _tell(self, woke: bool) -> None:
        """Those that wait learn how it ended."""
        for future in self._waiters:
            if not future.done():
                future.set_result(woke)

    # ---------------------------------------------------------------------------------------- by hand

    def wake(self) -> None:
        """Wake it now, also right after a failure. Nothing where it is awake or about to be."""
        self._ask(by_hand=True)

    def cool(self) -> None:
        """Put it to sleep now. Nothing where it is asleep; raises Conflict where that cannot be."""
        if not self._activator.can_cool:
            raise Conflict(f"Nothing puts pool {self.pool.name} to sleep: its `wake` says no `cool`.")
        if self.machine.state == "waking" or self._rousing:
            raise Conflict(f"Pool {self.pool.name} is being woken.")
        if self._in_use():
            raise Conflict(
                f"Pool {self.pool.name} has requests; it can be put to sleep once they have ended."
            )
        if self.machine.cool(self._clock()):
            self._start_cool()

    def statistics(self) -> SleeperStatistics:
        now, machine = self._clock(), self.machine
        sleeps_in = None
        if machine.state == "awake" and machine.idle_after is not None:
            sleeps_in = round(max(0.0, machine.last_used + machine.idle_after - now), 3)
        again = machine.not_before - now if machine.state == "asleep" else 0.0
        return SleeperStatistics(
            state=machine.state,
            since_s=round(now - machine.since, 3),
            wake_seconds=None if machine.wake_seconds is None else round(machine.wake_seconds, 3),
            held=len(self._waiters),
            sleeps_in_s=sleeps_in,
            tries_again_in_s=round(again, 3) if again > 0 else None,
            problem=machine.why,
        )

    # ----------------------------------------------------------------------------------------- waking

    def _start_wake(self) -> None:
        self._put_to_sleep = False
        self._tasks.start(self._wake(), f"wake of pool {self.pool.name}")

    async def _wake(self) -> None:
        """One wake, to its end; it ends before its replicas do that are slower than the first."""
        name, seconds = self.pool.name, self.settings.timeout
        log.info("pool is being woken", extra={"fields": {"pool": name}})
        why, outcome = f"no replica was well in {seconds:g} s", "timeout"
        end = asyncio.get_running_loop().time() + seconds
        self._rousing += 1
        try:
            async with asyncio.timeout_at(end):
                await self._activator.wake()
            problems: list[str] = []
            async with asyncio.TaskGroup() as group:
                for target in self._targets:
                    group.create_task(self._rouse(target, end, problems))
            if len(problems) == len(self._targets):
                why, outcome = problems[0], "failed"
        except TimeoutError:
            why = f"its activator was not done in {seconds:g} s"
        except ActivationFailed as error:
            why, outcome = str(error), "failed"
        except asyncio.CancelledError:
            why, outcome = "the gateway ends", "failed"
            raise
        finally:
            self._rousing -= 1
            if self.machine.state == "waking":
                self.machine.wake_failed(self._clock(), why)
                self._metrics.wakes.labels(name, outcome).inc()
                fields = {"pool": name, "why": why, "held": len(self._waiters)}
                log.warning("pool could not be woken", extra={"fields": fields})
                self._tell(False)

    async def _rouse(self, target: Target, end: float, problems: list[str]) -> None:
        """Bring one replica into service as soon as it is awake and well; not after `end`. What went wrong,
        but for time, goes to `problems`."""
        ledger, pause = target.ledger, POLL_FIRST
        try:
            async with asyncio.timeout_at(end):
                await self._activator.wake_replica(ledger.replica)
                while not await self._is_up(target):
                    await asyncio.sleep(pause)
                    pause = min(1.5 * pause, POLL_MOST)
        except (TimeoutError, ActivationFailed) as error:
            if isinstance(error, ActivationFailed):
                problems.append(str(error))
            fields = {"pool": self.pool.name, "replica": ledger.replica.id, "why": str(error) or "too slow"}
            log.warning("replica did not wake", extra={"fields": fields})
            return
        await self._warm(ledger)
        self._in_service(ledger)

    async def _is_up(self, target: Target) -> bool:
        """Whether a replica is awake, as far as it can be asked, and answers its readiness probe."""
        if await self._activator.awake(target.ledger.replica) is False:
            return False
        try:
            async with client_for(target.endpoint) as client:
                return await self._prober.probe(client, target)
        except (OSError, ValueError):  # a CA file that is not there or is none
            return False

    async def _warm(self, ledger: ReplicaLedger) -> None:
        ledger.hold = "warming"
        try:
            await self._warming.run(ledger)
        finally:
            if ledger.hold == "warming":
                ledger.hold = "asleep"

    def _in_service(self, ledger: ReplicaLedger) -> None:
        ledger.hold = None
        ledger.reached()
        ledger.changed()
        if self.machine.state != "waking":
            return
        seconds = self.machine.woke(self._clock())
        name = self.pool.name
        self._metrics.wakes.labels(name, "done").inc()
        self._metrics.wake_seconds.labels(name).observe(seconds)
        fields = {"pool": name, "seconds": round(seconds, 3), "held": len(self._waiters)}
        log.info("pool is awake", extra={"fields": fields})
        self._learned(seconds)
        self._tell(True)

    # ------------------------------------------------------------------------------- putting to sleep

    def _start_cool(self) -> None:
        """From here on nothing is sent there."""
        self._put_to_sleep, self._was_down = True, False
        self._hold_all()
        self._tasks.start(self._cool(), f"cooling of pool {self.pool.name}")

    async def _cool(self) -> None:
        name = self.pool.name
        log.info("pool is put to sleep", extra={"fields": {"pool": name}})
        why = None
        try:
            async with asyncio.timeout(max(COOL_SECONDS, self.settings.timeout)):
                if await self._busy():
                    raise ActivationFailed("its engines compute for somebody else")
                await self._activator.cool()
        except TimeoutError:
            why = "its activator was not done in time"
        except ActivationFailed as error:
            why = str(error)
        if why is not None:
            log.warning("pool was not put to sleep", extra={"fields": {"pool": name, "why": why}})
            up = [target.ledger for target in self._targets if await self._is_up(target)]
            if up:
                for ledger in up:
                    ledger.hold = None
                    ledger.changed()
                self._put_to_sleep = False
                self.machine.stayed(self._clock(), why)
                self._tell(True)
                return
        if self.machine.cooled(self._clock()) == "start":
            self._start_wake()

    async def _busy(self) -> bool:
        """Whether an engine says that it computes, though nothing of ours is in flight there."""
        loads = [await _load_of(target) for target in self._targets]
        return any(load is not None and (load.running or load.waiting or load.in_flight) for load in loads)

    def _hold_all(self) -> None:
        for target in self._targets:
            target.ledger.hold = "asleep"
            target.ledger.changed()

    def _in_use(self) -> bool:
        return bool(
            self._waiters
            or self._rousing
            or self._queue.scheduler.waiting
            or any(each.ledger.in_flight or each.ledger.hold == "warming" for each in self._targets)
        )

    # ---------------------------------------------------------------------------------------- looking

    async def run(self) -> None:
        """Keep the state true to life, until another one is in charge."""
        look_at = self._clock()
        while not self._retired:
            if self._clock() >= look_at:
                await self.look()
                look_at = self._clock() + LOOK
            self.tick()
            idle = self.machine.idle_after
            await asyncio.sleep(TICK if idle is None else min(TICK, idle / 4))

    def tick(self) -> None:
        """Put the pool to sleep if its time has come; wake a hot one that should not sleep."""
        if self._retired:
            return
        if self.machine.tick(self._clock(), in_use=self._in_use()):
            self._start_cool()
        elif self.pool.state == "hot" and self.machine.state == "asleep" and not self._put_to_sleep:
            self._ask()

    async def look(self) -> None:
        """See whether the pool is as it is believed to be."""
        if self._is("asleep"):
            await self._look_asleep()
        elif self._is("awake") and not self._rousing:
            await self._look_awake()

    def _is(self, state: State) -> bool:
        return self.machine.state == state

    async def _look_asleep(self) -> None:
        """Of replicas that cannot be asked whether they sleep, being well tells that they do not only where
        sleep means not to be there, and only if they were not there since."""
        up: list[Target] = []
        well: list[Target] = []
        for target in self._targets:
            awake = await self._activator.awake(target.ledger.replica)
            if (awake or (awake is None and self.pool.state == "cold")) and await self._is_up(target):
                (up if awake else well).append(target)
        if not self._is("asleep"):  # things have moved on
            return
        if not well:
            self._was_down = True
        elif self._was_down:
            up += well
        self._rousing += 1
        try:
            for target in up:
                await self._warm(target.ledger)
                if self._is("asleep"):
                    self.machine.found_awake(self._clock())
                    log.info("pool was awake already", extra={"fields": {"pool": self.pool.name}})
                self._in_service(target.ledger)
        finally:
            self._rousing -= 1

    async def _look_awake(self) -> None:
        for target in self._targets:
            ledger = target.ledger
            awake = await self._activator.awake(ledger.replica)
            if not self._is("awake") or ledger.hold == "warming":
                continue
            if awake is False and ledger.hold is None:
                log.warning("replica fell asleep", extra={"fields": {"replica": ledger.replica.id}})
                ledger.hold = "asleep"
                ledger.changed()
            elif awake is not False and ledger.hold == "asleep" and await self._is_up(target):
                await self._warm(ledger)
                self._in_service(ledger)
        gone = all(each.ledger.hold == "asleep" for each in self._targets)
        absent = all(each.ledger.ready is False for each in self._targets)
        self._absences = self._absences + 1 if absent else 0
        if self._is("awake") and (gone or self._absences >= LOST):
            self._absences = 0
            why = "its engines sleep, and not by us" if gone else "no replica is well"
            log.warning("pool is not awake any more", extra={"fields": {"pool": self.pool.name, "why": why}})
            self.machine.lost(self._clock(), why)
            self._was_down = True
            self._hold_all()


async def _load_of(target: Target) -> Load | None:
    """What an engine tells of its load; None where it does not."""
    adapter = target.ledger.engine.adapter
    request = adapter.load_request()
    if request is None:
        return None
    endpoint = _at_port(target.endpoint, adapter.load_port)
    try:
        async with client_for(endpoint) as client:
            answer = await ask(client, endpoint, request, seconds=QUESTION, most=MAX_LOAD)
    except (NoAnswer, OSError, ValueError):
        return None
    return adapter.read_load(answer.status, answer.body)


def _at_port(endpoint: Endpoint, port: int | None) -> Endpoint:
    if port is None:
        return endpoint
    parts = urlsplit(endpoint.base_url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return replace(endpoint, base_url=urlunsplit(parts._replace(netloc=f"{host}:{port}")))


class Sleepers:
    """The pools that may sleep, over all configurations of a gateway."""

    def __init__(
        self,
        clock: Callable[[], float],
        metrics: Metrics,
        learned: Callable[[str, float], None] = lambda pool, seconds: None,
        make: Callable[[Pool], Activator] = activator_of,
    ) -> None:
        """`learned` is told the pool and the seconds of each wake."""
        self._clock = clock
        self._metrics = metrics
        self._learned = learned
        self._make = make
        self._tasks = TaskSet()
        self._running = False
        self._past: Mapping[str, Sequence[float]] = {}
        self._sleepers: dict[str, Sleeper] = {}

    def configure(
        self, parts: Iterable[tuple[Pool, Sequence[Target], PoolQueue, Warming]]
    ) -> Mapping[str, Sleeper]:
        """The sleepers of a configuration: those that stay as they are, and new ones."""
        before, self._sleepers = self._sleepers, {}
        for pool, targets, queue, warming in parts:
            if pool.activation is None:
                continue
            sleeper = before.get(pool.name)
            if sleeper is not None and sleeper.alike(pool, targets):
                del before[pool.name]
                sleeper.reconfigure(pool, targets, queue, warming)
            else:
                sleeper = self._made(pool, targets, queue, warming)
            self._sleepers[pool.name] = sleeper
        for gone in before.values():
            gone.retire()
        return dict(self._sleepers)

    def _made(self, pool: Pool, targets: Sequence[Target], queue: PoolQueue, warming: Warming) -> Sleeper:
        sleeper = Sleeper(
            pool,
            targets,
            queue,
            warming,
            self._make(pool),
            clock=self._clock,
            tasks=self._tasks,
            metrics=self._metrics,
            past=self._past.get(pool.name, ()),
            learned=lambda seconds: self._learned(pool.name, seconds),
        )
        if self._running:
            self._run(sleeper)
        return sleeper

    def start(self, past: Mapping[str, Sequence[float]]) -> None:
        """Begin to look after them. `past`: by pool, seconds that wakes took before this process began."""
        self._past = past
        self._running = True
        for sleeper in self._sleepers.values():
            sleeper.machine.remember(past.get(sleeper.pool.name, ()))
            self._run(sleeper)

    def _run(self, sleeper: Sleeper) -> None:
        self._tasks.start(sleeper.run(), f"pool {sleeper.pool.name}")

    async def aclose(self) -> None:
        """End every wake and every look. Pools stay as they are."""
        await self._tasks.aclose()
