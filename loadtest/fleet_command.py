"""`python -m loadtest fleet`: policies over sockets, beside what the digital twin says of them."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.simulated.engine import PROFILES
from backends.simulated.profiles import profile_of
from gateway.config.snapshot import Policy
from gateway.queueing.policies import POLICIES
from gateway.replay.comparing import Comparison, Scenario, policy_of, trace_of
from gateway.replay.figures import Objectives, Row
from gateway.replay.report import as_text, table
from gateway.replay.requests import compressed
from gateway.replay.twin import capacity
from loadtest.arguments import add_output, count, objectives, parts, positive
from loadtest.classes import side_by_side
from loadtest.comparing import TWIN
from loadtest.fleet import Setting, Tried, try_policies
from loadtest.ordering import MEASURES, disagreements, in_order
from loadtest.outcome import REGRESSED, tell, written
from loadtest.summary import notes

DEFAULT_POLICIES = "lanes,sjf,least_requests,round_robin"
SMOKE = {"engines": 2, "requests": 40, "trace": "conv", "policies": "lanes,round_robin", "speed": 4.0}
"""What --smoke overrides: seconds, not figures."""


def add(verbs: Any) -> None:
    """The command and its options."""
    parser = verbs.add_parser(
        "fleet", help="start simulated engines and the gateway; policies in turn, beside the twin"
    )
    option = parser.add_argument
    option("--policies", default=DEFAULT_POLICIES, help=f"of {', '.join(POLICIES)} ({DEFAULT_POLICIES})")
    option("--trace", default="mixed", help="as headgate replay --trace (mixed)")
    option("--trace-dir", type=Path, metavar="DIR", help="where mixed-files finds its files")
    option("--requests", type=count, default=600, help="a made trace is made thinner, a file cut off (600)")
    option("--engines", type=count, default=3, help="simulated engines, each a process (3)")
    option("--profile", default="h200", help=f"the engines: {', '.join(PROFILES)}, or a file (h200)")
    option("--speed", type=positive, default=0.5, help="of the engines, in both columns (0.5: half as fast)")
    option("--load", type=positive, default=0.85, help="requests/s as a part of the fleet's capacity (0.85)")
    option("--tenants", type=count, help="deal the requests out to equal tenants")
    option("--classes", type=parts, metavar="I/S/B", help="percent of interactive, standard, batch")
    option("--nonstream-share", type=float, default=0.0, help="part of the requests answered in one piece")
    option("--shed", choices=("on", "off"), default="on", help="whether policies that shed may (on)")
    option("--slo", type=objectives, default=Objectives(), help="in seconds: short_ttft=1,...")
    option("--seed", type=int, default=1, help="same seed, same requests, times and prompts (1)")
    option("--timeout", type=positive, default=300.0, metavar="SECONDS", help="for one request (300)")
    option("--warm-up", type=int, default=8, metavar="REQUESTS", help="sent first, not measured (8)")
    option("--smoke", action="store_true", help="two engines, 40 requests: does it work at all?")
    add_output(option)


def execute(given: argparse.Namespace) -> int:
    """Try, print, write, compare. Raises ValueError, OSError, DidNotStart, WarmUpFailed."""
    if given.smoke:
        for name, value in SMOKE.items():
            setattr(given, name, value)
    policies = {
        name: policy_for(name, given.slo, shed=given.shed == "on") for name in given.policies.split(",")
    }
    setting, most = setting_of(given)
    tried = try_policies(setting, policies, lambda text: print(text, file=sys.stderr))
    comparison = side_by_side([run for each in tried for run in (each.sockets, each.twin)], most)
    differs = disagreements(comparison.rows)
    head = (
        f"{len(setting.requests)} requests to {setting.engines} engines ({setting.profile}, speed "
        f"{setting.engine.speed:g}) at load {setting.load:g}: {setting.load * most:.2f} of "
        f"{most:.2f} requests/s"
    )
    print(as_text(comparison, head))
    print(f"\n{beside(comparison.rows)}\n")
    for line in [*_orders(comparison), *_costs(tried)]:
        print(line)
    for text in differs:
        print(f"OTHER ORDER: {text}")
    if not differs:
        print("Sockets and twin put the policies in the same order.")
    code = tell(
        given,
        written(
            given,
            comparison,
            capacity=most,
            summaries={each.sockets.policy: each.summary for each in tried},
            cores={each.sockets.policy: each.cores for each in tried},
            crowding={each.sockets.policy: each.crowding for each in tried},
            other_order=differs,
        ),
        comparison,
        title="Headgate over sockets",
        head=head,
        how=(
            "Over sockets: the gateway and simulated engines as processes, latencies from the scheduled "
            f"time; '{TWIN.strip()}': the same policy, engines and requests in virtual time."
        ),
        objectives=given.slo,
    )
    return REGRESSED if differs and not given.smoke else code


def policy_for(name: str, slo: Objectives, *, shed: bool) -> Policy:
    """The policy as the gateway gets it in its file: its budgets are the objectives. Raises ValueError."""
    policy = replace(policy_of(name.strip()), budget=slo.short_ttft, budget_long=slo.long_ttft)
    return policy if shed else replace(policy, shed=frozenset())


def setting_of(given: argparse.Namespace) -> tuple[Setting, float]:
    """What all policies have in common, and the fleet's capacity in requests a second."""
    engine = replace(profile_of(given.profile), speed=given.speed)
    fleet = (engine,) * given.engines
    scenario = Scenario(
        fleet=fleet,
        trace=given.trace,
        trace_dir=given.trace_dir,
        requests=given.requests,
        tenants=given.tenants,
        classes=given.classes,
        nonstream=given.nonstream_share,
    )
    requests = trace_of(scenario, given.seed)
    most = capacity(requests, fleet)
    return (
        Setting(
            profile=given.profile,
            engine=engine,
            engines=given.engines,
            requests=compressed(requests, given.load * most),
            load=given.load,
            seed=given.seed,
            timeout=given.timeout,
            warm_up=given.warm_up,
            objectives=given.slo,
            by_priority=given.classes is not None,
        ),
        most,
    )


