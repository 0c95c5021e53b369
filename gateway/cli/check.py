"""`headgate check`: every problem of a routes file at once."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gateway.app import load_snapshot
from gateway.cli.exits import PROBLEM
from gateway.config.problems import ConfigInvalid, Problem


def check(
    config: Annotated[Path, typer.Argument(help="The routes file.")] = Path("routes.yaml"),
    insecure: Annotated[bool, typer.Option("--insecure", help="As for `headgate serve`.")] = False,
) -> None:
    """Check a routes file: each problem with its line, the value at fault and the nearest valid name."""
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
