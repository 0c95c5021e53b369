"""The order of calls, and what becomes of each, when servers forget scripts, hand over, fill up and vanish.

The link is whole; at the other end of its connections is a server in memory that reads what would be on the
wire, and executes and tells when the test says so. Time is skipped, not waited for.
"""

import asyncio
import functools
import selectors
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError

from gateway.limits.redis_link import Call, NotAnswered, RedisLink, Script
from gateway.limits.redis_nodes import Host, Nodes
from gateway.tasks import TaskSet

TIMEOUT, PROBE_EVERY = 0.1, 1.0
GREETING, SCRIPT = Script("greeting", "return 'hello'"), Script("script", "return 'done'")

State = Literal["well", "replica", "moved", "full", "away"]
REFUSALS: dict[State, RedisError] = {
    "replica": ReadOnlyError("You can't write against a read only replica."),
    "moved": MovedError("1 127.0.0.1:7001"),
    "full": OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
}


class Server(Nodes):
    """All servers there are, as one: `state` is that of whichever is asked."""

    def __init__(self) -> None:
        self.state: State = "well"
        self.scripts: set[bytes] = set()
        self.connections: list[Connection] = []
        self.refused_as_full: set[int] = set()

    async def connect(self, moved_to: Host | None = None) -> AbstractConnection:
        await asyncio.sleep(0)
        if self.state == "away":
            raise ConnectionRefusedError
        self.connections.append(Connection(self))
        return cast("AbstractConnection", self.connections[-1])

    @property
    def done(self) -> list[list[int]]:
        """Numbers of the calls that had their effect, by connection."""
        return [connection.done for connection in self.connections]

    def forget(self) -> None:
        """SCRIPT FLUSH."""
        self.scripts.clear()

    def execute(self, most: int = 10_000) -> None:
        """The next ones that have come. The link has one connection at a time."""
        for connection in self.connections[-1:]:
            for _ in range(min(most, len(connection.arrived))):
                connection.answers.append(self._answer(connection, connection.arrived.popleft()))

    def tell(self, most: int = 10_000) -> None:
        for connection in self.connections[-1:]:
            for _ in range(min(most, len(connection.answers))):
                connection.replies.put_nowait(connection.answers.popleft())

    def reset(self) -> None:
        """Nothing that was not told is told any more; what has arrived may be executed yet."""
        for connection in self.connections[-1:]:
            connection.lost = True
            connection.replies.put_nowait(RedisConnectionError("reset"))

    def _answer(self, connection: "Connection", command: list[bytes]) -> Any:
        how, script, _, name, *args = command
        number = int(args[0]) if args else None
        if self.state in REFUSALS:
            if number is not None and self.state == "full":
                self.refused_as_full.add(number)
            return REFUSALS[self.state]
        if how == b"EVALSHA" and script not in self.scripts:
            return NoScriptError("No matching script.")
        if how == b"EVAL":
            self.scripts.add((GREETING if script == GREETING.source.encode() else SCRIPT).digest.encode())
        if number is not None:
            connection.done.append(number)
        return [name, number]


class Connection:
    """The link's end of it."""

    def __init__(self, server: Server) -> None:
        self.arrived: deque[list[bytes]] = deque()
        self.answers: deque[Any] = deque()
        self.done: list[int] = []
        self.lost = False
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    async def send_packed_command(self, batch: list[bytes], check_health: bool) -> None:
        if self.lost:
            raise RedisConnectionError("reset")
        reader = hiredis.Reader()
        for command in batch:
            reader.feed(command)
            self.arrived.append(cast("list[bytes]", reader.gets()))
        await asyncio.sleep(0)

    async def read_response(self, *_: object, disconnect_on_error: bool) -> Any:
        reply = await self.replies.get()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def disconnect(self, nowait: bool) -> None:
        self.lost = True


