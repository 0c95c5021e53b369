"""A real `llama-server` on loopback, with the tiny model of `llamacpp_model.py`.

It is not built here. `HEADGATE_LLAMA_SERVER` names the program, or it is found on PATH; any build will do,
e.g. that of llama.cpp's sources inside the llama-cpp-python source package (docs/engines.md says how).
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.world import TOKENIZER
from tests.real_engines.asking import serving
from tests.real_engines.llamacpp_model import write_model

__all__ = ["CONTEXT", "MODEL", "SLOTS", "LlamaServer", "program", "running"]

MODEL = "tiny"
SLOTS = 4
CONTEXT = 4096
"""Of each slot."""
READY_SECONDS = 30.0


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
    model = directory / "tiny.gguf"
    write_model(model, TOKENIZER)

    def command(port: int) -> list[str]:
        return [
            found, "--model", str(model), "--alias", MODEL, "--host", "127.0.0.1", "--port", str(port),
            "--ctx-size", str(SLOTS * CONTEXT), "--parallel", str(SLOTS), "--threads", "1", "--metrics",
        ]  # fmt: skip

    with serving(command, directory / "server.log", ready_seconds=READY_SECONDS) as url:
        yield LlamaServer(url)
