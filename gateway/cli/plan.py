"""`headgate plan`: how many replicas, in which pools, for which promise, at what cost."""

import enum
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from backends.simulated.engine import PROFILES, EngineProfile
from backends.simulated.profiles import profile_of
from gateway.app import load_snapshot
from gateway.cli.check import report
from gateway.cli.exits import PROBLEM
from gateway.cli.traces import TRACES, models_of
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Snapshot
from gateway.planning.formulas import Line, cache_room, kv_bytes_per_token, weight_bytes
from gateway.planning.shapes import ModelShape, read_shape
from gateway.planning.shares import Lopsided
from gateway.planning.sizing import (
    Objective,
    PoolPlan,
    Traffic,
    Trial,
    cost_of,
    plan_pool,
    settle,
    shares_of,
)
from gateway.replay.checking import seen_with
from gateway.replay.comparing import Scenario, policy_of, trace_of
from gateway.replay.dividing import divided, objective_of
from gateway.replay.requests import TraceRequest, compressed, with_max_tokens
from gateway.replay.traces import TraceInvalid

SHORT_OBJECTIVE = Objective(ttft_p95_ms=1000, tpot_p99_ms=60)
LONG_OBJECTIVE = Objective(ttft_p95_ms=10_000, tpot_p99_ms=100)


class Format(enum.StrEnum):
    table = "table"
    json = "json"


