"""Warm-up, then the open loop: each request goes out at its time, whatever became of those before.

Users do not wait for each other's answers. A loop that does (closed) slows down with the server it should
load, and reports short latencies for long queues ("coordinated omission").
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadtest.prompts import Calibration, PromptMaker, calibrate
from loadtest.sending import Client, Sample
from loadtest.workloads import Planned

WARM_UP_WORDS = (40, 400)
"""Two sizes, so that a line can be fitted."""

WARM_UP_OUTPUT = 8


class WarmUpFailed(RuntimeError):
    """No warm-up request was answered: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Ran:
    samples: list[Sample]
    planned: int
    not_sent: int
    """Passed over because `max_in_flight` requests were under way: load that was asked for and not made."""
    started: float
    calibration: Calibration


async def warm_up(client: Client, seed: int, requests: int) -> Calibration:
    """Send a few prompts of two sizes, one after another, and learn how many tokens a word has.

    Raises WarmUpFailed with the errors when none was answered.
    """
    if requests == 0:
        return Calibration()
    maker = PromptMaker(seed, Calibration())
    measured: list[tuple[int, int]] = []
    errors: list[str] = []
    for number in range(requests):
        words = WARM_UP_WORDS[number % len(WARM_UP_WORDS)]
        # Negative numbers: the measured prompts are others.
        sample = await client.send(_user(maker.of_words(-1 - number, words)), WARM_UP_OUTPUT)
        if sample.error is not None:
            errors.append(sample.error)
        elif sample.input_tokens is not None:
            measured.append((words, sample.input_tokens))
    if len(errors) == requests:
        raise WarmUpFailed(f"no warm-up request was answered: {', '.join(sorted(set(errors)))}")
    return calibrate(measured)


async def run(
    client: Client, plan: Iterator[Planned], *, seed: int, warm_up_requests: int, max_in_flight: int
) -> Ran:
    """Send the plan and wait for every answer; the client's timeout bounds each."""
    calibration = await warm_up(client, seed, warm_up_requests)
    maker = PromptMaker(seed, calibration)
    samples: list[Sample] = []
    in_flight = planned_count = not_sent = 0

    async def send(planned: Planned, messages: list[dict[str, Any]], late: float) -> None:
        nonlocal in_flight
        try:
            sample = await client.send(messages, planned.output_tokens)
        finally:
            in_flight -= 1
        sample.late, sample.tenant = late, planned.tenant
        samples.append(sample)

    # The first one is prepared before the clock starts, like all others: ahead of its time.
    upcoming = next(plan, None)
    messages = _messages(maker, 0, upcoming)
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while upcoming is not None:
            # At least one turn of the loop each, or a plan that is behind would never read an answer.
            await asyncio.sleep(max(0.0, started + upcoming.at - time.perf_counter()))
            if in_flight < max_in_flight:
                in_flight += 1
                late = max(0.0, time.perf_counter() - started - upcoming.at)
                group.create_task(send(upcoming, messages, late))
            else:
                not_sent += 1
            planned_count += 1
            upcoming = next(plan, None)
            messages = _messages(maker, planned_count, upcoming)
    return Ran(samples, planned_count, not_sent, started, calibration)


def _messages(maker: PromptMaker, number: int, planned: Planned | None) -> list[dict[str, Any]]:
    if planned is None:
        return []
    if planned.messages is not None:
        return planned.messages
    return _user(maker.of_tokens(number, planned.input_tokens, planned.blocks))


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
