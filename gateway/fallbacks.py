"""Attempts: from a route to the first events of an answer.

Nothing has been sent to the client while this code runs, so an attempt that fails may be followed by
another one: first on the other replicas of the pool, each at most once, then on the next usable pool of
the chain, where the rule names the reason. Attempts are bounded per request and, by a budget, over all
requests, so that failing engines do not see their load multiplied.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import msgspec

from backends.contract import EngineError, ErrorKind, GenerateRequest, Generation
from gateway.answer import Answer
from gateway.call import Call, Estimate
from gateway.config.snapshot import HopReason, Pool, Rule
from gateway.engine_errors import gateway_error_of
from gateway.errors import EngineTimeout, GatewayError, QuotaExceeded, Unavailable, UnsupportedByEngine
from gateway.fleet.ledger import Slot
from gateway.limits.reservation import Reservation
from gateway.queueing.pool_queue import PoolQueue
from gateway.routing.router import Route, Target, refusal_of, refused_at
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RequestRecord
from gateway.telemetry.tracing import NO_SPAN
from gateway.tokens.counting import Counting

MAX_ATTEMPTS = 4
"""Sends per request, over all pools of its chain."""

STEP_BUDGET = 8192
"""Tokens that an engine computes in one step (the usual chunked-prefill budget). A call that is not
streamed and expected to be smaller goes upstream unstreamed: plain calls are cheaper, and it is soon over."""


SECONDS_PER_TOKEN = 0.1
"""The slowest pace at which an engine is waited for where nothing is seen until the answer is whole."""


class RetryBudget:
    """Retries may be a fifth of the requests, and ten a second above that.

    The balance lives at most ten seconds' worth of floor (Finagle's retry budgets).
    """

    RATIO = 0.2
    FLOOR_PER_SECOND = 10.0
    CAP = 100.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._balance = self.CAP
        self._seen = clock()

    def deposit(self) -> None:
        """One request came."""
        self._balance = min(self.CAP, self._balance + self.RATIO)

    def withdraw(self) -> bool:
        """Whether one retry may be made; it is charged if so."""
        now = self._clock()
        elapsed = max(0.0, now - self._seen)
        self._balance = min(self.CAP, self._balance + elapsed * self.FLOOR_PER_SECOND)
        self._seen = max(now, self._seen)
        if self._balance < 1:
            return False
        self._balance -= 1
        return True


class PoolFailed(Exception):
    """A pool could not give an answer: why, for the rule's `on:`, and what to tell the client at last."""

    def __init__(self, reason: HopReason | None, error: GatewayError) -> None:
        super().__init__(error.message)
        self.reason = reason
        """None: no other pool would do better, the request itself is at fault."""
        self.error = error


