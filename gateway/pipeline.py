"""The way of a request, from top to bottom.

Twelve steps: 1 receive, 2 read, 3 count, 4 bound, 5 estimate, 6 route, 7 limit, 8 queue, 9 send, 10 relay,
11 fail over, 12 settle. The first two are behind us: `api` has made a `Call` of the body. Decisions are
synchronous and pure; every lease is a `with`, so whichever way a request ends (answer, error, deadline,
client gone), its slot, connection and reservation go back once.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

from msgspec.structs import replace

from gateway.answering.abandoning import Cause, abandoned
from gateway.answering.answer import Answer
from gateway.answering.commenting import KEEP_ALIVE, Announcing, Comments
from gateway.call import Call, Estimate, PromptCount, choices_computed
from gateway.config.snapshot import Snapshot, Timeouts
from gateway.errors import ClientGone, GatewayError, QuotaExceeded
from gateway.fallbacks import Attempts
from gateway.limits.limiter import Limiter
from gateway.limits.reservation import Reservation
from gateway.limits.saying import rate_headers
from gateway.mirroring import Mirroring
from gateway.relay import Reply, fail, relay
from gateway.routing.degrading import BY, Brownout
from gateway.routing.router import Route, choose_route, prompt_param
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RequestRecord, outcome_of
from gateway.telemetry.tracing import Tracing
from gateway.tokens.bounding import bound_output
from gateway.tokens.counting import Counting
from gateway.tokens.estimating import OutputLengths, estimate
from gateway.tokens.tiers import Room


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The parts a request meets, in that order."""

    snapshot: Snapshot
    counting: Counting
    lengths: OutputLengths
    brownout: Brownout
    limiter: Limiter
    attempts: Attempts
    mirroring: Mirroring
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
        record.prompt_tier = expected.prompt.tier
        self.metrics.note_count(call.model.name, expected.prompt)
        route = choose_route(self.snapshot, call, expected)  # 6 route
        if (lesser := self.brownout.degrade(self.snapshot, call, route)) is not None:
            call, route = lesser.call, lesser.route
            record.degraded, record.priority_class = str(lesser), call.priority_class.name
            self.metrics.note_degraded(lesser.causes)
        expected = route.estimate  # a rule may bound the output
        record.rule, record.estimated_total = route.rule.name, expected.total
        comments = Comments(reply)
        try:
            with (
                self.tracing.request(call) as record.span,
                await self.reserve(call, expected, route, record) as reservation,  # 7 limit
                self.announcing(call, route, record, comments),
                # 8 queue, 9 send; 11 fail over
                await self.first_answer(call, route, expected, record, reservation) as answer,
            ):
                try:
                    await relay(answer, reply, record, reservation, self.clock, comments)  # 10 relay
                except Exception as error:
                    if not reply.answered and not isinstance(error, ClientGone):
                        reservation.refund()  # the client gets an error and pays nothing
                    raise
                except asyncio.CancelledError:
                    if record.cut_off and not reply.answered:
                        reservation.refund()  # it will be told that we shut down
                    raise
                finally:
                    self.settle(answer, expected, record, reservation)  # 12 settle
        except GatewayError as error:
            if not reply.started:
                raise
            record.error_code = error.code
            record.finish(outcome_of(error.status))
            await fail(reply, error, comments, self._timeouts(record).send)
        finally:
            comments.close()

    def announcing(
        self, call: Call, route: Route, record: RequestRecord, comments: Comments
    ) -> AbstractContextManager[object]:
        """Tells the client how it stands while it waits, where the rule says so (`queue_comments_ms`)."""
        every = route.rule.queue_comments
        if every is None or not call.stream:
            return nullcontext()
        silent_since = self.clock()

        def standing() -> str | Literal[False] | None:
            nonlocal silent_since
            now, text = self.clock(), None
            if record.stage == "streaming":
                return False
            if record.stage == "queued" and (place := self.attempts.standing(record)) is not None:
                position, wait = place
                text = f"headgate queue position={position} expected_wait_ms={wait * 1e3:.0f}"
            elif now - silent_since >= self._timeouts(record).keepalive:
                text = KEEP_ALIVE
            if text is not None:
                silent_since = now
            return text

        return Announcing(comments, every, standing)

    def _timeouts(self, record: RequestRecord) -> Timeouts:
        """Of the pool that has the request."""
        pool = self.snapshot.pools.get(record.pool or "")
        return Timeouts() if pool is None else pool.timeouts

    async def reserve(
        self, call: Call, expected: Estimate, route: Route, record: RequestRecord
    ) -> Reservation:
        """Step 7: of the limits of pools, those of the first one; where the rule leaves an overloaded pool,
        of the first one that has room."""
        pools = [target.pool.name for target in route.chain if target.usable]
        if "overloaded" not in route.rule.on:
            del pools[1:]
        try:
            reservation = await self.limiter.reserve(call, expected, pools)
        except QuotaExceeded as refused:
            headers = refused.rate_headers
            record.rate_headers = lambda: headers
            raise
        record.rate_headers = partial(rate_headers, reservation.standings)
        return reservation

    async def first_answer(
        self, call: Call, route: Route, expected: Estimate, record: RequestRecord, reservation: Reservation
    ) -> Answer:
        """Steps 8 and 9, and 11 as often as it takes. The rule's mirror gets its copy meanwhile."""
        self.mirroring.consider(self.snapshot, call, route, expected)
        try:
            return await self.attempts.first_answer(call, route, expected, record, reservation)
        except asyncio.CancelledError:
            if record.attempts and not record.cut_off:
                reservation.settle(expected.prompt.tokens, 0)  # an engine has begun to read it
            raise

    async def estimate(self, call: Call) -> Estimate:
        """Steps 3 to 5: what the request is expected to cost."""
        expect = partial(self.expect, call)
        count = await self.counting.count_for(call, expect, self.room(call))
        if call.as_chat and count.exact:
            count = replace(count, exact=False, source=f"{count.source}, as the engine may read it")
        return expect(count)

    def expect(self, call: Call, prompt: PromptCount) -> Estimate:
        """Steps 4 and 5, for a prompt of this length. Pure."""
        bound = bound_output(call.asked_max_tokens, call.model, call.tenant, prompt, param=prompt_param(call))
        learned = self.lengths.predict(call.tenant.name, call.model.name, prompt.tokens)
        return estimate(prompt, bound, choices_computed(call), learned, call.model)

    def explained(self, call: Call, expected: Estimate) -> Estimate:
        """With the reason why its prompt was counted, or estimated, in words."""
        why = self.counting.reason(call, expected.prompt, partial(self.expect, call), self.room(call))
        return replace(expected, prompt=replace(expected.prompt, why=why))

    def room(self, call: Call) -> Room | None:
        """What the call's limits leave, to be asked for where it matters."""
        return partial(self.limiter.room, call)

    def settle(
        self, answer: Answer, expected: Estimate, record: RequestRecord, reservation: Reservation
    ) -> None:
        """Step 12: take the engine's figures where it gave some, charge them, and learn."""
        prompt = expected.prompt.tokens if answer.prompt_tokens is None else answer.prompt_tokens
        reservation.settle(prompt, answer.completion_tokens, answer.cached_tokens or 0)
        self.waste(answer, expected, record)
        self.compare(answer, expected)
        self.correct(answer)
        record.completion_tokens, record.choices = answer.completion_tokens, answer.choices
        record.usage_source = "counted" if answer.reported_tokens is None else "engine"
        whole = answer.ended and answer.cut_by is None
        generated = answer.call.asked_max_tokens != 0
        if whole and generated and (answer.reported_tokens is not None or not answer.guessed):
            each = answer.completion_tokens // answer.choices
            cap = expected.bound.cap
            if cap is None or cap[1] != BY:  # what a brown-out cut tells nothing of other times
                self.lengths.observe(
                    answer.call.tenant.name, answer.call.model.name, expected.prompt.tokens, each
                )
            self.metrics.observe_output(answer.call.model.name, expected, answer.sent_max_tokens, each)

    def correct(self, answer: Answer) -> None:
        """Hold what the prompt was expected to find in the replica's cache against what the engine says."""
        slot = answer.slot
        if slot.on_cached is None or answer.prompt_tokens is None:  # it told no usage
            return
        slot.on_cached(answer.cached_tokens)
        if answer.cached_tokens is not None:
            self.metrics.note_prefix(answer.target.pool.name, slot.hit, answer.cached_tokens)

    def waste(self, answer: Answer, expected: Estimate, record: RequestRecord) -> None:
        """Count what was computed for nobody, where the answer did not end as it should."""
        if answer.ended and answer.cut_by is None and answer.delivered_tokens == answer.counted_tokens:
            return
        cause: Cause = "cut" if answer.cut_by is not None else answer.lost_by
        prompt = expected.prompt.tokens
        lost = abandoned(
            answer.slot,
            answer.request,
            self.clock(),
            prompt=prompt,
            expected=expected.total - prompt,
            seen=answer.counted_tokens,
            delivered=answer.delivered_tokens,
            given_up=cause != "failed" and (not answer.ended or cause == "cut"),
        )
        pool = answer.target.pool.name
        self.metrics.note_abandoned(pool, cause, *lost)

    def compare(self, answer: Answer, expected: Estimate) -> None:
        """Hold our count of the prompt against the engine's, where both speak of the same."""
        call, told = answer.call, answer.prompt_tokens
        if told is None or answer.target.model is not call.model or answer.choices > 1:
            return
        compared = self.counting.told(
            call,
            expected.prompt,
            partial(self.expect, call),
            tokens=told,
            cached=answer.cached_tokens,
            pool=answer.target.pool.name,
            now=self.clock(),
        )
        tier = expected.prompt.tier
        self.metrics.observe_count(call.model.name, tier, compared.ratio, compared.verification)
