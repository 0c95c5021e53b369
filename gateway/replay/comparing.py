"""Several policies side by side: over loads and seeds, in as many processes as there are processors.

A *job* is one seed at one load: it makes its trace, measures the fleet's capacity with it, and replays it
once for each policy. Jobs know nothing of each other, so their number and order do not change a figure.
"""

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from backends.simulated.engine import EngineProfile
from gateway.config.snapshot import OverloadStep, PriorityClass, Slo, Snapshot
from gateway.queueing.brownout import Ladder, signals_of
from gateway.queueing.policies import POLICIES, Policy
from gateway.replay.figures import Objectives, Row, Run, figures_of, rank, worst_of
from gateway.replay.fleet import BLOCK, bare_prefill
from gateway.replay.limiting import FileLimits
from gateway.replay.mixes import SOURCES, mixed, requests_of
from gateway.replay.requests import (
    TraceRequest,
    compressed,
    with_classes,
    with_flood,
    with_max_tokens,
    with_streams,
    with_tenants,
)
from gateway.replay.routed import (
    VARIANTS,
    Variant,
    engines_of,
    pools_of,
    router_of,
    tenants_of,
    with_models,
)
from gateway.replay.traces import mixed_files, read_trace
from gateway.replay.twin import ReplayPool, Router, Sight, Stop, Twin, capacity, expected_output, pool_of
from gateway.routing.degrading import cuts_of

__all__ = ["SWEEP", "Comparison", "Scenario", "carried", "compare", "policy_of", "trace_of"]

SWEEP = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
"""Loads of `--load sweep`; between two of them where attainment falls below CARRIED, one more is tried."""
CARRIED = 0.90
"""Part of the requests that must be in time for a load to count as carried."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is replayed, but for the policy, the load and the seed."""

    fleet: tuple[EngineProfile, ...]
    trace: str = "mixed"
    """`mixed`, `mixed-files`, a source of mixes.py, or a file."""
    trace_dir: Path | None = None
    requests: int | None = None
    """At most so many; a made trace is made thinner, a recorded one is cut off."""
    flood: tuple[str, float] | None = None
    """Tenant, and its additional requests in the middle third as a part of the capacity."""
    shed: bool = True
    nonstream: float = 0.0
    """Part of the requests that are answered in one piece, and so hide their first token."""
    classes: tuple[float, float, float] | None = None
    """Parts of interactive, standard, batch; None: all are interactive."""
    tenants: int | None = None
    """Deal the requests out to so many equal tenants."""
    weights: tuple[tuple[str, float], ...] = ()
    prefix_cache: int = 0
    config: Path | None = None
    """A routes.yaml: its pools and rules are replayed; the "policies" are the VARIANTS of routed.py."""
    load_config: Callable[[Path], Snapshot] | None = None
    """Reads it; a function of a module, for it goes to other processes by its name."""
    models: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Tenant -> the models that it asks for, in turn."""
    per_pool: int | None = None
    """Replicas in each pool; None: as many as the file has."""
    limits: bool = True
    """Whether the file's limits hold."""
    overload: tuple[OverloadStep, ...] = ()
    """Steps of a brown-out; with `config`, the file's own take part instead."""
    objectives: Objectives = field(default_factory=Objectives)
    samples: int = 200

    @property
    def reference(self) -> EngineProfile:
        return max(self.fleet, key=lambda profile: profile.speed)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was found out."""

    rows: tuple[Row, ...]
    """The worst of the seeds, ranked."""
    runs: tuple[Run, ...]
    capacities: Mapping[int, float]
    """Seed -> requests a second."""
    carried: Mapping[str, float]
    """Policy -> load carried with 90 % of the requests in time, worst of the seeds; only of a sweep."""
    seconds: float


def trace_of(scenario: Scenario, seed: int) -> list[TraceRequest]:
    """The requests of the scenario, at the pace of the trace. Raises TraceInvalid, OSError."""
    rng = random.Random(f"trace/{seed}")
    limit = scenario.requests
    if scenario.trace == "mixed":
        requests = mixed(rng, limit)
    elif scenario.trace in SOURCES:
        requests = requests_of(SOURCES[scenario.trace], limit, rng)
    elif scenario.trace == "mixed-files":
        requests = mixed_files(scenario.trace_dir or Path(), rng)[:limit]
    else:
        requests = read_trace(Path(scenario.trace), rng)[:limit]
    requests = with_max_tokens(requests, rng)
    if scenario.tenants is not None:
        requests = with_tenants(requests, scenario.tenants, rng)
    if scenario.classes is not None:
        order = (PriorityClass.interactive, PriorityClass.standard, PriorityClass.batch)
        requests = with_classes(requests, dict(zip(order, scenario.classes, strict=True)), rng)
    if scenario.nonstream:
        requests = with_streams(requests, scenario.nonstream, rng)
    return requests


def policy_of(text: str) -> Policy:
    """`NAME` or `NAME:field=value:...`, e.g. `lanes:fair=off:kappa=30`. Raises ValueError."""
    name, *changes = text.split(":")
    if name not in POLICIES:
        raise ValueError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    policy = POLICIES[name]
    known = {each.name: getattr(policy, each.name) for each in fields(Policy)}
    given: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        old = known.get(key)
        if isinstance(old, bool):
            given[key] = {"on": True, "true": True, "off": False, "false": False}[value]
        elif isinstance(old, (int, float, str)):
            given[key] = type(old)(value)
        else:
            raise ValueError(f"policy {name}: cannot set {key!r} here")
    return replace(policy, **given)


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    loads: Sequence[float] | None,
    seeds: Sequence[int],
    *,
    processes: int | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Replay everything; `loads` None is a sweep. `told` hears of progress.

    Raises ValueError for an unknown policy, TraceInvalid and OSError for a trace.
    """
    started = time.monotonic()
    for policy in policies:
        if scenario.config is not None and policy not in VARIANTS:
            raise ValueError(f"no variant {policy!r}; there are {', '.join(VARIANTS)}")
        if scenario.config is None:
            policy_of(policy)
    todo = [(seed, load, tuple(policies)) for load in (loads or SWEEP) for seed in seeds]
    runs, capacities = _run(scenario, todo, processes, told)
    found: dict[str, float] = {}
    if loads is None:
        finer: dict[tuple[int, float], list[str]] = {}
        for policy in policies:
            for seed in seeds:
                if (between := _falls_between(runs, policy, seed)) is not None:
                    finer.setdefault((seed, round(sum(between) / 2, 4)), []).append(policy)
        more, _ = _run(scenario, [(*key, tuple(names)) for key, names in finer.items()], processes, told)
        runs += more
        found = {policy: min(carried(runs, policy, seed) for seed in seeds) for policy in policies}
    order = {policy: number for number, policy in enumerate(policies)}
    runs.sort(key=lambda run: (run.load, order[run.policy], run.seed))
    rows = rank(worst_of(row for run in runs for row in run.rows))
    return Comparison(tuple(rows), tuple(runs), capacities, found, time.monotonic() - started)


