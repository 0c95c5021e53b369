"""What only the whole file can tell: names that refer to each other, engine options, files, chains.

Every check tolerates an item with faults (`Report.sound`): what could not be read is not checked, and
nothing is said to be missing that may only be unreadable. What is learned on the way (adapters, keys read
from files, resolved conditions) is returned, so that `building` has nothing left to doubt.

The modules are the sections of the file; limits, which stand in five of them, are checked by `limiting`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.contract import EngineAdapter, EngineRegistry
from gateway.config.checking.activation import ActivationChecks
from gateway.config.checking.checks import Checks, absolute
from gateway.config.checking.conditions import ConditionChecks
from gateway.config.checking.engines import EngineChecks, lora_of, served_name
from gateway.config.checking.models import ModelChecks
from gateway.config.checking.pools import PoolChecks
from gateway.config.checking.rules import RuleChecks
from gateway.config.checking.server import ServerChecks
from gateway.config.checking.tenants import TenantChecks
from gateway.config.defaults import check_defaults
from gateway.config.limiting import check_limits
from gateway.config.problems import Report
from gateway.config.reading import File
from gateway.config.snapshot import Pace, When

__all__ = ["Findings", "absolute", "check", "lora_of", "served_name"]


@dataclass(frozen=True, slots=True)
class Findings:
    adapters: Mapping[str, EngineAdapter]
    """Pool -> its adapter."""
    api_keys: Mapping[str, str]
    """Pool -> the credential for its replicas."""
    conditions: tuple[When | None, ...]
    """For each rule, its condition with names resolved."""
    aliases: Mapping[str, str]
    paces: Mapping[str, Pace]
    """Pool -> how fast its replicas are, where a profile tells."""


def check(
    file: File, report: Report, registry: EngineRegistry, base: Path, *, force_open: bool = False
) -> Findings:
    """All cross checks; problems and warnings go to `report`. `base` is the file's directory."""
    checks = Checks(file, report, registry, base)
    ServerChecks.like(checks).check(force_open)
    models = ModelChecks.like(checks)
    aliases = models.aliases()
    for model in file.models.values():
        models.check(model)
    engines, pools, activation = (
        EngineChecks.like(checks),
        PoolChecks.like(checks),
        ActivationChecks.like(checks),
    )
    adapters, api_keys, paces = {}, {}, {}
    for name, pool in file.pools.items():
        if (adapter := engines.check(pool)) is not None:
            adapters[name] = adapter
        if (api_key := pools.upstream(pool)) is not None:
            api_keys[name] = api_key
        if (pace := pools.pace(pool)) is not None:
            paces[name] = pace
        pools.check(pool)
        activation.check(pool, adapter)
    for model in file.models.values():
        models.check_engine_tokenizer(model, adapters)
    check_defaults(file, report, adapters)
    pools.check_replicas()
    tenants = TenantChecks.like(checks)
    for tenant in file.tenants.values():
        tenants.check(tenant)
    tenants.check_keys()
    check_limits(file, report, aliases)
    rules = ConditionChecks.like(checks)
    conditions = tuple(rules.check(rule, aliases) for rule in file.rules)
    RuleChecks.like(checks).check(conditions)
    return Findings(adapters, api_keys, conditions, aliases, paces)
