"""Reloads while the gateway works: swapped whole or not at all, and streams keep what they started with."""

import asyncio
import gc
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.cli.serve import refuse_open_door
from gateway.runtime import Runtime
from tests.end_to_end.world import ADMIN_KEY, KEY, OTHER_KEY, World, world

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
LONG = {**CHAT, "max_tokens": 400, "stream": True}
SLOW = {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 3.0}
PAIR = {"a": {**SLOW}, "b": {"kind": "tgi"}}


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the routes file, in one step, as an editor should."""
    routes = yaml.safe_load(path.read_text())
    change(routes)
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(routes, sort_keys=False))
    new.replace(path)


async def ask(here: World, key: str = KEY, **more: Any) -> httpx.Response:
    async with here.http(key) as http:
        return await http.post("/v1/chat/completions", json={**CHAT, **more})


async def reload(here: World) -> httpx.Response:
    async with here.admin() as admin:
        return await admin.post("/admin/config/reload")


async def config(here: World) -> dict[str, Any]:
    async with here.admin() as admin:
        return dict((await admin.get("/admin/config")).json())


async def test_a_stream_keeps_its_pool_when_the_file_drops_it(tmp_path: Path) -> None:
    """F46, F48: the old stream ends whole on the pool that is gone; new requests go elsewhere at once."""
    async with world(tmp_path, PAIR) as here, here.http() as http:
        before = await config(here)
        async with http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            chunks = answer.aiter_bytes()
            got = await anext(chunks)
            assert answer.headers["x-headgate-pool"] == "a"

            def without_a(routes: dict[str, Any]) -> None:
                del routes["pools"]["a"], routes["tenants"]["other"]
                routes["rules"] = [{"name": "all", "pools": ["b"]}]

            rewrite(here.file, without_a)
            done = await reload(here)
            assert (done.status_code, done.json()["ok"]) == (200, True)
            assert (await ask(here)).headers["x-headgate-pool"] == "b"
            assert (await ask(here, OTHER_KEY)).status_code == 401
            now = await config(here)
            assert now["hash"] == done.json()["hash"] != before["hash"]
            assert now["older_in_use"] == 1
            assert list(now["summary"]["pools"]) == ["b"]
            text = (await http.get("/metrics")).text
            assert 'replica="a-1"' not in text
            got += b"".join([chunk async for chunk in chunks])
        assert got.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in got
        await here.wait_at_rest()
        assert (await config(here))["older_in_use"] == 0


async def test_an_invalid_file_keeps_the_old_and_says_why(tmp_path: Path) -> None:
    """F47: no request notices; the answer, /admin/config and the metrics have the problems."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        good = await config(here)
        for text, word in (
            ("version: [", "routes.yaml:1"),
            (here.file.read_text().replace("trtllm", "trtlm"), "'trtlm'"),
            (here.file.read_text().replace("headgate-mini", "nothing-here"), "nothing-here"),
        ):
            sound = here.file.read_text()
            here.file.write_text(text)
            refused = await reload(here)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "config_invalid"
            assert any(word in problem for problem in refused.json()["problems"]), refused.text
            assert (await ask(here)).status_code == 200
            now = await config(here)
            assert (now["hash"], now["loaded_at"]) == (good["hash"], good["loaded_at"])
            assert (now["last_reload"]["ok"], now["last_reload"]["problems"] != []) == (False, True)
            async with here.http() as http:
                metrics = (await http.get("/metrics")).text
            assert "headgate_config_last_reload_successful 0.0" in metrics
            assert f'headgate_config_info{{hash="{good["hash"]}"}} 1.0' in metrics
            here.file.write_text(sound)
        assert (await reload(here)).json()["ok"]
        async with here.http() as http:
            assert "headgate_config_last_reload_successful 1.0" in (await http.get("/metrics")).text


async def test_what_stays_keeps_its_books_and_levels(tmp_path: Path) -> None:
    """In flight, the replica's history and what is left of a limit; another weight takes hold."""
    tenants = {"tenant": {"limits": [{"tokens": 100_000, "per": "day"}]}, "other": {}}
    async with world(tmp_path, {"a": SLOW}, tenants=tenants) as here, here.http() as http:
        async with http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            chunks = answer.aiter_bytes()
            await anext(chunks)
            ((_, ledger),) = here.gateway.runtime.ledgers()
            (limit,) = (await here.limits()).values()
            counting = here.gateway.runtime.counting

            def heavier(routes: dict[str, Any]) -> None:
                routes["pools"]["a"]["replicas"][0]["weight"] = 3
                routes["pools"]["a"]["upstream"] = {"api_key": "new-secret"}
                routes["pools"]["a"]["timeouts"] = {"connect_s": 7}

            rewrite(here.file, heavier)
            assert (await reload(here)).json()["ok"]
            ((_, kept),) = here.gateway.runtime.ledgers()
            assert kept is ledger
            assert (kept.in_flight, kept.replica.weight) == (1, 3)
            assert (await here.limits())[limit.account].free < limit.amount
            assert here.gateway.runtime.counting is not counting
            assert len(here.gateway.transports()) == 2
            assert (await ask(here)).status_code == 200
            assert here.engine().statistics().recent[-1].headers["authorization"] == "Bearer new-secret"
        await here.wait_at_rest()
        async with asyncio.timeout(5):
            while len(here.gateway.transports()) > 1:
                await asyncio.sleep(0.01)


