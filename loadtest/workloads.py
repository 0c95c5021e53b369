"""What is asked, and when: planned requests, in order of time.

Traces are read, and given classes, tenants and `max_tokens`, by the same code as in `headgate replay`.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.replay.requests import TraceRequest, compressed
from gateway.replay.traces import open_text

ALL = "all"
"""The tenant of workloads that know of none."""


class WorkloadInvalid(ValueError):
    """A file is not what it should be. The message names file and line."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of the plan."""

    request: TraceRequest
    """When, whose, how long. Of a dataset's prompts the lengths are 0: the server's usage will tell."""
    messages: list[dict[str, Any]] | None = None
    """The prompt itself, where a dataset has one; else it is made of words."""


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
        output = max(1, round(rng.gauss(output_mean, output_stdev)))
        prompt = max(1, round(rng.gauss(input_mean, input_stdev)))
        yield Planned(TraceRequest(at, ALL, prompt, output, output))


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
            yield Planned(TraceRequest(next(times), ALL, 0, 0, limit), messages)


def trace(requests: Iterable[TraceRequest], *, rate: float | None = None) -> Iterator[Planned]:
    """A recorded day. `rate`: time is stretched so that it comes to as many requests a second on average;
    bursts stay bursts."""
    recorded = list(requests)
    for request in recorded if rate is None else compressed(recorded, rate):
        yield Planned(request)


def bounded(plan: Iterator[Planned], *, requests: int, seconds: float | None) -> Iterator[Planned]:
    """At most `requests`, all sent within `seconds`."""
    first = itertools.islice(plan, requests)
    if seconds is None:
        return first
    return itertools.takewhile(lambda planned: planned.request.at <= seconds, first)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise WorkloadInvalid(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WorkloadInvalid(f"{path}:{number}: not a JSON object")
    return value
