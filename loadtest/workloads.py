"""What is asked, and when: planned requests, made one at a time: no trace lies in memory whole."""

import csv
import gzip
import io
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from loadtest.arrivals import Arrivals, arrivals


class WorkloadInvalid(ValueError):
    """A file is not what it should be. The message names file and line."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of the plan."""

    at: float
    """Seconds from the start."""
    output_tokens: int | None
    """Asked for as max_tokens; None: the server's default."""
    input_tokens: int = 0
    """About how large the prompt is to be, where it is made of words."""
    messages: list[dict[str, Any]] | None = None
    """The prompt itself, where a dataset has one."""
    blocks: tuple[int, ...] = ()
    """Hashes of the trace's prefix blocks."""
    tenant: str | None = None


def token_distribution(
    times: Iterator[float],
    *,
    input_mean: float,
    input_stdev: float,
    output_mean: float,
    output_stdev: float,
    seed: int,
) -> Iterator[Planned]:
    """Lengths drawn from two normal distributions, cut off below 1."""
    rng = random.Random(f"{seed}/lengths")
    for at in times:
        yield Planned(
            at,
            output_tokens=max(1, round(rng.gauss(output_mean, output_stdev))),
            input_tokens=max(1, round(rng.gauss(input_mean, input_stdev))),
        )


def dataset(times: Iterator[float], path: Path) -> Iterator[Planned]:
    """JSONL: `{"prompt": "..."}` or `{"messages": [...]}`, each with `max_tokens` if you like.

    Ends with the file: a prompt sent twice measures the engine's cache.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _object(path, number, line)
            messages, prompt = row.get("messages"), row.get("prompt")
            if isinstance(prompt, str) and messages is None:
                messages = [{"role": "user", "content": prompt}]
            if not isinstance(messages, list) or not messages:
                raise WorkloadInvalid(f'{path}:{number}: needs "prompt" (a string) or "messages" (a list)')
            limit = row.get("max_tokens")
            if limit is not None and (type(limit) is not int or limit < 1):
                raise WorkloadInvalid(f"{path}:{number}: max_tokens is a whole number above zero")
            yield Planned(next(times), output_tokens=limit, messages=messages)


def trace(path: Path, *, rate: float | None = None) -> Iterator[Planned]:
    """A recorded day: CSV `t_s,tenant,in_tokens,out_tokens`, or JSONL `{"t", "in", "out", "h"?}`; .gz too.

    `rate`: time is stretched so that it comes to as many requests a second on average; bursts stay bursts.
    """
    factor = 1.0
    if rate is not None:
        recorded = _mean_rate(path)
        factor = recorded / rate
    start: float | None = None
    last = 0.0
    for number, planned in _rows(path):
        start = planned.at if start is None else start
        at = (planned.at - start) * factor
        if at < last:
            raise WorkloadInvalid(f"{path}:{number}: time goes backwards")
        last = at
        yield Planned(
            at, planned.output_tokens, planned.input_tokens, blocks=planned.blocks, tenant=planned.tenant
        )


def times_of(kind: Arrivals, rate: float, seed: int) -> Iterator[float]:
    return arrivals(kind, rate, seed)


def bounded(plan: Iterator[Planned], *, requests: int, seconds: float | None) -> Iterator[Planned]:
    """At most `requests`, all sent within `seconds`."""
    first = itertools.islice(plan, requests)
    return first if seconds is None else itertools.takewhile(lambda planned: planned.at <= seconds, first)


def open_text(path: Path) -> TextIO:
    """A file as UTF-8 text, unpacked if its name ends in .gz. Raises OSError."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")  # the caller closes
    return path.open(encoding="utf-8", newline="")


def _rows(path: Path) -> Iterator[tuple[int, Planned]]:
    with open_text(path) as lines:
        if ".jsonl" in path.suffixes:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = _object(path, number, line)
                    yield number, _planned(path, number, row, "t", "in", "out")
            return
        reader = csv.DictReader(lines)
        wanted = {"t_s", "tenant", "in_tokens", "out_tokens"}
        if not wanted <= set(reader.fieldnames or ()):
            raise WorkloadInvalid(f"{path}:1: columns are {', '.join(sorted(wanted))}")
        for record in reader:
            yield reader.line_num, _planned(path, reader.line_num, record, "t_s", "in_tokens", "out_tokens")


def _planned(path: Path, number: int, row: dict[str, Any], at: str, prompt: str, output: str) -> Planned:
    try:
        return Planned(
            float(row[at]),
            output_tokens=max(1, int(row[output])),
            input_tokens=max(1, int(row[prompt])),
            blocks=tuple(int(block) for block in row.get("h") or ()),
            tenant=row.get("tenant"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkloadInvalid(f"{path}:{number}: {type(error).__name__}: {error}") from None


def _mean_rate(path: Path) -> float:
    count, first, last = 0, 0.0, 0.0
    for _, planned in _rows(path):
        first = planned.at if count == 0 else first
        last = planned.at
        count += 1
    if count < 2 or last <= first:
        raise WorkloadInvalid(f"{path}: too short to have a rate")
    return (count - 1) / (last - first)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise WorkloadInvalid(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WorkloadInvalid(f"{path}:{number}: not a JSON object")
    return value
