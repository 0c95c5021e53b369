"""The operator's checklist before production: each finding passes, fails, or cannot be told, with its remedy.

`examine` is pure: the configuration, and what was seen of a running fleet where it was looked at
(`gateway.examining.inspecting`). What nobody measured is never called well.
"""

import ipaddress
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from backends.contract import EngineLimits
from gateway.config.snapshot import Pool, Snapshot
from gateway.examining.inspecting import Comparison, LoadedTokenizer, ReplicaReport, Streaming

__all__ = ["Finding", "Seen", "examine"]

Verdict = Literal["pass", "fail", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    subject: str
    verdict: Verdict
    what: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen live."""

    replicas: tuple[ReplicaReport, ...]
    comparisons: tuple[Comparison, ...]
    streaming: tuple[Streaming, ...]
    metrics: int | None
    """The status of the admin listener's /metrics; None: no gateway answers there."""


LOOK = "run `headgate doctor --live` where the engines can be reached"


def examine(
    snapshot: Snapshot,
    loaded: Collection[LoadedTokenizer],
    seen: Seen | None,
    known_keys: Collection[str],
    *,
    wants_tools: bool = False,
) -> list[Finding]:
    """Every check, in the order of the checklist. `known_keys` are digests of keys that everybody knows;
    `wants_tools`: clients will send tools."""
    return [
        *_slos(snapshot),
        *_ceilings(snapshot),
        *_tokenizers(snapshot, loaded, seen),
        *_limits(snapshot, seen),
        _split(snapshot),
        *_streaming(snapshot, seen),
        *_tools(snapshot, seen, wanted=wants_tools),
        *_fallbacks(snapshot),
        _metrics(snapshot, seen),
        *_keys(snapshot, known_keys),
        _admin(snapshot),
        *_health(snapshot, seen),
    ]


def _slos(snapshot: Snapshot) -> Iterator[Finding]:
    for pool in snapshot.pools.values():
        slos = [("", pool.slo), *((f"{each.name}: ", slo) for each, slo in pool.class_slos.items())]
        promised = [
            f"{who}{name} {value:g}"
            for who, slo in slos
            for name, value in asdict(slo).items()
            if value is not None
        ]
        if promised:
            yield Finding("slo", f"pool {pool.name}", "pass", ", ".join(promised))
        else:
            remedy = f"set pools.{pool.name}.slo: {{ttft_p95_ms: ..., tpot_p99_ms: ..., queue_ms: ...}}"
            yield Finding("slo", f"pool {pool.name}", "fail", "nothing is promised", remedy)


def _ceilings(snapshot: Snapshot) -> Iterator[Finding]:
    for model in snapshot.models.values():
        ceiling = model.max_tokens.ceiling
        if ceiling is not None:
            yield Finding("ceiling", f"model {model.name}", "pass", f"at most {ceiling} output tokens")
        else:
            remedy = f"set models.{model.name}.max_tokens.ceiling"
            yield Finding("ceiling", f"model {model.name}", "fail", "output has no ceiling", remedy)


def _tokenizers(
    snapshot: Snapshot, loaded: Collection[LoadedTokenizer], seen: Seen | None
) -> Iterator[Finding]:
    by_model = {each.model: each for each in loaded}
    for pool in snapshot.pools.values():
        for name in pool.serves:
            verdict, what, remedy = _tokenizer(by_model[name], pool, seen)
            yield Finding("tokenizer", f"model {name} in pool {pool.name}", verdict, what, remedy)


def _tokenizer(loaded: LoadedTokenizer, pool: Pool, seen: Seen | None) -> tuple[Verdict, str, str | None]:
    verify = "see `headgate tokenizers verify --live`"
    if loaded.error is not None:
        return "fail", f"it cannot be loaded: {loaded.error}", f"correct models.{loaded.model}.tokenizer"
    if loaded.spec.kind == "estimate":
        remedy = f"give models.{loaded.model} the tokenizer of its engine"
        return "fail", "prompts are only estimated", remedy
    if seen is None:
        return "cannot tell", "not compared", LOOK
    found = [each for each in seen.comparisons if (each.pool, each.model) == (pool.name, loaded.model)]
    told = [each for each in found if each.theirs is not None]
    differing = [each for each in told if each.differs]
    if differing:
        first = differing[0]
        where = ", ".join(dict.fromkeys(each.replica for each in differing))
        what = (
            f"{len(differing)} of {len(told)} counts differ, on {where}; first {first.sample} "
            f"as {first.form}: {first.ours} here, {first.theirs} on {first.replica}"
        )
        return "fail", what, f"give models.{loaded.model} the engine's tokenizer and template; {verify}"
    if not told:
        return "cannot tell", "the engine tells no counts, or does not answer", verify
    silent = [each.id for each in pool.replicas if each.id not in {count.replica for count in told}]
    if silent:
        return "cannot tell", f"{', '.join(silent)} told no counts; the others agree", verify
    return "pass", f"{len(told)} of {len(told)} counts are the engine's", None


def _limits(snapshot: Snapshot, seen: Seen | None) -> Iterator[Finding]:
    for pool in snapshot.pools.values():
        contexts = [snapshot.models[name].context for name in pool.serves]
        longest = None if None in contexts else max((each for each in contexts if each), default=None)
        total = _least(pool.limits.total, longest)
        ours = {
            "total": total,
            "prompt": _least(pool.limits.prompt, None if total is None else total - 1),  # room for one token
            "in_flight": pool.limits.in_flight,
        }
        for replica in pool.replicas:
            report = _report(seen, pool, replica.id)
            told = EngineLimits() if report is None or report.metadata is None else report.metadata.limits
            theirs = {
                "total": told.context_tokens,
                "prompt": told.prompt_tokens,
                "in_flight": told.in_flight,
            }
            subject = f"pool {pool.name}, replica {replica.id}"
            if all(its is None for its in theirs.values()):
                what, remedy = "the engine's limits were not asked", LOOK
                if seen is not None:
                    what = "the engine tells no limits"
                    remedy = f"compare pools.{pool.name}.limits with the flags it was started with"
                yield Finding("limits", subject, "cannot tell", what, remedy)
            for name, its in theirs.items():
                if its is not None:
                    yield _limit(subject, pool, name, ours[name], its)


def _limit(subject: str, pool: Pool, name: str, ours: int | None, theirs: int) -> Finding:
    both = f"{name}: {'unbounded' if ours is None else ours} here, {theirs} there"
    if ours is not None and ours <= theirs:
        return Finding("limits", subject, "pass", f"{both}; the smaller is used, {ours}")
    remedy = f"set pools.{pool.name}.limits.{name} to {theirs} or less"
    if name == "in_flight":
        what = f"{both}; {theirs} is what holds, and the engine refuses or queues what is above"
    else:
        what = f"{both}; the smaller is used, {theirs}: the gateway sends nothing above it there"
    return Finding("limits", subject, "fail", what, remedy)


def _split(snapshot: Snapshot) -> Finding:
    split = [
        rule.name for rule in snapshot.rules if rule.when.estimated_total_tokens or rule.when.prompt_tokens
    ]
    if not split:
        return Finding("split", "rules", "pass", "no rule splits by length")
    remedy = (
        "measure time to first token and tokens per second at lengths on both sides of the split (`python -m "
        "loadtest run`), and move it to where neither pool waits longer (headgate_queue_wait_seconds by pool)"
    )
    what = "the split between short and long was not held against measured work"
    return Finding("split", f"rules {', '.join(split)}", "cannot tell", what, remedy)


def _streaming(snapshot: Snapshot, seen: Seen | None) -> Iterator[Finding]:
    for pool in snapshot.pools.values():
        subject = f"pool {pool.name}"
        reports = [report for each in pool.replicas if (report := _report(seen, pool, each.id)) is not None]
        coupled = [
            each.replica for each in reports if each.metadata is not None and each.metadata.decoupled is False
        ]
        tried = [each for each in (() if seen is None else seen.streaming) if each.pool == pool.name]
        if coupled:
            what = f"not decoupled, so it cannot stream: {', '.join(coupled)}"
            remedy = "set model_transaction_policy { decoupled: True } in the model's config.pbtxt"
            yield Finding("streaming", subject, "fail", what, remedy)
        elif broken := [each for each in tried if each.works is False]:
            remedy = "try it on the engine itself, and look into its log"
            yield Finding("streaming", subject, "fail", f"{broken[0].model}: {broken[0].why}", remedy)
        elif not tried or (unknown := [each for each in tried if each.works is None]):
            what = unknown[0].why if tried else "not tried" if seen is None else "no replica is well"
            remedy = LOOK if seen is None else "stream an answer from a replica by hand once it is well"
            yield Finding("streaming", subject, "cannot tell", what, remedy)
        else:
            yield Finding("streaming", subject, "pass", tried[0].why)


def _tools(snapshot: Snapshot, seen: Seen | None, *, wanted: bool) -> Iterator[Finding]:
    """Of engines that tell what their chat templates can, and drop tools in silence where they cannot."""
    for pool in snapshot.pools.values():
        defaults = {field for name in pool.serves for field in snapshot.models[name].defaults}
        sent = wanted or bool(defaults & {"tools", "tool_choice"})
        for replica in pool.replicas:
            report = _report(seen, pool, replica.id)
            told = None if report is None else report.metadata
            takes = None if told is None else told.template_takes_tools
            subject = f"pool {pool.name}, replica {replica.id}"
            if takes:
                yield Finding("tools", subject, "pass", "its chat template takes tools")
            elif takes is False:
                what = "its chat template has no place for tools: the engine drops them without a word"
                if not sent:
                    what += "; whether clients send any is not known here (--tools says that they do)"
                remedy = "start it with a template that takes tools (llama.cpp: --chat-template-file)"
                yield Finding("tools", subject, "fail" if sent else "cannot tell", what, remedy)


def _fallbacks(snapshot: Snapshot) -> Iterator[Finding]:
    for rule in snapshot.rules:
        names = dict.fromkeys(hop.pool for hop in rule.chain if not _is_out(snapshot.pools[hop.pool]))
        if len(names) > 1:
            yield Finding("fallback", f"rule {rule.name}", "pass", " then ".join(names))
        else:
            remedy = f"add a second pool to the chain of rule {rule.name}"
            what = f"no pool but {', '.join(names) or 'cold ones'}"
            yield Finding("fallback", f"rule {rule.name}", "fail", what, remedy)


def _is_out(pool: Pool) -> bool:
    """Whether it never takes traffic."""
    return pool.state == "cold" and pool.activation is None


def _metrics(snapshot: Snapshot, seen: Seen | None) -> Finding:
    subject = f"http://{snapshot.server.admin[0]}:{snapshot.server.admin[1]}/metrics"
    if seen is None:
        return Finding("metrics", subject, "cannot tell", "not asked", LOOK)
    if seen.metrics is None:
        remedy = "start the gateway, and ask again from where Prometheus runs"
        return Finding("metrics", subject, "cannot tell", "no gateway answers there", remedy)
    if seen.metrics == 200:
        return Finding("metrics", subject, "pass", "they are told")
    if seen.metrics == 401:
        remedy = "set HEADGATE_ADMIN_KEY here, and let Prometheus send the key"
        return Finding("metrics", subject, "cannot tell", "they want the administrator's key", remedy)
    remedy = "look at what listens there, and at server.admin"
    return Finding("metrics", subject, "fail", f"the answer is {seen.metrics}", remedy)


def _keys(snapshot: Snapshot, known: Collection[str]) -> Iterator[Finding]:
    if snapshot.server.authentication == "off":
        yield Finding("keys", "server", "fail", "authentication is off", "set server.authentication: keys")
    for tenant in snapshot.tenants.values():
        bad = [key.id for key in tenant.keys if key.digest in known]
        if bad:
            what = f"the demo's keys, which everybody knows: {', '.join(bad)}"
            remedy = f"make a key with `headgate keys create --tenant {tenant.name}`, and take these out"
            yield Finding("keys", f"tenant {tenant.name}", "fail", what, remedy)
        else:
            yield Finding("keys", f"tenant {tenant.name}", "pass", "none of the demo's")


def _admin(snapshot: Snapshot) -> Finding:
    host, port = snapshot.server.admin
    subject = f"listener {host}:{port}"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return Finding("admin", subject, "pass", "on loopback")
    if address is not None and address.is_global:
        return Finding("admin", subject, "fail", "on a public address", "set server.admin to 127.0.0.1:8081")
    remedy = "keep it to operators and Prometheus (firewall, NetworkPolicy), or set server.admin to loopback"
    return Finding(
        "admin", subject, "cannot tell", "off loopback: who can reach it is not known here", remedy
    )


def _health(snapshot: Snapshot, seen: Seen | None) -> Iterator[Finding]:
    for pool in snapshot.pools.values():
        for replica in pool.replicas:
            subject = f"pool {pool.name}, replica {replica.id}"
            report = _report(seen, pool, replica.id)
            if report is None:
                yield Finding("health", subject, "cannot tell", "not asked", LOOK)
            elif report.ready:
                yield Finding("health", subject, "pass", report.why)
            elif pool.state == "cold" or (pool.state == "warm" and pool.activation is not None):
                remedy = "look again once the pool is to take traffic, or is awake"
                what = f"the pool is {pool.state}; {report.why}"
                yield Finding("health", subject, "cannot tell", what, remedy)
            else:
                remedy = f"start it, or correct its url: {replica.url}"
                yield Finding("health", subject, "fail", report.why, remedy)


def _report(seen: Seen | None, pool: Pool, replica: str) -> ReplicaReport | None:
    reports = () if seen is None else seen.replicas
    return next((each for each in reports if (each.pool, each.replica) == (pool.name, replica)), None)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
