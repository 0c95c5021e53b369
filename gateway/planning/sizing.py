"""Traffic and objectives -> replicas of each pool: by the formulas first, then as far as a replay holds them.

The batch B of a pool is the largest that the engine's sequences and cache allow and whose answers still come
at the promised pace while the replica is busy all the time: then B requests are in it, each for B / QPS, of
which it decodes all but L_in / P:

    time per output token = (B / QPS - L_in / P) / L_out

A formula knows means; queues come from bursts and from long requests in front of short ones. So `settle` asks
a replay whether the number holds, adds replicas until it does, and takes away those that are not missed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.planning.formulas import (
    Line,
    cost_per_million,
    kv_bytes,
    latency,
    rate_of_batch,
    rate_of_work,
    replicas_for,
)
from gateway.planning.shares import Lopsided, PoolShare, lopsided

__all__ = [
    "Check", "Objective", "Pace", "PoolPlan", "Seen", "Traffic", "Trial", "cost_of", "decode_rate",
    "plan_pool", "prefill_seconds", "settle", "shares_of",
]  # fmt: skip

KV_GUARD = 0.92
"""Part of a cache that is planned with: answers are longer than expected now and then."""


class Pace(Protocol):
    """How fast an engine is: `backends.simulated.engine.EngineProfile` has it."""

    @property
    def token_s(self) -> float: ...
    @property
    def attention_s(self) -> float: ...
    @property
    def speed(self) -> float: ...
    @property
    def kv_tokens(self) -> int: ...
    @property
    def max_sequences(self) -> int: ...

    def step_time(
        self, tokens: int, attention: float = 0.0, kv_tokens: int = 0, sequences: int = 0
    ) -> float: ...


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes to one pool."""

    pool: str
    rate: float
    """Requests a second."""
    prompts: Sequence[int]
    """Tokens of the prompts, of as many requests as are looked at."""
    outputs: Sequence[int]

    @property
    def tokens_in(self) -> float:
        return sum(self.prompts) / len(self.prompts)

    @property
    def tokens_out(self) -> float:
        return sum(self.outputs) / len(self.outputs)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is promised, in milliseconds; None is not."""

    ttft_p95_ms: float | None = None
    tpot_p99_ms: float | None = None
    queue_ms: float | None = None
    """95 of 100 requests wait no longer in the gateway."""

    def missed(self, seen: "Seen") -> tuple[str, ...]:
        """Which of them, in words."""
        figures = (
            ("ttft_p95_ms", seen.ttft_p95_ms, self.ttft_p95_ms),
            ("tpot_p99_ms", seen.tpot_p99_ms, self.tpot_p99_ms),
            ("queue_ms", seen.queue_p95_ms, self.queue_ms),
        )
        missed = [
            f"{name} {was:.0f} > {promised:g}"
            for name, was, promised in figures
            if promised is not None and was > promised
        ]
        if seen.unfinished:
            missed.append(f"{seen.unfinished:.1%} not finished")
        return tuple(missed)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a replay showed of one pool."""

    ttft_p95_ms: float
    tpot_p99_ms: float
    queue_p95_ms: float
    unfinished: float = 0.0
    """Part of the requests that were refused, or not answered in the end."""


Check = Callable[[int], Seen]
"""Replay the pool's traffic with so many replicas."""


@dataclass(frozen=True, slots=True)
class Trial:
    replicas: int
    seen: Seen
    missed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoolPlan:
    pool: str
    traffic: Traffic
    objective: Objective
    batch: int
    """Requests in flight per replica: what `limits.in_flight` should say."""
    qps: float
    """Requests a second of one replica that never idles."""
    replicas: int
    lines: tuple[Line, ...]
    """The calculation, in order."""
    warnings: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    """What replays showed, in the order in which they were asked."""
    by_formula: int = 0
    """Replicas before any replay."""

    @property
    def held(self) -> bool | None:
        """Whether a replay with `replicas` met the objective; None: none was asked."""
        found = [trial for trial in self.trials if trial.replicas == self.replicas]
        return not found[-1].missed if found else None

    @property
    def utilization(self) -> float:
        return self.traffic.rate / (self.qps * self.replicas)

    @property
    def work(self) -> float:
        """Replicas that the traffic keeps busy."""
        return self.traffic.rate / self.qps


def prefill_seconds(pace: Pace, tokens: int) -> float:
    """What a prompt adds to the steps that read it: they would decode anyway."""
    return (pace.token_s * tokens + pace.attention_s * tokens * tokens / 2) / pace.speed


def decode_rate(pace: Pace, batch: int, tokens_in: float, tokens_out: float) -> float:
    """Output tokens a second of `batch` answers, half said on average."""
    return batch / pace.step_time(batch, 0.0, round(batch * (tokens_in + tokens_out / 2)), batch)