def carried(runs: Iterable[Run], policy: str, seed: int) -> float:
    """The load at which 90 % of the requests are in time: between two loads that were tried, evenly; the
    highest that was tried if it is in time there too, 0 if none is."""
    points = _attainment(runs, policy, seed)
    before = (0.0, 1.0)
    for load, goodput in points:
        if goodput < CARRIED:
            if before[0] == 0.0:
                return 0.0
            return before[0] + (load - before[0]) * (before[1] - CARRIED) / (before[1] - goodput)
        before = (load, goodput)
    return before[0]


def _falls_between(runs: Iterable[Run], policy: str, seed: int) -> tuple[float, float] | None:
    points = _attainment(runs, policy, seed)
    for (low, well), (high, badly) in itertools.pairwise(points):
        if well >= CARRIED > badly:
            return low, high
    return None


def _attainment(runs: Iterable[Run], policy: str, seed: int) -> list[tuple[float, float]]:
    return sorted(
        (run.load, row.goodput)
        for run in runs
        if run.policy == policy and run.seed == seed
        for row in run.rows
        if (row.cls, row.priority, row.tenant) == ("all", "all", "all")
    )


_Job = tuple[int, float, tuple[str, ...]]


def _run(
    scenario: Scenario, todo: Sequence[_Job], processes: int | None, told: Callable[[str], None]
) -> tuple[list[Run], dict[int, float]]:
    processes = min(processes or os.cpu_count() or 1, max(len(todo), 1))
    runs: list[Run] = []
    capacities: dict[int, float] = {}

    def note(job: _Job, answer: tuple[float, list[Run]]) -> None:
        capacities[job[0]] = answer[0]
        runs.extend(answer[1])
        told(f"seed {job[0]}, load {job[1]:g}: {sum(run.seconds for run in answer[1]):.1f} s")

    if processes == 1:
        for job in todo:
            note(job, run_job(scenario, job))
        return runs, capacities
    # Not forked: the parent may have threads.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_job, scenario, job): job for job in todo}
        for future in as_completed(futures):
            note(futures[future], future.result())
    return runs, capacities


