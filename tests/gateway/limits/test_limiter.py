"""Which limits hold for whom, who says no and what is said, in words, headers and metrics."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.errors import BudgetExceeded, QuotaExceeded, Unavailable
from gateway.limits.contract import Account, Standing, StoreUnavailable
from gateway.limits.memory import MemoryStore
from gateway.limits.saying import duration, rate_headers, said
from gateway.limits.scopes import LONGEST_KEY, account_of, accounts_of, holds, units_used
from tests.gateway.builders import a_call, a_limit, a_pool, a_snapshot, a_tenant, an_estimate
from tests.gateway.limits.test_reservation import MONTH, PRICES, Desk, at_once


def refusal(desk: Desk, **asked) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as raised:
        desk.reserve(**asked)
    return raised.value


# ------------------------------------------------------------------------------------------------ scopes


@pytest.mark.parametrize(
    ("fields", "request_", "whether"),
    [
        ({}, ("acme", "k0", "m", "p"), True),
        ({}, ("acme", None, "m", None), True),
        ({"tenants": ("acme",)}, ("acme", "k0", "m", "p"), True),
        ({"tenants": ("acme",)}, ("globex", "k0", "m", "p"), False),
        ({"tenants": ("acme",), "keys": ("k0",)}, ("acme", "k0", "m", "p"), True),
        ({"tenants": ("acme",), "keys": ("k0",)}, ("acme", "k1", "m", "p"), False),
        ({"tenants": ("acme",), "keys": ("k0",)}, ("acme", None, "m", "p"), False),
        ({"models": ("m", "n")}, ("acme", "k0", "n", "p"), True),
        ({"models": ("m", "n")}, ("acme", "k0", "o", "p"), False),
        ({"pools": ("p",)}, ("acme", "k0", "m", "p"), True),
        ({"pools": ("p",)}, ("acme", "k0", "m", "q"), False),
        ({"pools": ("p",)}, ("acme", "k0", "m", None), False),
        ({"each": ("pool",)}, ("acme", "k0", "m", None), False),
        ({"each": ("tenant", "pool")}, ("acme", "k0", "m", "q"), True),
    ],
)
def test_whose_a_limit_is(fields, request_, whether):
    assert holds(a_limit(1, **fields), *request_) is whether


@pytest.mark.parametrize(
    ("each", "key"),
    [
        ((), "limit"),
        (("tenant",), "limit/acme"),
        (("key",), "limit/acme:k0"),
        (("tenant", "model"), "limit/acme/org%2Fcode-7b"),
        (("model", "pool"), "limit/org%2Fcode-7b/gpu%20pool"),
    ],
)
def test_the_key_of_an_account(each, key):
    account = account_of(a_limit(1, name="limit", each=each), "acme", "k0", "org/code-7b", "gpu pool")
    assert account.key == key


def test_requests_without_a_key_share_one_account():
    limit = a_limit(1, name="limit", each=("key",))
    assert account_of(limit, "anonymous", None, "m", "p").key == "limit/anonymous:"


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=300), st.text(max_size=300))
def test_keys_tell_accounts_apart_and_are_bounded(tenant, other, model, another):
    limit = a_limit(1, name="limit", each=("tenant", "model"))
    one, two = account_of(limit, tenant, None, model, None), account_of(limit, other, None, another, None)
    assert (one.key == two.key) is ((tenant, model) == (other, another))
    assert len(one.key) <= LONGEST_KEY


def test_the_accounts_there_are():
    """Those that requests with the file's names and the keys in force use; none twice."""
    tenants = [a_tenant("acme", keys=["a", "b"]), a_tenant("globex", keys=["c"])]
    snapshot = a_snapshot(
        tenants=tenants,
        pools=[a_pool("p"), a_pool("q")],
        limits=[
            a_limit(1, name="all"),
            a_limit(1, name="tenants", each=("tenant",)),
            a_limit(1, name="keys", each=("key",)),
            a_limit(1, name="one", tenants=("acme",), keys=("k1",)),
            a_limit(1, name="pools", each=("pool",), pools=("q",)),
            a_limit(1, name="mixed", each=("tenant", "model", "pool"), tenants=("globex",)),
        ],
    )
    assert [account.key for account in accounts_of(snapshot)] == [
        "all", "tenants/acme", "tenants/globex", "keys/acme:k0", "keys/acme:k1", "keys/globex:k0", "one",
        "pools/q", "mixed/globex/llama/p", "mixed/globex/llama/q",
    ]  # fmt: skip
    assert [account.key for account in accounts_of(snapshot, "acme")] == [
        "all", "tenants/acme", "keys/acme:k0", "keys/acme:k1", "one", "pools/q",
    ]  # fmt: skip


