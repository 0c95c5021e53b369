"""`headgate limits` beside a gateway that runs."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.test_command_line import headgate
from tests.end_to_end.world import ADMIN_KEY, KEY, routes, world

TENANTS = {
    "tenant": {"limits": [{"tokens": 100, "per": "day", "name": "mine"}, {"concurrent": 4}]},
    "other": {},
}


async def test_show_and_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", ADMIN_KEY)
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, tenants=TENANTS) as here:
        async with here.http(KEY) as http:
            asked = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
            usage = (await http.post("/v1/chat/completions", json=asked)).json()["usage"]

        async def limits(*arguments: str):
            given = ("--config", here.file, "--url", here.addresses.admin)
            return await asyncio.to_thread(headgate, "limits", *arguments, *given)

        shown = await limits("show", "tenant")
        assert shown.returncode == 0, shown.stderr
        rows = {row[0]: row[1:] for row in map(str.split, shown.stdout.splitlines())}
        assert rows["mine"][:3] == ["tokens", "day", "100"]
        assert float(rows["mine"][3]) == pytest.approx(usage["total_tokens"], abs=1)
        assert rows["tenant.concurrent"][:6] == ["concurrent", "at", "a", "time", "4", "0"]
        tried = await limits("try", "--tenant", "tenant", "--tokens", "95", "--json")
        assert tried.returncode == 1
        answers = {row["limit"]: row["answer"] for row in json.loads(tried.stdout)["limits"]}
        assert answers == {"mine": "refuse", "tenant.concurrent": "grant"}
        tried = await limits("try", "--tenant", "tenant", "--prompt", "5", "--output", "5")
        assert (tried.returncode, tried.stdout.splitlines()[-1]) == (0, "granted")
        fresh = await limits("try", "--tenant", "tenant", "--tokens", "95", "--fresh")
        assert (fresh.returncode, fresh.stdout.splitlines()[-1]) == (0, "granted")
        wrong = await limits("show", "nobody")
        assert wrong.returncode == 1
        assert "'tenant' must be one of tenant, other" in wrong.stderr


def test_answers_from_the_file_ask_no_redis(tmp_path: Path) -> None:
    """The Redis that the file names belongs to the gateways that run."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.setblocking(False)
        pools = {
            "pool": {
                "engine": "trtllm",
                "serves": "m",
                "replicas": [{"id": "r", "url": "http://127.0.0.1:9"}],
            }
        }
        server = {"redis_url": f"redis://127.0.0.1:{nobody.getsockname()[1]}"}
        config = tmp_path / "routes.yaml"
        config.write_text(yaml.safe_dump(routes(pools, tenants=TENANTS, server=server)))
        tried = headgate("limits", "try", "--tenant", "tenant", "--tokens", "95", "--fresh", "-c", config)
        assert (tried.returncode, tried.stdout.splitlines()[-1]) == (0, "granted"), tried.stderr
        explained = headgate("explain", "-m", "m", "-t", "tenant", "-c", config)
        assert explained.returncode == 0, explained.stderr
        with pytest.raises(BlockingIOError):
            nobody.accept()


def test_what_cannot_be_asked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADGATE_ADMIN_KEY", raising=False)
    keyless = headgate("limits", "show", "--url", "http://127.0.0.1:9")
    assert (keyless.returncode, keyless.stdout) == (1, "")
    assert "HEADGATE_ADMIN_KEY" in keyless.stderr
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", ADMIN_KEY)
    nobody = headgate("limits", "show", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "no gateway answers at http://127.0.0.1:9" in nobody.stderr
    missing = headgate("limits", "show", "--config", tmp_path / "none.yaml")
    assert missing.returncode == 1
