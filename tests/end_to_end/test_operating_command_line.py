"""Keys and reloads as an operator does them: the command beside a gateway in a process of its own."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml

from tests.end_to_end.test_command_line import first_url, headgate, running
from tests.end_to_end.world import ADMIN_KEY, KEY, routes

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for `condition`; the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds
        time.sleep(0.02)
    return time.monotonic() - start


def test_keys_and_sighup_beside_a_running_gateway(tmp_path: Path, monkeypatch) -> None:
    """Made by the command and used at once; revoked by the command and refused within a second; SIGHUP
    takes a new file and keeps the old for a broken one; a restart forgets nothing."""
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", ADMIN_KEY)
    config = tmp_path / "routes.yaml"

    def status(http: httpx.Client, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return http.post("/v1/chat/completions", json=CHAT, headers=headers).status_code

    with running("engine", "--kind", "tgi", "--port", 0, "--model", "m") as engine:
        pool = {"engine": "tgi", "serves": ["m"], "replicas": [{"id": "r", "url": first_url(engine)}]}
        good = routes({"pool": pool}, server={"state": str(tmp_path / "state"), "drain_s": 1})
        config.write_text(yaml.safe_dump(good))
        serve = ("serve", "--config", config, "--port", 0, "--admin-port", 0)
        with running(*serve) as gateway:
            assert gateway.stderr is not None
            line = next(line for line in gateway.stderr if "headgate serves" in line)
            data, admin = re.findall(r"http://127\.0\.0\.1:\d+", line)
            with httpx.Client(base_url=data, trust_env=False) as http:
                made = headgate("keys", "create", "--tenant", "tenant", "--id", "laptop", "-c", config)
                assert made.returncode == 0, made.stderr
                found = re.search(r"key: +(\S+)", made.stdout)
                assert found is not None
                key = found[1]
                until(lambda: status(http, key) == 200, 1)
                assert headgate("keys", "revoke", "laptop", "-c", config).returncode == 0
                until(lambda: status(http, key) == 401, 1)
                assert headgate("keys", "revoke", "tenant-1", "-c", config).returncode == 0
                until(lambda: status(http, KEY) == 401, 1)
                rotated = headgate("keys", "rotate", "other-1", "--grace", "1h", "-c", config)
                assert rotated.returncode == 0, rotated.stderr
                listed = headgate("keys", "list", "-c", config).stdout
                table = [line.split()[:4] for line in listed.splitlines()]
                assert table == [
                    ["ID", "TENANT", "STATE", "SOURCE"],
                    ["other-1", "other", "retiring", "file"],
                    ["tenant-1", "tenant", "revoked", "file"],
                    ["laptop", "tenant", "revoked", "store"],
                    ["other-1", "other", "active", "store"],
                ]
                assert key not in listed

            headers = {"authorization": f"Bearer {ADMIN_KEY}"}
            with httpx.Client(base_url=admin, headers=headers, trust_env=False) as http:

                def last() -> dict[str, object]:
                    return dict(http.get("/admin/config").json()["last_reload"])

                first = last()
                config.write_text("version: [")
                gateway.send_signal(signal.SIGHUP)
                until(lambda: last()["ok"] is False)
                assert last()["hash"] == first["hash"]
                config.write_text(yaml.safe_dump({**good, "rules": [{"name": "new", "pools": ["pool"]}]}))
                gateway.send_signal(signal.SIGHUP)
                until(lambda: last()["ok"] is True and last()["hash"] != first["hash"])
            assert gateway.poll() is None
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(timeout=20) == 0
        with running(*serve) as gateway:
            with httpx.Client(base_url=first_url(gateway, "stderr"), trust_env=False) as http:
                assert [status(http, each) for each in (key, KEY)] == [401, 401]


def test_key_commands_say_what_is_wrong(tmp_path: Path) -> None:
    pool = {"engine": "tgi", "serves": ["m"], "replicas": [{"id": "r", "url": "http://127.0.0.1:9"}]}
    config = tmp_path / "routes.yaml"
    config.write_text(yaml.safe_dump(routes({"pool": pool}, server={"state": str(tmp_path / "state")})))
    for arguments, code, word in (
        (("create", "--tenant", "nobody"), 1, "tenant"),
        (("create", "--tenant", "tenant", "--expires", "soon"), 2, "duration"),
        (("revoke", "nothing"), 1, "nothing"),
        (("rotate", "nothing"), 1, "nothing"),
    ):
        done = headgate("keys", *arguments, "--config", config)
        assert (done.returncode, word in done.stderr, "Traceback" in done.stderr) == (code, True, False)
    (tmp_path / "blocked").write_text("")
    config.write_text(yaml.safe_dump(routes({"pool": pool}, server={"state": str(tmp_path / "blocked")})))
    done = headgate("keys", "create", "--tenant", "tenant", "--config", config)
    assert done.returncode == 1, "a key that would be forgotten is not made"
    assert "blocked" in done.stderr
