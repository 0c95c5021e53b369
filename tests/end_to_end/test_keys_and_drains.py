"""Keys and drains while the gateway works: who may still ask, who is asked, and what streams see of it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.state.store import StateStore
from gateway.tenants.keys import KeyDesk
from tests.end_to_end.world import KEY, OTHER_KEY, World, world

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
LONG = {**CHAT, "max_tokens": 400, "stream": True}
SLOW = {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 3.0}


async def ask(here: World, key: str | None = KEY, **more: Any) -> httpx.Response:
    async with here.http(key) as http:
        return await http.post("/v1/chat/completions", json={**CHAT, **more})


async def post(here: World, path: str, body: Any = None) -> httpx.Response:
    async with here.admin() as admin:
        return await admin.post(path, json=body)


async def test_a_key_is_made_used_rotated_and_revoked(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, durable=True) as here:
        made = await post(here, "/admin/keys", {"tenant": "tenant", "id": "laptop", "expires": "30d"})
        assert made.status_code == 201
        first = made.json()
        assert (first["tenant"], first["state"], first["source"]) == ("tenant", "active", "store")
        assert first["expires"] == pytest.approx(time.time() + 30 * 86400, abs=60)
        assert (await ask(here, first["key"])).status_code == 200
        rotated = await post(here, "/admin/keys/laptop/rotate", {"grace": "1h"})
        assert rotated.status_code == 201
        second = rotated.json()
        assert [(await ask(here, key)).status_code for key in (first["key"], second["key"])] == [200, 200]
        third = (await post(here, "/admin/keys/laptop/rotate")).json()
        answers = [await ask(here, key) for key in (first["key"], second["key"], third["key"])]
        assert [answer.status_code for answer in answers] == [401, 401, 200]
        assert (await post(here, "/admin/keys/laptop/revoke")).status_code == 200
        assert [(await ask(here, made["key"])).status_code for made in (first, second, third)] == [401] * 3
        async with here.admin() as admin:
            listed = await admin.get("/admin/keys")
            states = [(row["id"], row["state"], row["source"]) for row in listed.json()["keys"]]
            assert states == [
                ("tenant-1", "active", "file"),
                ("other-1", "active", "file"),
                *[("laptop", "revoked", "store")] * 3,
            ]
            assert not any(each["key"] in listed.text for each in (first, second, third))
            audit = (await admin.get("/admin/audit")).json()["audit"]
            actions = [row["action"] for row in audit]
            assert actions == ["keys.revoke", "keys.rotate", "keys.rotate", "keys.create"]
            assert {row["who"] for row in audit} == {"admin@127.0.0.1"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/admin/keys", None, 400),
        ("/admin/keys", {"tenant": "nobody"}, 400),
        ("/admin/keys", {"tenant": "tenant", "expires": "soon"}, 400),
        ("/admin/keys", {"tenant": "tenant", "id": "../x"}, 400),
        ("/admin/keys", {"tenant": "tenant", "hash": "x"}, 400),
        ("/admin/keys", {"tenant": "tenant", "id": "tenant-1"}, 409),
        ("/admin/keys/nothing/rotate", None, 404),
        ("/admin/keys/nothing/revoke", None, 404),
        ("/admin/keys/other-1/rotate", {"grace": 5}, 400),
        ("/admin/replicas/nothing/drain", None, 404),
        ("/admin/replicas/nothing/enable", None, 404),
    ],
)
async def test_what_cannot_be_is_told(path: str, body: Any, status: int, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        answer = await post(here, path, body)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
        twice = [(await post(here, "/admin/keys", {"tenant": "tenant", "id": "x"})).status_code for _ in "ab"]
        assert twice == [201, 409]


async def test_a_revocation_ends_no_stream_and_no_other_key(tmp_path: Path) -> None:
    """F49: who streams keeps streaming; the next request with that key is refused, another's is not."""
    async with world(tmp_path, {"pool": SLOW}) as here, here.http() as http:
        async with http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            chunks = answer.aiter_bytes()
            got = await anext(chunks)
            assert (await post(here, "/admin/keys/tenant-1/revoke")).status_code == 200
            assert (await ask(here)).status_code == 401
            assert (await ask(here, OTHER_KEY)).status_code == 200
            got += b"".join([chunk async for chunk in chunks])
        assert got.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in got
        assert (await ask(here)).status_code == 401


