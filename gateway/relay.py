"""Relaying: engine events to the client, with the clock running.

One task, no buffers of its own: while the client does not read, the engine's connection is not read
either, and TCP slows the engine down. Each wait has its bound: the idle time between events, one write
to the client, the request as a whole.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from backends.contract import EngineError, Event
from gateway.answer import Answer
from gateway.engine_errors import gateway_error_of
from gateway.errors import ClientGone, EngineTimeout, GatewayError
from gateway.telemetry.records import RequestRecord


class Reply(Protocol):
    """The client's side of an answer, in the shape it asked for."""

    started: bool
    """Whether the status line has left: from then on no error status is possible, and no retry."""

    def begin(self, answer: Answer) -> None:
        """Take note of who answers, for headers and names; sends nothing."""
        ...

    async def write(self, events: Sequence[Event]) -> None:
        """Send what these events mean to the client. With `Done` the reply is complete."""
        ...

    async def fail(self, error: GatewayError) -> None:
        """End a started reply so that no client takes it for a complete one."""
        ...


async def relay(answer: Answer, reply: Reply, record: RequestRecord, clock: Callable[[], float]) -> None:
    """Pass events on until the answer is complete.

    Raises GatewayError when the engine fails or falls silent, ClientGone when the client stops reading.
    """
    timeouts = answer.target.pool.timeouts
    deadline = answer.call.received + timeouts.total
    reply.begin(answer)
    record.stage = "streaming"
    record.first_byte = clock()
    events = answer.first
    answer.first = []
    while True:
        answer.note(events)
        await _sent(reply.write(events), timeouts.send)
        if answer.ended:
            return
        patience = min(timeouts.idle, deadline - clock())
        try:
            async with asyncio.timeout(patience):
                events = await answer.generation.events()
        except TimeoutError:
            raise EngineTimeout(f"The engine sent nothing for {max(patience, 0):.3g} s.") from None
        except EngineError as error:
            answer.slot.ledger.failed(error)
            raise gateway_error_of(error, answer.call) from error


async def fail(answer: Answer, reply: Reply, error: GatewayError) -> None:
    """Tell the client that a started reply has failed. Raises ClientGone when it does not read."""
    await _sent(reply.fail(error), answer.target.pool.timeouts.send)


async def _sent(write: Awaitable[None], patience: float) -> None:
    try:
        async with asyncio.timeout(patience):
            await write
    except TimeoutError:
        raise ClientGone(f"the client read nothing for {patience:g} s") from None
