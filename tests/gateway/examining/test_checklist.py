"""The checklist, pure: a configuration and what was seen, in; verdicts with remedies, out."""

import pytest

from backends.contract import EngineLimits, Metadata
from gateway.config.snapshot import MaxTokens, Range, Server, Slo, Snapshot, TokenizerSpec, When
from gateway.examining.checklist import Finding, Seen, examine
from gateway.examining.inspecting import Comparison, LoadedTokenizer, ReplicaReport, Streaming
from gateway.tenants.authentication import digest_of
from tests.gateway.builders import a_model, a_pool, a_rule, a_snapshot, a_tenant

EXACT = LoadedTokenizer("llama", TokenizerSpec("huggingface", path="x"), None, 0.0)
ESTIMATE = LoadedTokenizer("llama", TokenizerSpec("estimate"), None, 0.0)

UNTOLD = EngineLimits()


def seen(
    *,
    limits: EngineLimits = UNTOLD,
    comparisons: tuple[Comparison, ...] = (),
    streaming: bool | None = True,
    metrics: int | None = 200,
    ready: bool = True,
    decoupled: bool | None = None,
    tools: bool | None = None,
) -> Seen:
    told = Metadata(limits=limits, decoupled=decoupled, template_takes_tools=tools)
    report = ReplicaReport("pool", "r1", ready, "why", told)
    return Seen((report,), comparisons, (Streaming("pool", "llama", streaming, "why"),), metrics)


def counted(ours: int, theirs: int | None, replica: str = "r1") -> Comparison:
    return Comparison("pool", "llama", replica, "English", "text", ours, theirs, "usage")


def check(
    name: str, snapshot: Snapshot, live: Seen | None = None, loaded: LoadedTokenizer = EXACT
) -> list[Finding]:
    known = {digest_of("demo")}
    return [each for each in examine(snapshot, [loaded], live, known) if each.check == name]


def verdict(name: str, snapshot: Snapshot, live: Seen | None = None, loaded: LoadedTokenizer = EXACT) -> str:
    (finding,) = check(name, snapshot, live, loaded)
    return finding.verdict


def test_what_the_file_alone_tells() -> None:
    bare = a_snapshot()
    assert verdict("slo", bare) == "fail"
    assert verdict("slo", a_snapshot(pools=[a_pool(slo=Slo(tpot_p99_ms=60))])) == "pass"
    assert verdict("ceiling", bare) == "fail"
    assert verdict("ceiling", a_snapshot(models=[a_model(max_tokens=MaxTokens(ceiling=5))])) == "pass"
    assert verdict("split", bare) == "pass"
    rule = a_rule(when=When(prompt_tokens=Range(lt=5)))
    assert verdict("split", a_snapshot(rules=[rule])) == "cannot tell"
    assert verdict("keys", bare) == "pass"
    assert verdict("keys", a_snapshot(tenants=[a_tenant(keys=["demo"])])) == "fail"
    open_door = check("keys", a_snapshot(server=Server(authentication="off")))
    assert [finding.verdict for finding in open_door] == ["fail", "pass"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "pass"),
        ("localhost", "pass"),
        ("::1", "pass"),
        ("0.0.0.0", "cannot tell"),
        ("10.0.0.7", "cannot tell"),
        ("8.8.8.8", "fail"),
    ],
)
def test_where_the_admin_listener_is(host: str, expected: str) -> None:
    """A container listens on every address by need: only who can reach it matters, and is not known here."""
    assert verdict("admin", a_snapshot(server=Server(admin=(host, 8081)))) == expected


def test_a_cold_pool_is_no_fallback() -> None:
    rule = a_rule(pools=["pool", "other"])
    for state, expected in (("hot", "pass"), ("warm", "pass"), ("cold", "fail")):
        pools = [a_pool(), a_pool("other", state=state)]
        assert verdict("fallback", a_snapshot(pools=pools, rules=[rule])) == expected


