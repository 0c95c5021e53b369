"""Small builders of the gateway's frozen values, so that a test names only what it is about."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from backends.contract import Endpoint, Engine, EngineAdapter, GenerateRequest
from backends.registry import REGISTRY
from gateway.call import Bound, Call, Dialect, Estimate, PromptCount
from gateway.config.snapshot import (
    Hop,
    Key,
    Limit,
    Model,
    Pool,
    PoolLimits,
    PriorityClass,
    QueueBounds,
    Replica,
    Rule,
    Server,
    Snapshot,
    Tenant,
    TokenizerSpec,
)
from gateway.fleet.ledger import ReplicaLedger
from gateway.queueing.pool_queue import LineWatch, PoolQueue
from gateway.tenants.authentication import digest_of


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


class NoEngine:
    """An engine that must not be called."""

    def __init__(self, adapter: EngineAdapter) -> None:
        self.adapter = adapter

    async def generate(self, request: GenerateRequest) -> Any:
        raise AssertionError("this engine must not be called")


def a_model(name: str = "llama", **fields: Any) -> Model:
    return Model(name=name, tokenizer=TokenizerSpec(kind="estimate"), **fields)


def a_pool(
    name: str = "pool",
    *,
    serves: Mapping[str, str] | None = None,
    replicas: Iterable[str] = ("r1",),
    engine: str = "trtllm",
    prompt: int | None = None,
    total: int | None = None,
    in_flight: int | None = None,
    queue: QueueBounds | None = None,
    **fields: Any,
) -> Pool:
    return Pool(
        name=name,
        engine=engine,
        adapter=REGISTRY.adapter(engine, {}),
        serves={"llama": "engine-llama"} if serves is None else serves,
        replicas=tuple(Replica(id=each, url=f"http://{each}:8000") for each in replicas),
        limits=PoolLimits(prompt=prompt, total=total, in_flight=in_flight),
        queue=QueueBounds() if queue is None else queue,
        **fields,
    )


def a_rule(name: str = "rule", pools: Iterable[str | Hop] = ("pool",), **fields: Any) -> Rule:
    chain = tuple(Hop(each) if isinstance(each, str) else each for each in pools)
    return Rule(name=name, chain=chain, **fields)


def a_tenant(name: str = "acme", *, keys: Iterable[str] = (), **fields: Any) -> Tenant:
    """`keys` are clear texts; their ids are k0, k1, ..."""
    return Tenant(name=name, keys=tuple(Key(f"k{i}", digest_of(key)) for i, key in enumerate(keys)), **fields)


def a_limit(amount: int, unit: str = "tokens", per: int | None = 60, **fields: Any) -> Limit:
    """A rate per minute of tokens, for all requests together, unless it says otherwise."""
    if unit in ("concurrent", "tokens_in_flight") or "calendar" in fields:
        per = None
    return Limit(**{"name": f"{unit}-limit", "unit": unit, "amount": amount, "per": per, **fields})


def a_snapshot(
    *,
    models: Iterable[Model] | None = None,
    pools: Iterable[Pool] | None = None,
    rules: Iterable[Rule] | None = None,
    tenants: Iterable[Tenant] | None = None,
    limits: Iterable[Limit] = (),
    server: Server | None = None,
) -> Snapshot:
    models = (a_model(),) if models is None else tuple(models)
    tenants = (a_tenant(),) if tenants is None else tuple(tenants)
    return Snapshot(
        source="routes.yaml",
        hash="0" * 64,
        server=Server() if server is None else server,
        models={model.name: model for model in models},
        pools={pool.name: pool for pool in ((a_pool(),) if pools is None else pools)},
        rules=(a_rule(),) if rules is None else tuple(rules),
        tenants={tenant.name: tenant for tenant in tenants},
        aliases={alias: model.name for model in models for alias in model.aliases},
        limits=tuple(limits),
        keys={key.digest: (tenant, key) for tenant in tenants for key in tenant.keys},
    )


def a_call(
    *,
    model: Model | None = None,
    tenant: Tenant | None = None,
    key_id: str | None = "k0",
    dialect: Dialect = "chat",
    stream: bool = False,
    include_usage: bool = False,
    asked_model: str | None = None,
    asked: int | None = None,
    n: int = 1,
    received: float = 0.0,
    parameters: Mapping[str, Any] | None = None,
    priority_class: PriorityClass = PriorityClass.standard,
) -> Call:
    model = a_model() if model is None else model
    request = GenerateRequest(
        request_id="call-1",
        model="",
        stream=stream,
        messages=[{"role": "user", "content": "hi"}] if dialect == "chat" else None,
        prompt="hi" if dialect == "completions" else None,
        n=n,
        parameters={} if parameters is None else parameters,
    )
    return Call(
        id="call-1",
        dialect=dialect,
        tenant=a_tenant() if tenant is None else tenant,
        key_id=key_id,
        priority_class=priority_class,
        model=model,
        asked_model=model.name if asked_model is None else asked_model,
        request=request,
        stream=stream,
        include_usage=include_usage,
        asked_max_tokens=asked,
        received=received,
    )


def an_estimate(
    prompt: int = 10, output: int = 5, *, asked: int | None = None, bound: int | None = None, prompts: int = 1
) -> Estimate:
    """`asked` is also the bound, unless `bound` says less."""
    tokens = asked if bound is None else bound
    return Estimate(
        prompt=PromptCount(prompt, exact=True, source="test", longest=prompt // prompts, prompts=prompts),
        bound=Bound(
            tokens=tokens,
            asked=asked,
            by="nothing" if tokens is None else "asked" if tokens == asked else "model",
            clamped=asked is not None and tokens is not None and tokens < asked,
        ),
        output=output,
        output_by="model default",
        total=prompt + prompts * output,
        mean=output,
        choices=prompts,
    )


def a_queue(
    pool: Pool,
    clock: Callable[[], float] | None = None,
    engines: Mapping[str, Engine] | None = None,
    watch: LineWatch | None = None,
) -> PoolQueue:
    """The pool's queue over fresh ledgers; replicas without an engine of their own must not be called."""
    clock = Clock() if clock is None else clock
    engines = {} if engines is None else engines
    return PoolQueue(
        pool,
        [
            ReplicaLedger(replica, engines.get(replica.id, NoEngine(pool.adapter)), clock)
            for replica in pool.replicas
        ],
        watch=watch,
    )


def an_endpoint(url: str) -> Endpoint:
    return Endpoint(url)
