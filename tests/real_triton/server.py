"""A real `tritonserver` on loopback: the one inside the nvidia-pytriton wheel, without PyTriton.

The wheel holds the server, its python backend, and for each version of Python a stub that embeds it. The stub
must load the libpython of the interpreter whose standard library it will use, so that one is put before the
copy in the wheel. Models:

    tensorrt_llm_bls              text in deltas; looks at each token whether its request was cancelled
    tensorrt_llm_bls_accumulating all text so far in each event
    ensemble                      an ensemble of one step, over the first
    small_queue                   one request at a time; one more may wait
    shipped_bls                   over `inner`: as TensorRT-LLM's, never looks whether it was cancelled
    attentive_bls                 over `inner`: looks, and tells it to stop
    tensorrt_llm                  llmapi: other tensors, other manners
    sleepy                        like the first, for the test that unloads it
"""

import contextlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

READY_SECONDS = 60.0
STOP_SECONDS = 5.0
ATTEMPTS = 3
PORT_TAKEN = "already in use"
"""In Triton's log, where another process was faster; tried again."""
LATE = "lock_exception"
"""Likewise, where a stub did not come up within ten seconds: a machine with too much to do."""

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

INPUTS = {
    "text_input": "STRING", "max_tokens": "INT32", "stop_words": "STRING", "bad_words": "STRING",
    "stream": "BOOL", "exclude_input_in_output": "BOOL", "top_k": "INT32", "top_p": "FP32",
    "temperature": "FP32", "length_penalty": "FP32", "repetition_penalty": "FP32", "min_tokens": "INT32",
    "presence_penalty": "FP32", "frequency_penalty": "FP32", "seed": "UINT64",
    "return_num_input_tokens": "BOOL", "return_num_output_tokens": "BOOL",
}  # fmt: skip
"""As in inflight_batcher_llm/tensorrt_llm_bls/config.pbtxt of tensorrtllm_backend."""
OUTPUTS = {"text_output": "STRING", "num_input_tokens": "INT32", "num_output_tokens": "INT32"}
LOGITS = {"context_logits": "FP32"}
LLMAPI_INPUTS = {
    "text_input": "STRING", "streaming": "BOOL", "sampling_param_temperature": "FP32",
    "sampling_param_top_k": "INT32", "sampling_param_top_p": "FP32",
    "sampling_param_frequency_penalty": "FP32", "sampling_param_presence_penalty": "FP32",
    "sampling_param_max_tokens": "INT32",
    "sampling_param_stop": "STRING", "sampling_param_seed": "UINT64",
    "sampling_param_exclude_input_from_output": "BOOL", "return_finish_reason": "BOOL",
    "return_stop_reason": "BOOL", "stop": "BOOL",
}  # fmt: skip
"""As in all_models/llmapi/tensorrt_llm/config.pbtxt of TensorRT-LLM."""
LLMAPI_OUTPUTS = {"text_output": "STRING", "finish_reason": "STRING", "stop_reason": "STRING", **LOGITS}
REQUIRED = ("text_input", "max_tokens")
_LISTS = ("stop_words", "bad_words")


