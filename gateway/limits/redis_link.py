"""One pipelined connection to Redis, on which no reply can reach the wrong caller.

Callers never touch the connection. They put a `Call` in line and wait for its future; the link's own task
writes all that waits in one go and hands each reply, in order, to the call that it belongs to. A caller that
is cancelled leaves its call behind, which takes its reply to the grave. Each script also repeats the name of
the call that it answers; another name than expected ends the connection.

Calls are sent in the order in which they came, whether somebody waits for them or not: who gives a slot back
and then asks for one finds it free. Each has its number, and one that must be sent again is put back into its
place in line. Where a server has handed over or forgotten a script, what was in flight behind may come back
as well, so nothing is sent until all of that was answered. Each script goes whole with its first call on a
connection, and by its digest from then on.

Time counts from the moment a call is put in line. A call that is not answered within `timeout` fails, and its
connection with it, together with all else that was sent on it: what became of those is unknown. One timer per
link sees to that, not one per call.

    up        calls are sent; after `opens_after` failures in a row:
    down      calls fail at once; every `probe_every` seconds the link says its greeting (a script that
              writes, so that a full, read-only or loading server does not pass for well); an answer to it
              closes the breaker

Calls that are `lasting` have no deadline of their own: they wait until Redis is back, at most `keep` of them,
and are sent again where their fate is unknown. So their scripts must have their effect once. They stay in a
line of their own until they are answered or counted as dropped: nothing that fails other calls reaches it.
"""

import asyncio
import bisect
import enum
import hashlib
import heapq
import logging
from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from operator import attrgetter
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from gateway.limits.contract import StoreUnavailable
from gateway.limits.redis_nodes import FOREVER, Host, Nodes
from gateway.tasks import start

__all__ = ["Call", "NotAnswered", "RedisLink", "Script"]

log = logging.getLogger("headgate.limits")

LASTING_AT_A_TIME = 256
"""Lasting calls in flight: settling what an outage left behind must not stand in the way of requests, which
overtake what is beyond."""


class NotAnswered(StoreUnavailable):
    """`perhaps`: it was sent, so it may have had its effect."""

    def __init__(self, reason: str, *, perhaps: bool) -> None:
        super().__init__(reason)
        self.perhaps = perhaps


class Script:
    """Lua, known to the server by its digest once it was sent whole."""

    __slots__ = ("digest", "name", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, name: str) -> "Script":
        """One of the files in `lua/`, with what they share put before it."""
        lua = files("gateway.limits") / "lua"
        return cls(name, (lua / "accounts.lua").read_text() + (lua / f"{name}.lua").read_text())


class Call:
    """One script on its way. `reply` is what Redis answers, without the call's own name; None for those that
    nobody waits for: their `then` is called with it, or their `lost` where it surely had no effect."""

    __slots__ = (
        "args", "began", "deadline", "keys", "lasting", "lost", "name", "number", "reply", "script", "sent",
        "then", "tries", "whole",
    )  # fmt: skip

    def __init__(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[str | int],
        *,
        reply: "asyncio.Future[list[Any]] | None" = None,
        then: Callable[[list[Any]], None] | None = None,
        lost: Callable[[], None] | None = None,
        lasting: bool = False,
    ) -> None:
        self.script = script
        self.keys = keys
        self.args = args
        self.reply = reply
        self.then = then
        self.lost = lost
        self.lasting = lasting
        self.name = b""
        self.number = 0
        """Its place in line; the greeting's is 0, before all others."""
        self.began = self.deadline = 0.0
        self.sent = False
        self.whole = False
        """It was sent with its source: the server may not have known the digest."""
        self.tries = 0

    @property
    def abandoned(self) -> bool:
        return self.reply is not None and self.reply.done()

    def packed(self) -> bytes:
        how = ("EVAL", self.script.source) if self.whole else ("EVALSHA", self.script.digest)
        packed: bytes = hiredis.pack_command((*how, len(self.keys), *self.keys, self.name, *self.args))  # type: ignore[arg-type]  # its stub knows tuples of one
        return packed

    def fail(self, reason: str) -> None:
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(NotAnswered(reason, perhaps=self.sent))
        elif self.lost is not None and not self.sent:
            self.lost()


_place = attrgetter("number")


class _Bad(enum.Enum):
    """What an error reply means."""

    NO_SCRIPT = enum.auto()
    ELSEWHERE = enum.auto()
    """This server is not, or not yet, the one that can: find it anew. Nothing was done."""
    UNABLE = enum.auto()
    """The server cannot write, or not for us. Nothing was done."""
    WRONG = enum.auto()
    """A fault of the script, or of what it found."""


