"""`EngineClient` with a tiny dialect of its own: one line is one event. The wire is real."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from backends.client import ClientGeneration, EngineClient
from backends.contract import (
    Delta,
    Done,
    Endpoint,
    EngineError,
    ErrorKind,
    Event,
    Failure,
    GenerateRequest,
    HttpRequest,
    Takes,
    Usage,
)
from backends.transport import AiohttpTransport
from tests.backends.loops import on_both_loops
from tests.backends.scripted_server import Peer, ScriptedServer, scripted_server
from tests.backends.transport.conformance import END, OK, PROMPTLY, STREAM, chunk, keep_alive, sends, until

REQUEST = GenerateRequest(request_id="r1", model="m", stream=True, prompt="once")


class LineDecoder:
    """`text` is a Delta, `#n` a Usage, `.` is Done, `!` a Failure, an empty line nothing. `?` is a bug."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, Mapping[str, str]]] = []
        self._rest = b""
        self._ended = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        if "x-bug" in headers:
            raise ZeroDivisionError
        self.heads.append((status, headers))

    def feed(self, data: bytes) -> list[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[Event] = []
        for line in lines:
            if self._ended or not line:
                continue
            if line == b"?":
                raise ZeroDivisionError
            self._ended = line in (b".", b"!")
            if line == b"!":
                events.append(Failure(error=EngineError(ErrorKind.OVERLOADED, "busy", retryable=True)))
            elif line == b".":
                events.append(Done())
            elif line.startswith(b"#"):
                events.append(Usage(completion_tokens=int(line[1:])))
            else:
                events.append(Delta(text=line.decode()))
        return events

    def end(self) -> list[Event]:
        return self.feed(b"\n")


class LineAdapter:
    kind = "lines"
    applies_template = True
    adds_bos = False
    relay = "translated"
    canonical = False
    takes = Takes()
    cancels_first = False

    def encode(self, request: GenerateRequest) -> HttpRequest:
        return HttpRequest("POST", f"/{request.model}", {}, str(request.prompt).encode())

    def decoder(self, request: GenerateRequest) -> LineDecoder:
        return LineDecoder()

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        return None


def on_client(test: Any) -> Any:
    """Give an async test a `transport`, which it must leave empty."""

    async def main() -> None:
        transport = AiohttpTransport()
        try:
            await test(transport)
            await until(lambda: transport.statistics().in_use == 0)
        finally:
            await transport.aclose()

    main.__name__, main.__doc__ = test.__name__, test.__doc__
    return on_both_loops(main)


def client(transport: AiohttpTransport, server: ScriptedServer, **options: Any) -> EngineClient:
    endpoint = Endpoint(f"http://127.0.0.1:{server.port}", {"authorization": "Bearer CANARY"})
    return EngineClient(LineAdapter(), transport, endpoint, **options)


async def collect(generation: ClientGeneration) -> list[Event]:
    """All events up to `Done`; an EngineError gets what came before it as `.args[1]`."""
    events: list[Event] = []
    try:
        while not events or type(events[-1]) is not Done:
            batch = await generation.events()
            assert batch
            events += batch
    except EngineError as error:
        error.args = (error.message, events)
        raise
    return events


@on_client
async def test_events_in_order(transport: AiohttpTransport) -> None:
    """Events come in order, in whatever pieces the bytes arrive, and `Done` is the last."""
    pieces = [chunk(piece) for piece in (b"on", b"ce\nupon\n", b"\n", b"\n\n", b"a\n#3\n", b".\n")]
    async with scripted_server(sends(STREAM, *pieces, END, then=keep_alive)) as server:
        engine = client(transport, server)
        events = await collect(await engine.generate(REQUEST))
        assert events == [
            Delta(text="once"), Delta(text="upon"), Delta(text="a"), Usage(completion_tokens=3), Done(),
        ]  # fmt: skip
        [seen] = server.requests
        assert (seen.target, seen.body, seen.headers["authorization"]) == ("/m", b"once", "Bearer CANARY")
        assert "CANARY" not in repr(engine)


@on_client
async def test_batches_are_never_empty(transport: AiohttpTransport) -> None:
    """Bytes that make no event are waited over, not handed out as nothing."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        for piece in (b"\n", b"on", b"ce", b"\n", b"\n", b".", b"\n"):
            await peer.send(chunk(piece))
            await asyncio.sleep(0.002)
        await peer.send(END)

    async with scripted_server(script) as server:
        generation = await client(transport, server).generate(REQUEST)
        assert await generation.events() == [Delta(text="once")]
        assert await generation.events() == [Done()]
        with pytest.raises(RuntimeError):
            await generation.events()


@on_client
async def test_events_of_the_end(transport: AiohttpTransport) -> None:
    """What the decoder says at the end of the body counts: a dialect may end without a mark."""
    async with scripted_server(sends(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nonce\n.")) as server:
        assert await collect(await client(transport, server).generate(REQUEST)) == [
            Delta(text="once"),
            Done(),
        ]


@on_client
async def test_failure_after_deltas(transport: AiohttpTransport) -> None:
    """What came before a Failure is handed out; then its own error is raised, and again; we hang up."""
    async with scripted_server(
        sends(STREAM + chunk(b"once\nupon\n!\nmore\n"), then=Peer.wait_closed)
    ) as server:
        generation = await client(transport, server).generate(REQUEST)
        assert await generation.events() == [Delta(text="once"), Delta(text="upon")]
        for _ in range(2):
            with pytest.raises(EngineError, match="busy") as caught:
                await generation.events()
            assert caught.value.kind is ErrorKind.OVERLOADED
        await until(lambda: server.closes_seen == 1)


@on_client
async def test_failure_alone(transport: AiohttpTransport) -> None:
    """An answer that only refuses raises at once, and its connection, complete, is kept."""
    refusal = b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n!\n"
    async with scripted_server(sends(refusal, then=keep_alive)) as server:
        engine = client(transport, server)
        generation = await engine.generate(REQUEST)
        with pytest.raises(EngineError, match="busy"):
            await generation.events()
        generation.cancel()
        await engine.generate(REQUEST)
        assert server.connections == 1


@on_client
async def test_broken_before_any_delta(transport: AiohttpTransport) -> None:
    """Nothing was handed out: the request may go elsewhere. A usage alone is nothing."""
    async with scripted_server(sends(STREAM + chunk(b"#1\n"))) as server:
        generation = await client(transport, server).generate(REQUEST)
        assert await generation.events() == [Usage(completion_tokens=1)]
        with pytest.raises(EngineError) as caught:
            await generation.events()
        error = caught.value
        assert (error.kind, error.retryable, error.reached) == (ErrorKind.ENGINE, True, True)


@on_client
async def test_broken_after_a_delta(transport: AiohttpTransport) -> None:
    """A piece was handed out: never a clean end, and no other replica may continue unasked."""
    async with scripted_server(sends(STREAM + chunk(b"once\n"))) as server:
        generation = await client(transport, server).generate(REQUEST)
        assert await generation.events() == [Delta(text="once")]
        for _ in range(2):
            with pytest.raises(EngineError) as caught:
                await generation.events()
            error = caught.value
            assert (error.kind, error.retryable, error.reached) == (ErrorKind.ENGINE, False, True)


@on_client
async def test_ended_without_a_terminal_event(transport: AiohttpTransport) -> None:
    """A clean end of the body is no end of the answer, whether or not pieces came with it."""
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
    async with scripted_server(sends(whole % (4, b"once")), sends(whole % (0, b""))) as server:
        engine = client(transport, server)
        generation = await engine.generate(REQUEST)
        assert await generation.events() == [Delta(text="once")]
        with pytest.raises(EngineError, match="terminal") as caught:
            await generation.events()
        assert (caught.value.kind, caught.value.retryable) == (ErrorKind.ENGINE, False)
        generation = await engine.generate(REQUEST)
        with pytest.raises(EngineError, match="terminal") as caught:
            await generation.events()
        assert (caught.value.retryable, caught.value.status) == (True, 200)


@on_client
async def test_not_reached(transport: AiohttpTransport) -> None:
    """No connection, nothing sent: `reached` is False."""
    async with scripted_server(keep_alive) as server:
        engine = client(transport, server)
    with pytest.raises(EngineError) as caught:
        await engine.generate(REQUEST)
    error = caught.value
    assert (error.kind, error.retryable, error.reached) == (ErrorKind.ENGINE, True, False)
    assert "CANARY" not in f"{error!r} {error.__cause__!r}"


@on_client
async def test_no_answer_and_no_http(transport: AiohttpTransport) -> None:
    """A connection that ends before the head, or garbage: the replica was reached."""
    async with scripted_server(sends(), sends(b"garbage\r\n\r\n")) as server:
        for _ in range(2):
            with pytest.raises(EngineError) as caught:
                await client(transport, server).generate(REQUEST)
            error = caught.value
            assert (error.kind, error.retryable, error.reached) == (ErrorKind.ENGINE, True, True)


@on_client
async def test_cancel_is_idempotent(transport: AiohttpTransport) -> None:
    """`cancel` drops the connection at once; events() then raises."""
    async with scripted_server(sends(STREAM + chunk(b"once\n"), then=Peer.wait_closed)) as server:
        generation = await client(transport, server).generate(REQUEST)
        assert await generation.events() == [Delta(text="once")]
        generation.cancel()
        generation.cancel()
        await until(lambda: server.closes_seen == 1, PROMPTLY)
        with pytest.raises(EngineError):
            await generation.events()
        generation.cancel()


@on_client
async def test_timeout_loses_no_event(transport: AiohttpTransport) -> None:
    """A wait that timed out may be taken up again."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"on"))
        await go_on.wait()
        await peer.send(chunk(b"ce\n.\n") + END)

    async with scripted_server(script) as server:
        generation = await client(transport, server).generate(REQUEST)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await generation.events()
        go_on.set()
        assert await collect(generation) == [Delta(text="once"), Done()]


@on_client
async def test_done_before_the_end_keeps_the_connection(transport: AiohttpTransport) -> None:
    """`Done` is handed out without waiting for the end of the body; when that comes, the connection is kept.

    The caller's habitual `cancel` in its `finally` must not undo it.
    """
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"once\n.\n"))
        await go_on.wait()
        await peer.send(END)
        await keep_alive(peer)

    async with scripted_server(script) as server:
        engine = client(transport, server)
        generation = await engine.generate(REQUEST)
        assert await generation.events() == [Delta(text="once"), Done()]
        generation.cancel()
        assert transport.statistics().draining == 1
        go_on.set()
        await until(lambda: transport.statistics().idle == 1)
        (await engine.generate(REQUEST)).cancel()
        assert server.connections == 1


