"""From a checked file to the snapshot. Nothing here can fail: `checking` has been through."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from gateway.config import schema, snapshot
from gateway.config.checking import Findings, absolute
from gateway.config.limiting import limits_of
from gateway.config.reading import File
from gateway.config.snapshot import PriorityClass, Snapshot

K = TypeVar("K")
V = TypeVar("V")


def build(file: File, findings: Findings, *, source: str, digest: str, base: Path) -> Snapshot:
    """`base` is the directory that relative paths count from; `digest` is the hash of the file's bytes."""
    server = file.server.item
    tenants = {name: _tenant(name, read.item) for name, read in file.tenants.items()}
    return Snapshot(
        source=source,
        hash=digest,
        server=snapshot.Server(
            listen=server.listen,
            admin=server.admin,
            state=absolute(base, server.state),
            authentication=server.authentication,
            metrics=server.metrics,
            max_body=int(server.max_body_mb * 1024 * 1024),
            drain=server.drain_s,
            limits=snapshot.LimitSettings(
                redis_url=server.redis_url,
                mode=server.limits.mode,
                timeout=server.limits.timeout_ms / 1000,
                settle_tokens=server.limits.settle_tokens,
                settle_seconds=server.limits.settle_ms / 1000,
                namespace=server.limits.namespace,
            ),
        ),
        models=_frozen({name: _model(name, read.item, base) for name, read in file.models.items()}),
        pools=_frozen(
            {
                name: _pool(name, read.item, server.timeouts, findings, base)
                for name, read in file.pools.items()
            }
        ),
        rules=tuple(
            _rule(read.item, condition)
            for read, condition in zip(file.rules, findings.conditions, strict=True)
            if condition is not None
        ),
        tenants=_frozen(tenants),
        aliases=_frozen(findings.aliases),
        limits=limits_of(file, findings.aliases),
        keys=_frozen({key.digest: (tenant, key) for tenant in tenants.values() for key in tenant.keys}),
    )


def _frozen(mapping: Mapping[K, V]) -> Mapping[K, V]:
    return MappingProxyType(dict(mapping))


def _json_frozen(value: Any) -> Any:
    """Lists become tuples. A mapping within stays a dict, because JSON encoders take nothing else."""
    if isinstance(value, list):
        return tuple(_json_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _json_frozen(item) for key, item in value.items()}
    return value


def _model(name: str, model: schema.Model, base: Path) -> snapshot.Model:
    bounds = model.max_tokens
    return snapshot.Model(
        name=name,
        tokenizer=_tokenizer(model.tokenizer, base),
        context=model.context,
        max_tokens=snapshot.MaxTokens(bounds.default, bounds.ceiling, bounds.policy, bounds.margin),
        defaults=_frozen({field: _json_frozen(value) for field, value in model.defaults.items()}),
        aliases=tuple(model.aliases),
        count=model.count
        or ("estimate" if isinstance(model.tokenizer, schema.EstimateTokenizer) else "auto"),
        drift_warn=model.drift_warn,
        media_tokens=snapshot.MediaTokens(
            image=model.media_tokens.image,
            image_low=model.media_tokens.per_detail.low,
            image_high=model.media_tokens.per_detail.high,
            audio=model.media_tokens.audio,
            video=model.media_tokens.video,
            file=model.media_tokens.file,
        ),
        prices=None if model.prices is None else _prices(model.prices),
    )


def _prices(prices: schema.Prices) -> snapshot.Prices:
    def each(of_a_million: float) -> int:
        return round(of_a_million * snapshot.COST_UNIT / 1_000_000)

    cached = prices.input if prices.cached_input is None else prices.cached_input
    return snapshot.Prices(each(prices.input), each(prices.output), each(cached))


def _tokenizer(tokenizer: schema.Tokenizer, base: Path) -> snapshot.TokenizerSpec:
    match tokenizer:
        case schema.HuggingFaceTokenizer(path=path, chat_template=template):
            template = None if template is None else absolute(base, template)
            return snapshot.TokenizerSpec("huggingface", path=absolute(base, path), chat_template=template)
        case schema.TiktokenTokenizer(path=path, encoding=encoding):
            path = None if path is None else absolute(base, path)
            return snapshot.TokenizerSpec("tiktoken", path=path, encoding=encoding)
        case schema.EngineTokenizer(pool=pool, timeout_ms=timeout, bytes_per_token=bytes_per_token):
            return snapshot.TokenizerSpec(
                "engine", bytes_per_token=bytes_per_token, pool=pool, timeout=timeout / 1000
            )
        case schema.EstimateTokenizer(bytes_per_token=bytes_per_token):
            return snapshot.TokenizerSpec("estimate", bytes_per_token=bytes_per_token)


