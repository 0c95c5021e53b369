"""The way of a request, from top to bottom.

Steps 1 and 2 (receive, read) are behind us: `api` has made a `Call` of the body. The numbers are those of
the request's way in the README. Decisions are synchronous and pure; every lease is a `with`, so whichever way
a request ends (answer, error, deadline, client gone), its slot, connection and reservation go back once.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.answer import Answer
from gateway.call import Call, Estimate
from gateway.config.snapshot import Snapshot
from gateway.errors import GatewayError
from gateway.fallbacks import Attempts
from gateway.limits.quotas import Limiter
from gateway.relay import Reply, fail, relay
from gateway.routing.router import choose_route, prompt_param
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
        expected = await self.estimate(call, record)  # 3 count, 4 bound, 5 estimate
        route = choose_route(self.snapshot, call, expected)  # 6 route
        record.rule = route.rule.name
        with (
            self.tracing.request(call) as record.span,
            self.limiter.reserve(call.tenant, expected.total) as reservation,  # 7 limit
            # 8 queue, 9 send; 11 fail over
            await self.attempts.first_answer(call, route, expected, record) as answer,
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

    async def estimate(self, call: Call, record: RequestRecord) -> Estimate:
        """Steps 3 to 5: what the request is expected to cost."""
        record.stage = "counting"
        prompt = await self.counting.count(call.model, call.request)
        record.prompt_tokens = prompt.tokens
        self.metrics.counts.labels(call.model.name, str(prompt.exact).lower()).inc()
        bound = bound_output(call.asked_max_tokens, call.model, call.tenant, prompt, param=prompt_param(call))
        learned = self.lengths.p90(call.tenant.name, call.model.name, prompt.tokens)
        expected = estimate(prompt, bound, call.request.n, learned, call.model)
        record.estimated_total = expected.total
        return expected

    def settle(self, answer: Answer, expected: Estimate, record: RequestRecord) -> int:
        """Step 12: take the engine's figures where it gave some, learn, and say what to charge."""
        prompt = expected.prompt.tokens if answer.prompt_tokens is None else answer.prompt_tokens
        record.completion_tokens = answer.completion_tokens
        record.usage_source = "counted" if answer.reported_tokens is None else "engine"
        if answer.ended:
            each = answer.completion_tokens // (answer.call.request.n * expected.prompt.prompts)
            self.lengths.observe(
                answer.call.tenant.name, answer.call.model.name, expected.prompt.tokens, each
            )
        return prompt + answer.completion_tokens
