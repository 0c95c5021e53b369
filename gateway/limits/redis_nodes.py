"""Which server of Redis to talk to, and a connection to it.

All keys of a namespace have one hash tag, so there is always exactly one server that has them: the one that
is named, the master that sentinels name, or the node that owns the slot. Finding it anew is how a failover is
followed: the link drops its connection and asks here again.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gateway.config.redis_urls import RedisUrl

__all__ = ["Nodes"]

Host = tuple[str, int]


class Nodes:
    """`tag` is the hash tag of all keys; `timeout` seconds hold for each server that is asked."""

    def __init__(self, url: RedisUrl, tag: str, timeout: float) -> None:
        self._url = url
        self._slot = key_slot(tag.encode())
        self._timeout = timeout
        self._known = list(url.hosts)
        """Sentinels, or nodes of the cluster; who answered last is asked first."""

    async def connect(self, moved_to: Host | None = None) -> AbstractConnection:
        """A connection, logged in, to the server that has the keys; `moved_to` is what a cluster said of it.

        Raises RedisError, OSError, TimeoutError.
        """
        connection: AbstractConnection
        match self._url.form:
            case "socket":
                connection = UnixDomainSocketConnection(path=self._url.path, **self._login())
            case "server":
                connection = self._to(self._url.hosts[0])
            case "sentinel":
                connection = self._to(await self._master())
            case "cluster":
                connection = self._to(moved_to or await self._owner())
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]  # as redis-py has it
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _master(self) -> Host:
        login = {"username": self._url.sentinel_username, "password": self._url.sentinel_password, "db": 0}
        answer = await self._ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service), **login)
        host, port = answer
        return host.decode(), int(port)

    async def _owner(self) -> Host:
        slots = await self._ask(("CLUSTER", "SLOTS"))
        nodes = [_host(node, self._known[0]) for _, _, *group in slots for node in group]
        self._known = list(dict.fromkeys([self._known[0], *nodes, *self._url.hosts]))
        for first, last, master, *_ in slots:
            if first <= self._slot <= last:
                return _host(master, self._known[0])
        raise RedisConnectionError(f"no node of the cluster has slot {self._slot}")

    async def _ask(self, command: Sequence[str], **login: Any) -> Any:
        """What the first of the known hosts says that has an answer."""
        problems = []
        for host in list(self._known):
            connection = self._to(host, **login)
            try:
                async with asyncio.timeout(self._timeout):
                    await connection.connect()  # type: ignore[no-untyped-call]  # as redis-py has it
                    await connection.send_command(*command)
                    answer = await connection.read_response(disable_decoding=True)
            except (RedisError, OSError, TimeoutError) as error:
                problems.append(f"{host[0]}:{host[1]}: {error}")
                continue
            finally:
                await connection.disconnect(nowait=True)
            if answer:
                self._known.remove(host)
                self._known.insert(0, host)
                return answer
            problems.append(f"{host[0]}:{host[1]} knows no {self._url.service}")
        raise RedisConnectionError("; ".join(problems))

    def _to(self, host: Host, **login: Any) -> Connection:
        url = self._url
        settings = {**self._login(), **login, "host": host[0], "port": host[1]}
        if not url.tls:
            return Connection(**settings)
        return SSLConnection(**settings, ssl_ca_certs=url.ca)

    def _login(self) -> dict[str, Any]:
        """redis-py's own retries, health checks and introductions are off. So are its timeouts: they are made
        of `wait_for`, which on Python 3.11 loses a cancellation that comes as the bytes have left
        (cpython#86296); what writes to a lost connection would go on, connect anew, and take later calls."""
        return {
            "username": self._url.username,
            "password": self._url.password,
            "db": self._url.db,
            "protocol": 2,
            "driver_info": None,
            "socket_connect_timeout": None,
            "socket_timeout": None,
            "health_check_interval": 0,
        }


FOREVER = math.inf
"""A timeout for reading: the link has its own."""


def _host(node: Sequence[Any], asked: Host) -> Host:
    """Of CLUSTER SLOTS: host, port, id, ...; a node that does not know its own address is the one asked."""
    name = node[0].decode() if node[0] else ""
    return (name if name not in ("", "?") else asked[0]), int(node[1])