class Bench:
    """A link to a server, and what was asked of it."""

    def __init__(self, keep: int = 1000) -> None:
        self.server = Server()
        self.link = RedisLink(
            self.server, shown="it", timeout=TIMEOUT, probe_every=PROBE_EVERY, opens_after=3, keep=keep
        )
        self.posted = 0
        self.asked: dict[int, Call] = {}
        self.lasting: list[int] = []
        self.passing: list[int] = []
        self.then: list[int] = []
        self.lost: list[int] = []

    def ask(self) -> None:
        self.posted += 1
        call = self.asked[self.posted] = self.link.submit(SCRIPT, [], [self.posted])
        assert call.reply is not None
        call.reply.add_done_callback(asyncio.Future.exception)  # it is looked at, if late

    def last(self) -> None:
        self._post(self.lasting, lasting=True)

    def say(self) -> None:
        self._post(self.passing, lasting=False)

    def _post(self, to: list[int], *, lasting: bool) -> None:
        self.posted += 1
        to.append(number := self.posted)
        self.link.post(
            SCRIPT, [], [number], lambda reply: self.then.append(reply[0]),
            None if lasting else lambda: self.lost.append(number), lasting=lasting,
        )  # fmt: skip

    async def settle(self) -> None:
        """Turns of the loop, without time, until nothing more comes of what was done."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def answer(self) -> None:
        self.server.execute()
        self.server.tell()
        await self.settle()

    async def heal(self) -> None:
        """All is well from here on, until nothing waits."""
        self.server.state = "well"
        for _ in range(3000):
            await self.answer()
            if self.link.up and not (self.link.kept or self.link._queue or self.link._flight):
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it does not come to rest")


class Skipping(selectors.DefaultSelector):
    """Where a loop would wait, time goes on by itself."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing would ever happen"
        self.now += max(0.0, timeout)
        return super().select(0)


