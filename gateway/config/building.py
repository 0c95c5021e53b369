"""From a checked file to the snapshot. Nothing here can fail: `checking` has been through."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from backends.contract import EngineAdapter
from gateway.config import schema, snapshot
from gateway.config.checking import Findings, absolute, lora_of, served_name
from gateway.config.limiting import limits_of
from gateway.config.reading import File
from gateway.config.snapshot import PriorityClass, Snapshot

K = TypeVar("K")
V = TypeVar("V")

PREFIX_TOKENS = 128
"""Per block of the prefix index. Engines' own blocks are smaller (1 to 64 tokens); what is lost is at most
one block of a prompt, and half as many would cost twice the memory."""


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
            _rule(read.item, condition, file)
            for read, condition in zip(file.rules, findings.conditions, strict=True)
            if condition is not None
        ),
        tenants=_frozen(tenants),
        aliases=_frozen(findings.aliases),
        limits=limits_of(file, findings.aliases),
        keys=_frozen({key.digest: (tenant, key) for tenant in tenants.values() for key in tenant.keys}),
        overload=_frozen(
            {
                PriorityClass[name]: tuple(_overload_step(step, ()) for step in read.item.overload)
                for name, read in file.classes.items()
                if read.item.overload
            }
        ),
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
        serves=_frozen({name: served_name(own) for name, own in pool.serves.items()}),
        loras=_frozen(
            {name: lora_of(own) for name, own in pool.serves.items() if isinstance(own, schema.Adapted)}
        ),
        share_prefixes=pool.placement.share_prefixes,
        engine_priority=pool.engine_priority,
        replicas=tuple(
            snapshot.Replica(replica.id, replica.url, replica.weight) for replica in pool.replicas
        ),
        limits=snapshot.PoolLimits(
            pool.limits.prompt,
            pool.limits.total,
            pool.limits.in_flight,
            pool.limits.kv_tokens,
            pool.limits.adapters,
        ),
        upstream=snapshot.Upstream(
            api_key=findings.api_keys.get(name),
            headers=_frozen(upstream.headers),
            ca_file=None if upstream.ca_file is None else absolute(base, upstream.ca_file),
        ),
        labels=_frozen(pool.labels),
        state=pool.state,
        slo=_slo(pool.slo),
        class_slos=_class_slos(pool),
        relay=adapter.relay if pool.relay == "auto" else pool.relay,
        upstream_stream=pool.upstream_stream,
        max_generation=None if pool.max_generation_ms is None else pool.max_generation_ms / 1000,
        doors=adapter.doors.served if pool.doors is None else frozenset(pool.doors),
        timeouts=_timeouts(pool.timeouts, server_timeouts),
        queue=snapshot.QueueBounds(
            pool.queue.max_requests,
            pool.queue.max_wait_s,
            pool.queue.max_tokens,
            None if pool.queue.max_mb is None else int(pool.queue.max_mb * 1024 * 1024),
        ),
        policy=_policy(pool, adapter),
        lends_to=tuple(pool.lends_to),
        pace=findings.paces.get(name),
        activation=_activation(pool),
        warm_up=None
        if pool.warm_up is None
        else snapshot.WarmUp(
            tuple(pool.warm_up.prompts),
            pool.warm_up.max_tokens,
            pool.warm_up.common_prefixes,
            pool.warm_up.timeout_s,
        ),
    )


def _activation(pool: schema.Pool) -> snapshot.Activation | None:
    if pool.wake is None:
        return None
    timeout, idle_after = pool.wake_timeout_s, pool.idle_after_s
    if timeout is None:
        timeout = 600.0 if pool.state == "cold" else 60.0
    if idle_after is None and pool.state != "hot" and getattr(pool.wake, "cool", True):
        idle_after = 900.0
    return snapshot.Activation(_wake(pool.wake), timeout, idle_after, pool.while_waking)


def _wake(wake: schema.Wake) -> snapshot.Wake:
    match wake:
        case schema.EngineWake():
            return snapshot.EngineWake()
        case schema.HttpWake():
            return snapshot.HttpWake(tuple(map(_step, wake.wake)), tuple(map(_step, wake.cool)))
        case schema.CommandWake():
            return snapshot.CommandWake(tuple(wake.wake), tuple(wake.cool))
        case schema.KubernetesWake():
            return snapshot.KubernetesWake(wake.resource, wake.name, wake.namespace, wake.replicas)


def _step(step: schema.HttpStep) -> snapshot.HttpStep:
    body = b"" if step.body is None else json.dumps(step.body).encode()
    headers = {name.lower(): value for name, value in step.headers.items()}
    if body:
        headers.setdefault("content-type", "application/json")
    return snapshot.HttpStep(step.path, step.url, step.method, _frozen(headers), body)


def _slo(slo: schema.Slo) -> snapshot.Slo:
    return snapshot.Slo(slo.ttft_p95_ms, slo.tpot_p99_ms, slo.queue_ms)


def _class_slos(pool: schema.Pool) -> Mapping[PriorityClass, snapshot.Slo]:
    """Field by field: what is written for the class, `null` included, else what is written for the pool."""
    return _frozen(
        {
            PriorityClass[name]: replace(
                _slo(pool.slo), **{field: getattr(given.slo, field) for field in given.slo.model_fields_set}
            )
            for name, given in pool.scheduler.classes.items()
            if given.slo.model_fields_set
        }
    )


def _budgets(pool: schema.Pool) -> Mapping[PriorityClass, snapshot.Budget]:
    """What promises mean for the scheduler, where it has no budget of its own."""
    slos = {priority: _slo(pool.slo) for priority in PriorityClass} | dict(_class_slos(pool))
    return _frozen(
        {
            priority: snapshot.Budget(_seconds(slo.ttft_p95_ms), _seconds(slo.queue_ms))
            for priority, slo in slos.items()
            if slo.ttft_p95_ms is not None or slo.queue_ms is not None
        }
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _prefix_tokens(placement: schema.Placement, adapter: EngineAdapter) -> int:
    if placement.prefix_tokens is not None:
        return placement.prefix_tokens
    return PREFIX_TOKENS if adapter.reuses_prefixes else 0


def _policy(pool: schema.Pool, adapter: EngineAdapter) -> snapshot.Policy:
    scheduler, placement = pool.scheduler, pool.placement
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
        tpot_long=scheduler.tpot_long_ms / 1000,
        fair=scheduler.fair,
        fair_after=scheduler.fair_after_s,
        quantum=float(scheduler.quantum),
        headroom=scheduler.headroom,
        shed=frozenset(shed | {c for c, settings in classes.items() if settings.shed}),
        budget=scheduler.budget_ms / 1000,
        budget_long=scheduler.budget_long_ms / 1000,
        budgets=_frozen({}) if "budget_ms" in scheduler.model_fields_set else _budgets(pool),
        budgets_long=_frozen({}) if "budget_long_ms" in scheduler.model_fields_set else _budgets(pool),
        preempt=scheduler.preempt,
        overdue=scheduler.overdue,
        reserved=_frozen({c: settings.reserved for c, settings in classes.items() if settings.reserved}),
        prefix_tokens=_prefix_tokens(placement, adapter),
    )


def _timeouts(*written: schema.Timeouts) -> snapshot.Timeouts:
    """The first that is given wins, field by field; then the built-in default."""
    default = snapshot.Timeouts()
    return snapshot.Timeouts(
        connect=_first((each.connect_s for each in written), default.connect),
        first_token=_first((each.first_token_s for each in written), default.first_token),
        idle=_first((each.idle_s for each in written), default.idle),
        keepalive=_first((each.keepalive_s for each in written), default.keepalive) or float("inf"),
        total=_first((each.total_s for each in written), default.total),
        send=_first((each.send_s for each in written), default.send),
    )


def _first(given: Iterable[float | None], default: float) -> float:
    return next((value for value in given if value is not None), default)


def _rule(rule: schema.Rule, condition: snapshot.When, file: File) -> snapshot.Rule:
    chain: list[snapshot.Hop] = []
    for entry in rule.pools:
        if isinstance(entry, str):
            chain.append(snapshot.Hop(entry))
        elif isinstance(entry, dict):
            chain.extend(snapshot.Hop(pool, weight=weight) for pool, weight in entry.items())
        else:
            chain.extend(snapshot.Hop(pool, entry.model) for pool in entry.pools)
    return snapshot.Rule(
        name=rule.name,
        chain=tuple(chain),
        when=condition,
        fit=rule.fit,
        on=frozenset(rule.on),
        after=rule.after_ms / 1000,
        queue_comments=_seconds(rule.queue_comments_ms),
        sticky=rule.sticky,
        mirror=None
        if rule.mirror is None
        else snapshot.Mirror(
            rule.mirror.pool, rule.mirror.share, rule.mirror.in_flight, rule.mirror.tokens_per_minute
        ),
        overload=tuple(
            _overload_step(
                step,
                [hop.pool for hop in chain if step.model in file.pools[hop.pool].item.serves],
            )
            for step in rule.overload
        ),
    )


def _overload_step(step: schema.OverloadStep, pools: Iterable[str]) -> snapshot.OverloadStep:
    """`pools`: those that serve the step's model, where it names none."""
    wait = step.when.queue_wait_ms
    return snapshot.OverloadStep(
        queue_wait=None if wait is None else wait / 1000,
        waiting=step.when.waiting,
        off_below=step.off_below,
        dwell=step.dwell_s,
        max_tokens=step.max_tokens,
        n=step.n,
        priority_class=None if step.priority_class is None else PriorityClass[step.priority_class],
        model=step.model,
        pools=() if step.model is None else tuple(dict.fromkeys(step.pools or pools)),
    )


def _tenant(name: str, tenant: schema.Tenant) -> snapshot.Tenant:
    labels = tenant.allow.__pydantic_extra__ or {}
    return snapshot.Tenant(
        name=name,
        keys=tuple(
            snapshot.Key(key.id, key.hash.removeprefix("sha256:").lower(), degrade=key.degrade)
            for key in tenant.keys
        ),
        priority_class=PriorityClass[tenant.priority_class],
        max_class=PriorityClass[tenant.max_class],
        weight=tenant.weight,
        allow=snapshot.Allow(
            models=tuple(tenant.allow.models),
            labels=_frozen({label: tuple(values) for label, values in labels.items()}),
        ),
        max_tokens=tenant.max_tokens,
        degrade=tenant.degrade,
    )
