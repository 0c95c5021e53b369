"""The harness: simulated engines as processes, a gateway before them, one policy after the other.

Every policy meets the same engines, the same requests at the same times and the same prompts, and so does its
digital twin (gateway/replay/twin.py), which runs the very `Policy` that the gateway read from its file. What
differs is what the twin leaves out: HTTP, tokenizers, event loops, the scheduling of processes.

The policies do not see output lengths: a request asks for as much as the trace's client did, and the engines
are told the true length in a field that only they read.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from backends.simulated.engine import EngineProfile
from gateway.config.snapshot import Policy, PriorityClass
from gateway.replay.figures import Objectives, Run, figures_of
from gateway.replay.requests import TraceRequest
from gateway.replay.twin import replay
from loadtest.classes import run_of
from loadtest.comparing import TWIN
from loadtest.processes import ROOT, Process, headgate
from loadtest.running import Asking, run
from loadtest.sending import Client
from loadtest.summary import summarise
from loadtest.workloads import trace

MODEL = "m"
POOL = "fleet"
KIND = "openai"
"""The engines' dialect: the one whose adapter passes unknown fields on."""
CONTEXT = 131_072
TOKENIZER = ROOT / "deploy" / "tokenizers" / "headgate-mini"
IDLE_S = 60.0
"""How long engines may take to be done with a policy's requests before the next one's turn."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all policies have in common."""

    profile: str
    """As `headgate engine --profile` takes it."""
    engine: EngineProfile
    """The same, with its speed."""
    engines: int
    requests: Sequence[TraceRequest]
    load: float
    seed: int
    timeout: float
    warm_up: int
    objectives: Objectives = field(default_factory=Objectives)
    by_priority: bool = False
    max_in_flight: int = 4096

    @property
    def tenants(self) -> list[str]:
        return sorted({request.tenant for request in self.requests})


@dataclass(frozen=True, slots=True)
class Tried:
    """One policy: what a client saw, what the twin foresaw, and what it took."""

    sockets: Run
    twin: Run
    summary: Mapping[str, Any]
    cores: Mapping[str, float]
    """CPU seconds per second while the load lasted: of the gateway, of the busiest engine, of this client."""
    crowding: float | None
    """Processes that wanted a processor, per processor, over the last minute; above 1, what was measured had
    to wait for others of this machine, and its engines were slower than they were told to be."""


def try_policies(
    setting: Setting, policies: Mapping[str, Policy], told: Callable[[str], None] = lambda text: None
) -> list[Tried]:
    """Each policy in turn. Raises DidNotStart, WarmUpFailed."""
    with tempfile.TemporaryDirectory(prefix="headgate-loadtest-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        engines = [
            stack.enter_context(_engine(setting, directory / f"engine-{number}.log"))
            for number in range(1, setting.engines + 1)
        ]
        told(f"{len(engines)} engines: {', '.join(engine.url for engine in engines)}")
        tried = []
        for label, policy in policies.items():
            _wait_until_idle(engines)
            began = time.monotonic()
            tried.append(_try(setting, label, policy, engines, directory))
            told(f"{label}: {time.monotonic() - began:.0f} s")
        return tried


