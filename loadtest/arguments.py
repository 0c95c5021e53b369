"""What the commands read the same way."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gateway.replay.figures import Objectives

HIDDEN = frozenset({"arguments", "verb", "key", "keys", "i_own_this_host"})
"""What is not written down."""


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above zero")
    return value


def not_negative(text: str) -> float:
    return 0.0 if float(text) == 0 else positive(text)


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def factor(text: str) -> float:
    value = positive(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1: 1.2 allows a fifth more")
    return value


def parts(text: str) -> tuple[float, float, float]:
    """`20/60/20`: percent of interactive, standard, batch."""
    values = [float(part) for part in text.split("/")]
    if len(values) != 3 or min(values) < 0 or not sum(values):
        raise argparse.ArgumentTypeError("is three numbers, e.g. 20/60/20")
    return values[0], values[1], values[2]


def objectives(text: str) -> Objectives:
    """`short_ttft=0.5,long_tpot=0.2`, in seconds."""
    known = {each.name for each in fields(Objectives)}
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(sorted(known))}")
        given[name] = positive(value)
    return Objectives(**given)


def keys_of(path: Path | None) -> dict[str, str]:
    """A JSON object: tenant -> API key. Raises ValueError, OSError."""
    if path is None:
        return {}
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found.values()):
        raise ValueError(f"{path}: not a JSON object of tenants and their keys")
    return found


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without keys."""
    return {
        name: value if isinstance(value, (str, int, float, bool, type(None), list)) else str(value)
        for name, value in sorted(vars(given).items())
        if name not in HIDDEN
    }


def add_output(to: Any) -> None:
    """Options for what becomes of the figures. `to`: adds one option."""
    to("--json", type=Path, metavar="OUT", help="write the figures")
    to("--html", type=Path, metavar="OUT", help="write a page with plots")
    to("--baseline", type=Path, metavar="FILE", help="figures written by --json: print ratios")
    to(
        "--fail-above",
        type=factor,
        metavar="TIMES",
        help="exit with 3 where something is worse than the baseline by more than this factor",
    )


def command_line(arguments: Sequence[str]) -> str:
    """For the page, without keys."""
    shown, hide = [], False
    for argument in arguments:
        shown.append(
            "..." if hide else argument.partition("=")[0] + "=..." if _is_key(argument) else argument
        )
        hide = argument == "--key"
    return " ".join(["python -m loadtest", *shown])


def _is_key(argument: str) -> bool:
    return argument.startswith("--key=")