async def test_a_slot_of_the_old_configuration_goes_to_who_waits_in_the_new(tmp_path: Path) -> None:
    pools = {"a": {"limits": {"in_flight": 1}}}
    async with world(tmp_path, {"a": SLOW}, pools=pools) as here, here.http() as http:
        async with asyncio.TaskGroup() as group:
            async with http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
                chunks = answer.aiter_bytes()
                await anext(chunks)
                old_waiter = group.create_task(ask(here))
                await _wait_for_line(here)
                old_queue = here.gateway.runtime.queues["a"]
                assert (await reload(here)).json()["ok"]
                new_waiter = group.create_task(ask(here))
                await _wait_for_line(here)
                assert old_queue.statistics().waiting == 1
                assert here.in_flight() == 1
        assert (old_waiter.result().status_code, new_waiter.result().status_code) == (200, 200)


async def _wait_for_line(here: World) -> None:
    async with asyncio.timeout(5):
        while not here.gateway.runtime.queues["a"].statistics().waiting:
            await asyncio.sleep(0.005)


async def test_revocations_and_drains_outlive_reloads_unless_their_replica_goes(tmp_path: Path) -> None:
    async with world(tmp_path, {"a": {"kind": "trtllm", "replicas": 2}}, durable=True) as here:
        async with here.admin() as admin:
            await admin.post("/admin/keys/other-1/revoke")
            made = (await admin.post("/admin/keys", json={"tenant": "other"})).json()["key"]
            await admin.post("/admin/replicas/a-2/drain")
            assert (await reload(here)).json()["ok"]
            assert [(await ask(here, key)).status_code for key in (OTHER_KEY, made)] == [401, 200]
            assert {(await ask(here)).headers["x-headgate-replica"] for _ in range(3)} == {"a-1"}
            both = yaml.safe_load(here.file.read_text())

            def less(routes: dict[str, Any]) -> None:
                del routes["pools"]["a"]["replicas"][1], routes["tenants"]["other"]

            rewrite(here.file, less)
            assert (await reload(here)).json()["ok"]
            assert (await ask(here, made)).status_code == 401
            rewrite(here.file, lambda routes: routes.update(both))
            assert (await reload(here)).json()["ok"]
            # The tenant is back, and its store key with it; what was revoked stays so; the drain is gone.
            assert [(await ask(here, key)).status_code for key in (OTHER_KEY, made)] == [401, 200]
            rows = (await admin.get("/admin/replicas")).json()["replicas"]
            assert [row["drained"] for row in rows] == [None, None]


async def test_addresses_and_state_stay_with_a_warning(tmp_path: Path) -> None:
    async with world(tmp_path, {"a": {"kind": "trtllm"}}) as here:
        server = here.gateway.runtime.snapshot.server
        rewrite(here.file, lambda routes: routes["server"].update(listen="127.0.0.1:9", state="./elsewhere"))
        done = (await reload(here)).json()
        assert done["ok"]
        assert [warning.split()[0] for warning in done["warnings"]] == ["server.listen", "server.state"]
        now = here.gateway.runtime.snapshot.server
        assert (now.listen, now.state) == (server.listen, server.state)
        assert (await config(here))["warnings"] == done["warnings"]


async def test_no_reload_opens_a_door_that_the_start_would_not(tmp_path: Path) -> None:
    """The file names loopback now, but the gateway listens where it started: that is what counts."""
    async with world(tmp_path, {"a": {"kind": "trtllm"}}) as here:
        gateway = here.gateway
        server = replace(gateway.runtime.snapshot.server, listen=("0.0.0.0", 8080))
        gateway.runtime = replace(gateway.runtime, snapshot=replace(gateway.runtime.snapshot, server=server))
        assert gateway.reloader._source is not None
        gateway.reloader._source = replace(
            gateway.reloader._source, admit=partial(refuse_open_door, insecure=False)
        )
        rewrite(here.file, lambda routes: routes["server"].update(authentication="off"))
        refused = await reload(here)
        assert (refused.status_code, refused.json()["ok"]) == (400, False)
        assert "authentication" in refused.json()["problems"][0]
        assert (await ask(here, "nobody")).status_code == 401


