"""The ways to reach Redis: a socket, TLS, a login, sentinels through a failover, a cluster whose slots
move."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.limits.contract import StoreUnavailable
from tests.gateway.builders import a_limit
from tests.gateway.limits.conformance import an_account
from tests.gateway.limits.redis_bench import a_store, budgets, take, until, used
from tests.redis_server import RedisServer, free_port, needs_redis, running_redis


@pytest.fixture(autouse=True)
def _redis() -> None:
    needs_redis()


async def works(url: str, namespace: str) -> None:
    async with a_store(url, namespace) as store:
        account = an_account(a_limit(10, calendar="day"))
        assert (await take(store, account, 3)).granted
        assert await used(store, account) == [3]


async def test_a_socket(tmp_path: Path, namespace: str) -> None:
    with running_redis("--unixsocket", str(tmp_path / "redis.sock")):
        await works(f"unix://{tmp_path}/redis.sock?db=3", namespace)


async def test_a_password_and_a_database(namespace: str) -> None:
    with running_redis(password="p@ss/word") as server:
        await works(f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/2", namespace)
        assert "db2" in server.client.info("keyspace")
        async with a_store(f"{server.url}", namespace, timeout=0.5) as store:
            with pytest.raises(StoreUnavailable):
                await take(store, budgets(1)[0], 1)


def certificate(directory: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", key, "-out", certificate],
            check=True, capture_output=True, timeout=20,
        )  # fmt: skip
    except FileNotFoundError:
        from tests.conftest import not_run

        not_run("TLS to Redis: this machine has no openssl")
    return key, certificate


async def test_tls_with_a_ca_of_ones_own(tmp_path: Path, namespace: str) -> None:
    """And without it the server is not believed."""
    key, ca = certificate(tmp_path)
    port = free_port()
    with running_redis(
        "--tls-port", str(port), "--tls-cert-file", str(ca), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(ca), "--tls-auth-clients", "no",
    ):  # fmt: skip
        await works(f"rediss://127.0.0.1:{port}?ca={ca}", namespace)
        async with a_store(f"rediss://127.0.0.1:{port}", namespace, timeout=0.5) as store:
            with pytest.raises(StoreUnavailable):
                await take(store, budgets(1)[0], 1)
            await until(lambda: not store.link.up)
            assert "certificate" in store.link.reason.lower()


# -------------------------------------------------------------------------------------------- sentinels


@contextlib.contextmanager
def a_sentinel(directory: Path, master: RedisServer) -> Iterator[int]:
    port = free_port()
    configuration = directory / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\nlogfile {directory}/sentinel.log\n"
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds mymaster 300\nsentinel failover-timeout mymaster 2000\n"
    )
    process = subprocess.Popen(
        ["redis-server", str(configuration), "--sentinel"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait(timeout=5)


async def test_sentinels_through_a_failover(tmp_path: Path, namespace: str) -> None:
    """The master dies, its replica becomes one: limits go on from what was replicated, no amnesty."""
    with running_redis() as master, running_redis("--replicaof", f"127.0.0.1 {master.port}") as replica:
        with a_sentinel(tmp_path, master) as port:
            sentinel = redis.Redis(port=port, decode_responses=True, socket_timeout=5, protocol=2)
            await until(lambda: replica.client.info("replication")["master_link_status"] == "up")
            await until(lambda: _replicas(sentinel) == 1)
            # The first of the hosts is nobody.
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/mymaster"
            async with a_store(url, namespace, timeout=0.5, probe_every=0.05) as store:
                (account,) = budgets(10)
                assert (await take(store, account, 7, "before")).granted
                await until(lambda: replica.client.keys(f"{{{namespace}}}:a:*"))
                assert replica.client.info("replication")["role"] == "slave"
                master.kill()
                await until(lambda: not store.link.up)
                await until(lambda: store.link.up, 20)
                assert replica.client.info("replication")["role"] == "master"
                verdict = await take(store, account, 4, "after")
                assert not verdict.granted
                assert await used(store, account) == [7]
            sentinel.close()


def _replicas(sentinel: Any) -> int:
    try:
        return len(sentinel.execute_command("SENTINEL", "REPLICAS", "mymaster"))
    except redis.ConnectionError:
        return 0


async def test_a_name_that_no_sentinel_knows(tmp_path: Path, namespace: str) -> None:
    with running_redis() as master, a_sentinel(tmp_path, master) as port:
        async with a_store(f"redis+sentinel://127.0.0.1:{port}/other", namespace, timeout=0.3) as store:
            await until(lambda: not store.link.up)
            assert "knows no other" in store.link.reason


# ---------------------------------------------------------------------------------------------- cluster


@contextlib.contextmanager
def a_cluster() -> Iterator[tuple[RedisServer, RedisServer]]:
    """Two nodes; the first has all slots."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with running_redis(*options) as one, running_redis(*options) as two:
        one.client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        one.client.execute_command("CLUSTER MEET", "127.0.0.1", two.port)
        yield one, two


async def _well(*nodes: RedisServer) -> None:
    for node in nodes:
        await until(lambda node=node: _cluster_state(node) == ("ok", "2"), 20)


def _cluster_state(node: RedisServer) -> tuple[str, str]:
    told = node.client.execute_command("CLUSTER INFO")
    told = told if isinstance(told, dict) else dict(line.split(":") for line in told.split())
    return str(told["cluster_state"]), str(told["cluster_known_nodes"])


async def test_a_cluster_whose_slots_move(namespace: str) -> None:
    """All keys are on one node; MOVED is followed to the other, within one call's timeout."""
    with a_cluster() as (one, two):
        await _well(one, two)
        dead = free_port()
        # Asked first is a node that is not there, then one that has no slot.
        url = f"redis+cluster://127.0.0.1:{dead},127.0.0.1:{two.port}"
        async with a_store(url, namespace, timeout=2.0, probe_every=0.05) as store:
            accounts = [*budgets(10, 10), an_account(a_limit(5, "concurrent"))]
            for account in accounts:
                assert (await take(store, account, 2, account.key)).granted
            assert one.client.dbsize() >= 4
            assert two.client.dbsize() == 0
            slot = one.client.execute_command("CLUSTER KEYSLOT", f"{{{namespace}}}:live")
            _move(one, two, slot)
            assert await used(store, *accounts) == [2, 2, 2]
            assert (await take(store, accounts[0], 3, "moved")).granted
            assert one.client.dbsize() == 0
            assert two.calls("evalsha") + two.calls("eval") >= 2
            assert store.link.opened == 0


def _move(one: RedisServer, two: RedisServer, slot: int) -> None:
    """A slot with all its keys."""
    ids = {node: node.client.execute_command("CLUSTER MYID") for node in (one, two)}
    two.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[one])
    one.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[two])
    keys = one.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
    one.client.execute_command("MIGRATE", "127.0.0.1", two.port, "", 0, 5000, "KEYS", *keys)
    for node in (two, one):
        node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[two])


async def test_a_cluster_of_one(namespace: str) -> None:
    with running_redis("--cluster-enabled", "yes") as node:
        node.client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        await until(lambda: _cluster_state(node)[0] == "ok")
        await works(f"redis+cluster://127.0.0.1:{node.port}", namespace)
        node.client.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)
        async with a_store(f"redis+cluster://127.0.0.1:{node.port}", namespace, timeout=0.3) as store:
            await until(lambda: not store.link.up)
            with contextlib.suppress(asyncio.CancelledError):
                assert "slot" in store.link.reason or "no connection" in store.link.reason