def test_a_key_made_at_run_time_has_an_account_of_its_own():
    desk = Desk(a_limit(1, "requests", each=("key",)))
    for key_id in ("k0", "made-later"):
        desk.reserve(key_id=key_id).settle(1, 1)
    assert refusal(desk, key_id="made-later").limit == "requests-limit"


def test_money_and_cached_input():
    assert units_used(100, 10, PRICES) == (1, 100, 10, 110, 370, 1, 110)
    assert units_used(100, 10, PRICES, cached=60)[4] == 3 * 40 + 60 + 70
    assert units_used(100, 10, PRICES, cached=1000)[4] == 100 + 70, "no more than there was"
    assert units_used(100, 10, None)[4] == 0


# ----------------------------------------------------------------------------------------------- who says no


def test_who_says_it_longest_is_named():
    desk = Desk(
        a_limit(60, "requests", name="soon"),
        a_limit(1, "requests", name="late", per=60),
        a_limit(1, "requests", name="later", per=3600),
        a_limit(1, "requests", name="trial", per=86400, enforce=False),
    )
    desk.reserve()
    error = refusal(desk)
    assert (error.limit, error.code, error.type) == ("later", "rate_limit_exceeded", "rate_limit_error")
    assert error.message == (
        "The limit 'later' (1 requests per hour) is reached: 0 left, 1 needed. Try again in 1h0m0s."
    )
    assert error.retry_after == 3600
    refused = {
        (name, enforced): desk.metric(
            "headgate_limit_refusals_total", limit=name, unit="requests", enforced=enforced
        )
        for name, enforced in (("soon", "true"), ("late", "true"), ("later", "true"), ("trial", "false"))
    }
    assert refused == {("soon", "true"): 0, ("late", "true"): 1, ("later", "true"): 1, ("trial", "false"): 1}


def test_a_request_beyond_the_whole_limit_can_never_pass():
    error = refusal(Desk(a_limit(100, name="small"), a_limit(1, "requests")), prompt=100, output=11)
    assert (error.limit, error.hopeless, error.retry_after) == ("small", True, None)
    assert "needs at least 101: it can never pass" in error.message


GUESSED = [
    (100, "output_tokens"), (110, "tokens"), (3 * 10 + 7 * 100 + 6, "cost"), (110, "tokens_in_flight"),
]  # fmt: skip
"""Amounts that a prompt of 10 and 100 output tokens fit into."""


@pytest.mark.parametrize(("amount", "unit"), GUESSED)
def test_nobody_is_locked_out_by_a_guess(amount, unit):
    """More output is expected than the whole amount: all of it is reserved, once nothing of it is used."""
    desk = Desk(a_limit(amount, unit, name="small"))
    reservation = desk.reserve(prompt=10, output=256)
    (row,) = at_once(desk.limiter.rows(desk.snapshot))
    assert (row.free, row.used) == (0, row.amount)
    error = refusal(desk, prompt=10, output=256)
    assert (error.hopeless, "is reached" in error.message) == (False, True)
    reservation.settle(10, 3)
    if unit != "tokens_in_flight":  # which is free again
        error = refusal(desk, prompt=10, output=256)
        assert not error.hopeless
        desk.clock.tick(error.retry_after)
    desk.reserve(prompt=10, output=256).refund()


@pytest.mark.parametrize(("amount", "unit"), [(2, "output_tokens"), (12, "tokens"), (44, "cost")])
def test_the_shortest_answers_must_fit_into_the_whole_amount(amount, unit):
    desk = Desk(a_limit(amount, unit, name="l"), a_limit(10, "requests"))
    model = desk.snapshot.models["llama"]
    at_once(desk.limiter.reserve(a_call(model=model), _choices(10, 50, 2), ("pool",))).refund()
    with pytest.raises(QuotaExceeded) as raised:
        at_once(desk.limiter.reserve(a_call(model=model), _choices(10, 50, 3), ("pool",)))
    assert raised.value.hopeless