async def test_the_file_is_watched_through_a_swapped_symlink(tmp_path: Path) -> None:
    """A ConfigMap volume: routes.yaml -> ..data/routes.yaml, ..data -> a directory that is swapped."""
    async with world(tmp_path, {"a": {"kind": "trtllm"}}) as here:
        first, second = tmp_path / "..1", tmp_path / "..2"
        first.mkdir()
        second.mkdir()
        text = here.file.read_text()
        (first / "routes.yaml").write_text(text)
        (second / "routes.yaml").write_text(text + "\n# second\n")
        (tmp_path / "..data").symlink_to("..1")
        here.file.unlink()
        here.file.symlink_to("..data/routes.yaml")
        started = (await config(here))["hash"]
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        async with asyncio.timeout(5):
            while (now := await config(here))["hash"] == started:
                await asyncio.sleep(0.05)
        assert now["last_reload"]["by"] == "file"
        assert now["last_reload"]["ok"]


def leftovers(here: World, threads: int) -> list[str]:
    """What reloads left behind that should have gone."""
    left = []
    if here.gateway.older_in_use:
        left.append(f"configurations: {here.gateway.older_in_use}")
    if len(here.gateway.transports()) > 2:  # the two pools have connect timeouts of their own
        left.append(f"transports: {len(here.gateway.transports())}")
    if (now := threading.active_count()) > threads + 12:
        left.append(f"threads: {threads} -> {now}: {sorted(each.name for each in threading.enumerate())}")
    return left


async def test_a_storm_of_reloads_under_load_fails_nothing_and_leaks_nothing(tmp_path: Path) -> None:
    """100 reloads, some of them of broken files, while clients stream: every answer whole, nothing left."""
    engines = {"a": {"kind": "trtllm", "replicas": 2}, "b": {"kind": "tgi"}}
    async with world(tmp_path, engines, probe=True) as here:
        stop = asyncio.Event()
        seen: list[int] = []

        async def client() -> None:
            async with here.http() as http:
                while not stop.is_set():
                    body = {**CHAT, "max_tokens": 20, "stream": True}
                    answer = await http.post("/v1/chat/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    assert answer.text.endswith("data: [DONE]\n\n")
                    assert '"error"' not in answer.text
                    seen.append(len(answer.text))

        whole = here.file.read_text()
        good = yaml.safe_load(whole)
        threads = threading.active_count()
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(client())
            for number in range(100):
                good["pools"]["a"]["replicas"][1]["weight"] = 1 + number % 5
                good["pools"]["a"]["timeouts"] = {"connect_s": 2 + number % 3}
                good["rules"] = [{"name": "all", "pools": ["a", "b"] if number % 2 else ["b", "a"]}]
                broken = number % 10 == 9
                here.file.write_text("version: [" if broken else yaml.safe_dump(good))
                assert (await here.gateway.reloader.reload("test")).ok is not broken
            stop.set()
        assert len(seen) > 50
        await here.wait_at_rest()
        end = asyncio.get_running_loop().time() + 10
        while left := leftovers(here, threads):
            assert asyncio.get_running_loop().time() < end, left
            await asyncio.sleep(0.01)
        gc.collect()
        assert sum(isinstance(each, Runtime) for each in gc.get_objects()) <= 4
        for _, ledger in here.gateway.runtime.ledgers():
            assert len(ledger._watchers) == 1


async def test_without_a_file_there_is_nothing_to_reload(tmp_path: Path) -> None:
    async with world(tmp_path, {"a": {"kind": "trtllm"}}) as here:
        here.gateway.reloader._source = None  # as with `--upstream`
        answer = await reload(here)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/admin/routes/explain"])
async def test_a_request_that_only_counts_keeps_its_configuration_too(tmp_path: Path, path: str) -> None:
    """Its body is still coming when the file changes: its counting threads wait for it."""
    body = json.dumps({**CHAT, "tenant": "tenant"} if "explain" in path else CHAT).encode()
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        url, key = (
            (here.addresses.admin, ADMIN_KEY) if path.startswith("/admin") else (here.addresses.data, KEY)
        )
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:5])
        old = here.gateway.runtime
        async with asyncio.timeout(5):
            while not old.leases.held:
                await asyncio.sleep(0.005)
        rewrite(here.file, lambda routes: routes["models"]["m"].update(context=4096))
        assert (await reload(here)).json()["ok"]
        assert here.gateway.older_in_use == 1
        writer.write(body[5:])
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        await here.wait_at_rest()
        assert here.gateway.older_in_use == 0
