"""Reserve, settle, refund: whatever comes, in whichever order and however often, the sum is right (P2)."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from gateway.config.snapshot import COST_UNIT, LimitSettings, Prices, Server
from gateway.errors import QuotaExceeded
from gateway.limits.limiter import Limiter
from gateway.limits.memory import MemoryStore
from gateway.limits.reservation import Reservation
from gateway.telemetry.metrics import Metrics
from tests.gateway.builders import Clock, a_call, a_limit, a_model, a_pool, a_snapshot, an_estimate

T = TypeVar("T")

PRICES = Prices(input=3, output=7, cached_input=1)
MONTH = {"calendar": "month"}


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that never waits returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


class Desk:
    """A limiter over a memory store, and its clock."""

    def __init__(self, *limits: Any, pools: tuple[str, ...] = ("pool",), **settings: Any) -> None:
        self.clock = Clock(1_700_000_000.0)
        self.metrics = Metrics()
        self.store = MemoryStore(self.clock, self.clock)
        self.snapshot = a_snapshot(
            models=[a_model(prices=PRICES)],
            pools=[a_pool(name) for name in pools],
            limits=limits,
            server=Server(limits=LimitSettings(**settings)),
        )
        self.limiter = Limiter(self.snapshot, self.store, self.metrics, self.clock)

    def reserve(
        self, prompt: int = 10, output: int = 5, pools: tuple[str, ...] = ("pool",), **call: Any
    ) -> Reservation:
        call = {"model": self.snapshot.models["llama"], **call}
        return at_once(self.limiter.reserve(a_call(**call), an_estimate(prompt, output), pools))

    def used(self) -> dict[str, float]:
        return {row.limit: row.used for row in at_once(self.limiter.rows(self.snapshot))}

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


# Budgets drain only with the month, which does not change here: what is charged adds up exactly.
BUDGETS = {
    "requests": 40,
    "input_tokens": 600,
    "output_tokens": 600,
    "tokens": 1000,
    "cost": 5000,
}


class Settling(RuleBasedStateMachine):
    """Requests that begin, stream, move and end in all ways, ends that come twice or late."""

    reservations = Bundle("reservations")
    ended = Bundle("ended")

    @initialize()
    def begin(self) -> None:
        limits = [a_limit(n, unit, name=unit, **MONTH) for unit, n in BUDGETS.items()]
        limits += [
            a_limit(4, "concurrent", name="concurrent", each=("pool",)),
            a_limit(900, "tokens_in_flight"),
        ]
        limits += [a_limit(3, "requests", name="trial", enforce=False, **MONTH)]
        self.desk = Desk(*limits, pools=("a", "b"))
        self.charged: dict[Reservation, tuple[int, int, int]] = {}
        """By reservation: (prompt, output, cost)."""

    @rule(target=reservations, prompt=st.integers(1, 200), output=st.integers(0, 100))
    def reserve(self, prompt: int, output: int) -> Reservation | None:
        before = self.desk.used()
        try:
            reservation = self.desk.reserve(prompt, output, ("a",))
        except QuotaExceeded:
            assert self.desk.used() == before, "all or none"
            return None
        self.charged[reservation] = prompt, output, 3 * prompt + 7 * output
        return reservation

    @rule(reservation=reservations, more=st.integers(0, 200), pause=st.floats(0, 1))
    def stream(self, reservation: Reservation | None, more: int, pause: float) -> None:
        if reservation is not None and reservation.open:
            self.desk.clock.tick(pause)
            prompt, output, _ = self.charged[reservation]
            reservation._next, reservation._due = 0, 0.0  # a settlement interval is over
            reservation.streamed(output + more, self.desk.clock)
            self.charged[reservation] = prompt, output + more, 3 * prompt + 7 * (output + more)

    @rule(reservation=reservations, pool=st.sampled_from(["a", "b"]))
    def move(self, reservation: Reservation | None, pool: str) -> None:
        if reservation is not None and reservation.open:
            before = reservation.pool
            try:
                at_once(reservation.move(pool))
            except QuotaExceeded:
                assert reservation.pool == before

    @rule(
        target=ended,
        reservation=consumes(reservations),
        prompt=st.integers(0, 300),
        output=st.integers(0, 300),
    )
    def settle(self, reservation: Reservation | None, prompt: int, output: int) -> Reservation | None:
        if reservation is not None:
            cached = prompt // 2
            reservation.settle(prompt, output, cached)
            self.charged[reservation] = prompt, output, 3 * (prompt - cached) + cached + 7 * output
        return reservation

    @rule(target=ended, reservation=consumes(reservations))
    def refund(self, reservation: Reservation | None) -> Reservation | None:
        if reservation is not None:
            with reservation:
                pass
            del self.charged[reservation]
        return reservation

    @rule(reservation=ended, prompt=st.integers(0, 300))
    def end_again(self, reservation: Reservation | None, prompt: int) -> None:
        if reservation is not None:
            reservation.settle(prompt, 1)
            reservation.refund()
            reservation.streamed(10**6, self.desk.clock)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "charged"):
            return
        used = self.desk.used()
        rows = list(self.charged.values())
        assert used["requests"] == len(rows)
        assert used["input_tokens"] == sum(prompt for prompt, _, _ in rows)
        assert used["output_tokens"] == sum(output for _, output, _ in rows)
        assert used["tokens"] == sum(prompt + output for prompt, output, _ in rows)
        assert round(used["cost"] * 10**10) == sum(cost for _, _, cost in rows)
        live = [reservation for reservation in self.charged if reservation.open]
        assert self.desk.store.open == len(live)
        held = self.desk.store.held()
        assert held.get("tokens_in_flight-limit", 0) == sum(sum(self.charged[each][:2]) for each in live)
        for pool in ("a", "b"):
            assert held.get(f"concurrent/{pool}", 0) == sum(each.pool == pool for each in live)
            assert held.get(f"concurrent/{pool}", 0) <= 4


TestSettling = Settling.TestCase


def test_outrunning_is_charged_once_in_an_interval():
    """32 tokens or 250 ms, whichever is first; nothing before the reservation is used up."""
    desk = Desk(a_limit(10_000))
    reservation = desk.reserve(prompt=10, output=100)
    charged = []
    for tokens in range(1, 200):
        reservation.streamed(tokens, desk.clock)
        charged.append(desk.used()["tokens-limit"])
    assert set(charged[:100]) == {110}
    assert sorted(set(charged[100:])) == [111, 143, 175, 207]
    desk.clock.tick(0.24)
    reservation.streamed(200, desk.clock)
    assert desk.used()["tokens-limit"] < 208
    desk.clock.tick(0.02)
    reservation.streamed(200, desk.clock)
    assert desk.used()["tokens-limit"] == pytest.approx(210, abs=50)
    reservation.settle(10, 200)


@pytest.mark.parametrize("unit", ["output_tokens", "tokens", "cost", "tokens_in_flight"])
def test_an_answer_is_cut_where_nothing_is_left(unit):
    """Once the limit is passed, by less than one settlement interval."""
    amount = {"output_tokens": 60, "tokens": 160, "cost": 3 * 100 + 7 * 60, "tokens_in_flight": 160}[unit]
    extra = {} if unit == "tokens_in_flight" else {"per": 86400}
    desk = Desk(a_limit(amount, unit, name="cutter", overrun="cut", **extra), settle_tokens=8)
    reservation = desk.reserve(prompt=100, output=50)
    assert reservation.may_cut
    tokens = 0
    while reservation.cut is None:
        tokens += 1
        reservation.streamed(tokens, desk.clock)
    assert reservation.cut == "cutter"
    assert 60 < tokens <= 60 + 8
    reservation.cut_short("cutter")
    assert desk.metric("headgate_limit_cuts_total", limit="cutter") == 1
    reservation.settle(100, tokens)


@pytest.mark.parametrize("unit", ["output_tokens", "tokens", "cost", "tokens_in_flight"])
def test_an_answer_to_a_guess_that_was_too_large_is_followed_from_the_whole_amount(unit):
    """256 tokens were expected of a limit that holds 60: the bound of one settlement interval still holds."""
    amount = {"output_tokens": 60, "tokens": 160, "cost": 3 * 100 + 7 * 60 + 3, "tokens_in_flight": 160}[unit]
    extra = {} if unit == "tokens_in_flight" else {"per": 86400}
    desk = Desk(a_limit(amount, unit, name="cutter", overrun="cut", **extra), settle_tokens=8)
    reservation = desk.reserve(prompt=100, output=256)
    tokens = 0
    while reservation.cut is None:
        tokens += 1
        assert tokens <= 256, "never cut"
        reservation.streamed(tokens, desk.clock)
    assert 60 < tokens <= 60 + 8
    reservation.settle(100, tokens)
    (row,) = at_once(desk.limiter.rows(desk.snapshot))
    assert row.used == (
        0
        if unit == "tokens_in_flight"
        else pytest.approx(
            {"output_tokens": tokens, "tokens": 100 + tokens, "cost": (300 + 7 * tokens) / COST_UNIT}[unit]
        )
    )


@pytest.mark.parametrize("fields", [{"overrun": "finish"}, {"overrun": "cut", "enforce": False}])
def test_others_let_it_finish_and_others_see_the_debt(fields):
    desk = Desk(a_limit(160, name="limit", **fields), a_limit(10**6, "requests"))
    reservation = desk.reserve(prompt=100, output=50)
    reservation.streamed(400, desk.clock)
    assert reservation.cut is None
    assert desk.used()["limit"] == 500
    if fields == {"overrun": "finish"}:
        with pytest.raises(QuotaExceeded):
            desk.reserve(prompt=1, output=0)
    reservation.settle(100, 400)
    assert desk.used()["limit"] == 500


def test_a_limit_that_looks_on_and_did_not_grant_is_left_alone():
    desk = Desk(a_limit(100, name="trial", enforce=False, **MONTH), a_limit(1000, name="real", **MONTH))
    first = desk.reserve(prompt=80, output=10)
    second = desk.reserve(prompt=80, output=10)
    assert desk.used() == {"trial": 90, "real": 180}
    second.streamed(50, desk.clock)
    second.settle(80, 60)
    assert desk.used() == {"trial": 90, "real": 230}
    first.settle(80, 5)
    assert desk.used() == {"trial": 85, "real": 225}


def test_zero_is_zero():
    """An engine that says that it made nothing is believed; the request stays counted."""
    desk = Desk(a_limit(1000, **MONTH), a_limit(10, "requests", **MONTH))
    desk.reserve(prompt=10, output=100).settle(0, 0)
    assert desk.used() == {"tokens-limit": 0, "requests-limit": 1}


def test_settled_and_reserved_are_counted():
    desk = Desk(a_limit(1000))
    desk.reserve(prompt=10, output=100).settle(12, 30)
    desk.reserve(prompt=10, output=100).refund()
    labels = {"tenant": "acme", "model": "llama"}
    assert desk.metric("headgate_limit_tokens_total", kind="reserved", **labels) == 220
    assert desk.metric("headgate_limit_tokens_total", kind="settled", **labels) == 42
