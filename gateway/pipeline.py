"""The way of a request, from top to bottom.

Twelve steps: 1 receive, 2 read, 3 count, 4 bound, 5 estimate, 6 route, 7 limit, 8 queue, 9 send, 10 relay,
11 fail over, 12 settle. The first two are behind us: `api` has made a `Call` of the body. Decisions are
synchronous and pure; every lease is a `with`, so whichever way a request ends (answer, error, deadline,
client gone), its slot, connection and reservation go back once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway.answer import Answer
from gateway.call import Call, Estimate
from gateway.config.snapshot import Snapshot
from gateway.errors import GatewayError
from gateway.fallbacks import Attempts
from gateway.limits.quotas import Limiter, Reservation
from gateway.relay import Reply, fail, relay
from gateway.routing.router import Route, choose_route, prompt_param
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RequestRecord
from gateway.telemetry.tracing import Tracing
from gateway.tokens.bounding import bound_output
from gateway.tokens.counting import Counting
from gateway.tokens.estimating import OutputLengths, estimate


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The parts a request meets, in that order."""

    snapshot: Snapshot
    counting: Counting
    lengths: OutputLengths
    limiter: Limiter
    attempts: Attempts
    metrics: Metrics
    tracing: Tracing
    clock: Callable[[], float]

    async def serve(self, call: Call, reply: Reply, record: RequestRecord) -> None:
        """Answer `call` through `reply`.

        Raises GatewayError as long as nothing has been sent; after that, `reply` tells the client.
        """
        record.stage = "counting"
        expected = await self.estimate(call)  # 3 count, 4 bound, 5 estimate
        record.prompt_tokens, record.estimated_total = expected.prompt.tokens, expected.total
        self.metrics.counts.labels(call.model.name, str(expected.prompt.exact).lower()).inc()
        route = choose_route(self.snapshot, call, expected)  # 6 route
        record.rule = route.rule.name
        with (
            self.tracing.request(call) as record.span,
            self.limiter.reserve(call.tenant, expected.total) as reservation,  # 7 limit
            # 8 queue, 9 send; 11 fail over
            await self.first_answer(call, route, expected, record, reservation) as answer,
        ):
            try:
                await relay(answer, reply, record, self.clock)  # 10 relay
            except GatewayError as error:
                if not reply.started:
                    reservation.refund()  # the client gets nothing and pays nothing
                    raise
                record.error_code = error.code
                record.finish("failed")
                await fail(answer, reply, error)
            finally:
                reservation.settle(self.settle(answer, expected, record))  # 12 settle

    async def first_answer(
        self, call: Call, route: Route, expected: Estimate, record: RequestRecord, reservation: Reservation
    ) -> Answer:
        """Steps 8 and 9, and 11 as often as it takes."""
        try:
            return await self.attempts.first_answer(call, route, expected, record)
        except asyncio.CancelledError:
            if record.attempts:
                reservation.settle(expected.prompt.tokens)  # an engine has begun to read it
            raise

    async def estimate(self, call: Call) -> Estimate:
        """Steps 3 to 5: what the request is expected to cost."""
        prompt = await self.counting.count(call.model, call.request)
        bound = bound_output(call.asked_max_tokens, call.model, call.tenant, prompt, param=prompt_param(call))
        learned = self.lengths.p90(call.tenant.name, call.model.name, prompt.tokens)
        return estimate(prompt, bound, choices_computed(call), learned, call.model)

    def settle(self, answer: Answer, expected: Estimate, record: RequestRecord) -> int:
        """Step 12: take the engine's figures where it gave some, learn, and say what to charge."""
        prompt = expected.prompt.tokens if answer.prompt_tokens is None else answer.prompt_tokens
        record.completion_tokens = answer.completion_tokens
        record.usage_source = "counted" if answer.reported_tokens is None else "engine"
        if answer.ended and (answer.reported_tokens is not None or not answer.guessed):
            each = answer.completion_tokens // answer.choices
            self.lengths.observe(
                answer.call.tenant.name, answer.call.model.name, expected.prompt.tokens, each
            )
        return prompt + answer.completion_tokens


def choices_computed(call: Call) -> int:
    """Answers that the engine makes per prompt; `best_of` may be more than the client gets."""
    best_of = call.request.parameters.get("best_of", 1)
    return max(call.request.n, best_of) if isinstance(best_of, int) else call.request.n
