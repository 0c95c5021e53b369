"""What a request and a streamed event cost the gateway, in CPU, beside bare proxies in the same run.

    python -m tests.benchmarks.gateway_cost [--smoke] [--rounds N] [--nginx PATH] [--json FILE]
                                            [--profile SUBJECT CASE]

A stub engine and a load generator, each as cheap as Python allows and in a process of its own, share one
CPU; what is measured has another. Rounds are interleaved: every subject meets every case in round 1, then in
round 2, and so on; a figure is the median over the rounds. The subjects:

    direct       no proxy at all: what stub and generator can do, the ceiling of this harness (no CPU)
    nginx        a reverse proxy in C, where it is installed
    raw          a bare ASGI callable with aiohttp behind (prototypes.py)
    starlette    the same in Starlette
    exact        `headgate serve`, `count: exact`: each prompt by the model's tokenizer; keys, limits, log,
                 metrics on
    auto         the same with `count: auto`: estimated by what was learned in the warm-up, where no boundary
                 is near, as none is here
    estimate     the same without a tokenizer
    early        the same with `binding: early`: no request waits for a replica. Late binding, the default,
                 takes the stub for an engine that computes prompts, and holds some of them back: the other
                 subjects wait in line, and their latencies are the line's order, not the gateway's speed

How to read it. CPU is what the kernel charged to the subject's processes, system time included, divided by
answers or by content events: sound where throughput is not. Quote the ratios, which compare subjects within
one round; microseconds are those of this machine at this moment. Answers per second are on one
CPU, and mean nothing where they come near `direct`. Latencies are those of a closed loop at the given
concurrency: they follow from the rate and say nothing on their own. `loadtest` measures latency.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks import load_generator, profiling, stub_engine
from tests.benchmarks.load_generator import Case, Job, Result
from tests.benchmarks.measuring import cpu_seconds, cpus, pin, resident_mib
from tests.conftest import REPO

CASES = (
    Case("plain 1 KB c64", 1024, 64),
    Case("plain 16 KB c16", 16 * 1024, 16),
    Case("stream c64", 1024, 64, stream=True),
    Case("paced 50x20 ms", 1024, 50, stream=True, paced=True),
)

KEY = "hg-bench-0123456789abcdef0123456789abcdef"
TOKENIZER = REPO / "deploy" / "tokenizers" / "headgate-mini"

NGINX = """
worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    client_body_buffer_size 64k;
    upstream engine {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://engine; proxy_buffering off;
            proxy_http_version 1.1; proxy_set_header connection "";
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    port: int
    pid: int | None
    """None: nothing to measure the CPU of."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One subject in one case of one round."""

    cpu: float
    """Seconds per answer, or per content event of a stream."""
    rps: float
    p50: float
    p99: float
    first_p50: float
    wrong: list[str]


@dataclass(frozen=True, slots=True)
class Sizes:
    rounds: int
    seconds: float
    requests: int
    warm_up: int

    @classmethod
    def smoke(cls) -> "Sizes":
        return cls(rounds=1, seconds=0.4, requests=64, warm_up=0)


# ------------------------------------------------------------------------------------------ subjects


@contextlib.contextmanager
def started(
    command: list[str], log: Path, cpu: int | None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file; ended by its own handle."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        pin(cpu, process.pid)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(ready: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    """The first true answer of `ready`, or SystemExit with what the process wrote."""
    end = time.monotonic() + 30
    while not (answer := ready()):
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{process.args!r} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)
    return answer


def open_port(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def gateway(
    kind: str, upstream: int, directory: Path, cpu: int | None, profile: Path | None = None
) -> Iterator[Subject]:
    """`headgate serve` on a file of its own, as an operator would run it: keys, a limit, a JSON log."""
    estimates = kind in ("estimate", "early")
    tokenizer = {"kind": "estimate"} if estimates else {"kind": "huggingface", "path": str(TOKENIZER)}
    file = {
        "version": 1,
        "server": {"state": str(directory / f"state-{kind}")},
        "models": {
            "m": {
                "tokenizer": tokenizer,
                "count": "estimate" if estimates else kind,
                "context": 16384,
                "max_tokens": {"default": 64, "ceiling": 4096},
            }
        },
        "pools": {
            "pool": {
                "engine": "openai",
                "serves": ["m"],
                "replicas": [{"id": "stub", "url": f"http://127.0.0.1:{upstream}"}],
                "limits": {"in_flight": 1024},
                "scheduler": {"binding": "early" if kind == "early" else "late"},
            }
        },
        "rules": [{"name": "all", "pools": ["pool"]}],
        "tenants": {
            "tenant": {
                "keys": [{"id": "bench", "hash": f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"}],
                "limits": [{"tokens": 10**12, "per": "minute"}],
            }
        },
    }
    path, log = directory / f"{kind}.yaml", directory / f"{kind}.log"
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    module = ["-m", "gateway"] if profile is None else ["-m", "tests.benchmarks.profiling", str(profile)]
    command = [sys.executable, *module, "serve", "--config", str(path), "--port", "0", "--admin-port", "0"]
    with started(command, log, cpu, env={**os.environ, "HEADGATE_LOG_FORMAT": "json"}) as process:
        address = wait_for(
            lambda: re.search(r"serves http://127\.0\.0\.1:(\d+)", log.read_text()), process, log
        )
        yield Subject(kind, int(address[1]), process.pid)


@contextlib.contextmanager
def prototype(kind: str, upstream: int, directory: Path, cpu: int | None) -> Iterator[Subject]:
    log = directory / f"{kind}.log"
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            descriptor, port = listener.fileno(), int(listener.getsockname()[1])
            command = [sys.executable, "-m", "tests.benchmarks.prototypes", kind]
            command += [str(descriptor), f"http://127.0.0.1:{upstream}"]
            process = stack.enter_context(started(command, log, cpu, pass_fds=[descriptor]))
        # From here on only the prototype has the listener: if it has died, nobody answers.
        wait_for(lambda: open_port(port), process, log)
        yield Subject(kind, port, process.pid)


@contextlib.contextmanager
def nginx(binary: str, upstream: int, directory: Path, cpu: int | None) -> Iterator[Subject]:
    port, configuration, log = free_port(), directory / "nginx.conf", directory / "nginx.log"
    configuration.write_text(NGINX.format(directory=directory, upstream=upstream, port=port))
    command = [binary, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(configuration)]
    with started(command, log, cpu) as process:
        wait_for(lambda: open_port(port), process, log)
        yield Subject("nginx", port, process.pid)


# ------------------------------------------------------------------------------------------ measuring


class Harness:
    """The stub and the generator, on one CPU."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.measured_cpu, self._load_cpu = cpus()
        context = multiprocessing.get_context("spawn")
        answers, theirs = context.Pipe()
        self._start(
            stack, context.Process(target=stub_engine.serve, args=(theirs, self._load_cpu), daemon=True)
        )
        self.upstream: int = answers.recv()
        self._jobs: Connection
        self._jobs, theirs = context.Pipe()
        self._start(
            stack, context.Process(target=load_generator.generate, args=(theirs, self._load_cpu), daemon=True)
        )
        self._seed = 0

    @staticmethod
    def _start(stack: contextlib.ExitStack, process: Any) -> None:
        process.start()
        stack.callback(process.join)
        stack.callback(process.kill)

    def load(self, subject: Subject, case: Case, requests: int, seconds: float) -> Result:
        self._seed += 1
        self._jobs.send(Job(subject.port, KEY, case, requests, seconds, self._seed))
        if not self._jobs.poll(seconds + 60):
            raise SystemExit(f"no result for {subject.name}, {case.name}")
        try:
            result: Result = self._jobs.recv()
        except EOFError:
            raise SystemExit(f"{subject.name}, {case.name}: the load generator has died") from None
        if not result.requests:
            raise SystemExit(f"{subject.name}, {case.name}: nothing came back: {result.wrong}")
        return result

    def measure(self, subject: Subject, case: Case, sizes: Sizes) -> Figure:
        if sizes.warm_up:
            self.load(subject, case, case.concurrency * (1 if case.paced else sizes.warm_up), sizes.seconds)
            time.sleep(0.05)  # what the warm-up left to do must not count
        before = cpu_seconds(subject.pid) if subject.pid else 0.0
        seconds = max(sizes.seconds, 2.5) if case.paced and sizes.rounds > 1 else sizes.seconds
        result = self.load(subject, case, sizes.requests, seconds)
        spent = cpu_seconds(subject.pid) - before if subject.pid else 0.0
        return Figure(
            cpu=spent / (result.events or result.requests),
            rps=result.requests / result.wall,
            p50=statistics.median(result.latencies),
            p99=result.latencies[int(0.99 * (len(result.latencies) - 1))],
            first_p50=statistics.median(result.first) if result.first else 0.0,
            wrong=result.wrong,
        )


def run(sizes: Sizes, binary: str | None) -> dict[str, Any]:
    """{"figures": {case: {subject: [Figure of each round]}}, "rss": {subject: MiB after the load}}"""
    figures: dict[str, dict[str, list[Figure]]] = {case.name: {} for case in CASES}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-bench-")))
        harness = Harness(stack)
        cpu, upstream = harness.measured_cpu, harness.upstream
        subjects = [Subject("direct", upstream, None)]
        if binary is not None:
            subjects.append(stack.enter_context(nginx(binary, upstream, directory, cpu)))
        for kind in ("raw", "starlette"):
            subjects.append(stack.enter_context(prototype(kind, upstream, directory, cpu)))
        for kind in ("exact", "auto", "estimate", "early"):
            subjects.append(stack.enter_context(gateway(kind, upstream, directory, cpu)))
        for _ in range(sizes.rounds):
            for case in CASES:
                for subject in subjects:
                    figure = harness.measure(subject, case, sizes)
                    figures[case.name].setdefault(subject.name, []).append(figure)
        rss = {subject.name: resident_mib(subject.pid) for subject in subjects if subject.pid}
    return {"figures": figures, "rss": rss}


def ratio(ours: list[Figure], theirs: list[Figure]) -> float:
    """Median over the rounds of one subject's CPU by another's in the same round."""
    return statistics.median(a.cpu / max(b.cpu, 1e-12) for a, b in zip(ours, theirs, strict=True))


def show(result: dict[str, Any]) -> None:
    for case in CASES:
        subjects: dict[str, list[Figure]] = result["figures"][case.name]
        unit = "event" if case.stream else "request"
        print(f"\n{case.name}: {case.size} bytes{f', {case.events} events each' if case.stream else ''}")
        print(
            f"  {'':10} {'CPU us/' + unit:>15} {'min-max':>13} {'x raw':>6} {'x starl.':>8} {'x nginx':>8}"
            f" {'answers/s':>10} {'p50 ms':>8} {'p99 ms':>8}"
        )
        for name, rounds in subjects.items():
            us = [1e6 * figure.cpu for figure in rounds]
            middle = {
                field: statistics.median(getattr(figure, field) for figure in rounds)
                for field in ("rps", "p50", "p99")
            }
            if name == "direct":
                cost = f"{'-':>15} {'':13} {'':6} {'':8} {'':8}"
            else:
                against = [
                    f"{ratio(rounds, subjects[other]):.1f}" if other in subjects else "-"
                    for other in ("raw", "starlette", "nginx")
                ]
                span = f"{min(us):.1f}-{max(us):.1f}"
                raw, starlette, in_c = against
                cost = f"{statistics.median(us):15.1f} {span:>13} {raw:>6} {starlette:>8} {in_c:>8}"
            p50, p99 = 1e3 * middle["p50"], 1e3 * middle["p99"]
            print(f"  {name:10} {cost} {middle['rps']:10.0f} {p50:8.2f} {p99:8.2f}")
            for wrong in {what for figure in rounds for what in figure.wrong}:
                print(f"    WRONG: {wrong!r}")
    print("\nresident MiB: " + ", ".join(f"{name} {mib:.0f}" for name, mib in result["rss"].items()))


def faults(result: dict[str, Any]) -> int:
    """Answers that were not what was asked for; a cheap wrong answer is no bargain."""
    return sum(
        len(figure.wrong)
        for subjects in result["figures"].values()
        for rounds in subjects.values()
        for figure in rounds
    )


def profile(kind: str, case: Case) -> None:
    """Sample the gateway's main thread under one case and print where it was."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-bench-")))
        harness = Harness(stack)
        output = directory / "samples.json"
        with gateway(kind, harness.upstream, directory, harness.measured_cpu, output) as subject:
            harness.load(subject, case, 10**6, 2.0)
            profiling.reset(subject.pid or 0)
            result = harness.load(subject, case, 10**6, 8.0)
            profiling.write(subject.pid or 0, output)
        print(f"{kind}, {case.name}: {result.requests / result.wall:.0f} answers/s while sampled")
        profiling.show(json.loads(output.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="seconds, not figures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nginx", default=shutil.which("nginx"), metavar="PATH", help="its binary")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument(
        "--profile",
        nargs=2,
        metavar=("SUBJECT", "CASE"),
        help="e.g. exact 'stream c64': no figures, a profile",
    )
    given = parser.parse_args()
    if not Path("/proc/self/task").is_dir():
        raise SystemExit("NOT RUN: this benchmark reads /proc (Linux)")
    if given.profile is not None:
        profile(given.profile[0], next(case for case in CASES if case.name == given.profile[1]))
        return
    sizes = Sizes.smoke() if given.smoke else Sizes(given.rounds, 1.0, 10**6, 2)
    started_at = time.monotonic()
    result = run(sizes, None if given.smoke else given.nginx)
    show(result)
    if not given.smoke and given.nginx is None:
        print("NOT RUN: nginx is not installed")
    if os.cpu_count() == 1:
        print("one CPU only: everything shared it")
    print(f"{sizes.rounds} rounds, {time.monotonic() - started_at:.0f} s, Python {sys.version.split()[0]}")
    if given.json is not None:
        plain = {
            case: {
                name: [[f.cpu, f.rps, f.p50, f.p99, f.first_p50] for f in rounds]
                for name, rounds in by.items()
            }
            for case, by in result["figures"].items()
        }
        given.json.write_text(json.dumps({"figures": plain, "rss": result["rss"]}, indent=1))
    if faults(result):
        raise SystemExit("some answers were wrong: the figures do not count")


if __name__ == "__main__":
    main()
