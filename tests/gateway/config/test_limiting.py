# ruff: noqa: E501  # a row of a table here is a whole message
"""Limits: what may be written where, and the names and scopes that come of it."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.config.snapshot import COST_UNIT, Limit, LimitSettings, Prices
from tests.gateway.config.test_checking import TWO, changed, found

TENANT = ("  t:\n", "  t:\n    limits: [%s]\n")
KEY = ('000"}]', '000", limits: [%s]}]')
MODEL = ("context: 8192}", "context: 8192, limits: [%s]}")
SHARED = ("rules:\n", "limits: [%s]\nrules:\n")


def written(place: tuple[str, str], *limits: str) -> str:
    return changed((place[0], place[1] % ", ".join(limits)))


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        (TENANT, "{tokens: 100, per: minute}", Limit("t.tokens-per-minute", "tokens", 100, 60, tenants=("t",))),
        (TENANT, "{output_tokens: 9, per: second, model: bee, overrun: cut}",
            Limit("t.output-tokens-per-second.b", "output_tokens", 9, 1, tenants=("t",), models=("b",), overrun="cut")),
        (TENANT, "{cost: 12.5, per: calendar_month, store_down: closed}",
            Limit("t.cost-per-calendar-month", "cost", 125 * COST_UNIT // 10, None, "month", tenants=("t",), store_down="closed")),
        (TENANT, "{name: few, concurrent: 4, enforce: false}",
            Limit("few", "concurrent", 4, tenants=("t",), enforce=False)),
        (KEY, "{requests: 5, per: hour}", Limit("t.k.requests-per-hour", "requests", 5, 3600, tenants=("t",), keys=("k",))),
        (MODEL, "{tokens_in_flight: 5000, clamp: true}",
            Limit("model-a.tokens-in-flight", "tokens_in_flight", 5000, models=("a",), clamp=True)),
        (SHARED, "{input_tokens: 7, per: day}", Limit("all.input-tokens-per-day", "input_tokens", 7, 86400)),
        (SHARED, "{tokens: 7, per: calendar_day, each: [tenant, model], tenant: t, pool: [pa, pb]}",
            Limit("all.tokens-per-calendar-day.each-tenant.each-model.t.pa.pb", "tokens", 7, None, "day",
                  tenants=("t",), pools=("pa", "pb"), each=("tenant", "model"))),
        (SHARED, "{requests: 7, per: minute, each: key}", Limit("all.requests-per-minute.each-key", "requests", 7, 60, each=("key",))),
    ],
)  # fmt: skip
def test_a_limit_knows_its_scope_and_has_a_name(
    try_load: Callable[..., Any], place: tuple[str, str], text: str, expected: Limit
) -> None:
    snapshot, problems, _ = try_load(written(place, text))
    assert problems == ()
    assert snapshot.limits == (expected,)


def test_names_are_unique_and_independent_of_other_places(try_load: Callable[..., Any]) -> None:
    text = written(
        TENANT,
        "{tokens: 9, per: minute}",
        "{tokens: 5, per: minute, enforce: false}",
        "{tokens: 1, per: hour}",
    )
    snapshot, _, _ = try_load(text)
    assert [limit.name for limit in snapshot.limits] == [
        "t.tokens-per-minute",
        "t.tokens-per-minute-2",
        "t.tokens-per-hour",
    ]


ALIKE = "they have the same place, unit, period and scope, so use is swapped when they are"


@pytest.mark.parametrize(
    ("place", "limits", "warned"),
    [
        (TENANT, ["{tokens: 9, per: minute}", "{tokens: 5, per: minute, enforce: false}"], 1),
        (TENANT, ["{tokens: 9, per: minute}"] * 3, 2),
        (TENANT, ["{tokens: 9, per: minute, model: b}", "{tokens: 5, per: minute, model: bee}"], 1),
        (SHARED, ["{concurrent: 9, each: key}", "{concurrent: 5, each: [key]}"], 1),
        (TENANT, ["{tokens: 9, per: minute}", "{tokens: 5, per: hour}"], 0),
        (TENANT, ["{tokens: 9, per: minute}", "{tokens: 5, per: minute, model: b}"], 0),
        (TENANT, ["{tokens: 9, per: minute}", "{name: trial, tokens: 5, per: minute}"], 0),
    ],
)
def test_limits_that_only_their_order_tells_apart_are_a_warning(
    warnings_of: Callable[..., list[str]], place: tuple[str, str], limits: list[str], warned: int
) -> None:
    warnings = [line for line in warnings_of(written(place, *limits)) if ALIKE in line]
    assert len(warnings) == len([line for line in warnings if "(give each a `name`)" in line]) == warned


def test_a_limit_may_be_given_the_name_it_had(warnings_of: Callable[..., list[str]]) -> None:
    """So its use is kept while another is put in above it."""
    named = [
        "{tokens: 5, per: minute, name: t.tokens-per-minute}",
        "{tokens: 9, per: minute, name: t.tokens-per-minute-2}",
    ]
    assert not any(ALIKE in line for line in warnings_of(written(TENANT, *named)))


@pytest.mark.parametrize(
    ("limits", "at", "name"),
    [
        (["{tokens: 9, per: minute}", "{name: t.tokens-per-minute, tokens: 1, per: hour}"], 1, "t.tokens-per-minute"),
        (["{name: t.tokens-per-minute, tokens: 1, per: minute}", "{tokens: 9, per: minute}"], 0, "t.tokens-per-minute"),
        (["{tokens: 9, per: minute}", "{tokens: 8, per: minute}", "{name: t.tokens-per-minute-2, concurrent: 1}"], 2,
            "t.tokens-per-minute-2"),
    ],
)  # fmt: skip
def test_a_name_that_another_limit_has_by_default_is_an_error(
    problems: Callable[..., list[str]], limits: list[str], at: int, name: str
) -> None:
    assert found(problems(written(TENANT, *limits))) == [
        f"tenants.t.limits[{at}].name: '{name}' is what the limit in line 23 is called, which has no name of its own (give that one a `name` too)"
    ]


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        (TENANT, "{per: day}", "tenants.t.limits[0]: a limit is of exactly one of requests, tokens, input_tokens, output_tokens, cost, concurrent or tokens_in_flight"),
        (TENANT, "{tokens: 1, requests: 1, per: day}", "tenants.t.limits[0]: a limit is of exactly one of requests, tokens, input_tokens, output_tokens, cost, concurrent or tokens_in_flight"),
        (TENANT, "{tokens: 1}", "tenants.t.limits[0]: tokens are limited over time: `per` is missing"),
        (TENANT, "{concurrent: 1, per: day}", "tenants.t.limits[0].per: concurrent are given back at a request's end; there is no period"),
        (TENANT, "{requests: 1, per: day, clamp: true}", "tenants.t.limits[0].clamp: a smaller max_tokens saves no requests"),
        (TENANT, "{requests: 1, per: day, overrun: cut}", "tenants.t.limits[0].overrun: an answer cannot outrun a limit of requests"),
        (TENANT, "{tokens: 1, per: day, model: aa}", "tenants.t.limits[0].model: 'aa' is not a declared model (did you mean 'a'?)"),
        (TENANT, "{tokens: 1, per: day, pool: [pa, px]}", "tenants.t.limits[0].pool[1]: 'px' is not a declared pool (valid: pa, pb)"),
        (TENANT, "{tokens: 1, per: day, tenant: t}", "tenants.t.limits[0]: unknown key 'tenant'"),
        (SHARED, "{tokens: 1, per: day, tenant: tt}", "limits[0].tenant: 'tt' is not a declared tenant (did you mean 't'?)"),
        (SHARED, "{tokens: 1, per: day, each: [host]}", "limits[0].each[0]: 'host' is not tenant, key, model or pool"),
        (MODEL, "{tokens: 1, per: day, model: a}", "models.a.limits[0].model: this limit is a model's already"),
        (TENANT, "{name: x, tokens: 1, per: day}, {name: x, tokens: 1, per: day}", "tenants.t.limits[1].name: 'x' is a limit's name already, in line 23"),
        (TENANT, "{cost: 1e300, per: day}", "tenants.t.limits[0].cost: '1e300' is more than 500000"),
        (TENANT, "{cost: 0, per: day}", "tenants.t.limits[0].cost: 0 is not more than 0"),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_meant_is_an_error(
    problems: Callable[..., list[str]], place: tuple[str, str], text: str, expected: str
) -> None:
    assert found(problems(written(place, text))) == [expected]


def test_prices_become_whole_numbers_per_token(try_load: Callable[..., Any]) -> None:
    prices = "context: 8192, prices: {input: 0.15, output: 0.6, cached_input: 0.0375}}"
    snapshot, _, _ = try_load(changed(("context: 8192}", prices)))
    assert snapshot.models["a"].prices == Prices(input=1500, output=6000, cached_input=375)
    snapshot, _, _ = try_load(changed(("context: 8192}", "context: 8192, prices: {input: 1, output: 2}}")))
    assert snapshot.models["a"].prices == Prices(input=10_000, output=20_000, cached_input=10_000)
    assert snapshot.models["b"].prices is None


def test_how_limits_are_kept(try_load: Callable[..., Any]) -> None:
    server = "server: {redis_url: 'redis://h/1', limits: {mode: direct, timeout_ms: 50, settle_tokens: 8, settle_ms: 100, namespace: blue}}"
    snapshot, _, _ = try_load(changed(("version: 1\n", f"version: 1\n{server}\n")))
    assert snapshot.server.limits == LimitSettings("redis://h/1", "direct", 0.05, 8, 0.1, "blue")
    assert "redis://h" not in repr(snapshot.server)
    assert try_load(TWO)[0].server.limits == LimitSettings()
