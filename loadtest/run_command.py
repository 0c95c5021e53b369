"""`python -m loadtest run`: load any server that speaks OpenAI's API."""

import argparse
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends.simulated.engine import PROFILES
from backends.simulated.profiles import profile_of
from gateway.config.snapshot import PriorityClass
from gateway.replay.comparing import Scenario, trace_of
from gateway.replay.figures import Objectives
from gateway.replay.report import as_text
from loadtest.arguments import (
    add_output,
    count,
    keys_of,
    not_negative,
    objectives,
    parts,
    positive,
)
from loadtest.arrivals import arrivals
from loadtest.classes import run_of, side_by_side
from loadtest.outcome import tell, written
from loadtest.running import Asking, Ran, run
from loadtest.sending import Client
from loadtest.summary import report, summarise
from loadtest.targets import check_target
from loadtest.workloads import Planned, bounded, dataset, token_distribution, trace

KEY_VARIABLE = "LOADTEST_KEY"

SMOKE = {"requests": 20, "rate": 20.0, "warm_up": 3}
"""What --smoke overrides: seconds, not figures."""


def add(verbs: Any) -> None:
    """The command and its options."""
    parser = verbs.add_parser("run", help="load a server and print figures")
    _add_common(parser, defaults=True)
    workloads = parser.add_subparsers(dest="workload", required=True)
    drawn = workloads.add_parser("token-dist", help="lengths drawn from normal distributions")
    for side, mean, stdev in (("input", 128.0, 5.0), ("output", 20.0, 2.0)):
        drawn.add_argument(f"--{side}-mean", type=positive, default=mean, metavar="TOKENS")
        drawn.add_argument(f"--{side}-stdev", type=not_negative, default=stdev, metavar="TOKENS")
    data = workloads.add_parser("dataset", help='JSONL with "prompt" or "messages" in each line')
    data.add_argument("file", type=Path)
    recorded = workloads.add_parser("trace", help="arrivals and lengths as recorded, or made")
    recorded.add_argument("file", help="as headgate replay --trace: a file, mixed, conv, code, docs, ...")
    recorded.add_argument("--trace-dir", type=Path, metavar="DIR", help="where mixed-files finds its files")
    recorded.add_argument("--tenants", type=count, help="deal the requests out to equal tenants t1, t2, ...")
    recorded.add_argument(
        "--classes", type=parts, metavar="I/S/B", help="percent of interactive, standard, batch: 20/60/20"
    )
    for workload in (drawn, data, recorded):  # options may stand before the workload or after it
        _add_common(workload, defaults=False)


def _add_common(to: argparse.ArgumentParser, *, defaults: bool) -> None:
    def option(name: str, default: Any = None, **options: Any) -> None:
        to.add_argument(name, default=default if defaults else argparse.SUPPRESS, **options)

    option("--url", help="e.g. http://127.0.0.1:8080")
    option("--model")
    option("--key", help=f"API key; {KEY_VARIABLE} keeps it out of the process list")
    option("--keys", type=Path, metavar="FILE", help="JSON object: tenant of the trace -> its API key")
    option("--rate", type=positive, help="requests a second; for a trace: stretch it to this mean")
    option("--arrivals", "poisson", choices=("poisson", "constant"))
    option("--requests", 500, type=count, help="at most so many (500)")
    option("--duration", type=positive, metavar="SECONDS", help="send no longer than this")
    option("--timeout", 300.0, type=positive, metavar="SECONDS", help="for one request (300)")
    option("--max-in-flight", 4096, type=count, help="requests under way at most; more are not sent (4096)")
    option("--warm-up", 10, type=int, metavar="REQUESTS", help="sent first, not measured (10)")
    option("--seed", 0, type=int, help="same seed, same plan and prompts (0)")
    option("--name", "run", help="what the tables call this run (run)")
    option("--slo", Objectives(), type=objectives, help="in seconds: short_ttft=1,short_tpot=0.06,...")
    option(
        "--profile",
        "h200",
        help=f"whose bare prefill long prompts are held to: {', '.join(PROFILES)}, or a file (h200)",
    )
    option("--no-stream", False, action="store_true", help="whole answers: no times of tokens")
    option(
        "--ignore-eos", False, action="store_true", help="ask for the full output length, where engines can"
    )
    option(
        "--simulated-lengths",
        False,
        action="store_true",
        help="only simulated engines: ask for what the trace's client did, get the trace's length",
    )
    option("--i-own-this-host", False, action="store_true", help="allow a host that is not this machine")
    option("--smoke", False, action="store_true", help="20 requests in a second: does it work at all?")
    add_output(option)