def plan(
    trace: Annotated[str, typer.Option(help=f"The traffic: {TRACES}.")] = "mixed",
    trace_dir: Annotated[
        Path | None, typer.Option(envvar="HEADGATE_TRACES", help="Where mixed-files finds its files.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="No trace: all prompts have so many tokens.")
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="With --prompt-tokens.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second, of all pools; the trace's own if not given.")
    ] = None,
    split: Annotated[
        int, typer.Option(min=0, help="Prompt and output tokens up to which a request is short; 0: one pool.")
    ] = 4096,
    config: Annotated[
        Path | None,
        typer.Option(
            help="The pools, rules and promises of this routes.yaml instead of --split; what it leaves open "
            "is promised as without it."
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="With --config, what tenants ask for: conv=chat-mini+llama3,code=code-7b."),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POOL:NAME=MS,...",
            help="What is promised, of ttft_p95_ms, tpot_p99_ms, queue_ms; else short: 1000 and 60, long: "
            "10000 and 100.",
        ),
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(
            metavar="POOL=N,...", help="The replicas there are: are they enough? With --config also `file`."
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(help=f"The engine: {', '.join(PROFILES)}, or a file of calibrate.")
    ] = "h200",
    prefill_tps: Annotated[
        float | None, typer.Option(help="P: prompt tokens a second of a replica, measured; no profile.")
    ] = None,
    decode_tps: Annotated[
        float | None, typer.Option(help="D: output tokens a second of a replica, measured at --batch.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="B: answers at a time when D was measured.")
    ] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="The model's config.json: what its cache takes.")
    ] = None,
    kv_cache_bytes: Annotated[
        float | None, typer.Option(help="Bytes of a cached number: 1 for FP8; the model's own if not given.")
    ] = None,
    weights_gb: Annotated[
        float | None, typer.Option(help="Of a replica; from the config if not given.")
    ] = None,
    gpu_memory_gb: Annotated[float | None, typer.Option(help="Of one GPU, in 1e9 bytes.")] = None,
    gpus_per_replica: Annotated[int, typer.Option(min=1, help="Tensor parallelism, say.")] = 1,
    gpu_price: Annotated[float | None, typer.Option(help="Of one GPU for an hour, in any currency.")] = None,
    memory_share: Annotated[float, typer.Option(min=0.1, max=1, help="What the engine may use.")] = 0.9,
    reserve_gb: Annotated[float, typer.Option(min=0, help="Activations, graphs, context.")] = 2.5,
    utilization: Annotated[
        float, typer.Option(min=0.05, max=1, help="How busy replicas are meant to be, by the formula.")
    ] = 0.7,
    overhead_ms: Annotated[float, typer.Option(min=0, help="Of a request: network, gateway.")] = 0.0,
    check: Annotated[bool, typer.Option(help="Hold the numbers against a replay.")] = True,
    check_requests: Annotated[int, typer.Option(min=100, help="Of each pool, in a replay.")] = 4000,
    policy: Annotated[
        str, typer.Option(help="The scheduler of the replay, as of `headgate replay`.")
    ] = "lanes",
    seed: int = 1,
    form: Annotated[Format, typer.Option("--format", help="What is printed.")] = Format.table,
) -> None:
    """Size a fleet: each formula with its numbers, then the twin's word on whether that many hold."""
    try:
        engine = _engine(profile, prefill_tps, decode_tps, batch)
        lines: list[Line] = []
        notes: list[str] = []
        per_token = None
        if model_config is not None:
            shape = read_shape(model_config)
            memory = None if gpu_memory_gb is None else gpu_memory_gb * 1e9
            lines = memory_lines(
                shape, kv_cache_bytes or shape.dtype_bytes, memory, gpus_per_replica, memory_share,
                None if weights_gb is None else weights_gb * 1e9, reserve_gb * 1e9,
            )  # fmt: skip
            per_token = lines[0].value
            if memory is not None:
                engine = replace(engine, kv_tokens=int(lines[-1].value))
            if shape.window:
                notes.append(f"some layers look back {shape.window} tokens at most: their cache takes less")
        requests = _requests(trace, trace_dir, prompt_tokens, output_tokens, rate, seed)
        if config is None:
            snapshot = None
            pools = _pools(requests, split)
            objectives = {name: _assumed(name) for name in pools}
        else:
            snapshot = load_snapshot(config, force_open=True)[0]
            pools, homeless = divided(snapshot, requests, models_of(models))
            pools = {name: some for name, some in pools.items() if some}
            objectives = {name: _of_file(snapshot, name, some) for name, some in pools.items()}
            if homeless:
                notes.append(f"{homeless} of {len(requests)} requests fit no pool of {config}")
        objectives = _objectives(slo or [], objectives)
        there = _fleet(fleet, pools, snapshot)
        chosen = policy_of(policy)
        plans = []
        for name, some in pools.items():
            traffic = _traffic(name, some, requests)
            planned = plan_pool(
                traffic, objectives[name], engine,
                per_token=per_token, utilization=utilization, overhead=overhead_ms / 1e3,
                replicas=None if there is None else there[name],
            )  # fmt: skip
            if check:
                print(f"replaying pool {name} ...", file=sys.stderr)
                planned = settle(
                    planned,
                    lambda count, some=some[:check_requests], planned=planned: seen_with(  # type: ignore[misc]  # mypy cannot infer a default's type here
                        some, engine, count, chosen, planned.batch
                    ),
                    fixed=there is not None,
                )
            plans.append(planned)
        cost = None if gpu_price is None else cost_of(plans, gpu_price, gpus_per_replica)
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    except (ValueError, KeyError, TraceInvalid, OSError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(PROBLEM) from None
    answer = Answer(
        engine, tuple(lines), tuple(notes), tuple(plans), shares_of(plans), cost, gpus_per_replica
    )  # fmt: skip
    print(json.dumps(answer.as_json(), indent=1) if form is Format.json else "\n".join(answer.as_text()))


@dataclass(frozen=True, slots=True)
class Answer:
    """All that the planner found."""

    engine: EngineProfile
    lines: tuple[Line, ...]
    """Memory."""
    notes: tuple[str, ...]
    plans: tuple[PoolPlan, ...]
    lopsided: tuple[Lopsided, ...]
    cost: Line | None
    gpus_per_replica: int

    def as_json(self) -> dict[str, Any]:
        return {
            "engine": asdict(self.engine),
            "memory": [asdict(line) for line in self.lines],
            "notes": list(self.notes),
            "pools": [
                {
                    "pool": plan.pool,
                    "replicas": plan.replicas,
                    "replicas_by_formula": plan.by_formula,
                    "held_by_replay": plan.held,
                    "in_flight": plan.batch,
                    "utilization": plan.utilization,
                    "rate": plan.traffic.rate,
                    "mean_prompt_tokens": plan.traffic.tokens_in,
                    "mean_output_tokens": plan.traffic.tokens_out,
                    "slo": asdict(plan.objective),
                    "formulas": [asdict(line) for line in plan.lines],
                    "replays": [asdict(trial) for trial in plan.trials],
                    "warnings": list(plan.warnings),
                }
                for plan in self.plans
            ],
            "replicas": sum(plan.replicas for plan in self.plans),
            "gpus": self.gpus_per_replica * sum(plan.replicas for plan in self.plans),
            "cost_per_million_tokens": None if self.cost is None else asdict(self.cost),
            "warnings": [str(each) for each in self.lopsided],
        }

    def as_text(self) -> list[str]:
        lines = [f"engine {self.engine.name}"]
        lines += [f"  {line}" for line in (*self.lines, *self.notes)]
        for plan in self.plans:
            traffic = plan.traffic
            lines.append("")
            lines.append(
                f"pool {plan.pool}: {traffic.rate:.3g} requests/s of {traffic.tokens_in:.0f} + "
                f"{traffic.tokens_out:.0f} tokens on average; promised: {_promised(plan.objective)}"
            )
            lines += [f"  {line}" for line in plan.lines]
            lines += [f"  replay: {_trial(trial)}" for trial in plan.trials]
            lines += [f"  WARNING: {warning}" for warning in plan.warnings]
        lines += ["", f"{'pool':12} {'replicas':>8} {'formula':>8} {'in flight':>9} {'busy':>6}  replay"]
        words = {True: "holds", False: "DOES NOT HOLD", None: "not asked"}
        for plan in self.plans:
            figures = f"{plan.replicas:8d} {plan.by_formula:8d} {plan.batch:9d} {plan.utilization:6.0%}"
            lines.append(f"{plan.pool:12} {figures}  {words[plan.held]}")
        if self.cost is not None:
            lines += ["", str(self.cost)]
        return [*lines, *(f"WARNING: {each}" for each in self.lopsided)]


def memory_lines(
    shape: ModelShape,
    cache_bytes: float,
    memory: float | None,
    gpus: int,
    share: float,
    weights: float | None,
    reserve: float,
) -> list[Line]:
    """What a token takes, and, where a GPU's memory is given, how many it has room for. Raises ValueError."""
    lines = [kv_bytes_per_token(shape, cache_bytes)]
    if memory is None:
        return lines
    if weights is None:
        lines.append(weight_bytes(shape))
        weights = lines[-1].value
    lines.append(cache_room(lines[0].value, memory, gpus, share, weights, reserve))
    return lines


def engine_of_rates(p: float, d: float, batch: int) -> EngineProfile:
    """An engine that reads P prompt tokens a second, and says D output tokens a second in `batch` answers.

    All a step's time that tokens do not take is its own, and the cache costs nothing: good near `batch`,
    which is never exceeded, since nothing was measured there. Raises ValueError for rates that do not fit.
    """
    if min(p, d) <= 0:
        raise ValueError("--prefill-tps and --decode-tps are above zero")
    step = batch / d - batch / p
    if step <= 0:
        raise ValueError(f"P of {p:g} and D of {d:g} at B {batch} do not fit: decoding cannot be faster")
    return EngineProfile(
        f"P {p:g}, D {d:g} at B {batch}", step, 1 / p, 1 / p, 0.0, 0.0, 0.0,
        max_sequences=batch, step_tokens=max(8192, 2 * batch),
    )  # fmt: skip


def _engine(profile: str, p: float | None, d: float | None, batch: int | None) -> EngineProfile:
    if p is None and d is None:
        return profile_of(profile)
    if p is None or d is None or batch is None:
        raise ValueError("--prefill-tps, --decode-tps and --batch go together")
    return engine_of_rates(p, d, batch)


def _requests(
    trace: str,
    trace_dir: Path | None,
    prompt: int | None,
    output: int | None,
    rate: float | None,
    seed: int,
) -> list[TraceRequest]:
    """The traffic at its rate. Raises ValueError, TraceInvalid, OSError."""
    if rate is not None and rate <= 0:
        raise ValueError("--rate is above zero")
    if prompt is not None:
        if output is None or rate is None:
            raise ValueError("--prompt-tokens goes with --output-tokens and --rate")
        rng = random.Random(f"plan/{seed}")
        at, requests = 0.0, []
        for _ in range(5000):
            at += rng.expovariate(rate)
            requests.append(TraceRequest(at, "all", prompt, output))
        return compressed(with_max_tokens(requests, rng), rate)
    requests = trace_of(Scenario(fleet=(), trace=trace, trace_dir=trace_dir), seed)
    if len(requests) < 2 or requests[-1].at <= requests[0].at:
        raise ValueError("a trace of one moment has no rate")
    return compressed(requests, rate) if rate is not None else requests


def _pools(requests: Sequence[TraceRequest], split: int) -> dict[str, list[TraceRequest]]:
    if not split:
        return {"all": list(requests)}
    pools: dict[str, list[TraceRequest]] = {"short": [], "long": []}
    for request in requests:
        pools["short" if request.prompt_tokens + request.output_tokens <= split else "long"].append(request)
    return {name: some for name, some in pools.items() if some}


def _traffic(name: str, some: Sequence[TraceRequest], requests: Sequence[TraceRequest]) -> Traffic:
    rate = len(some) / (requests[-1].at - requests[0].at)
    return Traffic(name, rate, [r.prompt_tokens for r in some], [r.output_tokens for r in some])


def _assumed(name: str) -> Objective:
    """Of a pool that nobody promised anything."""
    if name == "all":
        return replace(LONG_OBJECTIVE, tpot_p99_ms=SHORT_OBJECTIVE.tpot_p99_ms)
    return LONG_OBJECTIVE if name == "long" else SHORT_OBJECTIVE


def _of_file(snapshot: Snapshot, name: str, some: Sequence[TraceRequest]) -> Objective:
    """What the file promises there; where it promises nothing, what is assumed of traffic of all lengths."""
    objective = objective_of(snapshot.pools[name], some)
    return _assumed("all") if objective == Objective() else objective


def _objectives(texts: Sequence[str], objectives: dict[str, Objective]) -> dict[str, Objective]:
    """With what the options say. Raises ValueError."""
    for text in texts:
        name, _, promised = text.partition(":")
        if name not in objectives:
            raise ValueError(f"--slo: no pool {name!r}; there are {', '.join(objectives)}")
        given: dict[str, float] = {}
        for part in promised.split(","):
            key, sign, value = part.partition("=")
            if key not in ("ttft_p95_ms", "tpot_p99_ms", "queue_ms") or not sign:
                raise ValueError(f"--slo is POOL:ttft_p95_ms=800,tpot_p99_ms=60,queue_ms=200; not {text!r}")
            given[key] = float(value)
        objectives[name] = Objective(**given)
    return objectives


def _fleet(
    text: str | None, pools: dict[str, list[TraceRequest]], snapshot: Snapshot | None
) -> dict[str, int] | None:
    """Raises ValueError."""
    if text is None:
        return None
    if text == "file":
        if snapshot is None:
            raise ValueError("--fleet file goes with --config")
        return {name: len(snapshot.pools[name].replicas) for name in pools}
    there = {name: int(count) for name, _, count in (part.partition("=") for part in text.split(","))}
    if there.keys() != pools.keys() or min(there.values()) < 1:
        raise ValueError(f"--fleet names each of {', '.join(pools)} with its replicas; not {text!r}")
    return there


def _promised(objective: Objective) -> str:
    given = [f"{name} {value:g}" for name, value in asdict(objective).items() if value is not None]
    return ", ".join(given) or "nothing"


def _trial(trial: Trial) -> str:
    seen = trial.seen
    verdict = "; ".join(trial.missed) or "holds"
    return (
        f"{trial.replicas} replicas: TTFT p95 {seen.ttft_p95_ms:.0f} ms, TPOT p99 {seen.tpot_p99_ms:.1f} ms, "
        f"queue p95 {seen.queue_p95_ms:.0f} ms: {verdict}"
    )
