"""The command line: `python -m loadtest run ...`, `python -m loadtest compare A.json B.json`.

Exit codes: 0 the run took place (its errors are figures), 1 nothing was answered, 2 wrong usage.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loadtest.running import WarmUpFailed, run
from loadtest.sending import Client
from loadtest.summary import compare, report, summarise
from loadtest.targets import TargetRefused, check_target
from loadtest.workloads import Planned, WorkloadInvalid, bounded, dataset, times_of, token_distribution, trace

KEY_VARIABLE = "LOADTEST_KEY"

SMOKE = {"requests": 20, "rate": 20.0, "warm_up": 3}
"""What --smoke overrides: seconds, not figures."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    run_parser = verbs.add_parser("run", help="load a server and print figures")
    _add_common(run_parser, defaults=True)
    workloads = run_parser.add_subparsers(dest="workload", required=True)
    drawn = workloads.add_parser("token-dist", help="lengths drawn from normal distributions")
    for side, mean, stdev in (("input", 128.0, 5.0), ("output", 20.0, 2.0)):
        drawn.add_argument(f"--{side}-mean", type=_positive, default=mean, metavar="TOKENS")
        drawn.add_argument(f"--{side}-stdev", type=_not_negative, default=stdev, metavar="TOKENS")
    data = workloads.add_parser("dataset", help='JSONL with "prompt" or "messages" in each line')
    data.add_argument("file", type=Path)
    recorded = workloads.add_parser("trace", help="arrivals and lengths as recorded: CSV or JSONL, .gz too")
    recorded.add_argument("file", type=Path)
    for workload in (drawn, data, recorded):  # options may stand before the workload or after it
        _add_common(workload, defaults=False)
    compared = verbs.add_parser("compare", help="two runs written with --json, as ratios")
    compared.add_argument("a", type=Path)
    compared.add_argument("b", type=Path)
    return top


def _add_common(to: argparse.ArgumentParser, *, defaults: bool) -> None:
    def add(name: str, default: Any = None, **options: Any) -> None:
        to.add_argument(name, default=default if defaults else argparse.SUPPRESS, **options)

    add("--url", help="e.g. http://127.0.0.1:8080")
    add("--model")
    add("--key", help=f"API key; {KEY_VARIABLE} keeps it out of the process list")
    add("--rate", type=_positive, help="requests a second; for a trace: stretch it to this mean")
    add("--arrivals", "poisson", choices=("poisson", "constant"))
    add("--requests", 500, type=_count, help="at most so many (500)")
    add("--duration", type=_positive, metavar="SECONDS", help="send no longer than this")
    add("--timeout", 300.0, type=_positive, metavar="SECONDS", help="for one request (300)")
    add("--max-in-flight", 4096, type=_count, help="requests under way at most; more are not sent (4096)")
    add("--warm-up", 10, type=int, metavar="REQUESTS", help="sent first, not measured (10)")
    add("--seed", 0, type=int, help="same seed, same plan and prompts (0)")
    add("--json", type=Path, metavar="OUT", help="write the figures")
    add("--no-stream", False, action="store_true", help="whole answers: no times of tokens")
    add("--ignore-eos", False, action="store_true", help="ask for the full output length, where engines can")
    add("--i-own-this-host", False, action="store_true", help="allow a host that is not this machine")
    add("--smoke", False, action="store_true", help="20 requests in a second: does it work at all?")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above zero")
    return value


def _not_negative(text: str) -> float:
    return 0.0 if float(text) == 0 else _positive(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def plan_of(given: argparse.Namespace) -> Iterator[Planned]:
    """The planned requests. Raises ValueError for a workload that lacks something."""
    if given.workload == "trace":
        plan = trace(given.file, rate=given.rate)
    else:
        if given.rate is None:
            raise ValueError(f"{given.workload} needs --rate")
        times = times_of(given.arrivals, given.rate, given.seed)
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


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without the key."""
    hidden = {"verb", "key", "i_own_this_host"}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(given).items())
        if name not in hidden
    }


async def _run(given: argparse.Namespace, url: str) -> dict[str, Any]:
    client = Client(
        url,
        given.model,
        key=given.key or os.environ.get(KEY_VARIABLE),
        timeout=given.timeout,
        stream=not given.no_stream,
        extra={"ignore_eos": True} if given.ignore_eos else {},
    )
    async with client:
        ran = await run(
            client,
            plan_of(given),
            seed=given.seed,
            warm_up_requests=max(0, given.warm_up),
            max_in_flight=given.max_in_flight,
        )
    return summarise(ran)


def _load(given: argparse.Namespace) -> int:
    if given.smoke:
        for name, value in SMOKE.items():
            setattr(given, name, value)
    missing = [f"--{name}" for name in ("url", "model") if getattr(given, name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given")
    url = check_target(given.url, owned=given.i_own_this_host)
    summary = asyncio.run(_run(given, url))
    print(report(summary))
    if given.json is not None:
        written = {"version": 1, "settings": settings_of(given), "summary": summary}
        given.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if summary["completed"] else 1


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        if given.verb == "compare":
            print(compare(*(json.loads(path.read_text()) for path in (given.a, given.b))))
            return 0
        return _load(given)
    except WarmUpFailed as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    except (TargetRefused, WorkloadInvalid, ValueError, OSError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"loadtest: not a run written by --json: {error} is missing", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
