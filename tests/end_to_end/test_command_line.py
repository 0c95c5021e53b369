"""The command as a person uses it, each verb in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import REPO
from tests.end_to_end.world import KEY, routes

SHIPPED = REPO / "routes.yaml"


def headgate(*arguments: object, seconds: float = 50, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=REPO,
        env={**os.environ, **environ},
    )


@contextmanager
def running(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A verb that keeps running; ended by its pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def first_url(process: "subprocess.Popen[str]", stream: str = "stdout") -> str:
    """The first URL that the process prints."""
    for line in getattr(process, stream):
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found.group()
    raise AssertionError("no URL printed")


def test_demo_once() -> None:
    """The tour visits every pool, in the form that the issue asks for, and ends with 0."""
    done = headgate("demo", "--once")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("pool=")]
    form = (
        r"pool=(\S+) replica=\S+ engine=(\S+) model=\S+ tenant=(\S+) prompt=\d+ est_total=\d+ max_tokens=\d+ "
        r"rule=\S+ ttft_ms=\d+ tok_s=\d+"
    )
    visits = [re.fullmatch(form, line) for line in lines]
    assert all(visits), lines
    assert {visit[1] for visit in visits if visit} == {
        "short-pool", "long-pool", "code-pool", "default-pool", "poet-pool",
    }  # fmt: skip
    assert {visit[2] for visit in visits if visit} == {"trtllm", "triton", "tgi", "vllm"}
    assert re.search(r"it was asleep: the request was held for [\d.]+ s until it was awake", done.stdout)
    assert "poet-pool: vllm, relay patched, 1 requests, awake, a wake takes" in done.stdout
    assert {visit[3] for visit in visits if visit} == {"acme", "globex"}
    assert done.stderr == ""


def test_check_says_everything_at_once(tmp_path: Path) -> None:
    assert headgate("check", SHIPPED).returncode == 0
    bad = tmp_path / "routes.yaml"
    text = SHIPPED.read_text().replace("deploy/", f"{REPO}/deploy/")
    text = text.replace("engine: triton", "engine: tritn").replace("pools: [code-pool]", "pools: [cod-pool]")
    bad.write_text(text.replace("weight: 2", "wieght: 2"))
    done = headgate("check", bad)
    assert done.returncode == 1
    for value, nearest in (("tritn", "triton"), ("cod-pool", "code-pool"), ("wieght", "weight")):
        number = next(i for i, line in enumerate(bad.read_text().splitlines(), 1) if value in line)
        (line,) = [line for line in done.stderr.splitlines() if f"'{value}'" in line or f" {value}" in line]
        assert f"routes.yaml:{number}:" in line
        assert nearest in line


def test_explain_prints_the_way(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("water " * 6000)
    done = headgate(
        "explain", "--config", SHIPPED, "--model", "llama3-8b-ru", "--tenant", "acme", "--prompt-file", prompt
    )
    assert done.returncode == 0, done.stderr
    assert "-> ru-long" in done.stdout
    assert "long-pool" in done.stdout
    assert "is not <= 4096" in done.stdout
    short = headgate("explain", "-c", SHIPPED, "-m", "llama3-ru", "-t", "acme", "--json")
    answer = json.loads(short.stdout)
    assert (answer["goes_to"], answer["rule"]) == ("short-pool", "ru-short")
    answers = headgate(
        "explain", "-c", SHIPPED, "-m", "llama3-ru", "-t", "acme", "-d", "responses", "--session", "s1"
    )
    assert answers.returncode == 0, answers.stderr
    assert "/v1/responses   session s1" in answers.stdout
    nowhere = headgate("explain", "-c", SHIPPED, "-m", "llama3-ru", "-t", "acme", "--door", "rerank")
    assert nowhere.returncode == 1
    assert "404: This model is not served at /v1/rerank." in nowhere.stdout
    missing = headgate("explain", "-c", SHIPPED, "-m", "nope", "-t", "acme")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "404" in missing.stderr


def test_keys(tmp_path: Path) -> None:
    made = headgate("keys", "new").stdout
    key, digest = re.search(r"key:  (\S+)", made), re.search(r'hash: ("sha256:[0-9a-f]{64}")', made)
    assert key is not None
    assert digest is not None
    assert headgate("keys", "hash", key[1]).stdout.strip() == digest[1]


@pytest.mark.parametrize("kind", ["trtllm", "triton", "tgi", "openai"])
def test_serve_before_an_engine_and_drain(kind: str, tmp_path: Path) -> None:
    """Two processes: an engine, the gateway; an answer, then SIGTERM ends a stream well."""
    with running("engine", "--kind", kind, "--port", 0, "--model", "m") as engine:
        pool = {
            "engine": kind,
            "serves": {"m": "ensemble" if kind == "triton" else "m"},
            "replicas": [{"id": "r", "url": first_url(engine)}],
        }
        config = tmp_path / "routes.yaml"
        config.write_text(yaml.safe_dump(routes({"pool": pool}, server={"drain_s": 20})))
        with running("serve", "--config", config, "--port", 0, "--admin-port", 0) as gateway:
            url = first_url(gateway, "stderr")
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": "Hello!"}],
                "max_tokens": 60,
                "stream": True,
            }
            headers = {"authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False) as http:
                with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    chunks = answer.iter_bytes()
                    got = next(chunks)
                    gateway.send_signal(signal.SIGTERM)
                    got += b"".join(chunks)
                assert got.endswith(b"data: [DONE]\n\n")
                assert b'"error"' not in got
            assert gateway.wait(timeout=20) == 0


def test_serve_refuses_to_start_badly(tmp_path: Path) -> None:
    """Exit code 3 and one clear line: a wrong file, a weak admin key, an open door, a taken port."""
    pool = {"engine": "trtllm", "serves": ["m"], "replicas": [{"id": "r", "url": "http://127.0.0.1:9"}]}
    config = tmp_path / "routes.yaml"

    def refused(why: str, *arguments: object, **environ: str) -> None:
        done = headgate("serve", "--config", config, *arguments, **environ)
        assert done.returncode == 3, done.stderr
        assert why in done.stderr
        assert "Traceback" not in done.stderr

    config.write_text("version: [")
    refused("routes.yaml:1:")
    config.write_text(yaml.safe_dump(routes({"pool": pool})))
    refused("at least 32 characters", "--port", 0, "--admin-port", 0, HEADGATE_ADMIN_KEY="short")
    refused("HEADGATE_ADMIN_KEY", "--port", 0, "--admin-port", 0, "--admin-host", "0.0.0.0")
    with running("engine", "--kind", "tgi", "--port", 0) as engine:
        refused("see --host, --port", "--port", first_url(engine).rsplit(":", 1)[1], "--admin-port", 0)
    config.write_text(yaml.safe_dump(routes({"pool": pool}, server={"authentication": "off"})))
    refused("authentication", "--host", "0.0.0.0", "--port", 0, "--admin-port", 0)


def test_the_admin_key_is_made_once(tmp_path: Path) -> None:
    pool = {"engine": "trtllm", "serves": ["m"], "replicas": [{"id": "r", "url": "http://127.0.0.1:9"}]}
    config = tmp_path / "routes.yaml"
    config.write_text(yaml.safe_dump(routes({"pool": pool}, server={"state": str(tmp_path / "state")})))
    printed = []
    for _ in range(2):
        with running("serve", "--config", config, "--port", 0, "--admin-port", 0) as gateway:
            first_url(gateway, "stderr")
            gateway.send_signal(signal.SIGINT)
            assert gateway.stderr is not None
            printed.append(gateway.stderr.read())
    assert "shown only now: hg-" in printed[0]
    assert "shown only now" not in printed[1]
    kept = tmp_path / "state" / "admin-key.sha256"
    assert kept.stat().st_mode & 0o077 == 0


def test_a_file_runs_programs_only_where_that_is_allowed(tmp_path: Path) -> None:
    """At the start by a flag; `check` looks at the file alone."""
    pool = {
        "engine": "trtllm", "serves": ["m"], "replicas": [{"id": "r", "url": "http://127.0.0.1:9"}],
        "state": "cold", "wake": {"kind": "command", "wake": ["true"]},
    }  # fmt: skip
    config = tmp_path / "routes.yaml"
    config.write_text(yaml.safe_dump(routes({"pool": pool}, server={"state": str(tmp_path / "state")})))
    assert headgate("check", config).returncode == 0
    done = headgate("serve", "--config", config, "--port", 0, "--admin-port", 0)
    assert done.returncode == 3
    assert "pools.pool.wake runs a command (--allow-commands" in done.stderr
    with running("serve", "-c", config, "--port", 0, "--admin-port", 0, "--allow-commands") as gateway:
        first_url(gateway, "stderr")
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(timeout=20) == 0
