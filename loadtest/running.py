"""Warm-up, then the open loop: each request goes out at its time, whatever became of those before.

Users do not wait for each other's answers. A loop that does (closed) slows down with the server it should
load, and reports short latencies for long queues ("coordinated omission").
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.replay.requests import TraceRequest
from loadtest.prompts import Calibration, PromptMaker, calibrate
from loadtest.sending import Client, Sample
from loadtest.workloads import Planned

WARM_UP_WORDS = (40, 400)
"""Two sizes, so that a line can be fitted."""

WARM_UP_OUTPUT = 8

TIERS = {"interactive": "priority", "standard": "default", "batch": "flex"}
"""Priority class -> OpenAI's `service_tier`."""


class WarmUpFailed(RuntimeError):
    """No warm-up request was answered: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a planned request is put."""

    tiers: bool = False
    """Name its priority class as `service_tier`."""
    simulated_lengths: bool = False
    """Ask for as much output as the trace's client did, and tell the true length in a field that only
    simulated engines read; else the true length is asked for."""

    def max_tokens(self, request: TraceRequest) -> int | None:
        if self.simulated_lengths or not request.output_tokens:
            return request.max_tokens
        return request.output_tokens

    def fields(self, request: TraceRequest) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.tiers:
            fields["service_tier"] = TIERS[request.priority.name]
        if self.simulated_lengths and request.output_tokens:
            fields["simulated_tokens"] = request.output_tokens
        return fields


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was sent, and what became of it."""

    request: TraceRequest
    sample: Sample


@dataclass(frozen=True, slots=True)
class Ran:
    answered: list[Answered]
    """In the order of their ends."""
    not_sent: list[TraceRequest]
    """Passed over because `max_in_flight` requests were under way: load that was asked for and not made."""
    started: float
    """`time.perf_counter` at the plan's second 0."""
    calibration: Calibration

    @property
    def samples(self) -> list[Sample]:
        return [each.sample for each in self.answered]

    @property
    def planned(self) -> int:
        return len(self.answered) + len(self.not_sent)


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
    client: Client,
    plan: Iterator[Planned],
    *,
    seed: int,
    warm_up_requests: int,
    max_in_flight: int,
    asking: Asking = Asking(),
) -> Ran:
    """Send the plan and wait for every answer; the client's timeout bounds each."""
    calibration = await warm_up(client, seed, warm_up_requests)
    maker = PromptMaker(seed, calibration)
    answered: list[Answered] = []
    not_sent: list[TraceRequest] = []
    in_flight = number = 0

    async def send(request: TraceRequest, messages: list[dict[str, Any]]) -> None:
        nonlocal in_flight
        try:
            sample = await client.send(
                messages,
                asking.max_tokens(request),
                tenant=request.tenant,
                stream=request.streamed,
                fields=asking.fields(request),
            )
        finally:
            in_flight -= 1
        sample.late = max(0.0, sample.sent - started - request.at)
        answered.append(Answered(request, sample))

    # The first one is prepared before the clock starts, like all others: ahead of its time.
    upcoming = next(plan, None)
    messages = _messages(maker, 0, upcoming)
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while upcoming is not None:
            request = upcoming.request
            # At least one turn of the loop each, or a plan that is behind would never read an answer.
            await asyncio.sleep(max(0.0, started + request.at - time.perf_counter()))
            if in_flight < max_in_flight:
                in_flight += 1
                group.create_task(send(request, messages))
            else:
                not_sent.append(request)
            number += 1
            upcoming = next(plan, None)
            messages = _messages(maker, number, upcoming)
    return Ran(answered, not_sent, started, calibration)


def _messages(maker: PromptMaker, number: int, planned: Planned | None) -> list[dict[str, Any]]:
    if planned is None:
        return []
    if planned.messages is not None:
        return planned.messages
    return _user(maker.of_tokens(number, planned.request.prompt_tokens, planned.request.blocks))


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