class RedisLink:
    """`run` is its task. `seconds` is told how long each answered call took.

    `keep`: so many lasting calls are kept while Redis is away; older ones are dropped, and counted in
    `dropped`.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        shown: str,
        timeout: float,
        probe_every: float = 1.0,
        opens_after: int = 3,
        keep: int = 10_000,
        seconds: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._nodes = nodes
        self._shown = shown
        self._timeout = timeout
        self._probe_every = probe_every
        self._opens_after = opens_after
        self._keep = keep
        self._seconds = seconds
        self.up = True
        """Whether calls are sent; False while the breaker is open."""
        self.reason = ""
        """Why it is not up."""
        self.dropped = 0
        """Lasting calls that were lost: too many while Redis was away, or refused for what they are."""
        self.opened = 0
        """How often the breaker has opened."""
        self._failures = 0
        self._counter = 0
        self._posted = 0
        self._known: set[str] = set()
        """Digests of the scripts that were sent whole on this connection."""
        self._queue: list[Call] = []
        """Calls to be sent, by number. While the breaker is open, none but the greeting."""
        self._kept: list[Call] = []
        """Lasting calls to be sent, by number."""
        self._flight: deque[Call] = deque()
        self._lasting_in_flight = 0
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[str] | None = None
        """Of the connection that there is: done with the reason when it is to end."""
        self._leaving: str | None = None
        """The connection is to end as soon as what is in flight has been answered, for this reason."""
        self._holding = False
        """Nothing is sent until what is in flight has been answered: it may have to be sent again."""
        self._moved_to: Host | None = None
        self._greeting: Call | None = None
        self._greeted = False
        self._late_at = 0.0
        """When a call was last overdue because there was no connection."""
        self._ended = False

    # ------------------------------------------------------------------------------------- for callers

    def submit(self, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> Call:
        """Put a call in line whose `reply` the caller awaits: a list, or NotAnswered within one timeout."""
        loop = asyncio.get_running_loop()
        call = Call(script, keys, args, reply=loop.create_future())
        if not self.up or self._ended:
            call.fail(self.reason or "the link is closed")
        else:
            self._line_up(call, loop)
        return call

    def post(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[str | int],
        then: Callable[[list[Any]], None] | None = None,
        lost: Callable[[], None] | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        """Send something without waiting: once at most, or, if `lasting`, until it was answered."""
        call = Call(script, keys, args, then=then, lost=lost, lasting=lasting)
        if lasting:
            self._retain(call)
        elif self.up and not self._ended:
            self._line_up(call, asyncio.get_running_loop())
        else:
            call.fail(self.reason)

    @property
    def kept(self) -> int:
        """Lasting calls that were not answered yet."""
        return len(self._kept) + self._lasting_in_flight

    async def drained(self, seconds: float) -> None:
        """Wait until nothing is left to be sent or answered, at most `seconds`, and only while Redis
        answers."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.up and not self._ended and loop.time() < end:
            if not (self._queue or self._kept or self._flight):
                return
            await asyncio.sleep(0.005)

    def _line_up(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        call.began = loop.time()
        call.deadline = call.began + self._timeout
        call.number = self._posted = self._posted + 1
        self._queue.append(call)
        self._wake.set()
        if self._timer is None:
            self._timer = loop.call_at(call.deadline, self._expire)

    def _retain(self, call: Call) -> None:
        call.number = self._posted = self._posted + 1
        self._keep_one(call)
        self._wake.set()

    def _keep_one(self, call: Call) -> None:
        """In its place; where there are too many, the oldest goes."""
        bisect.insort(self._kept, call, key=_place)
        if len(self._kept) > self._keep:
            del self._kept[0]
            self.dropped += 1

    # ---------------------------------------------------------------------------------------- its task

    async def run(self, greeting: Callable[[], Call]) -> None:
        """Connect, serve, connect again, until cancelled. `greeting` makes a call that only a server that is
        well answers; it is the first one on each connection."""
        try:
            while True:
                served = await self._serve(greeting())
                if not self.up:
                    await asyncio.sleep(self._probe_every)
                elif not served:
                    await asyncio.sleep(min(self._timeout / 2, 0.05))
        finally:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            self._fail_queue("the link is closed")

    async def _serve(self, greeting: Call) -> bool:
        """Connect and serve until the connection is lost; whether its greeting was answered."""
        moved_to, self._moved_to = self._moved_to, None
        try:
            connection = await self._nodes.connect(moved_to)
        except Exception as error:  # whatever it is, it is looked for again: without this task nothing is
            reason = f"no connection: {str(error) or type(error).__name__}"
            # What waits could only wait on: nothing was sent, so it may be decided otherwise at once.
            self._fail_queue(reason)
            self._failed(reason)
            return False
        loop = asyncio.get_running_loop()
        self._queue.insert(0, greeting)
        greeting.began = loop.time()
        greeting.deadline = greeting.began + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(greeting.deadline, self._expire)
        self._greeting, self._greeted = greeting, False
        self._known.clear()
        self._leaving, self._holding = None, False
        self._lost = lost = loop.create_future()
        self._wake.set()
        both = [
            start(self._write(connection), "limits: to Redis"),
            start(self._read(connection), "limits: from Redis"),
        ]
        try:
            reason = await lost
        finally:
            self._lost = None
            for task in both:
                task.cancel()
            self._forget_flight("the link is closed")
            self._queue = [call for call in self._queue if call is not greeting]
            try:
                await asyncio.wait(both, timeout=1)
            finally:
                await connection.disconnect(nowait=True)
        log.debug("the connection to %s ended: %s", self._shown, reason)
        return self._greeted

    async def _write(self, connection: AbstractConnection) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._take():
                    await connection.send_packed_command(batch, check_health=False)
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(f"cannot send: {error}")
        except Exception:
            log.exception("writing to Redis failed")
            self._lose("writing failed")

    def _take(self) -> list[bytes]:
        """What is to be sent now; it counts as in flight from here on."""
        if self._leaving is not None or self._holding:
            return []
        lasting: list[Call] = []
        if self.up and self._kept and self._lasting_in_flight < LASTING_AT_A_TIME:
            room = LASTING_AT_A_TIME - self._lasting_in_flight
            lasting, self._kept = self._kept[:room], self._kept[room:]
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._timeout
            for call in lasting:
                call.deadline = deadline
            if self._timer is None:
                self._timer = loop.call_at(deadline, self._expire)
        calls = list(heapq.merge(self._queue, lasting, key=_place)) if lasting else self._queue
        self._queue = []
        packed = []
        for call in calls:
            if call.abandoned:
                continue
            self._counter += 1
            call.name = b"%d" % self._counter
            call.sent = True
            call.whole = call.script.digest not in self._known
            self._known.add(call.script.digest)
            self._lasting_in_flight += call.lasting
            self._flight.append(call)
            packed.append(call.packed())
        return packed

    async def _read(self, connection: AbstractConnection) -> None:
        try:
            while True:
                reply: Any
                try:
                    reply = await connection.read_response(True, FOREVER, disconnect_on_error=False)
                except (ResponseError, BusyLoadingError) as error:
                    reply = error
                if not self._flight:
                    self._lose("a reply that nobody asked for")
                    return
                call = self._flight.popleft()
                self._lasting_in_flight -= call.lasting
                if isinstance(reply, RedisError):
                    self._refused(call, reply)
                elif type(reply) is not list or reply[0] != call.name:
                    log.error("a reply of Redis was meant for another call: the connection is dropped")
                    self._flight.appendleft(call)
                    self._lasting_in_flight += call.lasting
                    self._lose("a reply that was meant for another call")
                    return
                else:
                    self._answered(call, reply)
                if not self._flight:
                    if self._leaving is not None:
                        self._lose(self._leaving)
                        return
                    if self._holding:
                        self._holding = False
                        self._wake.set()
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(f"connection lost: {error}")
        except Exception:
            log.exception("reading from Redis failed")
            self._lose("reading failed")

    # ------------------------------------------------------------------------------------- what comes

    def _answered(self, call: Call, reply: list[Any]) -> None:
        self._failures = 0
        if call is self._greeting:
            self._greeted = True
            if not self.up:
                self.up = True
                self.reason = ""
                log.warning("limits are kept at %s again", self._shown)
            self._wake.set()
        elif call.began:
            self._seconds(asyncio.get_running_loop().time() - call.began)
        if call.reply is not None:
            if not call.reply.done():
                call.reply.set_result(reply[1:])
        elif call.then is not None:
            try:
                call.then(reply[1:])
            except Exception:
                log.exception("what follows an answer of Redis failed")
        if self._kept and call.lasting:
            self._wake.set()

    def _refused(self, call: Call, error: RedisError) -> None:
        match _meaning(error):
            case _Bad.NO_SCRIPT if not call.whole:  # forgotten since: SCRIPT FLUSH
                self._known.clear()
                self._holding = True
                self._again(call)
            case _Bad.ELSEWHERE:
                if self._leaving is None:
                    self._leaving = f"{type(error).__name__}: {error}"
                    if isinstance(error, MovedError) and error.host:
                        self._moved_to = (error.host, error.port)
                    self._failed(self._leaving)
                call.tries += 1
                if call.lasting or (call.tries < 2 and call is not self._greeting):
                    self._again(call)
                else:
                    call.sent = False
                    call.fail(str(error))
            case _Bad.UNABLE:
                if call.lasting:
                    self._again(call)  # with what is sent next, or the next greeting that is answered
                else:
                    call.sent = False
                    call.fail(str(error))
                self._failed(f"{type(error).__name__}: {error}")
                if call is self._greeting:
                    self._leaving = str(error)
            case _:
                call.sent = False
                call.fail(str(error))
                if call is self._greeting:
                    self._failed(str(error))
                    self._leaving = str(error)
                if call.lasting:
                    self.dropped += 1
                log.error("Redis refuses %s.lua: %s", call.script.name, error)

    def _again(self, call: Call) -> None:
        """Nothing was done: back into its place in line."""
        call.sent = False
        if call.lasting:
            self._keep_one(call)
        elif self.up:
            bisect.insort(self._queue, call, key=_place)
        else:
            call.fail(self.reason)

    def _expire(self) -> None:
        """The one timer: fail what is overdue."""
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        overdue = [call for call in self._queue if call.deadline <= now]
        if overdue:
            self._fail(overdue, f"not sent within {self._timeout * 1000:.0f} ms")
            self._queue = [call for call in self._queue if call.deadline > now]
            if self._lost is None and now - self._late_at >= self._timeout:
                self._late_at = now
                self._failed("connecting takes too long")
        if self._greeting in overdue or any(call.deadline <= now for call in self._flight):
            self._lose(f"no answer within {self._timeout * 1000:.0f} ms")
        waiting = [call.deadline for line in (self._flight, self._queue) for call in line]
        if waiting:
            self._timer = loop.call_at(max(min(waiting), now + 0.001), self._expire)

    # -------------------------------------------------------------------------------------- what fails

    def _lose(self, reason: str) -> None:
        """End the connection that there is. What was sent on it fails at once."""
        if self._lost is None or self._lost.done():
            return
        self._lost.set_result(reason)
        if (self._flight or not self._greeted) and self._leaving is None:
            self._failed(reason)
        self._leaving = self._leaving or reason  # nothing more is sent on it
        self._forget_flight(reason)

    def _forget_flight(self, reason: str) -> None:
        flight = list(self._flight)
        self._flight.clear()
        self._lasting_in_flight = 0
        for call in flight:
            if call.lasting:
                self._keep_one(call)
            else:
                call.fail(reason)

    def _fail_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, []
        self._fail(queue, reason)

    def _fail(self, calls: Sequence[Call], reason: str) -> None:
        for call in calls:
            call.fail(reason)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self.up and self._failures >= self._opens_after:
            self.up = False
            self.reason = reason
            self.opened += 1
            # A greeting on a new connection is what closes the breaker.
            self._leaving = self._leaving or reason
            log.warning("limits cannot be kept at %s (%s): each follows its store_down", self._shown, reason)
            self._fail_queue(reason)


_UNABLE = ("OOM", "MISCONF", "NOREPLICAS", "NOPERM", "NOAUTH", "WRONGPASS")
_ELSEWHERE = ("READONLY", "MASTERDOWN", "LOADING", "MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED")


def _meaning(error: RedisError) -> _Bad:
    """Older servers wrap what went wrong within a script into `ERR ... -OOM ...`, so words count as well."""
    match error:
        case NoScriptError():
            return _Bad.NO_SCRIPT
        case (
            ReadOnlyError() | BusyLoadingError() | MasterDownError() | MovedError() | AskError()
            | ClusterDownError() | TryAgainError()
        ):  # fmt: skip
            return _Bad.ELSEWHERE
        case OutOfMemoryError() | NoPermissionError() | AuthenticationError():
            return _Bad.UNABLE
        case _:
            pass
    words = str(error).replace("-", " ").split()
    if any(word in _ELSEWHERE for word in words):
        return _Bad.ELSEWHERE
    if any(word in _UNABLE for word in words):
        return _Bad.UNABLE
    return _Bad.WRONG
