"""Serving: a Gateway on its two listeners, from bind to drained end."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import uvicorn

from gateway.api.asgi import App
from gateway.app import Gateway
from gateway.edge import EdgeProtocol
from gateway.tasks import TaskSet

BACKLOG = 2048
CUT_SECONDS = 2.0
"""For telling the clients of requests that outlived the drain."""
KEEP_ALIVE = 75
"""Seconds an idle client connection is kept: longer than the usual load balancer's idle time-out, or it
races with us and its clients see resets."""


class CannotListen(OSError):
    """A port is taken or an address is not ours. The message names the flag to change."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the gateway listens, as URLs."""

    data: str
    admin: str


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to its owner."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(address: tuple[str, int], flag: str) -> socket.socket:
    """A listening socket, or CannotListen naming `flag`."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: asyncio switches Nagle's algorithm off only where it is told that this is TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror} (see {flag})") from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def listening(
    gateway: Gateway, data: socket.socket, admin: socket.socket, *, drain: float = 0.0
) -> AsyncIterator[Addresses]:
    """Serve `gateway` on both sockets while the block runs.

    Leaving it drains: new requests are refused, those in flight get `drain` seconds, what is left after
    that is ended with an error event.
    """
    async with gateway:
        listeners = [_listener(gateway.data_app), _listener(gateway.admin_app)]
        tasks = TaskSet()
        for server, listener in zip(listeners, (data, admin), strict=True):
            tasks.start(server.serve(sockets=[listener]), f"listener {url_of(listener)}")
        try:
            async with asyncio.timeout(10):
                while not all(server.started for server in listeners):  # noqa: ASYNC110  # uvicorn has no event
                    await asyncio.sleep(0.005)
            yield Addresses(url_of(data), url_of(admin))
        finally:
            gateway.drain()
            if not await gateway.wait_idle(drain):
                gateway.cut()
                await gateway.wait_idle(CUT_SECONDS)
            for server in listeners:
                server.should_exit = True
            await tasks.wait(seconds=5)
            await tasks.aclose()


async def run_until_signal(
    gateway: Gateway, data: socket.socket, admin: socket.socket, started: Callable[[Addresses], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the drain short. SIGHUP reloads."""
    signals = asyncio.Queue[None]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload_soon, "SIGHUP")
    async with listening(gateway, data, admin) as addresses:
        started(addresses)
        await signals.get()
        gateway.drain()
        drain = TaskSet()
        drain.start(_drained(gateway, signals), "drain")
        await signals.get()
        await drain.aclose()


async def _drained(gateway: Gateway, signals: asyncio.Queue[None]) -> None:
    """Once nothing is in flight, or the time for it is over, go on as if a second signal had come."""
    await gateway.wait_idle(gateway.runtime.snapshot.server.drain)
    signals.put_nowait(None)


def _listener(app: App) -> _Listener:
    config = uvicorn.Config(
        app,
        http=EdgeProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )
    return _Listener(config)