def plan_pool(
    traffic: Traffic,
    objective: Objective,
    pace: Pace,
    *,
    per_token: float | None = None,
    utilization: float = 0.7,
    overhead: float = 0.0,
    replicas: int | None = None,
) -> PoolPlan:
    """By the formulas alone. `per_token`: bytes of cache per token, where known; `overhead`: seconds of a
    request that are no engine's; `replicas`: as many as there are, instead of as many as it takes.

    Raises ValueError for a request that no replica could hold.
    """
    tokens_in, tokens_out = traffic.tokens_in, traffic.tokens_out
    longest = max(map(sum, zip(traffic.prompts, traffic.outputs, strict=True)))
    if longest > pace.kv_tokens:
        raise ValueError(
            f"pool {traffic.pool}: a request of {longest} tokens exceeds the cache of {pace.kv_tokens}"
        )
    read = sum(prefill_seconds(pace, prompt) for prompt in traffic.prompts) / len(traffic.prompts)
    p = tokens_in / read
    warnings: list[str] = []
    by_cache = max(1, math.floor(KV_GUARD * pace.kv_tokens / (tokens_in + tokens_out)))
    most = min(pace.max_sequences, by_cache)
    batch = most
    target = objective.tpot_p99_ms
    while target is not None and batch > 1 and _tpot(pace, batch, tokens_in, tokens_out, p) > target / 1e3:
        batch -= 1
    if target is not None and _tpot(pace, batch, tokens_in, tokens_out, p) > target / 1e3:
        warnings.append(f"one answer alone takes longer than {target:g} ms per token on a busy replica")
    d = decode_rate(pace, batch, tokens_in, tokens_out)
    room = f"{KV_GUARD} x {pace.kv_tokens} / ({tokens_in:.6g} + {tokens_out:.6g})"
    lines = [
        *((kv_bytes(per_token, tokens_in, tokens_out),) if per_token is not None else ()),
        Line("P", f"{tokens_in:.6g} / {read:.6g}", p, "prompt tokens/s"),
        Line(
            "B at most",
            f"min({pace.max_sequences}, {room})",
            most, "requests",
        ),
        Line("D", f"{batch} / {batch / d:.6g}", d, "output tokens/s"),
    ]  # fmt: skip
    t = latency(tokens_in, tokens_out, p, d, batch, overhead)
    by_batch = rate_of_batch(batch, t.value)
    by_work = rate_of_work(tokens_in, tokens_out, p, d)
    qps = min(by_batch.value, by_work.value)
    pace_line = Line(
        "TPOT when busy",
        f"({batch} / {by_work.value:.6g} - {tokens_in:.6g} / {p:.6g}) / {tokens_out:.6g} x 1000",
        1e3 * _tpot(pace, batch, tokens_in, tokens_out, p),
        "ms",
    )
    lines += [t, by_batch, by_work, pace_line]
    needed = replicas_for(traffic.rate, qps, utilization)
    if replicas is None:
        lines.append(needed)
        replicas = int(needed.value)
    lines.append(
        Line(
            "utilization",
            f"{traffic.rate:.6g} / ({qps:.6g} x {replicas})",
            traffic.rate / (qps * replicas),
            "of what they can do",
        )
    )
    if replicas < needed.value:
        warnings.append(f"{replicas} replicas, where {needed.value:.0f} keep below {utilization:.0%}")
    if objective.ttft_p95_ms is not None:
        far = sorted(traffic.prompts)[math.floor(0.95 * (len(traffic.prompts) - 1))]
        alone = 1e3 * (prefill_seconds(pace, far) + pace.step_time(0)) + 1e3 * overhead
        if alone > objective.ttft_p95_ms:
            warnings.append(
                f"a prompt of {far} tokens (95 of 100 are shorter) takes {alone:.0f} ms alone: no number of "
                f"replicas keeps ttft_p95_ms {objective.ttft_p95_ms:g}"
            )
    return PoolPlan(
        traffic.pool, traffic, objective, batch, qps, replicas, tuple(lines), tuple(warnings),
        by_formula=replicas,
    )  # fmt: skip


def settle(plan: PoolPlan, check: Check, *, fixed: bool = False, most: int = 8) -> PoolPlan:
    """`plan` with the fewest replicas that a replay holds, near the formula's; `most` replays at most.

    `fixed`: ask only about the replicas there are. If none of those tried hold, the last one stays, and
    `held` says so.
    """
    trials: list[Trial] = []

    def ask(replicas: int) -> bool:
        seen = check(replicas)
        trials.append(Trial(replicas, seen, plan.objective.missed(seen)))
        return not trials[-1].missed

    replicas = plan.replicas
    held = ask(replicas)
    if not fixed:
        if held:
            while replicas > 1 and len(trials) < most and ask(replicas - 1):
                replicas -= 1
        else:
            failed = replicas
            while not held and len(trials) < most:
                failed, replicas = replicas, replicas + max(1, math.ceil(replicas * 0.2))
                held = ask(replicas)
            while held and replicas - failed > 1 and len(trials) < most:
                between = (failed + replicas) // 2
                if ask(between):
                    replicas = between
                else:
                    failed = between
    return replace(plan, replicas=replicas, trials=tuple(trials))


def shares_of(plans: Sequence[PoolPlan]) -> tuple[Lopsided, ...]:
    """Pools whose share of the work is not their share of the replicas."""
    return lopsided(PoolShare(plan.pool, plan.work, plan.replicas) for plan in plans)


def cost_of(plans: Sequence[PoolPlan], price: float, gpus_per_replica: int) -> Line:
    """Of all pools together."""
    tokens = sum(
        plan.traffic.rate * 3600 * (plan.traffic.tokens_in + plan.traffic.tokens_out) for plan in plans
    )
    gpus = gpus_per_replica * sum(plan.replicas for plan in plans)
    return cost_per_million(price, gpus, tokens)


def _tpot(pace: Pace, batch: int, tokens_in: float, tokens_out: float, p: float) -> float:
    """Seconds per output token in a replica that is never idle, with `batch` requests in it."""
    d = decode_rate(pace, batch, tokens_in, tokens_out)
    qps = 1 / (tokens_in / p + tokens_out / d)
    return (batch / qps - tokens_in / p) / tokens_out