def test_a_guess_says_no_where_the_prompt_alone_does_not_fit():
    error = refusal(Desk(a_limit(99, "input_tokens", name="read")), prompt=100, output=5)
    assert (error.limit, error.hopeless) == ("read", True)


def test_a_budget_is_told_as_an_insufficient_quota():
    desk = Desk(a_limit(15, name="monthly", **MONTH), a_limit(1, "requests", per=86400))
    desk.reserve(prompt=10, output=5)
    error = refusal(desk, prompt=10, output=5)
    assert isinstance(error, BudgetExceeded)
    assert (error.limit, error.code, error.type) == ("monthly", "insufficient_quota", "insufficient_quota")
    assert (error.hopeless, error.retry_after) == (True, None)
    assert "starts anew on 2023-12-01 (UTC)" in error.message


def test_what_others_hold_comes_back_nobody_knows_when():
    desk = Desk(a_limit(1, "concurrent"))
    with desk.reserve():
        error = refusal(desk)
    assert (error.retry_after, error.hopeless) == (1.0, False)
    assert error.message.startswith("The limit 'concurrent-limit' (1 requests at a time) is reached")
    desk.reserve().refund()


def test_money_is_told_as_money():
    desk = Desk(a_limit(10**9, "cost", name="money", **MONTH))
    error = refusal(desk, prompt=10**9, output=1)
    assert "'money' (a cost of 0.1 per calendar month)" in error.message
    assert "needs at least 0.3000000007" in error.message


def test_limits_that_cannot_be_asked_are_503(monkeypatch):
    async def gone(*_: object) -> None:
        raise StoreUnavailable

    desk = Desk(a_limit(1))
    monkeypatch.setattr(desk.store, "reserve", gone)
    with pytest.raises(Unavailable) as raised:
        desk.reserve()
    assert (raised.value.reason, raised.value.retry_after) == ("limits_unknown", 1.0)


def test_without_limits_the_store_is_not_asked(monkeypatch):
    desk = Desk(a_limit(1, tenants=("somebody else",)))
    monkeypatch.setattr(desk.store, "reserve", None)
    reservation = desk.reserve()
    reservation.streamed(10**6, desk.clock)
    reservation.settle(1, 1)
    assert not reservation.open


# ------------------------------------------------------------------------------------------------ pools


def test_another_pool_takes_what_the_first_ones_limits_refuse():
    """Where the rule leaves overloaded pools, `pools` are several."""
    desk = Desk(a_limit(1, "concurrent", each=("pool",), name="slots"), pools=("a", "b"))
    first, second = (desk.reserve(pools=("a", "b")) for _ in range(2))
    assert (first.pool, second.pool) == ("a", "b")
    with pytest.raises(QuotaExceeded):
        at_once(second.move("a"))
    assert refusal(desk, pools=("a", "b")).of_pool
    first.refund()
    assert desk.store.held() == {"slots/b": 1}
    second.settle(1, 1)


def test_a_tenants_limit_is_not_escaped_by_another_pool():
    desk = Desk(
        a_limit(1, "requests", name="mine"), a_limit(1, "concurrent", each=("pool",)), pools=("a", "b")
    )
    desk.reserve(pools=("a",))
    error = refusal(desk, pools=("a", "b"))
    assert (error.limit, error.of_pool) == ("mine", False)


def test_a_move_gives_the_former_pool_back():
    shared = a_limit(100, "tokens_in_flight", pools=("a", "b"), name="shared")
    desk = Desk(shared, a_limit(1, "concurrent", each=("pool",), name="slots"), pools=("a", "b"))
    reservation = desk.reserve(prompt=10, output=5, pools=("a",))
    at_once(reservation.move("b"))
    assert desk.store.held() == {"shared": 15, "slots/b": 1}
    assert reservation.pool == "b"
    desk.reserve(prompt=10, output=5, pools=("a",)).refund()
    reservation.refund()
    assert desk.store.held() == {}