def test_a_tokenizer_passes_only_where_the_engine_agreed() -> None:
    snapshot = a_snapshot()
    for live, loaded, expected in (
        (None, EXACT, "cannot tell"),
        (None, ESTIMATE, "fail"),
        (seen(), EXACT, "cannot tell"),
        (seen(comparisons=(counted(5, None),)), EXACT, "cannot tell"),
        (seen(comparisons=(counted(5, 5), counted(5, None))), EXACT, "pass"),
        (seen(comparisons=(counted(5, 5), counted(5, 6))), EXACT, "fail"),
    ):
        assert verdict("tokenizer", snapshot, live, loaded) == expected


def test_each_replica_has_its_own_tokenizer() -> None:
    """One that differs is named; what one did not tell is not well because another did."""
    snapshot = a_snapshot(pools=[a_pool(replicas=("r1", "r2", "r3"))])
    both = (counted(5, 5, "r1"), counted(5, 6, "r2"))
    (finding,) = check("tokenizer", snapshot, seen(comparisons=both))
    assert finding.verdict == "fail"
    assert finding.what == "1 of 2 counts differ, on r2; first English as text: 5 here, 6 on r2"
    (finding,) = check("tokenizer", snapshot, seen(comparisons=(counted(5, 5), counted(5, None, "r2"))))
    assert (finding.verdict, finding.what) == ("cannot tell", "r2, r3 told no counts; the others agree")


def test_the_smaller_limit_is_named_with_both() -> None:
    def limits(told: EngineLimits, **ours: int) -> dict[str, str]:
        found = check("limits", a_snapshot(pools=[a_pool(**ours)]), seen(limits=told))  # type: ignore[arg-type]
        return {finding.what.split(";")[0]: finding.verdict for finding in found}

    assert limits(EngineLimits()) == {"the engine tells no limits": "cannot tell"}
    assert limits(EngineLimits(context_tokens=100), total=100) == {"total: 100 here, 100 there": "pass"}
    assert limits(EngineLimits(context_tokens=99), total=100) == {"total: 100 here, 99 there": "fail"}
    assert limits(EngineLimits(context_tokens=99)) == {"total: unbounded here, 99 there": "fail"}
    assert limits(EngineLimits(in_flight=4), in_flight=5) == {"in_flight: 5 here, 4 there": "fail"}
    assert limits(EngineLimits(prompt_tokens=99), total=100) == {"prompt: 99 here, 99 there": "pass"}


def test_streaming_metrics_and_health() -> None:
    snapshot = a_snapshot()
    for works, expected in ((True, "pass"), (False, "fail"), (None, "cannot tell")):
        assert verdict("streaming", snapshot, seen(streaming=works)) == expected
    assert verdict("streaming", snapshot, seen(decoupled=False)) == "fail"
    for status, expected in ((200, "pass"), (401, "cannot tell"), (None, "cannot tell"), (404, "fail")):
        assert verdict("metrics", snapshot, seen(metrics=status)) == expected
    assert verdict("health", snapshot, seen()) == "pass"
    assert verdict("health", snapshot, seen(ready=False)) == "fail"
    assert {finding.verdict for finding in check("health", snapshot)} == {"cannot tell"}
    cold = a_snapshot(pools=[a_pool(state="cold")])
    assert verdict("health", cold, seen(ready=False)) == "cannot tell"


def test_a_template_without_tools_is_told_of() -> None:
    """It fails where tools are wanted: because somebody said so, or by the model's own defaults."""
    snapshot = a_snapshot()
    assert check("tools", snapshot) == check("tools", snapshot, seen()) == []
    assert verdict("tools", snapshot, seen(tools=True)) == "pass"
    (unsure,) = check("tools", snapshot, seen(tools=False))
    assert unsure.verdict == "cannot tell"
    assert "--tools" in unsure.what
    wanted = examine(snapshot, [EXACT], seen(tools=False), frozenset(), wants_tools=True)
    assert [each.verdict for each in wanted if each.check == "tools"] == ["fail"]
    calling = a_snapshot(models=[a_model(defaults={"tool_choice": "auto"})])
    assert verdict("tools", calling, seen(tools=False)) == "fail"