@on_client
async def test_answer_without_events_is_bounded(transport: AiohttpTransport) -> None:
    """A decoder that only gathers is stopped at the limit; events in between start the count anew."""

    async def gather(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        while True:
            await peer.send(chunk(b"x" * 1000))

    async with scripted_server(
        sends(STREAM, *[chunk(b"y" * 900 + b"\n")] * 9, chunk(b".\n") + END), gather
    ) as server:
        engine = client(transport, server, max_pending_bytes=9_000)
        assert len(await collect(await engine.generate(REQUEST))) == 10
        with pytest.raises(EngineError, match="9000 bytes") as caught:
            await collect(await engine.generate(REQUEST))
        assert (caught.value.kind, caught.value.retryable) == (ErrorKind.ENGINE, True)


@on_client
async def test_bugs_of_decoders_leak_nothing(transport: AiohttpTransport) -> None:
    """A decoder that raises, in the head or the body, costs its connection and no more."""
    head = b"HTTP/1.1 200 OK\r\nx-bug: 1\r\ncontent-length: 9\r\n\r\n"
    body = STREAM + chunk(b"?\n")
    async with scripted_server(
        sends(head, then=Peer.wait_closed), sends(body, then=Peer.wait_closed), sends(OK)
    ) as server:
        engine = client(transport, server)
        with pytest.raises(ZeroDivisionError):
            await engine.generate(REQUEST)
        generation = await engine.generate(REQUEST)
        with pytest.raises(ZeroDivisionError):
            await generation.events()
        await until(lambda: server.closes_seen == 2)


class StoppableAdapter(LineAdapter):
    """Closing the connection is not enough for this engine."""

    def cancel_request(self, request: GenerateRequest) -> HttpRequest | None:
        return HttpRequest("POST", "/stop", {}, request.request_id.encode())


def stoppable(transport: AiohttpTransport, server: ScriptedServer) -> EngineClient:
    return EngineClient(StoppableAdapter(), transport, Endpoint(f"http://127.0.0.1:{server.port}"))


@on_client
async def test_the_engine_is_told_to_stop_once(transport: AiohttpTransport) -> None:
    """On a connection of its own, beside dropping the answer's."""
    async with scripted_server(sends(STREAM + chunk(b"once\n"), then=Peer.wait_closed), sends(OK)) as server:
        generation = await stoppable(transport, server).generate(REQUEST)
        assert await generation.events() == [Delta(text="once")]
        generation.cancel()
        generation.cancel()
        await until(lambda: len(server.requests) == 2)
        await until(lambda: not transport._dispatched)
        assert (server.requests[1].target, server.requests[1].body) == ("/stop", b"r1")
        assert server.closes_seen == 1
        assert server.connections == 2


@on_client
async def test_the_engine_is_told_to_stop_before_its_first_byte(transport: AiohttpTransport) -> None:
    """Engines that send no head before the first token hold most of the cancelled requests there."""

    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.wait_closed()

    async with scripted_server(silent, sends(OK)) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stoppable(transport, server).generate(REQUEST)
        await until(lambda: len(server.requests) == 2)
        await until(lambda: not transport._dispatched)
        assert server.requests[1].target == "/stop"


class ForgetfulAdapter(StoppableAdapter):
    """This engine forgets with the connection what it was doing."""

    cancels_first = True


@on_client
async def test_an_engine_that_forgets_is_told_before_its_connection_closes(
    transport: AiohttpTransport,
) -> None:
    """The close waits for the answer; and where there is none, it waits no longer than for any dispatch."""
    told: list[int] = []

    async def answers(peer: Peer) -> None:
        await peer.request()
        told.append(server.closes_seen)
        await peer.send(OK)

    async with scripted_server(sends(STREAM + chunk(b"once\n"), then=Peer.wait_closed), answers) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}")
        generation = await EngineClient(ForgetfulAdapter(), transport, endpoint).generate(REQUEST)
        assert await generation.events() == [Delta(text="once")]
        generation.cancel()
        generation.cancel()
        await until(lambda: server.closes_seen >= 1)
        assert told == [0]
        assert len(server.requests) == 2