def test_a_refused_move_keeps_what_it_has():
    desk = Desk(a_limit(1, "concurrent", each=("pool",), name="slots"), pools=("a", "b"))
    other, reservation = desk.reserve(pools=("b",)), desk.reserve(pools=("a",))
    for _ in range(2):
        with pytest.raises(QuotaExceeded):
            at_once(reservation.move("b"))
    assert (
        desk.metric("headgate_limit_refusals_total", limit="slots", unit="concurrent", enforced="true") == 1
    )
    assert desk.store.held() == {"slots/a": 1, "slots/b": 1}
    reservation.refund()
    other.refund()


def test_a_pool_with_the_only_limits_of_a_request():
    """The first pool has none: what is reserved, followed and settled begins with the second."""
    limit = a_limit(1000, name="second", pools=("b",), clamp=True, **MONTH)
    desk = Desk(limit, pools=("a", "b"))
    reservation = desk.reserve(prompt=10, output=20, pools=("a",))
    assert not reservation.open
    at_once(reservation.move("b"))
    assert reservation.most_output() == (990, "second")
    reservation.streamed(50, desk.clock)
    assert desk.used() == {"second": 60}
    reservation.settle(10, 70)
    assert desk.used() == {"second": 80}
    labels = {"tenant": "acme", "model": "llama"}
    assert desk.metric("headgate_limit_tokens_total", kind="reserved", **labels) == 30


# ------------------------------------------------------------------------------------------------ clamping


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        (a_limit(140, name="l", clamp=True), 40),
        (a_limit(40, "output_tokens", name="l", clamp=True), 40),
        (a_limit(3 * 100 + 7 * 40 + 6, "cost", name="l", clamp=True, per=86400), 40),
        (a_limit(140, "tokens_in_flight", name="l", clamp=True), 40),
        (a_limit(1000, name="l", clamp=True), 900),  # also beyond what is expected: what is left is left
    ],
)
def test_less_output_where_less_is_left(limit, most):
    desk = Desk(limit)
    reservation = desk.reserve(prompt=100, output=90)
    assert reservation.most_output() == (most, "l")
    reservation.streamed(min(90, most), desk.clock)
    reservation.settle(100, min(90, most))


def test_one_token_for_each_choice_must_be_left():
    desk = Desk(a_limit(102, name="l", clamp=True))
    at_once(desk.limiter.reserve(a_call(), _choices(100, 50, 2), ("pool",))).refund()
    with pytest.raises(QuotaExceeded) as raised:
        at_once(desk.limiter.reserve(a_call(), _choices(101, 50, 2), ("pool",)))
    assert raised.value.hopeless


def test_without_clamp_nothing_bounds_the_output():
    assert Desk(a_limit(140)).reserve(prompt=100, output=40).most_output() is None


def _choices(prompt: int, output: int, choices: int):
    return replace(an_estimate(prompt, output), total=prompt + choices * output, choices=choices)


# ------------------------------------------------------------------------------------------------ looking


def test_room_is_what_the_tightest_limit_leaves():
    desk = Desk(
        a_limit(1000, name="wide"),
        a_limit(600, "input_tokens", name="narrow"),
        a_limit(1, name="trial", enforce=False),
        a_limit(1, name="others", tenants=("globex",)),
    )
    call = a_call()
    assert desk.limiter.room(call) == 600
    reservation = desk.reserve(prompt=10, output=590)
    assert desk.limiter.room(call) == 400
    desk.clock.tick(15.0)  # 250 of the wide one are back
    assert desk.limiter.room(call) == 600
    reservation.settle(10, 0)


def test_room_without_token_limits():
    assert Desk(a_limit(5, "requests"), a_limit(5, "concurrent")).limiter.room(a_call()) is None


def test_rows_tell_how_accounts_stand():
    desk = Desk(
        a_limit(60, "requests", name="rpm"), a_limit(5 * 10**10, "cost", name="money", calendar="day")
    )
    desk.reserve(prompt=10**9, output=0).settle(10**9, 0)
    rpm, money = at_once(desk.limiter.rows(desk.snapshot))
    assert (rpm.account, rpm.per, rpm.amount, rpm.used, rpm.free, rpm.reset) == (
        "rpm",
        "minute",
        60,
        1,
        59,
        1.0,
    )
    assert (money.unit, money.per, money.amount, money.used, money.reset) == (
        "cost", "calendar day", 5.0, 0.3, 6400.0,
    )  # fmt: skip