@dataclass(frozen=True, slots=True)
class TritonServer:
    url: str
    metrics_url: str
    directory: Path
    pid: int
    grpc: str | None = None
    """host:port, where it was asked for."""

    def journal(self, part: str) -> list[dict[str, Any]]:
        """What the models did about prompts with `part` in them: `model`, `id`, `event` (see
        `speaking.py`), `prompt`, `tokens` so far and `at`, in seconds of the monotonic clock."""
        path = self.directory / "journal.jsonl"
        lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if part in entry["prompt"]]

    def events(self, part: str) -> list[str]:
        """The events of the journal alone."""
        return [entry["event"] for entry in self.journal(part)]

    def lives(self) -> bool:
        """Whether it answers at all."""
        try:
            return httpx.get(f"{self.url}/v2/health/live", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def pending(self, model: str) -> int:
        """Requests that wait in Triton's queue."""
        metrics = httpx.get(self.metrics_url, trust_env=False).text
        found = re.search(rf'nv_inference_pending_request_count{{model="{model}".*}} (\d+)', metrics)
        return int(found[1]) if found else 0


# ------------------------------------------------------------------------------------------- the wheel


def why_not() -> str | None:
    """Why this machine cannot run it; None where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"no wheel for {sys.platform} {platform.machine()}"
    wheel = _wheel()
    if wheel is None:
        return "nvidia-pytriton is not installed"
    if not _stub(wheel).is_file():
        return f"nvidia-pytriton has no backend for Python {VERSION}"
    if _libpython() is None:
        return f"this Python {VERSION} has no shared libpython"
    return None


def _wheel() -> Path | None:
    """The directory that the wheel is unpacked in."""
    spec = importlib.util.find_spec("pytriton")
    return None if spec is None or spec.origin is None else Path(spec.origin).parents[1]


def _stub(wheel: Path) -> Path:
    stubs = wheel / "pytriton" / "tritonserver" / "python_backend_stubs"
    return stubs / VERSION / "triton_python_backend_stub"


def _libpython() -> Path | None:
    name = sysconfig.get_config_var("INSTSONAME") or ""
    places = (Path(sysconfig.get_config_var("LIBDIR") or "/"), Path(sys.base_prefix) / "lib")
    return next((place / name for place in places if ".so" in name and (place / name).is_file()), None)


# ---------------------------------------------------------------------------------------- preparation


_HERE = Path(__file__).parent
_DECOUPLED = 'backend: "python"\nmodel_transaction_policy { decoupled: true }'


def _write_models(repository: Path) -> None:
    classic = {"program": "classic", "outputs": OUTPUTS | LOGITS}
    _write_model(repository / "tensorrt_llm_bls", **classic)
    _write_model(repository / "tensorrt_llm_bls_accumulating", _parameter("accumulate_tokens"), **classic)
    _write_model(repository / "sleepy", **classic)
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    _write_model(repository / "small_queue", _parameter("serial"), queue, **classic)
    _write_model(repository / "inner", **classic, inputs={**INPUTS, "stop": "BOOL"})
    _write_model(repository / "shipped_bls", program="bls")
    _write_model(repository / "attentive_bls", _parameter("attentive"), program="bls")
    _write_model(
        repository / "tensorrt_llm", program="llmapi", inputs=LLMAPI_INPUTS, outputs=LLMAPI_OUTPUTS, batch=0
    )
    step = ['model_name: "tensorrt_llm_bls" model_version: -1']
    step += [f'input_map {{ key: "{name}" value: "{name}" }}' for name in INPUTS]
    step += [f'output_map {{ key: "{name}" value: "{name}" }}' for name in OUTPUTS]
    steps = "ensemble_scheduling { step {\n" + "\n".join(step) + "\n} }"
    _write_model(repository / "ensemble", 'platform: "ensemble"', steps)


def _parameter(name: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "true" }} }}'


def _write_model(
    directory: Path,
    *config: str,
    program: str | None = None,
    inputs: Mapping[str, str] = INPUTS,
    outputs: Mapping[str, str] = OUTPUTS,
    batch: int = 1,
) -> None:
    (directory / "1").mkdir(parents=True)
    lines = [f'name: "{directory.name}"', f"max_batch_size: {batch}", *config]
    if program is not None:
        shutil.copy(_HERE / f"{program}.py", directory / "1" / "model.py")
        shutil.copy(_HERE / "speaking.py", directory / "1")
        lines.append(_DECOUPLED)
    for name, kind in inputs.items():
        dims = "1" if (name not in _LISTS and batch) or kind != "STRING" else "-1"
        optional = "" if name in REQUIRED else "optional: true"
        lines.append(f'input {{ name: "{name}" data_type: TYPE_{kind} dims: {dims} {optional} }}')
    for name, kind in outputs.items():
        dims = "[ -1, -1 ]" if name in LOGITS and batch else "-1"
        lines.append(f'output {{ name: "{name}" data_type: TYPE_{kind} dims: {dims} }}')
    (directory / "config.pbtxt").write_text("\n".join(lines))


def _copy_backend(directory: Path, wheel: Path) -> None:
    """A copy, because in its place the stub finds the libpython of the wheel first."""
    shutil.copytree(wheel / "pytriton" / "tritonserver" / "backends" / "python", directory)
    shutil.copy(_stub(wheel), directory)


def _environment(directory: Path, wheel: Path, libpython: Path) -> dict[str, str]:
    """Nothing of ours but the interpreter, under all the names that a stub may call its library."""
    libraries = wheel / "nvidia_pytriton.libs"
    own = directory / "lib"
    own.mkdir()
    bundled = libraries.glob(f"libpython{sys.version_info.major}*.{sys.version_info.minor}.so*")
    for name in {libpython.name, *(path.name for path in bundled)}:
        (own / name).symlink_to(libpython)
    return {
        "LD_LIBRARY_PATH": f"{own}:{libraries}",
        # The embedded Python ignores PYTHON* and takes its paths, numpy's among them, from this python3.
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "LANG": "C.UTF-8",
    }


# -------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def running(directory: Path, *, grpc: bool = False) -> Iterator[TritonServer]:
    """A server with all models ready. Call `why_not` first."""
    wheel, libpython = _wheel(), _libpython()
    assert wheel is not None
    assert libpython is not None
    _write_models(directory / "models")
    _copy_backend(directory / "backends" / "python", wheel)
    environment = _environment(directory, wheel, libpython)
    segments = f"headgate-{secrets.token_hex(6)}-"
    log = directory / "server.log"
    for attempts_left in reversed(range(ATTEMPTS)):
        ports = http, metrics, rpc = _free_ports(3)
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(directory, wheel, segments, *ports, grpc=grpc),
                env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        server = TritonServer(
            f"http://127.0.0.1:{http}", f"http://127.0.0.1:{metrics}/metrics", directory, process.pid,
            f"127.0.0.1:{rpc}" if grpc else None,
        )  # fmt: skip
        try:
            if _wait_ready(process, server, log):
                yield server
                return
            words = log.read_text(errors="replace")
            if not ((PORT_TAKEN in words or LATE in words) and attempts_left):
                raise RuntimeError(f"tritonserver is not ready: {words[-4000:]}")
        finally:
            _stop(process)
            for segment in Path("/dev/shm").glob(f"{segments}*"):
                segment.unlink(missing_ok=True)


class Servers(contextlib.ExitStack):
    """A server that lives. Triton 2.51 was seen to abort where a model's process died (docs/engines.md): then
    the next who asks gets another."""

    def __init__(self, directory: Callable[[], Path]) -> None:
        """`directory`: an empty one, each time."""
        super().__init__()
        self._directory = directory
        self._server: TritonServer | None = None

    def alive(self) -> TritonServer:
        if self._server is None or not self._server.lives():
            self._server = self.enter_context(running(self._directory()))
        return self._server


def _command(
    directory: Path, wheel: Path, segments: str, http: int, metrics: int, rpc: int, *, grpc: bool
) -> list[str]:
    bundled = wheel / "pytriton" / "tritonserver"
    return [
        f"{bundled / 'bin' / 'tritonserver'}",
        f"--model-repository={directory / 'models'}",
        f"--backend-directory={directory / 'backends'}", f"--cache-directory={bundled / 'caches'}",
        "--http-address=127.0.0.1", f"--http-port={http}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--allow-gpu-metrics=false",
        f"--allow-grpc={str(grpc).lower()}", "--grpc-address=127.0.0.1", f"--grpc-port={rpc}",
        "--model-control-mode=explicit", "--load-model=*", "--model-load-thread-count=2",
        "--exit-timeout-secs=1",
        f"--backend-config=python,shm-region-prefix-name={segments}",
        "--backend-config=python,shm-default-byte-size=1048576",
    ]  # fmt: skip


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _wait_ready(process: subprocess.Popen[bytes], server: TritonServer, log: Path) -> bool:
    """False where the process ended, lacks a port (it goes on without metrics), or is not ready in time."""
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(trust_env=False, timeout=2) as http:
        while process.poll() is None and time.monotonic() < deadline:
            if PORT_TAKEN in log.read_text(errors="replace"):
                return False
            with contextlib.suppress(httpx.TransportError):
                urls = (f"{server.url}/v2/health/ready", server.metrics_url)
                if all(http.get(url).status_code == 200 for url in urls):
                    return True
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server, and with it the stubs, which are of its process group."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