async def test_another_processs_revocation_holds_within_a_second(tmp_path: Path) -> None:
    """As `headgate keys revoke` does it: on the same state, by another connection."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, durable=True) as here:
        assert (await ask(here)).status_code == 200
        outside = StateStore.at(Path(here.gateway.runtime.snapshot.server.state))
        try:
            desk = KeyDesk(outside)
            desk.revoke(here.gateway.runtime.snapshot, "tenant-1", who="cli:test")
            made = desk.create(
                here.gateway.runtime.snapshot, "tenant", key_id=None, lifetime=None, who="cli:test"
            )
            end = time.monotonic() + 1
            while (await ask(here)).status_code != 401:
                assert time.monotonic() < end
            assert (await ask(here, made.key)).status_code == 200
        finally:
            outside.close()


async def test_revocations_and_drains_outlive_a_restart(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "replicas": 2}}
    async with world(tmp_path, engines, durable=True) as here:
        made = (await post(here, "/admin/keys", {"tenant": "tenant"})).json()["key"]
        await post(here, "/admin/keys/tenant-1/revoke")
        await post(here, "/admin/replicas/pool-1/drain")
    async with world(tmp_path, engines, durable=True) as here:
        assert [(await ask(here, key)).status_code for key in (KEY, made, OTHER_KEY)] == [401, 200, 200]
        async with here.admin() as admin:
            rows = (await admin.get("/admin/replicas")).json()["replicas"]
        assert [row["drained"] and row["drained"]["who"] for row in rows] == ["admin@127.0.0.1", None]
        assert {(await ask(here, made)).headers["x-headgate-replica"] for _ in range(4)} == {"pool-2"}


async def test_a_drain_lets_streams_end_and_sends_nothing_new(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {**SLOW, "replicas": 2}}) as here, here.http() as http:
        async with http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            chunks = answer.aiter_bytes()
            got = await anext(chunks)
            busy = answer.headers["x-headgate-replica"]
            drained = (await post(here, f"/admin/replicas/{busy}/drain")).json()
            assert (drained["in_flight"], drained["idle"]) == (1, False)
            assert drained["drained"]["who"] == "admin@127.0.0.1"
            others = {(await ask(here)).headers["x-headgate-replica"] for _ in range(5)}
            assert others == {"pool-1", "pool-2"} - {busy}
            got += b"".join([chunk async for chunk in chunks])
        assert got.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in got
        await here.wait_at_rest()
        again = (await post(here, f"/admin/replicas/{busy}/drain")).json()
        assert (again["in_flight"], again["idle"]) == (0, True)
        assert again["drained"] == drained["drained"]
        assert (await post(here, f"/admin/replicas/{busy}/enable")).json()["drained"] is None
        assert busy in {(await ask(here)).headers["x-headgate-replica"] for _ in range(5)}


async def test_drained_means_excluded_even_if_nothing_else_is_left(tmp_path: Path) -> None:
    """Unlike a replica that cools down, a drained one is no last resort; readiness and metrics follow."""
    rules = [{"name": "all", "pools": ["a", "b"]}]
    async with world(tmp_path, {"a": {"kind": "trtllm"}, "b": {"kind": "tgi"}}, rules=rules) as here:
        await post(here, "/admin/replicas/a-1/drain")
        assert (await ask(here)).headers["x-headgate-pool"] == "b"
        async with here.http() as http:
            assert (await http.get("/readyz")).status_code == 200
            await post(here, "/admin/replicas/b-1/drain")
            assert (await http.get("/readyz")).json() == {"status": "no replica"}
            answer = await ask(here)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
            text = (await http.get("/metrics")).text
            assert 'headgate_replica_drained{pool="a",replica="a-1"} 1.0' in text
            assert 'headgate_replica_ready{pool="a",replica="a-1"} 0.0' in text
        await post(here, "/admin/replicas/a-1/enable")
        assert (await ask(here)).headers["x-headgate-pool"] == "a"


async def test_who_waits_in_line_of_a_drained_replica_waits_for_it(tmp_path: Path) -> None:
    pools = {"pool": {"limits": {"in_flight": 1}}}
    async with world(tmp_path, {"pool": SLOW}, pools=pools) as here, here.http() as http:
        async with asyncio.TaskGroup() as group:
            async with http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
                chunks = answer.aiter_bytes()
                await anext(chunks)
                waiting = group.create_task(ask(here))
                queue = here.gateway.runtime.queues["pool"]
                async with asyncio.timeout(5):
                    while not queue.statistics().waiting:
                        await asyncio.sleep(0.005)
                await post(here, "/admin/replicas/pool-1/drain")
            async with asyncio.timeout(5):
                while here.in_flight():
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert queue.statistics().waiting == 1
            assert not waiting.done()
            await post(here, "/admin/replicas/pool-1/enable")
        assert waiting.result().status_code == 200
