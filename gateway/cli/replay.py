"""`headgate replay`: the real scheduler over simulated engines in virtual time, policies side by side."""

import enum
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from backends.simulated.engine import PROFILES, EngineProfile
from backends.simulated.profiles import profile_of
from gateway.app import load_snapshot
from gateway.cli.check import report
from gateway.cli.exits import PROBLEM
from gateway.cli.traces import TRACES, models_of
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import OverloadStep, Snapshot
from gateway.queueing.policies import POLICIES
from gateway.replay.comparing import Scenario, compare, policy_of
from gateway.replay.page import as_html
from gateway.replay.report import as_json, as_text
from gateway.replay.routed import VARIANTS
from gateway.replay.traces import TraceInvalid

DEFAULT_POLICIES = (
    "lanes,sjf,fcfs,least_requests,least_tokens,round_robin,power_of_two,predicted_ttft,lmetric"
)
SMOKE_REQUESTS = 600


class Format(enum.StrEnum):
    table = "table"
    json = "json"
    html = "html"


def replay(
    trace: Annotated[str, typer.Option(help=f"What is replayed: {TRACES}.")] = "mixed",
    trace_dir: Annotated[
        Path | None, typer.Option(envvar="HEADGATE_TRACES", help="Where mixed-files finds its files.")
    ] = None,
    policies: Annotated[
        str, typer.Option(help=f"Of {', '.join(POLICIES)}; with settings as lanes:fair=off:kappa=30.")
    ] = DEFAULT_POLICIES,
    load: Annotated[
        str, typer.Option(help="Requests/s as parts of the fleet's capacity, or sweep.")
    ] = "0.7,0.85,1.15",
    replicas: Annotated[int, typer.Option(min=1, help="Engines, all alike.")] = 8,
    speeds: Annotated[
        str | None,
        typer.Option(help="Engines of several speeds: 1x4,2.2x4 is four, and four 2.2 times as slow."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help=f"The engines: {', '.join(PROFILES)}, or a file of calibrate.")
    ] = "h200",
    flood: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT=PART", help="It sends so much of the capacity more in the middle third."
        ),
    ] = None,
    tenants: Annotated[
        int | None, typer.Option(min=1, help="Deal the requests out to equal tenants.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Of tenants: conv=2,code=1.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="I/S/B", help="Percent of interactive, standard, batch: 20/60/20.")
    ] = None,
    shed: Annotated[Literal["on", "off"], typer.Option(help="Whether policies that shed may.")] = "on",
    nonstream_share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the requests answered in one piece.")
    ] = 0.0,
    prefix_cache: Annotated[
        int,
        typer.Option(min=0, help="Tokens of prompts that each engine remembers, where the trace has hashes."),
    ] = 0,
    config: Annotated[
        Path | None,
        typer.Option(help="Replay the pools and rules of this routes.yaml: written, spill and merged."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="With --config, what tenants ask for: conv=chat-mini+llama3,code=code-7b."),
    ] = None,
    per_pool: Annotated[
        int | None, typer.Option(min=1, help="With --config: so many replicas in each pool.")
    ] = None,
    limits: Annotated[
        Literal["on", "off"], typer.Option(help="With --config: whether the file's limits hold.")
    ] = "on",
    overload: Annotated[
        str | None,
        typer.Option(
            metavar="MS:TOKENS,...",
            help="Brown-out in steps: 1000:512,3000:256 bounds outputs to 512 tokens where the line takes "
            "1 s, to 256 where it takes 3 s. With --config, the file's own.",
        ),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=2, help="No more than so many.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="How many; of each figure the worst is told.")] = 3,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; as many as processors if not given.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="What is printed.")] = Format.table,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; else standard output.")
    ] = None,
    smoke: Annotated[bool, typer.Option(help="A few requests, one seed: does it work at all?")] = False,
) -> None:
    """Replay a trace against simulated engines, in virtual time: no sockets, the gateway's own code."""
    try:
        names = [name.strip() for name in policies.split(",") if name.strip()]
        if config is not None and overload is not None:
            raise ValueError("with --config, the steps are the file's own (`overload`)")
        if config is not None:
            names = list(VARIANTS)
        else:
            for name in names:
                policy_of(name)
        scenario = Scenario(
            fleet=fleet_of(replicas, speeds, profile),
            trace=trace,
            trace_dir=trace_dir,
            requests=SMOKE_REQUESTS if smoke and requests is None else requests,
            flood=_flood(flood),
            shed=shed == "on",
            nonstream=nonstream_share,
            classes=_classes(classes),
            tenants=tenants,
            weights=_weights(weights),
            prefix_cache=prefix_cache,
            config=config,
            load_config=load_routes,
            models=tuple(models_of(models).items()),
            per_pool=per_pool,
            limits=limits == "on",
            overload=_overload(overload),
        )
        loads = None if load == "sweep" else [_positive(part) for part in load.split(",")]
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(str(error)) from None
    try:
        found = compare(
            scenario,
            names,
            loads,
            [seed] if smoke else range(seed, seed + seeds),
            processes=1 if smoke else jobs,
            told=lambda text: print(text, file=sys.stderr),
        )
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    except (TraceInvalid, OSError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(PROBLEM) from None
    settings = _settings(locals())
    text = as_text(found)
    if config is not None and (promised := _promised(load_routes(config))):
        settings["slo"] = promised
        text = f"in time: as {config} promises ({'; '.join(promised)}), for the rest as without it\n\n{text}"
    if form is Format.json:
        text = json.dumps(as_json(found, settings), indent=1)
    elif form is Format.html:
        text = as_html(found, settings, " ".join(["headgate", *sys.argv[1:]]))
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")


def fleet_of(replicas: int, speeds: str | None, profile: str) -> tuple[EngineProfile, ...]:
    """`speeds` is SLOWNESSxCOUNT,...: 2.2 is an engine that takes 2.2 times as long. Raises ValueError."""
    engine = profile_of(profile)
    if speeds is None:
        return (engine,) * replicas
    fleet: list[EngineProfile] = []
    for part in speeds.split(","):
        found = re.fullmatch(r"([0-9.]+)x(\d+)", part.strip())
        if found is None:
            raise ValueError(f"speeds are SLOWNESSxCOUNT, e.g. 1x4,2.2x4; not {part!r}")
        fleet += [replace(engine, speed=engine.speed / _positive(found[1]))] * int(found[2])
    if not fleet:
        raise ValueError("a fleet needs an engine")
    return tuple(fleet)


def load_routes(path: Path) -> Snapshot:
    """The configuration of a routes.yaml. Raises ConfigInvalid."""
    return load_snapshot(path, force_open=True)[0]


def _promised(snapshot: Snapshot) -> list[str]:
    """What the file's pools promise, by pool and class."""
    slos = [(f"pool {pool.name}", pool.slo) for pool in snapshot.pools.values()]
    slos += [
        (f"pool {pool.name}, {priority.name}", slo)
        for pool in snapshot.pools.values()
        for priority, slo in pool.class_slos.items()
    ]
    return [
        f"{who}: {', '.join(f'{name} {value:g}' for name, value in asdict(slo).items() if value is not None)}"
        for who, slo in slos
        if slo
    ]


def _flood(text: str | None) -> tuple[str, float] | None:
    if text is None:
        return None
    tenant, sign, part = text.partition("=")
    if not sign or not tenant:
        raise ValueError(f"--flood is TENANT=PART, e.g. noisy=0.6; not {text!r}")
    return tenant, _positive(part)


def _overload(text: str | None) -> tuple[OverloadStep, ...]:
    steps = []
    for part in (text or "").split(","):
        if part:
            wait, sign, tokens = part.partition(":")
            if not sign or not tokens.isdecimal() or not int(tokens):
                raise ValueError(f"--overload is MS:TOKENS,..., e.g. 1000:512,3000:256; not {part!r}")
            steps.append(OverloadStep(queue_wait=_positive(wait) / 1000, max_tokens=int(tokens)))
    return tuple(steps)


def _classes(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    parts = [float(part) for part in text.split("/")]
    if len(parts) != 3 or min(parts) < 0 or not sum(parts):
        raise ValueError(f"--classes is three numbers, e.g. 20/60/20; not {text!r}")
    return parts[0], parts[1], parts[2]


def _weights(text: str | None) -> tuple[tuple[str, float], ...]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    return tuple((tenant, _positive(weight)) for tenant, _, weight in pairs)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not above zero")
    return value


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The options as given, for whoever reads the report."""
    names = (
        "trace", "policies", "load", "replicas", "speeds", "profile", "flood", "tenants", "weights",
        "classes", "shed", "nonstream_share", "prefix_cache", "config", "models", "per_pool", "limits",
        "overload", "requests", "seed", "seeds", "smoke",
    )  # fmt: skip
    return {
        name: str(given[name]) if isinstance(given[name], Path) else given[name]
        for name in names
        if given[name] is not None
    }