def test_trying_charges_nothing():
    desk = Desk(
        a_limit(60, "requests", name="rpm"),
        a_limit(100, name="clamps", clamp=True),
        a_limit(99, name="guess"),
        a_limit(90, name="small"),
        a_limit(5, name="trial", enforce=False),
        a_limit(200, "tokens_in_flight", name="held"),
    )
    trials = at_once(desk.limiter.try_("acme", "k0", "llama", "pool", 90, 20))
    assert [(trial.limit, trial.answer) for trial in trials] == [
        ("rpm", "grant"), ("clamps", "clamp"), ("guess", "grant"), ("small", "never"),
        ("trial", "would refuse"), ("held", "grant"),
    ]  # fmt: skip
    assert [(trial.needs, trial.wait) for trial in trials[2:4]] == [(99, 0), (91, None)]
    assert set(desk.used().values()) == {0}
    desk.reserve(prompt=30, output=30)
    waits = {
        t.limit: (t.answer, t.wait) for t in at_once(desk.limiter.try_("acme", "k0", "llama", "pool", 60, 0))
    }
    assert waits["small"] == ("refuse", pytest.approx(20.0, abs=0.001))
    assert waits["rpm"] == ("grant", 0)


# ------------------------------------------------------------------------------------------------ headers


def test_headers_of_the_tightest_limits():
    desk = Desk(
        a_limit(60, "requests", name="rpm"),
        a_limit(10, "requests", name="rps", per=1),
        a_limit(1000, name="tpm"),
        a_limit(900, "input_tokens", name="itpm"),
        a_limit(1, "requests", name="trial", enforce=False),
    )
    reservation = desk.reserve(prompt=10, output=290)
    assert dict(rate_headers(reservation.standings)) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "700",
        "x-ratelimit-reset-tokens": "18s",
    }
    assert refusal(desk, prompt=10, output=800).rate_headers == rate_headers(reservation.standings)


def test_no_limits_no_headers():
    assert rate_headers([]) == []
    assert rate_headers([Standing(Account("a", a_limit(1, "concurrent")), 1, 1, 0, 0)]) == []


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"), (12, "12ms"), (999, "999ms"), (1000, "1s"), (1500, "1.5s"), (63_000, "1m3s"),
        (60_000, "1m0s"), (3_600_000, "1h0m0s"), (86_400_001, "24h0m0.001s"),
    ],
)  # fmt: skip
def test_durations_as_go_writes_them(milliseconds, text):
    assert duration(milliseconds) == text


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (a_limit(100_000), "100000 tokens per minute"),
        (a_limit(8, "concurrent"), "8 requests at a time"),
        (a_limit(8000, "tokens_in_flight"), "8000 tokens at a time"),
        (a_limit(5 * 10**10, "cost", calendar="month"), "a cost of 5 per calendar month"),
        (a_limit(3, "input_tokens", per=1), "3 input tokens per second"),
    ],
)
def test_limits_in_words(limit, text):
    assert said(limit) == text


def test_what_was_used_outlives_the_configuration():
    """Another limiter on the same store: another amount, the same use."""
    desk = Desk(a_limit(100, name="limit"))
    desk.reserve(prompt=60, output=0)
    wider = Desk(a_limit(200, name="limit"))
    wider.store = wider.limiter.store = desk.store
    wider.clock.tick(0)
    assert wider.used() == {"limit": 60}
    assert isinstance(desk.store, MemoryStore)


def test_a_key_is_one_of_its_tenant():
    """Two tenants may name their keys alike."""
    limit = a_limit(1, each=("key",), name="keys")
    snapshot = a_snapshot(tenants=[a_tenant("a", keys=["x"]), a_tenant("b", keys=["y"])], limits=[limit])
    assert [account.key for account in accounts_of(snapshot)] == ["keys/a:k0", "keys/b:k0"]