@on_client
async def test_a_stop_that_cannot_be_sent_closes_at_once(transport: AiohttpTransport) -> None:
    async with scripted_server(sends(STREAM + chunk(b"once\n"), then=Peer.wait_closed)) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}")
        generation = await EngineClient(ForgetfulAdapter(), transport, endpoint).generate(REQUEST)
        await generation.events()
        closed: list[int] = []
        await transport.aclose()
        transport.dispatch(endpoint, HttpRequest("POST", "/stop"), lambda: closed.append(1))
        assert closed == [1]
        generation.cancel()
        await until(lambda: server.closes_seen == 1)


@on_client
async def test_an_answer_that_ended_is_not_stopped(transport: AiohttpTransport) -> None:
    """Well or badly: there is nothing left to stop."""
    good, bad = STREAM + chunk(b"once\n.\n") + END, STREAM + chunk(b"!\n") + END
    async with scripted_server(sends(good, bad)) as server:
        generation = await stoppable(transport, server).generate(REQUEST)
        assert await collect(generation) == [Delta(text="once"), Done()]
        generation.cancel()
        async with scripted_server(sends(bad)) as failing:
            generation = await stoppable(transport, failing).generate(REQUEST)
            with pytest.raises(EngineError):
                await collect(generation)
            generation.cancel()
        assert not transport._dispatched
        assert len(server.requests) == 1


@on_client
async def test_what_is_dispatched_ends_with_the_transport(transport: AiohttpTransport) -> None:
    """An engine that never answers holds nothing; after `aclose` nothing is sent."""
    async with scripted_server(Peer.wait_closed) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}")
        transport.dispatch(endpoint, HttpRequest("POST", "/stop"))
        await until(lambda: server.open == 1)
        await transport.aclose()
        assert not transport._dispatched
        await until(lambda: server.closes_seen == 1)
        transport.dispatch(endpoint, HttpRequest("POST", "/stop"))
        assert not transport._dispatched


@on_client
async def test_a_dispatch_that_fails_is_silent(transport: AiohttpTransport) -> None:
    async with scripted_server(keep_alive) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}")
    transport.dispatch(endpoint, HttpRequest("POST", "/stop"))
    await until(lambda: not transport._dispatched)
