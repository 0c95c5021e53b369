"""Where limits are kept: in memory, in Redis, or in slices leased from Redis."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from gateway.config.redis_urls import parse_redis_url
from gateway.config.snapshot import LimitSettings
from gateway.limits.contract import LimitStore
from gateway.limits.failover import FailoverStore, Policy
from gateway.limits.leasing import LeasedStore
from gateway.limits.memory import MemoryStore
from gateway.limits.redis_link import RedisLink
from gateway.limits.redis_nodes import Nodes
from gateway.limits.redis_store import RedisStore

__all__ = ["Kept", "kept"]

CONNECT = 1.0
"""Seconds for each step of connecting; no request waits for it."""


@dataclass(frozen=True, slots=True)
class Kept:
    store: LimitStore
    link: RedisLink | None = None
    """To Redis, where that is where limits are kept."""
    work: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = field(default=(), repr=False)
    """What must run in the background for as long as the store is used."""

    @property
    def degraded(self) -> bool:
        """Limits follow their `store_down`: Redis cannot be asked."""
        return self.link is not None and not self.link.up


def kept(
    settings: LimitSettings,
    clock: Callable[[], float],
    *,
    seconds: Callable[[float], None] = lambda _: None,
    note: Callable[[Policy], None] = lambda _: None,
) -> Kept:
    """Builds the store that `settings` ask for; nothing is connected yet. `seconds` is told how long each
    answer of Redis took, `note` of each decision made without it."""
    memory = MemoryStore(clock)
    if settings.redis_url is None:
        return Kept(memory)
    url = parse_redis_url(settings.redis_url)
    nodes = Nodes(url, settings.namespace, max(CONNECT, settings.timeout))
    link = RedisLink(nodes, shown=str(url), timeout=settings.timeout, seconds=seconds)
    redis = RedisStore(link, namespace=settings.namespace)
    if settings.mode == "direct":
        return Kept(FailoverStore(redis, memory, lambda: redis.processes, note), link, (redis.run,))
    # Failover outside: what it grants without Redis was never charged there, so it must not get into slices,
    # which are given back.
    leased = LeasedStore(redis, processes=lambda: redis.processes, clock=clock)
    store = FailoverStore(leased, memory, lambda: redis.processes, note)
    return Kept(store, link, (redis.run, leased.run))