def run_job(scenario: Scenario, job: _Job) -> tuple[float, list[Run]]:
    """The fleet's capacity, and one run for each policy. Pure: the same job, the same figures."""
    seed, load, names = job
    requests = trace_of(scenario, seed)
    fleet, snapshot = scenario.fleet, None
    flooder, share = scenario.flood or (None, 0.0)
    weights = dict(scenario.weights)
    if scenario.config is not None and scenario.load_config is not None:
        snapshot = scenario.load_config(scenario.config)
        fleet = engines_of(snapshot, scenario.reference, scenario.per_pool)
        known = [request.tenant for request in requests]
        tenants = tenants_of(known if flooder is None else [*known, flooder], snapshot)
        requests = [
            replace(request, tenant=tenants[request.tenant])
            for request in with_models(requests, dict(scenario.models), snapshot, tenants)
        ]
        flooder = None if flooder is None else tenants[flooder]
        weights = {name: tenant.weight for name, tenant in snapshot.tenants.items()} | {
            tenants.get(name, name): weight for name, weight in weights.items()
        }
        route, nothing = router_of(snapshot, "written"), Sight()
        requests = [request for request in requests if route(request, nothing)]  # the others fit no pool
    most = capacity(requests, fleet)
    requests = compressed(requests, load * most)
    if flooder is not None:
        requests = with_flood(requests, flooder, share * most, random.Random(f"flood/{seed}"))
    reference, objectives = scenario.reference, scenario.objectives
    bare: dict[int, float] = {}

    def budget(prompt: int, expected: int, slo: Slo) -> float:
        if prompt not in bare:
            bare[prompt] = bare_prefill(reference, prompt)
        return objectives.budget(prompt + expected, bare[prompt], slo)

    runs = []
    for name in names:
        if snapshot is not None:
            variant: Variant = name  # type: ignore[assignment]  # `compare` has looked
            pools, router = (
                pools_of(snapshot, reference, variant, scenario.per_pool),
                router_of(snapshot, variant),
            )
        else:
            pools, router = [pool_of(FLEET, fleet, policy_of(name))], fleet_router(scenario.overload)
        began = time.monotonic()
        twin = Twin(
            [_adapted(pool, scenario) for pool in pools],
            router,
            weights=weights,
            budget=budget,
            prefix_cache=scenario.prefix_cache,
            limits=None if snapshot is None or not scenario.limits else partial(FileLimits, snapshot),
        )
        replayed = twin.run(requests, samples=scenario.samples)
        runs.append(
            figures_of(
                name,
                load,
                seed,
                replayed,
                reference,
                objectives=objectives,
                flooder=flooder,
                by_priority=scenario.classes is not None,
                weights=weights,
                seconds=time.monotonic() - began,
            )
        )
    return most, runs


def _adapted(pool: ReplayPool, scenario: Scenario) -> ReplayPool:
    """With the policy's settings that belong to the scenario."""
    policy = pool.policy
    if not scenario.shed:
        policy = replace(policy, shed=frozenset())
    if scenario.prefix_cache:
        policy = replace(policy, prefix_tokens=0 if policy.prefix_tokens < 0 else BLOCK)
    return replace(pool, policy=policy)


FLEET = "fleet"


def fleet_router(overload: Sequence[OverloadStep] = ()) -> Router:
    """All to the one pool there is, less what a brown-out takes; of its steps, bounds on the output and
    classes."""
    whole = (Stop(FLEET),)
    ladders: dict[PriorityClass, Ladder] = {}

    def route(request: TraceRequest, sight: Sight) -> Sequence[Stop]:
        ladder = ladders.setdefault(request.priority, Ladder(overload))
        ladder.look(sight.clock(), signals_of(sight.lines[FLEET], request.priority))
        cuts = cuts_of([rung.step for rung in ladder.active])
        most, asked, lower = cuts.max_tokens, request.max_tokens, cuts.priority_class
        if most is not None and asked is not None and asked <= most:
            most = None
        if lower is not None and lower >= request.priority:
            lower = None
        if most is None and lower is None:
            return whole
        expected = expected_output(request, sight.lengths)
        less = expected if most is None else min(expected, most)
        return (Stop(FLEET, expected=less, max_tokens=most, priority=lower, spared=expected),)

    return route if overload else lambda request, sight: whole
