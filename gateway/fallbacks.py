"""Attempts: from a route to the first events of an answer.

Nothing has been sent to the client while this code runs, so an attempt that fails may be followed by
another one: first on the other replicas of the pool, each at most once, then on the next usable pool of
the chain, where the rule names the reason. Attempts are bounded per request and, by a budget, over all
requests, so that failing engines do not see their load multiplied.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import msgspec

from backends.contract import (
    EngineError,
    ErrorKind,
    GenerateRequest,
    Generation,
    NativeRequest,
    Priority,
)
from gateway.activation.prefixes import Prefixes, system_prompt
from gateway.activation.sleeping import Sleeper, StillAsleep
from gateway.answering.abandoning import Cause, abandoned
from gateway.answering.answer import Answer
from gateway.answering.budgets import budget_of, generate, is_budgeted
from gateway.call import OPERATIONS, STREAMING, Call, Estimate
from gateway.config.snapshot import EMPTY, HopReason, Pool, PriorityClass, Rule
from gateway.engine_errors import gateway_error_of, meaning_of
from gateway.errors import EngineTimeout, GatewayError, QuotaExceeded, Unavailable, UnsupportedByEngine
from gateway.fleet.ledger import Slot
from gateway.limits.reservation import Reservation
from gateway.queueing.pool_queue import PoolQueue
from gateway.routing.affinity import cache_salt, opening_of, session_of
from gateway.routing.router import Route, Target, lenders_of, refusal_of, refused_at
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


_LEVELS: Mapping[PriorityClass, Literal[0, 1, 2]] = {
    PriorityClass.batch: 0,
    PriorityClass.standard: 1,
    PriorityClass.interactive: 2,
}


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


class TakenBack(Exception):
    """A more urgent request got the slot before this one's first token."""