def routes(
    setting: Setting, policy: Policy, urls: Sequence[str], keys: Mapping[str, str], state: Path
) -> dict[str, Any]:
    """The routes.yaml of a gateway that schedules by `policy`, before these engines."""
    engine = setting.engine
    late = {"in_flight": engine.max_sequences, "kv_tokens": engine.kv_tokens}
    return {
        "version": 1,
        "server": {
            "state": str(state),
            "max_body_mb": 64,
            # The client's patience is what ends a request here, as it is the replay's.
            "timeouts": {"first_token_s": setting.timeout, "idle_s": setting.timeout},
        },
        "models": {
            MODEL: {
                "tokenizer": {"kind": "huggingface", "path": str(TOKENIZER)},
                "context": CONTEXT,
                "max_tokens": {"default": 4096, "ceiling": 65536},
            }
        },
        "pools": {
            POOL: {
                "engine": KIND,
                "serves": [MODEL],
                "replicas": [{"id": f"engine-{number}", "url": url} for number, url in enumerate(urls, 1)],
                # Early binding knows no limits: everything is sent at once, and engines queue.
                "limits": late if policy.binding == "late" else {},
                "queue": {"max_requests": 1_000_000, "max_wait_s": setting.timeout},
                "scheduler": _scheduler(policy),
                "placement": {"kind": policy.placement, "prefix_tokens": policy.prefix_tokens},
            }
        },
        "rules": [{"name": "all", "pools": [POOL]}],
        "tenants": {
            tenant: {"keys": [{"id": "load", "hash": f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"}]}
            for tenant, key in keys.items()
        },
    }


def _scheduler(policy: Policy) -> dict[str, Any]:
    return {
        "kind": policy.order,
        "binding": policy.binding,
        "kappa": policy.kappa,
        "slack_cap_s": policy.slack_cap,
        "strict": policy.strict,
        "long_prompt": policy.long_prompt,
        "tpot_target_ms": policy.tpot_target * 1e3,
        "fair": policy.fair,
        "fair_after_s": policy.fair_after,
        "quantum": int(policy.quantum),
        "headroom": policy.headroom,
        "budget_ms": policy.budget * 1e3,
        "budget_long_ms": policy.budget_long * 1e3,
        "overdue": policy.overdue,
        "classes": {each.name: {"shed": each in policy.shed} for each in PriorityClass},
    }


def _engine(setting: Setting, log: Path) -> contextlib.AbstractContextManager[Process]:
    return headgate(
        "engine", "--kind", KIND, "--port", "0", "--model", MODEL, "--profile", setting.profile,
        "--speed", str(setting.engine.speed), "--max-input-tokens", str(CONTEXT),
        "--max-total-tokens", str(CONTEXT),
        log=log, says=r"engine at (http://[0-9.:]+)",
    )  # fmt: skip


@contextlib.contextmanager
def gateway(
    setting: Setting, policy: Policy, urls: Sequence[str], keys: Mapping[str, str], directory: Path
) -> Iterator[Process]:
    """`headgate serve` before the engines, as an operator would run it."""
    written = directory / "routes.yaml"
    written.write_text(yaml.safe_dump(routes(setting, policy, urls, keys, directory / "state")))
    with headgate(
        "serve", "--config", str(written), "--port", "0", "--admin-port", "0",
        log=directory / "gateway.log", says=r"serves (http://127\.0\.0\.1:\d+)",
    ) as process:  # fmt: skip
        yield process


def _try(setting: Setting, label: str, policy: Policy, engines: Sequence[Process], directory: Path) -> Tried:
    keys = {tenant: f"hg-load-{secrets.token_hex(20)}" for tenant in setting.tenants}
    with gateway(setting, policy, [engine.url for engine in engines], keys, directory) as target:
        watched = {"gateway": [target], "engine": engines}
        before = {name: [each.cpu_s() for each in some] for name, some in watched.items()}
        own, began = time.process_time(), time.monotonic()
        ran = asyncio.run(_load(setting, target.url, keys))
        seconds = time.monotonic() - began
        crowding = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
        cores = {"client": (time.process_time() - own) / seconds}
        for name, some in watched.items():
            spent = [
                (after - start) / seconds
                for each, start in zip(some, before[name], strict=True)
                if start is not None and (after := each.cpu_s()) is not None
            ]
            if spent:
                cores[name] = max(spent)
    common: dict[str, Any] = {"objectives": setting.objectives, "by_priority": setting.by_priority}
    sockets = run_of(label, setting.load, setting.seed, ran, setting.engine, **common)
    return Tried(sockets, twin_of(setting, label, policy), summarise(ran), cores, crowding)


def twin_of(setting: Setting, label: str, policy: Policy) -> Run:
    """What `headgate replay` says of the same policy, engines and requests."""
    began = time.monotonic()
    replayed = replay(setting.requests, (setting.engine,) * setting.engines, policy)
    return figures_of(
        label + TWIN,
        setting.load,
        setting.seed,
        replayed,
        setting.engine,
        objectives=setting.objectives,
        by_priority=setting.by_priority,
        seconds=time.monotonic() - began,
    )


async def _load(setting: Setting, url: str, keys: Mapping[str, str]) -> Any:
    client = Client(
        url, MODEL, key=next(iter(keys.values())), keys=keys, timeout=setting.timeout, stream=True, extra={}
    )
    async with client:
        return await run(
            client,
            trace(setting.requests),
            seed=setting.seed,
            warm_up_requests=setting.warm_up,
            max_in_flight=setting.max_in_flight,
            asking=Asking(tiers=True, simulated_lengths=True),
        )


def _wait_until_idle(engines: Sequence[Process]) -> None:
    """Until no engine has anything to do: a client that gave up may have left work behind."""
    end = time.monotonic() + IDLE_S
    for engine in engines:
        while time.monotonic() < end:
            with urllib.request.urlopen(f"{engine.url}/_simulated/statistics", timeout=10) as answer:  # noqa: S310  # our own
                told = json.load(answer)
            if not told["running"] and not told["waiting"]:
                break
            time.sleep(0.2)
