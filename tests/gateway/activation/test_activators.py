"""Activators against real servers and processes."""

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from backends.contract import Endpoint
from gateway.activation.activators import ActivationFailed, Cluster, activator_of, in_cluster
from gateway.config.snapshot import (
    Activation,
    CommandWake,
    HttpStep,
    HttpWake,
    KubernetesWake,
    Replica,
    Upstream,
)
from tests.gateway.builders import a_pool


@asynccontextmanager
async def server(answer: Any):
    """Answers each with `answer(method, path, headers, body)` -> (status, JSON); gives (url, what it got)."""
    got: list[tuple[str, str, dict[str, str], str]] = []

    async def handle(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        got.append((request.method, request.path_qs, headers, await request.text()))
        status, body = answer(*got[-1])
        return web.json_response(body, status=status)

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", got
    finally:
        await runner.cleanup()


def pool_with(wake: Any, **fields: Any) -> Any:
    return a_pool(activation=Activation(wake, 10.0, None), **fields)


def at(pool: Any, url: str) -> Any:
    object.__setattr__(pool, "replicas", (Replica("r1", url), Replica("r2", url)))
    return pool


# ------------------------------------------------------------------------------------------------ command


def command(*program: str, cool: tuple[str, ...] = ()) -> Any:
    return activator_of(pool_with(CommandWake(program, cool)))


async def test_a_command_is_run_without_a_shell_and_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", "secret")
    told = tmp_path / "told"
    script = f"import os, sys; open({str(told)!r}, 'w').write(repr((sys.argv[1:], dict(os.environ))))"
    await command(sys.executable, "-c", script, "$(touch x); `y`", "*").wake()
    text = told.read_text()
    assert "'$(touch x); `y`', '*'" in text
    assert "'HEADGATE_POOL': 'pool'" in text
    assert "secret" not in text


async def test_a_command_that_fails_says_why():
    with pytest.raises(ActivationFailed, match=r"ended with 3: no GPU left$"):
        await command(sys.executable, "-c", "import sys; print('no GPU left'); sys.exit(3)").wake()
    with pytest.raises(ActivationFailed, match="No such file"):
        await command("/nonexistent/program").wake()


async def test_the_output_of_a_command_is_bounded():
    with pytest.raises(ActivationFailed) as failed:
        await command(sys.executable, "-c", "import sys; sys.stdout.write('x' * 10**7); sys.exit(1)").wake()
    assert len(str(failed.value)) < 500


async def test_a_command_that_is_given_up_is_ended_with_all_it_started(tmp_path):
    marker = tmp_path / "pid"
    script = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f" open({str(marker)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await command(sys.executable, "-c", script).wake()
    assert time.monotonic() - began < 4
    child = int(marker.read_text())
    async with asyncio.timeout(5):
        while _alive(child):
            await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_command_without_cool_cannot_cool():
    assert not command("true").can_cool
    activator = command("true", cool=(sys.executable, "-c", "raise SystemExit(1)"))
    assert activator.can_cool
    with pytest.raises(ActivationFailed, match="ended with 1"):
        await activator.cool()


# --------------------------------------------------------------------------------------------------- HTTP


async def test_steps_go_to_each_replica_or_to_one_place_in_order():
    async with server(lambda *_: (200, {})) as (url, got):
        wake = HttpWake(
            wake=(
                HttpStep("/manager?x=1", url=url, method="PUT", headers={"x-key": "k"}, body=b'{"a":1}'),
                HttpStep("/load"),
            ),
            cool=(HttpStep("/unload"),),
        )
        pool = at(pool_with(wake, upstream=Upstream(api_key="canary")), url)
        activator = activator_of(pool)
        await activator.wake()
        for replica in pool.replicas:
            await activator.wake_replica(replica)
        await activator.cool()
    assert [(method, path) for method, path, _, _ in got] == [
        ("PUT", "/manager?x=1"), *[("POST", "/load")] * 2, *[("POST", "/unload")] * 2,
    ]  # fmt: skip
    assert got[0][3] == '{"a":1}'
    assert got[0][2]["x-key"] == "k"
    assert "authorization" not in got[0][2], "the replicas' credentials are for replicas"
    assert got[1][2]["authorization"] == "Bearer canary"


async def test_replicas_are_woken_independently_where_that_can_be():
    async with server(lambda *_: (500, {"secret": 1})) as (url, got):
        pool = at(pool_with(HttpWake((HttpStep("/load"),))), url)
        activator = activator_of(pool)
        await activator.wake()
        assert got == []
        with pytest.raises(ActivationFailed, match=r"^replica r1 answers 500 to POST /load$"):
            await activator.wake_replica(pool.replicas[0])
        assert not activator.can_cool


async def test_nobody_there():
    pool = at(pool_with(HttpWake((HttpStep("/load"),))), "http://127.0.0.1:9")
    with pytest.raises(ActivationFailed, match="replica r1: POST /load: Connection refused"):
        await activator_of(pool).wake_replica(pool.replicas[0])


# --------------------------------------------------------------------------------------------- Kubernetes


def scaled(wake: KubernetesWake, url: str) -> Any:
    cluster = Cluster(Endpoint(url, {"authorization": "Bearer token"}), "here")
    return activator_of(pool_with(wake), cluster=lambda: cluster)


@pytest.mark.parametrize(("running", "patches"), [(0, [2]), (1, [2]), (2, []), (5, [])])
async def test_a_deployment_is_scaled_up_and_never_down(running: int, patches: list[int]):
    wake = KubernetesWake("deployment", "big", None, 2)
    async with server(lambda method, *_: (200, {"kind": "Scale", "spec": {"replicas": running}})) as (
        url,
        got,
    ):
        await scaled(wake, url).wake()
    path = "/apis/apps/v1/namespaces/here/deployments/big/scale"
    assert [(method, at_path) for method, at_path, _, _ in got] == [
        ("GET", path), *(("PATCH", path) for _ in patches)
    ]  # fmt: skip
    for _, _, headers, body in got[1:]:
        assert headers["content-type"] == "application/merge-patch+json"
        assert headers["authorization"] == "Bearer token"
        assert body == '{"spec":{"replicas":2}}'


async def test_a_stateful_set_is_scaled_to_nothing():
    wake = KubernetesWake("statefulset", "big", "there", 1)
    async with server(lambda *_: (200, {"spec": {}})) as (url, got):
        await scaled(wake, url).cool()
    ((method, path, _, body),) = got
    assert (method, path) == ("PATCH", "/apis/apps/v1/namespaces/there/statefulsets/big/scale")
    assert body == '{"spec":{"replicas":0}}'


async def test_what_the_cluster_refuses():
    async with server(lambda *_: (403, {"message": "forbidden"})) as (url, _):
        with pytest.raises(ActivationFailed, match="the Kubernetes API answers 403 to GET"):
            await scaled(KubernetesWake("deployment", "big"), url).wake()


def test_the_cluster_as_a_pod_sees_it(tmp_path):
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "namespace").write_text("models")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    cluster = in_cluster(tmp_path, environ)
    assert cluster.namespace == "models"
    assert cluster.endpoint.base_url == "https://[fd00::1]:443"
    assert cluster.endpoint.headers == {"authorization": "Bearer abc"}
    assert cluster.endpoint.ca_file == os.fspath(tmp_path / "ca.crt")
    for missing in (tmp_path / "nowhere", {}):
        with pytest.raises(ActivationFailed, match="no pod"):
            in_cluster(missing if missing else tmp_path, environ if missing else {})