class Attempts:
    """Finds a replica that answers."""

    def __init__(
        self,
        queues: Mapping[str, PoolQueue],
        counting: Counting,
        budget: RetryBudget,
        metrics: Metrics,
        clock: Callable[[], float],
        sleepers: Mapping[str, Sleeper] = EMPTY,
        prefixes: Mapping[str, Prefixes] = EMPTY,
    ) -> None:
        """By pool: `sleepers` wakes those that may sleep; `prefixes` remembers system prompts where that is
        wanted."""
        self._sleepers = sleepers
        self._prefixes = prefixes
        self._queues = queues
        self._counting = counting
        self._budget = budget
        self._metrics = metrics
        self._clock = clock

    def standing(self, record: RequestRecord) -> tuple[int, float] | None:
        """Position in the line of the pool where the request waits, and seconds that it is expected to; None
        where it does not, or has only just come."""
        queue = self._queues.get(record.pool or "")
        return None if queue is None else queue.standing(record.request_id)

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
                    call,
                    route.rule,
                    target,
                    estimate,
                    record,
                    reservation,
                    lenders=lenders_of(route, target),
                    entered=None if failed is None else self._clock(),
                    last=last,
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
        lenders: Sequence[Target],
        entered: float | None,
        last: bool,
    ) -> Answer:
        """`entered`: when it came here from another pool; None for the first one."""
        pool = target.pool
        queue = self._queues[pool.name]
        open_to = {lender.pool.name: lender for lender in lenders}
        target, request = await self._prepare(call, target, estimate, record, reservation)
        patience = rule.after if "overloaded" in rule.on and not last else pool.queue.max_wait
        opening = opening_of(call, target, estimate.prompt.tokens)
        lora = pool.loras.get(target.model.name)
        prefixes = self._prefixes.get(pool.name)
        if prefixes is not None and (text := system_prompt(call.request.messages)) is not None:
            prefixes.note(target.model.name, text)
        tried: set[str] = set()
        preempted = 0
        failed: PoolFailed | None = None
        while True:
            await _hold(reservation, pool)  # unless a lender has served, and failed
            _waits(record, call, pool)
            record.stage = "queued"
            asked = self._clock()
            left = call.received + pool.timeouts.total - asked
            if call.deadline is not None:
                left = min(left, call.deadline - asked)
            if call.stop_at is not None:
                left = min(left, call.stop_at - asked)
            if left <= 0:
                raise PoolFailed(None, EngineTimeout("The time for this request is over."))
            held = await self._admit(call, pool, left, record)
            try:
                slot = await queue.acquire(
                    estimate.prompt.tokens,
                    estimate.total - estimate.prompt.tokens,
                    wait=max(0.0, min(patience, left - held)),
                    exclude=tried,
                    arrival=call.received + held,
                    entered=entered,
                    name=call.id,
                    tenant=call.tenant.name,
                    weight=call.tenant.weight,
                    priority=call.priority_class,
                    deadline=call.deadline,
                    prefix=opening.blocks,
                    block_tokens=opening.tokens,
                    session=session_of(call),
                    adapter=None if lora is None else lora.name,
                    size=call.size,
                    streamed=request.stream,
                    lenders=frozenset(open_to),
                    preempted=preempted,
                )
            except Unavailable as error:
                if failed is not None:
                    raise failed from None
                raise PoolFailed(
                    "unavailable" if error.reason == "no_replica" else "overloaded", error
                ) from error
            finally:
                record.queued += self._clock() - asked - held
            tried.add(slot.ledger.replica.id)
            sent, to = request, target
            if not queue.has(slot):
                name = next(name for name in open_to if self._queues[name].has(slot))
                try:
                    to, sent = await self._prepare(call, open_to[name], estimate, record, reservation)
                except PoolFailed:  # that pool's limits refuse it: it waits on, for the others
                    slot.release()
                    del open_to[name]
                    continue
                except BaseException:
                    slot.release()
                    raise
                record.queued_in = pool.name
                self._metrics.lent.labels(name, pool.name).inc()
            try:
                return await self._send(call, sent, to, slot, estimate, record)
            except TakenBack:
                preempted += 1
                record.attempts -= 1
                tried.discard(slot.ledger.replica.id)
            except EngineError as error:
                failed = pool_failed(error, call)
                if (
                    not error.retryable
                    or record.attempts >= MAX_ATTEMPTS
                    or all(ledger.replica.id in tried for ledger in queue.ledgers)
                ):
                    raise failed from error
                if not self._budget.withdraw():
                    raise failed from error

    async def _admit(self, call: Call, pool: Pool, left: float, record: RequestRecord) -> float:
        """See to it that the pool is awake, if it is one that may sleep. Returns the seconds that it took.

        Nothing may be waited for between this and standing in line. Raises PoolFailed.
        """
        sleeper = self._sleepers.get(pool.name)
        if sleeper is None:
            return 0.0
        record.stage = "waking"
        asked = self._clock()
        try:
            await sleeper.admit(min(pool.queue.max_wait, left))
        except StillAsleep as asleep:
            raise PoolFailed(None if asleep.final else "unavailable", asleep.error) from asleep
        finally:
            held = self._clock() - asked
            record.queued += held
            record.held += held
        record.stage = "queued"
        return held

    async def _prepare(
        self,
        call: Call,
        target: Target,
        estimate: Estimate,
        record: RequestRecord,
        reservation: Reservation,
    ) -> tuple[Target, GenerateRequest]:
        """Hold the limits of the target's pool, and put the request in its words. Raises PoolFailed."""
        await _hold(reservation, target.pool)
        _waits(record, call, target.pool)
        target = _within(target, reservation)
        try:
            return target, await self.request_for(call, target, estimate, watched=reservation.may_cut)
        except UnsupportedByEngine as error:
            raise PoolFailed("unavailable", error) from error

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
        outcome: Literal["begun", "error", "cancelled", "preempted"] = "cancelled"
        wasted: Cause | None = "client"
        try:
            span = record.span.child(
                f"{OPERATIONS[call.dialect]} {target.model.name}",
                {
                    "gen_ai.operation.name": OPERATIONS[call.dialect],
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
            budget = budget_of(call, pool, request, sent)
            left = call.received + pool.timeouts.total - sent
            patience = min(left, pool.timeouts.first_token + _making(request, estimate))
            hurried = call.deadline is not None and call.deadline - sent < patience
            if hurried and call.deadline is not None:
                patience = max(0.0, call.deadline - sent)
            try:
                async with asyncio.timeout(patience) as limit:
                    slot.stop = partial(limit.reschedule, 0.0)  # at once
                    generation = await generate(ledger.engine, request, budget, self._clock)
                    first = await generation.events()
            except TimeoutError:
                if slot.taken_back:
                    outcome, wasted = "preempted", "preempted"
                    raise TakenBack from None
                wasted = "timeout"
                if hurried:  # the client's haste is no fault of the engine
                    late = EngineTimeout("No engine began to answer in the time that the client gave.")
                    raise PoolFailed(None, late) from None
                raise EngineError(
                    ErrorKind.TIMEOUT, f"no first event in {patience:.3g} s", retryable=False
                ) from None
            finally:
                slot.stop = None
                record.upstream_wait += self._clock() - sent
            if first:
                ledger.reached()
            counted = partial(self._metrics.note_attempt, pool.name)
            answer = Answer(call, target, slot, generation, request.max_tokens, estimate.prompt, counted)
            answer.first = first
            answer.budget, answer.request = budget, request
            answer.span = span
            outcome = "begun"
            return answer
        except EngineError as error:
            outcome = "error"
            if error.kind is not ErrorKind.TIMEOUT:
                wasted = None
            span.end({}, error.kind.value)
            ledger.failed(error)
            if not error.reached or error.kind is ErrorKind.TIMEOUT:
                cooling = ledger.avoid()
                # Those in line may have it again as soon as it is no longer avoided.
                asyncio.get_running_loop().call_later(cooling, ledger.changed)
            raise
        finally:
            if outcome != "begun":  # else it is counted when the answer has ended
                self._metrics.note_attempt(pool.name, outcome)
                if generation is not None:
                    generation.cancel()
                if wasted is not None:
                    prompt = estimate.prompt.tokens
                    lost = abandoned(
                        slot, request, self._clock(), prompt=prompt, expected=estimate.total - prompt
                    )
                    self._metrics.note_abandoned(pool.name, "shutdown" if record.cut_off else wasted, *lost)
                slot.release()
                span.end({}, outcome)

    async def request_for(
        self, call: Call, target: Target, estimate: Estimate, *, watched: bool
    ) -> GenerateRequest:
        """The call in the form this pool wants: its model name, its bound, text where it needs text.

        `watched`: its tokens must be seen as they are made.
        """
        pool = target.pool
        parameters = call.request.parameters
        if not pool.share_prefixes:
            parameters = {**parameters, "cache_salt": cache_salt(call)}
        rendered: str | None = None
        if call.request.messages is not None and not pool.adapter.applies_template:
            prepared = await self._counting.prepare(
                target.model, call.request, adds_bos=pool.adapter.adds_bos, counted=estimate.prompt
            )
            rendered = prepared.rendered
        return msgspec.structs.replace(
            call.request,
            model=target.engine_model,
            native=_native(call, target),
            stream=streams_upstream(pool, call, estimate, watched=watched),
            max_tokens=target.fit.sent,
            rendered=rendered,
            lora=pool.loras.get(target.model.name),
            priority=Priority(level=_LEVELS[call.priority_class], own=call.asked_priority)
            if pool.engine_priority
            else None,
            parameters=parameters,
        )


async def _hold(reservation: Reservation, pool: Pool) -> None:
    """Have the limits of this pool, and of no other. Raises PoolFailed."""
    try:
        await reservation.move(pool.name)
    except (QuotaExceeded, Unavailable) as error:
        raise PoolFailed("overloaded", error) from error


def _waits(record: RequestRecord, call: Call, pool: Pool) -> None:
    record.pool, record.engine = pool.name, pool.engine
    record.slo = pool.promised(call.priority_class)
    record.queued_in = None


def streams_upstream(pool: Pool, call: Call, estimate: Estimate, *, watched: bool = False) -> bool:
    """Whether the engine is asked to stream (`upstream_stream`). `watched`: a limit may cut the answer.

    A native answer that is asked for whole comes as its engine wrote it, unless something may cut it.
    """
    if call.stream:
        return True
    if call.dialect not in STREAMING:
        return False
    if pool.upstream_stream == "always":
        return True
    watched = watched or is_budgeted(call, pool)
    large = call.request.native is None and estimate.total > STEP_BUDGET
    return pool.upstream_stream == "auto" and (watched or large)


def _native(call: Call, target: Target) -> NativeRequest | None:
    """The client's own body, where that is what is sent; its answer is to bear the public name."""
    native = call.request.native
    if native is None:
        return None
    public = call.asked_model if target.model.name == "*" else target.model.name
    return msgspec.structs.replace(native, model=public)


def _within(target: Target, reservation: Reservation) -> Target:
    """The target with no more output than limits with `clamp` leave."""
    most = reservation.most_output()
    sent = target.fit.sent
    if most is None or (sent is not None and sent <= most[0]):
        return target
    fit = msgspec.structs.replace(target.fit, sent=most[0], clamped=True, by=f"limit {most[1]}")
    return msgspec.structs.replace(target, fit=fit)


def pool_failed(error: EngineError, call: Call) -> PoolFailed:
    """What an engine's error means for the chain, and for the client if nothing helps."""
    return PoolFailed(meaning_of(error).on, gateway_error_of(error, call))


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