def skips_time(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run it on a loop that never waits."""

    @functools.wraps(scenario)
    def test(*args: Any, **kwargs: Any) -> None:
        selector = Skipping()
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now  # type: ignore[method-assign]  # a loop has no setting for its clock
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(scenario(*args, **kwargs))

    return test


@asynccontextmanager
async def a_bench(**settings: Any) -> AsyncIterator[Bench]:
    """Greeted, and the script known on the connection, on which call 0 is done."""
    bench = Bench(**settings)
    tasks = TaskSet()
    tasks.start(bench.link.run(lambda: Call(GREETING, [], [])), "link")
    bench.link.post(SCRIPT, [], [0])
    await bench.heal()
    try:
        yield bench
    finally:
        await tasks.aclose()


def answered(call: Call) -> bool:
    return call.reply is not None and call.reply.done() and call.reply.exception() is None


def refusal(call: Call) -> NotAnswered:
    assert call.reply is not None
    error = call.reply.exception()
    assert isinstance(error, NotAnswered)
    return error


@skips_time
async def test_a_lasting_call_outlives_a_breaker_that_opens_before_it_is_sent_again() -> None:
    """Its script was forgotten, and before it is sent whole the server is full."""
    async with a_bench() as bench:
        bench.last()
        for _ in range(3):
            bench.ask()
        await bench.settle()
        bench.server.forget()
        bench.server.execute(1)
        bench.server.state = "full"
        await bench.answer()
        assert (bench.link.opened, bench.link.kept) == (1, 1)
        await bench.heal()
        assert (bench.then, bench.link.dropped) == ([1], 0)
        assert bench.server.done == [[0], [1]]


@pytest.mark.parametrize("state", ["replica", "moved"])
@skips_time
async def test_a_failover_keeps_the_order(state: State) -> None:
    """Who gives back and then asks is heard in that order by the next server, too."""
    async with a_bench() as bench:
        for _ in range(4):
            bench.last()
            bench.ask()
        await bench.settle()
        bench.server.state = state
        await bench.answer()
        await bench.heal()
        assert bench.server.done == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
        assert all(map(answered, bench.asked.values()))


@skips_time
async def test_who_asks_again_does_not_overtake_what_is_kept() -> None:
    """Calls that are sent again, with those that came as the connection was being left."""
    async with a_bench() as bench:
        bench.ask()
        bench.last()
        bench.ask()
        await bench.settle()
        bench.server.state = "moved"
        bench.server.execute()
        bench.server.tell(2)
        await bench.settle()
        bench.last()
        bench.ask()
        await bench.heal()
        assert bench.server.done == [[0], [1, 2, 3, 4, 5]]


@skips_time
async def test_a_forgotten_script_keeps_the_order() -> None:
    """What comes while the first is told is not sent before the second, which will be told the same."""
    async with a_bench() as bench:
        bench.last()
        bench.ask()
        await bench.settle()
        bench.server.forget()
        bench.server.execute()
        bench.server.tell(1)
        bench.ask()
        await bench.settle()
        await bench.heal()
        assert bench.server.done == [[0, 1, 2, 3]]


@skips_time
async def test_what_a_full_server_refused_comes_before_what_came_later() -> None:
    """The last refusal is told when the breaker is open and another call waits."""
    async with a_bench() as bench:
        for _ in range(4):
            bench.last()
        await bench.settle()
        bench.server.state = "full"
        bench.server.execute()
        bench.server.tell(3)
        await bench.settle()
        assert bench.link.opened == 1
        bench.last()
        await bench.heal()
        assert bench.server.done == [[0], [1, 2, 3, 4, 5]]


@skips_time
async def test_who_would_be_sent_again_while_the_breaker_is_open_is_told_at_once() -> None:
    """Its script was forgotten, which is learnt when calls fail at once: it does not wait for its timeout."""
    async with a_bench() as bench:
        for _ in range(4):
            bench.ask()
        await bench.settle()
        bench.server.state = "full"
        bench.server.execute(3)
        bench.server.state = "well"
        bench.server.forget()
        await bench.answer()
        assert bench.link.opened == 1
        assert [refusal(call).perhaps for call in bench.asked.values()] == [False] * 4


@skips_time
async def test_who_was_sent_elsewhere_to_nobody_was_not_served() -> None:
    """Nothing was done, and nothing was sent since: there is nothing to undo."""
    async with a_bench() as bench:
        bench.ask()
        await bench.settle()
        bench.server.state = "moved"
        bench.server.execute()
        bench.server.state = "away"
        bench.server.tell()
        await bench.settle()
        assert not refusal(bench.asked[1]).perhaps


@skips_time
async def test_what_comes_as_the_connection_is_lost_goes_to_the_next_one() -> None:
    """In the very turn of the loop."""
    async with a_bench() as bench:
        bench.server.reset()
        bench.ask()
        await bench.heal()
        assert answered(bench.asked[1])
        assert bench.server.done == [[0], [1]]


@skips_time
async def test_no_more_than_the_newest_are_kept() -> None:
    """Also where those in flight come back to a line that is full; each that is left out is counted."""
    async with a_bench(keep=3) as bench:
        for _ in range(2):
            bench.last()
        await bench.settle()
        bench.server.state = "away"
        bench.server.reset()
        for _ in range(3):
            bench.last()
        await bench.settle()
        assert (bench.link.kept, bench.link.dropped) == (3, 2)
        await bench.heal()
        assert bench.server.done[1:] == [[3, 4, 5]]
        assert bench.then == [3, 4, 5]


POSTS = st.tuples(st.sampled_from(["ask", "last", "last", "say"]))
ANSWERS = st.tuples(st.sampled_from(["execute", "tell", "tell"]), st.integers(1, 4))
STATES = st.tuples(st.just("state"), st.sampled_from(["well", "well", "replica", "moved", "full", "away"]))
FAULTS = st.tuples(st.sampled_from(["forget", "reset"]))
SLEEPS = st.tuples(st.just("sleep"), st.sampled_from([0.01, TIMEOUT, PROBE_EVERY]))
STEPS = st.lists(
    st.tuples(
        st.one_of(POSTS, POSTS, POSTS, ANSWERS, ANSWERS, ANSWERS, STATES, FAULTS, SLEEPS),
        st.sampled_from([0, 1, 2, 12]),
    ),
    min_size=20,
    max_size=60,
)
"""What happens, and how many turns of the loop later the next thing does."""


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([3, 1000]))
@skips_time
async def test_whatever_happens_calls_keep_their_order_and_none_is_forgotten(
    steps: list[tuple[tuple[Any, ...], int]], keep: int
) -> None:
    """On each connection calls have their effect once at most, and in the order in which they came, save what
    a full server refused, which is tried again. Those that last are answered, or counted as dropped; who asks
    is answered once, and where the answer is that nothing was done, nothing was."""
    async with a_bench(keep=keep) as bench:
        for (what, *how), turns in steps:
            match what:
                case "sleep":
                    await asyncio.sleep(how[0])
                case "state":
                    bench.server.state = how[0]
                case "ask" | "last" | "say":
                    getattr(bench, what)()
                case _:
                    getattr(bench.server, what)(*how)
            for _ in range(turns):
                await asyncio.sleep(0)
        await bench.heal()

        for done in bench.server.done:
            assert len(set(done)) == len(done)
            in_order = [number for number in done if number not in bench.server.refused_as_full]
            assert in_order == sorted(in_order)
        effects = Counter(number for done in bench.server.done for number in done)
        told = Counter(bench.then)
        assert set(told.values()) <= {1}
        for number, call in bench.asked.items():
            assert call.reply is not None
            assert call.reply.done(), f"{number} still waits"
            error = call.reply.exception()
            assert effects[number] <= 1
            if error is None:
                assert (call.reply.result(), effects[number]) == ([number], 1)
            else:
                assert isinstance(error, NotAnswered)
                assert error.perhaps or not effects[number]
        for number in bench.passing:
            assert effects[number] <= 1
            assert told[number] + bench.lost.count(number) <= 1
            assert not (number in bench.lost and effects[number])
        answered = [number for number in bench.lasting if told[number]]
        assert all(effects[number] for number in answered)
        assert len(answered) + bench.link.dropped == len(bench.lasting)
        assert keep == 3 or not bench.link.dropped
