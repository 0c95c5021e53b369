"""A pool's scheduler under test: a clock set by hand, ledgers without engines, and who got what."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gateway.config.snapshot import Replica
from gateway.fleet.ledger import ReplicaLedger, Slot
from gateway.queueing.policies import POLICIES, Policy
from gateway.queueing.scheduler import Item, PoolScheduler, Refusal
from tests.gateway.builders import Clock, NoEngine, a_pool


class Client:
    """Who asked: what was asked, and what came of it."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.item: Item
        self.slot: Slot | None = None
        self.refusal: Refusal | None = None
        self.withdrawn = False

    @property
    def open(self) -> bool:
        return self.slot is None and self.refusal is None and not self.withdrawn

    @property
    def replica(self) -> str | None:
        return None if self.slot is None else self.slot.ledger.replica.id

    def granted(self, slot: Slot) -> None:
        assert self.open, "granted twice, or after it was refused or left"
        self.slot = slot

    def refused(self, refusal: Refusal) -> None:
        assert self.open
        self.refusal = refusal


class Pool:
    """`replicas`: a letter is one."""

    def __init__(
        self,
        replicas: Iterable[str] = "ab",
        policy: Policy | str = "lanes",
        *,
        in_flight: int | None = None,
        kv_tokens: int | None = None,
        now: float = 1000.0,
        settings: dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
        name: str = "",
        clock: Clock | None = None,
        **bounds: int,
    ) -> None:
        self.clock = Clock(now) if clock is None else clock
        engine = NoEngine(a_pool().adapter)
        self.ledgers = {
            name: ReplicaLedger(
                Replica(name, f"http://{name}", (weights or {}).get(name, 1.0)), engine, self.clock
            )
            for name in replicas
        }
        chosen = POLICIES[policy] if isinstance(policy, str) else policy
        # Fairness is looked at in lines that are too short for it otherwise.
        self.policy = replace(chosen, **{"fair_after": 0.0, **(settings or {})})
        self.scheduler = PoolScheduler(
            list(self.ledgers.values()),
            self.policy,
            self.clock,
            in_flight=in_flight,
            kv_tokens=kv_tokens,
            name=name,
            **bounds,  # type: ignore[arg-type]
        )
        self.clients: list[Client] = []

    def ask(self, prompt: int = 10, output: int = 10, *, name: str = "", **fields: Any) -> Client:
        """Offer a request; a refusal at once counts as one."""
        client = Client(name)
        fields.setdefault("arrival", self.clock.now)
        client.item = Item(
            prompt_tokens=prompt,
            output_tokens=output,
            granted=client.granted,
            refused=client.refused,
            **fields,
        )
        refusal = self.scheduler.offer(client.item)
        if refusal is not None:
            client.refused(refusal)
        self.clients.append(client)
        return client

    def tick(self, seconds: float) -> None:
        """Time passes, and the scheduler is told."""
        self.clock.tick(seconds)
        self.scheduler.dispatch()
