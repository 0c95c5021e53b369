"""A real `llama-server` on loopback, with the tiny model of `model.py`.

It is not built here. `HEADGATE_LLAMA_SERVER` names the program, or it is found on PATH; any build will do,
e.g. that of llama.cpp's sources inside the llama-cpp-python source package (docs/engines.md says how).
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.world import TOKENIZER
from tests.real_llamacpp.model import write_model

__all__ = ["CONTEXT", "MODEL", "SLOTS", "LlamaServer", "program", "running"]

MODEL = "tiny"
SLOTS = 4
CONTEXT = 4096
"""Of each slot."""
READY_SECONDS = 30.0
STOP_SECONDS = 5.0
PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class LlamaServer:
    url: str

    def busy(self) -> int:
        """Slots that work."""
        slots: list[dict[str, Any]] = httpx.get(f"{self.url}/slots", trust_env=False).json()
        return sum(slot["is_processing"] for slot in slots)


def program() -> str | None:
    """The program to run; None where there is none."""
    return shutil.which(os.environ.get("HEADGATE_LLAMA_SERVER") or "llama-server")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[LlamaServer]:
    """A server with its model loaded. Call `program` first."""
    found = program()
    assert found is not None
    model, log = directory / "tiny.gguf", directory / "server.log"
    write_model(model, TOKENIZER)
    for attempts_left in reversed(range(PORT_ATTEMPTS)):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [
            found, "--model", str(model), "--alias", MODEL, "--host", "127.0.0.1", "--port", str(port),
            "--ctx-size", str(SLOTS * CONTEXT), "--parallel", str(SLOTS), "--threads", "1", "--metrics",
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            server = LlamaServer(f"http://127.0.0.1:{port}")
            if _wait_ready(process, server):
                yield server
                return
            if not attempts_left:  # another process may have been faster to take the port
                raise RuntimeError(f"llama-server is not ready: {log.read_text(errors='replace')[-4000:]}")
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait(STOP_SECONDS)


def _wait_ready(process: subprocess.Popen[bytes], server: LlamaServer) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health", trust_env=False).status_code == 200:
                return True
        time.sleep(0.05)
    return False
