"""`headgate serve --upstream`: engines and gateway in processes of their own, and no file."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.conftest import REPO
from tests.end_to_end.test_command_line import first_url, running

NOBODY = "http://127.0.0.1:1"
HELLO = [{"role": "user", "content": "Hello!"}]


@contextlib.contextmanager
def serving(tmp_path: Path, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """`headgate serve` in a directory of its own, where its state goes too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", "0", "--admin-port", "0", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def until_used(process: "subprocess.Popen[str]") -> str:
    """What it says until it has told how to use it."""
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if "--print-config" in line:
            return said
    raise AssertionError(said)


def test_three_engines_and_no_file(tmp_path: Path) -> None:
    """Recognised, named, served with the SDK by the printed address and key; the missing one is named too."""
    with contextlib.ExitStack() as stack:
        urls = [
            first_url(
                stack.enter_context(running("engine", "--kind", kind, "--port", 0, "--model", f"org/{kind}"))
            )
            for kind in ("trtllm", "triton", "tgi")
        ]
        options = [option for url in [*urls, NOBODY] for option in ("--upstream", url)]
        with serving(tmp_path, *options) as gateway:
            said = until_used(gateway)
            for url, kind in zip(urls, ("trtllm", "triton", "tgi"), strict=True):
                assert f"{url} is {kind} " in said
            assert f"{NOBODY} is not served: Connection refused; it is asked again" in said
            assert "ensemble: only /v1/completions, no chat" in said
            assert "org/tgi: only" not in said
            client = re.search(r'OpenAI\(base_url="(\S+)", api_key="(\S+)"\)', said)
            assert client is not None
            with openai.OpenAI(base_url=client[1], api_key=client[2], max_retries=0) as sdk:
                assert {"org/trtllm", "org/tgi"} <= {model.id for model in sdk.models.list()}
                for model in ("org/trtllm", "org/tgi"):
                    chunks = sdk.chat.completions.create(
                        model=model, messages=HELLO, max_tokens=8, stream=True
                    )
                    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                pieces = sdk.completions.create(model="ensemble", prompt="Hello!", max_tokens=8, stream=True)
                assert "".join(piece.choices[0].text for piece in pieces if piece.choices)
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(timeout=20) == 0
    assert not list(tmp_path.glob("*.yaml"))


def test_print_config_is_a_file_that_check_likes(tmp_path: Path) -> None:
    with running("engine", "--kind", "vllm", "--port", 0, "--model", "org/m") as engine:
        url = first_url(engine)
        with serving(tmp_path, "--upstream", url, "--upstream", NOBODY, "--print-config") as printing:
            text, said = printing.communicate(timeout=20)
    assert printing.returncode == 0, said
    key = re.search(r"shown only now: (hg-\S+)", said)
    assert key is not None
    assert key[1] not in text
    assert url in text
    assert f"{NOBODY} is not in this file" in said
    file = tmp_path / "routes.yaml"
    file.write_text(text)
    check = [sys.executable, "-m", "gateway", "check", str(file)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=30, cwd=REPO)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 models, 1 pools with 1 replicas, 1 rules, 1 tenants" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--upstream", NOBODY, "--wait", 0.1], 3, f"{NOBODY} is not served: Connection refused"),
        (["--upstream", "ftp://gpu1"], 3, "'ftp://gpu1' is not an http:// or https:// URL"),
        (["--upstream", NOBODY, "--config", "routes.yaml"], 2, "--upstream"),
        (["--print-config"], 2, "--upstream"),
    ],
)
def test_no_start_says_why(tmp_path: Path, arguments: list[object], code: int, line: str) -> None:
    with serving(tmp_path, *arguments) as gateway:
        said = gateway.communicate(timeout=20)[1]
    assert gateway.returncode == code, said
    assert line in said
    assert "Traceback" not in said
