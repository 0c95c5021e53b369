"""A real `redis-server` on loopback, without persistence, for the tests that need one.

`redis_server` is shared by all tests of a worker, each in a namespace of its own; `own_redis` is for a test
that stops, fills or empties it. What is started here is ended here, by its process.
"""

import contextlib
import functools
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

READY_SECONDS = 10.0
PORT_ATTEMPTS = 5


@dataclass(eq=False)
class RedisServer:
    """One server; `options` are command line options of redis-server."""

    process: "subprocess.Popen[bytes]"
    port: int
    directory: Path
    options: tuple[str, ...]
    password: str | None = None
    _client: Any = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """A plain, blocking client, to look at what is kept."""
        if self._client is None:
            self._client = redis.Redis(
                port=self.port, decode_responses=True, password=self.password, socket_timeout=5, protocol=2
            )
        return self._client

    def calls(self, command: str) -> int:
        """How often a command was executed since the start."""
        return int(self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def pause(self) -> None:
        """SIGSTOP: the kernel still takes connections and bytes, nobody answers."""
        self.process.send_signal(signal.SIGSTOP)
        while _state(self.process.pid) != "T":
            time.sleep(0.001)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it. What it kept is gone."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self.process.kill()
        self.process.wait(timeout=5)

    def start_again(self) -> None:
        """The same port, empty keys."""
        self.process = _started(self.port, self.directory, self.options)
        _wait_ready(self)


@contextlib.contextmanager
def running_redis(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    """A server of one's own; needs `redis-server` on PATH."""
    directory = Path(tempfile.mkdtemp(prefix="headgate-redis-"))
    if password is not None:
        options += ("--requirepass", password)
    server = None
    try:
        for attempt in range(PORT_ATTEMPTS):
            port = free_port()
            server = RedisServer(_started(port, directory, options), port, directory, options, password)
            try:
                _wait_ready(server)
                break
            except RuntimeError:
                server.kill()
                if attempt == PORT_ATTEMPTS - 1:
                    raise
        assert server is not None
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        # A cluster's bus port is this one and 10000.
        return port if port < 55_000 else free_port()


def _started(port: int, directory: Path, options: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
         "--dir", str(directory), "--logfile", str(directory / "log"), "--enable-debug-command", "yes",
         *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _wait_ready(server: RedisServer) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        try:
            server.client.ping()
            return
        except redis.ConnectionError:
            time.sleep(0.01)
    log = server.directory / "log"
    raise RuntimeError(f"redis-server does not start: {log.read_text()[-500:] if log.exists() else 'no log'}")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@functools.cache
def redis_is_here() -> bool:
    return shutil.which("redis-server") is not None


def needs_redis() -> None:
    """Leaves the running test out, audibly, where there is no redis-server."""
    from tests.conftest import not_run  # late: conftest imports the fixtures below

    if not redis_is_here():
        not_run("Redis: this machine has no redis-server on PATH")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Shared: use a namespace of your own, and leave the server as it is."""
    needs_redis()
    with running_redis() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """For one test alone."""
    needs_redis()
    with running_redis() as server:
        yield server


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"
