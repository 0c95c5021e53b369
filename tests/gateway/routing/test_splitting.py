"""Splits: who draws which pool, who keeps it, and where a failed draw goes."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.config.snapshot import Hop, Rule, Sticky
from gateway.routing.splitting import drawn
from tests.gateway.builders import a_call, a_rule, a_tenant

STAGED = a_rule("chat", [Hop("stable", weight=95), Hop("staging", weight=5), "spare"])


def first(rule: Rule, key: str = "k0", tenant: str = "acme", **fields: object) -> str:
    call = a_call(key_id=key, tenant=a_tenant(tenant), **fields)  # type: ignore[arg-type]
    return drawn(rule, call)[0][0].pool


def test_shares_are_as_written() -> None:
    """Over many keys; a binomial of 20,000 draws lies within 5.0 +- 0.8 % all but never (5 sigma)."""
    counts = Counter(first(STAGED, f"key-{i}") for i in range(20_000))
    assert counts.keys() == {"stable", "staging"}
    assert abs(counts["staging"] / 20_000 - 0.05) < 0.008


def test_a_key_keeps_its_pool_and_a_growing_share_keeps_its_keys() -> None:
    grown = replace(STAGED, chain=(Hop("stable", weight=90), Hop("staging", weight=10)))
    keys = [f"key-{i}" for i in range(2000)]
    staged = {key for key in keys if first(STAGED, key) == "staging"}
    assert staged == {key for key in keys if first(STAGED, key) == "staging"}
    assert staged < {key for key in keys if first(grown, key) == "staging"}


def test_two_rules_do_not_draw_alike() -> None:
    """Else the same keys would be everybody's testers."""
    other = replace(STAGED, name="code")
    keys = [f"key-{i}" for i in range(4000)]
    one, two = ({key for key in keys if first(rule, key) == "staging"} for rule in (STAGED, other))
    assert len(one & two) < len(one) / 2


def test_a_failed_draw_goes_to_heavier_pools_and_then_on() -> None:
    chains = {tuple(h.pool for h in drawn(STAGED, a_call(key_id=f"key-{i}"))[0]) for i in range(500)}
    assert chains == {("stable", "spare"), ("staging", "stable", "spare")}


def test_equals_stand_in_for_each_other() -> None:
    rule = a_rule("half", [Hop("a", weight=1), Hop("b", weight=1)])
    chains = {tuple(h.pool for h in drawn(rule, a_call(key_id=f"key-{i}"))[0]) for i in range(50)}
    assert chains == {("a", "b"), ("b", "a")}


def test_who_draws() -> None:
    def spread(sticky: Sticky, **fields: object) -> int:
        rule = replace(STAGED, chain=(Hop("a", weight=1), Hop("b", weight=1)), sticky=sticky)
        key: str | None = fields.pop("key", "k0")  # type: ignore[assignment]
        calls = [structs.replace(a_call(key_id=key), id=f"chatcmpl-{i}") for i in range(40)]
        return len({drawn(rule, call)[0][0].pool for call in calls})

    assert spread("tenant") == spread("key") == 1
    assert spread("request") == 2
    assert spread("session") == 2, "without a session each request draws"
    assert spread("key", key=None) == 2, "without authentication all would be one key"


def test_the_draw_is_told() -> None:
    chain, draws = drawn(STAGED, a_call())
    assert (draws[0].pool, draws[0].total, draws[0].by) == (chain[0].pool, 100, "key")
    plain = a_rule("plain", ["a", "b"])
    assert drawn(plain, a_call()) == (plain.chain, ())


WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any)


@given(WEIGHTS, st.text(max_size=12))
def test_any_split(weights: list[float], key: str) -> None:
    """A pool of weight 0 is never drawn; whoever follows is at least as heavy, and each comes once."""
    rule = a_rule("any", [Hop(f"p{i}", weight=weight) for i, weight in enumerate(weights)])
    chain, (draw,) = drawn(rule, a_call(key_id=key))
    assert draw.weight > 0
    assert len({hop.pool for hop in chain}) == len(chain)
    assert all((hop.weight or 0) >= draw.weight for hop in chain)
    assert [hop.weight or 0 for hop in chain[1:]] == sorted(
        (hop.weight or 0 for hop in chain[1:]), reverse=True
    )