def execute(given: argparse.Namespace) -> int:
    """Load, print, write, compare. Raises ValueError, OSError, WarmUpFailed."""
    if given.smoke:
        for name, value in SMOKE.items():
            setattr(given, name, value)
    missing = [f"--{name}" for name in ("url", "model") if getattr(given, name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given")
    url = check_target(given.url, owned=given.i_own_this_host)
    plan = list(plan_of(given))
    keys, reference = keys_of(given.keys), profile_of(given.profile)
    classes = {planned.request.priority for planned in plan}
    tiers = classes != {PriorityClass.interactive}
    ran = asyncio.run(_run(given, url, iter(plan), keys, tiers=tiers))
    summary = summarise(ran)
    rate = _offered(plan)
    found = run_of(given.name, rate, given.seed, ran, reference, objectives=given.slo, by_priority=tiers)
    comparison = side_by_side([found])
    head = f"{len(plan)} requests, {rate:g} a second (load), to {url}"
    print(report(summary))
    print(f"\n{as_text(comparison, head)}")
    code = tell(
        given,
        written(given, comparison, summary=summary),
        comparison,
        title="Headgate loadtest",
        head=head,
        how="Over sockets, as one client saw it; latencies count from the scheduled time.",
        objectives=given.slo,
    )
    return code if summary["completed"] else 1


def plan_of(given: argparse.Namespace) -> Iterator[Planned]:
    """The planned requests. Raises ValueError for a workload that lacks something."""
    if given.workload == "trace":
        scenario = Scenario(
            fleet=(),
            trace=given.file,
            trace_dir=given.trace_dir,
            requests=given.requests,
            tenants=given.tenants,
            classes=given.classes,
        )
        plan = trace(trace_of(scenario, given.seed), rate=given.rate)
        return bounded(plan, requests=given.requests, seconds=given.duration)
    if given.rate is None:
        raise ValueError(f"{given.workload} needs --rate")
    times = arrivals(given.arrivals, given.rate, given.seed)
    if given.workload == "dataset":
        plan = dataset(times, given.file)
    else:
        plan = token_distribution(
            times,
            input_mean=given.input_mean,
            input_stdev=given.input_stdev,
            output_mean=given.output_mean,
            output_stdev=given.output_stdev,
            seed=given.seed,
        )
    return bounded(plan, requests=given.requests, seconds=given.duration)


def _offered(plan: list[Planned]) -> float:
    """Requests a second, to three digits: it labels the rows."""
    seconds = plan[-1].request.at - plan[0].request.at if plan else 0.0
    return float(f"{(len(plan) - 1) / seconds:.3g}") if seconds else float(len(plan))


async def _run(
    given: argparse.Namespace, url: str, plan: Iterator[Planned], keys: dict[str, str], *, tiers: bool
) -> Ran:
    client = Client(
        url,
        given.model,
        key=given.key or os.environ.get(KEY_VARIABLE) or next(iter(keys.values()), None),
        keys=keys,
        timeout=given.timeout,
        stream=not given.no_stream,
        extra={"ignore_eos": True} if given.ignore_eos else {},
    )
    async with client:
        return await run(
            client,
            plan,
            seed=given.seed,
            warm_up_requests=max(0, given.warm_up),
            max_in_flight=given.max_in_flight,
            asking=Asking(tiers=tiers, simulated_lengths=given.simulated_lengths),
        )