COLUMNS = (
    ("policy", ""),
    ("short TTFT p50 s", "sockets / twin"),
    ("short TTFT p99 s", "sockets / twin"),
    ("long TTFT p99 s", "sockets / twin"),
    ("short E2E p95 s", "sockets / twin"),
    ("goodput", "sockets / twin"),
    ("shed", "sockets / twin"),
    ("jain", "sockets / twin"),
)


def beside(rows: Sequence[Row]) -> str:
    """The table of both columns."""
    plain = {(row.policy, row.cls): row for row in rows if (row.priority, row.tenant) == ("all", "all")}
    lines = []
    for policy in dict.fromkeys(row.policy for row in rows if not row.policy.endswith(TWIN)):

        def both(cls: str, field: str, form: str = ".3f", policy: str = policy) -> str:
            found = [plain.get((name, cls)) for name in (policy, policy + TWIN)]
            return " / ".join("-" if row is None else f"{getattr(row, field):{form}}" for row in found)

        lines.append(
            (
                policy, both("short", "ttft_p50"), both("short", "ttft_p99"), both("long", "ttft_p99", ".2f"),
                both("short", "e2e_p95", ".2f"), both("all", "goodput"), both("all", "shed", ".1%"),
                both("all", "jain"),
            )
        )  # fmt: skip
    return table(COLUMNS, lines)


def _orders(comparison: Comparison) -> list[str]:
    return [
        f"{measure.name}, {side + ':':8} {text}"
        for measure in MEASURES
        for side, text in in_order(comparison.rows, measure).items()
    ]


def _costs(tried: Sequence[Tried]) -> list[str]:
    lines = []
    for each in tried:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in sorted(each.cores.items()))
        late = each.summary["schedule"]["late_p99_ms"] or 0.0
        lines.append(f"{each.sockets.policy}: cores used: {shares}; p99 {late:.1f} ms behind the schedule")
        lines += [f"ERROR: {each.sockets.policy}: {what}: {n}" for what, n in each.summary["errors"].items()]
        lines += [f"NOTE: {each.sockets.policy}: {note}" for note in notes(each.summary)]
        if each.crowding is not None and each.crowding > 1:
            lines.append(
                f"NOTE: {each.sockets.policy}: {each.crowding:.1f} processes for each processor: the machine "
                "had other things to do, engines were slower than their profile, load was higher than said"
            )
    return lines