def _pool(
    name: str, pool: schema.Pool, server_timeouts: schema.Timeouts, findings: Findings, base: Path
) -> snapshot.Pool:
    adapter = findings.adapters[name]
    upstream = pool.upstream
    return snapshot.Pool(
        name=name,
        engine=pool.engine,
        adapter=adapter,
        serves=_frozen(pool.serves),
        replicas=tuple(
            snapshot.Replica(replica.id, replica.url, replica.weight) for replica in pool.replicas
        ),
        limits=snapshot.PoolLimits(
            pool.limits.prompt, pool.limits.total, pool.limits.in_flight, pool.limits.kv_tokens
        ),
        upstream=snapshot.Upstream(
            api_key=findings.api_keys.get(name),
            headers=_frozen(upstream.headers),
            ca_file=None if upstream.ca_file is None else absolute(base, upstream.ca_file),
        ),
        labels=_frozen(pool.labels),
        state=pool.state,
        slo=snapshot.Slo(pool.slo.ttft_p95_ms, pool.slo.tpot_p99_ms),
        relay=adapter.relay if pool.relay == "auto" else pool.relay,
        upstream_stream=pool.upstream_stream,
        timeouts=_timeouts(pool.timeouts, server_timeouts),
        queue=snapshot.QueueBounds(
            pool.queue.max_requests,
            pool.queue.max_wait_s,
            pool.queue.max_tokens,
            None if pool.queue.max_mb is None else int(pool.queue.max_mb * 1024 * 1024),
        ),
        policy=_policy(pool.scheduler, pool.placement),
        pace=findings.paces.get(name),
    )


def _policy(scheduler: schema.Scheduler, placement: schema.Placement) -> snapshot.Policy:
    default = snapshot.Policy()
    classes = {PriorityClass[name]: settings for name, settings in scheduler.classes.items()}
    waits = {c: s.may_wait_s for c, s in classes.items() if s.may_wait_s is not None}
    shed = {c for c in PriorityClass if (c not in classes or classes[c].shed is None) and c in default.shed}
    return snapshot.Policy(
        order=scheduler.kind,
        placement=placement.kind,
        binding=scheduler.binding,
        kappa=scheduler.kappa,
        slack_cap=scheduler.slack_cap_s,
        offsets=_frozen({**default.offsets, **waits}),
        strict=scheduler.strict,
        long_prompt=scheduler.long_prompt,
        tpot_target=scheduler.tpot_target_ms / 1000,
        fair=scheduler.fair,
        fair_after=scheduler.fair_after_s,
        quantum=float(scheduler.quantum),
        headroom=scheduler.headroom,
        shed=frozenset(shed | {c for c, settings in classes.items() if settings.shed}),
        budget=scheduler.budget_ms / 1000,
        budget_long=scheduler.budget_long_ms / 1000,
        overdue=scheduler.overdue,
        reserved=_frozen({c: settings.reserved for c, settings in classes.items() if settings.reserved}),
        prefix_tokens=placement.prefix_tokens,
    )


def _timeouts(*written: schema.Timeouts) -> snapshot.Timeouts:
    """The first that is given wins, field by field; then the built-in default."""
    default = snapshot.Timeouts()
    return snapshot.Timeouts(
        connect=_first((each.connect_s for each in written), default.connect),
        first_token=_first((each.first_token_s for each in written), default.first_token),
        idle=_first((each.idle_s for each in written), default.idle),
        total=_first((each.total_s for each in written), default.total),
        send=_first((each.send_s for each in written), default.send),
    )


def _first(given: Iterable[float | None], default: float) -> float:
    return next((value for value in given if value is not None), default)


def _rule(rule: schema.Rule, condition: snapshot.When) -> snapshot.Rule:
    chain: list[snapshot.Hop] = []
    for entry in rule.pools:
        if isinstance(entry, str):
            chain.append(snapshot.Hop(entry))
        else:
            chain.extend(snapshot.Hop(pool, entry.model) for pool in entry.pools)
    return snapshot.Rule(
        name=rule.name,
        chain=tuple(chain),
        when=condition,
        fit=rule.fit,
        on=frozenset(rule.on),
        after=rule.after_ms / 1000,
    )


def _tenant(name: str, tenant: schema.Tenant) -> snapshot.Tenant:
    labels = tenant.allow.__pydantic_extra__ or {}
    return snapshot.Tenant(
        name=name,
        keys=tuple(snapshot.Key(key.id, key.hash.removeprefix("sha256:").lower()) for key in tenant.keys),
        priority_class=PriorityClass[tenant.priority_class],
        max_class=PriorityClass[tenant.max_class],
        weight=tenant.weight,
        allow=snapshot.Allow(
            models=tuple(tenant.allow.models),
            labels=_frozen({label: tuple(values) for label, values in labels.items()}),
        ),
        max_tokens=tenant.max_tokens,
    )
