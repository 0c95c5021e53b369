"""`headgate check`: every problem of a routes file at once."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gateway.app import load_snapshot
from gateway.cli.exits import PROBLEM
from gateway.cli.traces import TRACES, models_of
from gateway.config.problems import ConfigInvalid, Problem
from gateway.config.snapshot import Snapshot
from gateway.planning.shares import lopsided, parts_of
from gateway.replay.comparing import Scenario, trace_of
from gateway.replay.dividing import divided, passed_by, work_shares
from gateway.replay.traces import TraceInvalid

MOST_REQUESTS = 8000
"""Of the trace; to look at more takes long and tells no more."""


def check(
    config: Annotated[Path, typer.Argument(help="The routes file.")] = Path("routes.yaml"),
    insecure: Annotated[bool, typer.Option("--insecure", help="As for `headgate serve`.")] = False,
    trace: Annotated[
        str | None, typer.Option(help=f"Say how its rules divide this traffic: {TRACES}.")
    ] = None,
    trace_dir: Annotated[
        Path | None, typer.Option(envvar="HEADGATE_TRACES", help="Where mixed-files finds its files.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="With --trace, what its tenants ask for: conv=chat-mini+llama3,code=code-7b."),
    ] = None,
) -> None:
    """Check a routes file: each problem with its line, the value at fault and the nearest valid name.

    With a trace, also which pools have much more of the work than of the engines, or much less, and which
    rules' first pools are too small for what clients ask: what only traffic can tell.
    """
    try:
        snapshot, warnings = load_snapshot(config, force_open=insecure)
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    warn(warnings)
    replicas = sum(len(pool.replicas) for pool in snapshot.pools.values())
    print(
        f"{config}: fine. {len(snapshot.models)} models, {len(snapshot.pools)} pools with {replicas} "
        f"replicas, {len(snapshot.rules)} rules, {len(snapshot.tenants)} tenants."
    )
    if trace is not None:
        try:
            _divide(snapshot, trace, trace_dir, models_of(models))
        except (ValueError, TraceInvalid, OSError) as error:
            print(f"headgate: {error}", file=sys.stderr)
            raise typer.Exit(PROBLEM) from None


def _divide(
    snapshot: Snapshot, trace: str, trace_dir: Path | None, models: dict[str, tuple[str, ...]]
) -> None:
    """How the rules divide the work of a trace, and whether the engines are where it is."""
    requests = trace_of(Scenario(fleet=(), trace=trace, trace_dir=trace_dir, requests=MOST_REQUESTS), seed=1)
    pools, homeless = divided(snapshot, requests, models)
    print(f"\n{len(requests)} requests of {trace}; {homeless} of them fit no pool.")
    shares = work_shares(snapshot, pools)
    print(f"{'pool':20} {'requests':>9} {'work':>6} {'capacity':>9}")
    for part in parts_of(shares):
        print(f"{part.pool:20} {len(pools[part.pool]):9d} {part.work:6.0%} {part.capacity:9.0%}")
    for warning in (*lopsided(shares), *passed_by(snapshot, requests, models)):
        print(f"warning: {warning}", file=sys.stderr)


def warn(warnings: Sequence[Problem]) -> None:
    """Print what is odd but allowed."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def report(invalid: ConfigInvalid) -> None:
    """Print the problems, one a line."""
    warn(invalid.warnings)
    for problem in invalid.problems:
        print(problem, file=sys.stderr)
    count = len(invalid.problems)
    print(f"{count} problem{'s' if count != 1 else ''}.", file=sys.stderr)
