"""Relaying: engine events to the client, with the clock running.

One task, no buffers of its own: while the client does not read, the engine's connection is not read
either, and TCP slows the engine down. Each wait has its bound: the idle time between events, one write
to the client, the request as a whole. A time budget is none of them: it ends the answer well.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from backends.contract import EngineError, Event
from gateway.answering.answer import Answer
from gateway.answering.commenting import KEEP_ALIVE, Comments
from gateway.answering.watchdog import Watchdog
from gateway.engine_errors import gateway_error_of
from gateway.errors import ClientGone, EngineTimeout, GatewayError
from gateway.limits.reservation import Reservation
from gateway.telemetry.records import RequestRecord


class Reply(Protocol):
    """The client's side of an answer, in the shape it asked for."""

    started: bool
    """Whether the status line has left: from then on no error status is possible."""
    answered: bool
    """Whether anything of the answer has left: from then on no retry is, and it must be paid."""

    def begin(self, answer: Answer) -> None:
        """Take note of who answers, for headers and names; sends nothing."""
        ...

    async def write(self, events: Sequence[Event]) -> None:
        """Send what these events mean to the client. With `Done` the reply is complete."""
        ...

    async def comment(self, text: str) -> None:
        """Say something that no client takes for a part of the answer; nothing where there is no stream."""
        ...

    async def fail(self, error: GatewayError) -> None:
        """End a started reply so that no client takes it for a complete one."""
        ...


async def relay(
    answer: Answer,
    reply: Reply,
    record: RequestRecord,
    reservation: Reservation,
    clock: Callable[[], float],
    comments: Comments,
) -> None:
    """Pass events on until the answer is complete, or outruns what limits leave. A stream that has begun and
    falls silent gets a comment every `keepalive` seconds.

    Raises GatewayError when the engine fails or falls silent, ClientGone when the client stops reading.
    """
    timeouts = answer.target.pool.timeouts
    deadline = answer.call.received + timeouts.total
    answer.watched = reservation.may_cut
    reply.begin(answer)
    record.stage = "streaming"
    record.first_byte = clock()
    events = answer.first
    answer.first = []
    writing = False

    def silent() -> None:
        if reply.started and not writing:
            comments.say(KEEP_ALIVE)

    try:
        with Watchdog(timeouts.keepalive, silent) as watchdog:
            while True:
                answer.note(events)
                reservation.streamed(answer.counted_tokens, clock)
                if reservation.cut is not None and (rest := answer.cut(reservation.cut)):
                    record.cut_by = reservation.cut
                    reservation.cut_short(reservation.cut)
                    events = [*events, *rest]
                if (late := answer.overdue(events, clock())) is not None and (rest := answer.cut(late)):
                    record.cut_by = late
                    events = [*events, *rest]
                writing = True
                watchdog.expect(timeouts.send)
                if comments.leaving:
                    await comments.quiet()
                await reply.write(events)
                if reply.started:
                    answer.delivered_tokens = answer.counted_tokens
                if answer.ended:
                    return
                writing = False
                watchdog.expect(min(timeouts.idle, deadline - clock()))
                events = await answer.generation.events()
    except TimeoutError:
        if writing:
            raise _stalled(timeouts.send) from None
        answer.lost_by = "timeout"
        raise EngineTimeout("The engine sent nothing for too long.") from None
    except EngineError as error:
        answer.lost_by = "failed"
        answer.slot.ledger.failed(error)
        raise gateway_error_of(error, answer.call) from error
    except asyncio.CancelledError:
        if record.cut_off:
            answer.lost_by = "shutdown"
        raise
    except ClientGone:
        raise
    except Exception:
        answer.lost_by = "failed"  # our own fault is not its client's either
        raise


async def fail(reply: Reply, error: GatewayError, comments: Comments, patience: float) -> None:
    """Tell the client that a started reply has failed. Raises ClientGone when it does not read for `patience`
    seconds."""
    try:
        async with asyncio.timeout(patience):
            await comments.quiet()
            await reply.fail(error)
    except TimeoutError:
        raise _stalled(patience) from None


def _stalled(patience: float) -> ClientGone:
    return ClientGone(f"the client read nothing for {patience:g} s")