class Attempts:
    """Finds a replica that answers."""

    def __init__(
        self,
        queues: Mapping[str, PoolQueue],
        counting: Counting,
        budget: RetryBudget,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._queues = queues
        self._counting = counting
        self._budget = budget
        self._metrics = metrics
        self._clock = clock

    async def first_answer(
        self,
        call: Call,
        route: Route,
        estimate: Estimate,
        record: RequestRecord,
        reservation: Reservation,
    ) -> Answer:
        """Walk the chain until a replica answers; raise GatewayError when none does.

        `reservation` goes along: each pool has its own limits.
        """
        self._budget.deposit()
        if not any(target.usable for target in route.chain):
            raise refusal_of(route)
        failed: PoolFailed | None = None
        for position, target in enumerate(route.chain):
            if target.refusal is not None:
                if refused_at(route.rule, target):
                    if failed is None:
                        raise target.refusal
                    break  # the request was good enough for a pool that failed: that is what to tell
                continue
            last = not any(later.usable for later in route.chain[position + 1 :])
            try:
                return await self._try_pool(
                    call, route.rule, target, estimate, record, reservation, last=last
                )
            except PoolFailed as error:
                failed = error
                if error.reason is None or error.reason not in route.rule.on:
                    break
                if record.attempts >= MAX_ATTEMPTS:
                    break
        if failed is None:
            raise refusal_of(route)
        raise failed.error from failed

    async def _try_pool(
        self,
        call: Call,
        rule: Rule,
        target: Target,
        estimate: Estimate,
        record: RequestRecord,
        reservation: Reservation,
        *,
        last: bool,
    ) -> Answer:
        pool = target.pool
        queue = self._queues[pool.name]
        record.pool, record.engine = pool.name, pool.engine
        try:
            await reservation.move(pool.name)
        except (QuotaExceeded, Unavailable) as error:
            raise PoolFailed("overloaded", error) from error
        target = _within(target, reservation)
        try:
            request = await self._request_for(call, target, estimate, watched=reservation.may_cut)
        except UnsupportedByEngine as error:
            raise PoolFailed("unavailable", error) from error
        record.stage = "queued"
        patience = rule.after if "overloaded" in rule.on and not last else pool.queue.max_wait
        tried: set[str] = set()
        failed: PoolFailed | None = None
        while True:
            asked = self._clock()
            left = call.received + pool.timeouts.total - asked
            if call.deadline is not None:
                left = min(left, call.deadline - asked)
            if left <= 0:
                raise PoolFailed(None, EngineTimeout("The time for this request is over."))
            try:
                slot = await queue.acquire(
                    estimate.prompt.tokens,
                    estimate.total - estimate.prompt.tokens,
                    wait=max(0.0, min(patience, left)),
                    exclude=tried,
                    arrival=call.received,
                    name=call.id,
                    tenant=call.tenant.name,
                    weight=call.tenant.weight,
                    priority=call.priority_class,
                    deadline=call.deadline,
                    session=session_of(call),
                    streamed=request.stream,
                )
            except Unavailable as error:
                if failed is not None:
                    raise failed from None
                raise PoolFailed(
                    "unavailable" if error.reason == "no_replica" else "overloaded", error
                ) from error
            finally:
                record.queued += self._clock() - asked
            tried.add(slot.ledger.replica.id)
            try:
                return await self._send(call, request, target, slot, estimate, record)
            except EngineError as error:
                failed = pool_failed(error, call)
                if not error.retryable or record.attempts >= MAX_ATTEMPTS or len(tried) == len(queue.ledgers):
                    raise failed from error
                if not self._budget.withdraw():
                    raise failed from error

    async def _send(
        self,
        call: Call,
        request: GenerateRequest,
        target: Target,
        slot: Slot,
        estimate: Estimate,
        record: RequestRecord,
    ) -> Answer:
        """One attempt on one replica, up to its first events. Owns `slot` until it returns an Answer."""
        pool, ledger, span = target.pool, slot.ledger, NO_SPAN
        generation: Generation | None = None
        outcome: Literal["ok", "error", "cancelled"] = "cancelled"
        try:
            span = record.span.child(
                f"chat {target.model.name}"
                if call.dialect == "chat"
                else f"text_completion {target.model.name}",
                {
                    "gen_ai.operation.name": "chat" if call.dialect == "chat" else "text_completion",
                    "gen_ai.request.model": target.engine_model,
                    "headgate.pool": pool.name,
                    "headgate.replica": ledger.replica.id,
                },
            )
            if span.traceparent is not None:
                request = msgspec.structs.replace(request, traceparent=span.traceparent)
            record.replica, record.max_tokens = ledger.replica.id, target.fit.sent
            record.max_tokens_by = _cut_by(target)
            record.attempts += 1
            record.stage = "waiting"
            sent = self._clock()
            left = call.received + pool.timeouts.total - sent
            patience = min(left, pool.timeouts.first_token + _making(request, estimate))
            hurried = call.deadline is not None and call.deadline - sent < patience
            if hurried and call.deadline is not None:
                patience = max(0.0, call.deadline - sent)
            try:
                async with asyncio.timeout(patience):
                    generation = await ledger.engine.generate(request)
                    first = await generation.events()
            except TimeoutError:
                if hurried:  # the client's haste is no fault of the engine
                    late = EngineTimeout("No engine began to answer in the time that the client gave.")
                    raise PoolFailed(None, late) from None
                raise EngineError(
                    ErrorKind.TIMEOUT, f"no first event in {patience:.3g} s", retryable=False
                ) from None
            finally:
                record.upstream_wait += self._clock() - sent
            ledger.reached()
            answer = Answer(call, target, slot, generation, request.max_tokens, estimate.prompt)
            answer.first = first
            answer.span = span
            outcome = "ok"
            return answer
        except EngineError as error:
            outcome = "error"
            span.end({}, error.kind.value)
            ledger.failed(error)
            if not error.reached or error.kind is ErrorKind.TIMEOUT:
                cooling = ledger.avoid()
                # Those in line may have it again as soon as it is no longer avoided.
                asyncio.get_running_loop().call_later(cooling, ledger.changed)
            raise
        finally:
            self._metrics.attempts.labels(pool.name, outcome).inc()
            if outcome != "ok":
                if generation is not None:
                    generation.cancel()
                slot.release()
                span.end({}, outcome)

    async def _request_for(
        self, call: Call, target: Target, estimate: Estimate, *, watched: bool
    ) -> GenerateRequest:
        """The call in the form this pool wants: its model name, its bound, text where it needs text.

        `watched`: its tokens must be seen as they are made.
        """
        pool = target.pool
        rendered: str | None = None
        if call.request.messages is not None and not pool.adapter.applies_template:
            prepared = await self._counting.prepare(
                target.model, call.request, adds_bos=pool.adapter.adds_bos, counted=estimate.prompt
            )
            rendered = prepared.rendered
        return msgspec.structs.replace(
            call.request,
            model=target.engine_model,
            stream=streams_upstream(pool, call, estimate, watched=watched),
            max_tokens=target.fit.sent,
            rendered=rendered,
        )


def session_of(call: Call) -> str | None:
    """What requests with the same beginning share: OpenAI's `prompt_cache_key`, within the tenant."""
    key = call.request.parameters.get("prompt_cache_key")
    return f"{call.tenant.name}/{key[:200]}" if isinstance(key, str) and key else None


def streams_upstream(pool: Pool, call: Call, estimate: Estimate, *, watched: bool = False) -> bool:
    """Whether the engine is asked to stream (`upstream_stream`). `watched`: a limit may cut the answer."""
    if call.stream or pool.upstream_stream == "always":
        return True
    return pool.upstream_stream == "auto" and (watched or estimate.total > STEP_BUDGET)


def _within(target: Target, reservation: Reservation) -> Target:
    """The target with no more output than limits with `clamp` leave."""
    most = reservation.most_output()
    sent = target.fit.sent
    if most is None or (sent is not None and sent <= most[0]):
        return target
    return replace(target, fit=replace(target.fit, sent=most[0], clamped=True, by=f"limit {most[1]}"))


def pool_failed(error: EngineError, call: Call) -> PoolFailed:
    """What an engine's error means for the chain, and for the client if nothing helps."""
    reason: HopReason | None
    match error.kind:
        case ErrorKind.CLIENT | ErrorKind.UNSUPPORTED | ErrorKind.CONTEXT_LENGTH:
            reason = "too_long" if error.kind is ErrorKind.CONTEXT_LENGTH else None
        case ErrorKind.OVERLOADED:
            reason = "overloaded"
        case _:
            reason = "failed" if error.reached else "unavailable"
    return PoolFailed(reason, gateway_error_of(error, call))


def _making(request: GenerateRequest, estimate: Estimate) -> float:
    """Seconds beyond the first token that an answer which is not streamed may take to be made."""
    if request.stream:
        return 0.0
    each = estimate.output if request.max_tokens is None else request.max_tokens
    return SECONDS_PER_TOKEN * each


def _cut_by(target: Target) -> str | None:
    """What cut the output below what the client asked for; None where nothing did."""
    if not target.fit.clamped or target.fit.sent is None:
        return None
    return f"pool {target.pool.name}" if target.fit.by == "pool" else target.fit.by
