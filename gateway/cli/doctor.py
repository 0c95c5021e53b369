"""`headgate doctor`: the operator's checklist before production."""

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import typer

from gateway.app import load_snapshot
from gateway.cli.check import report
from gateway.cli.demo import KEYS
from gateway.cli.exits import COULD_NOT_START, PROBLEM
from gateway.cli.keys import ConfigOption
from gateway.cli.tokenizers import LiveOption
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Pool, Snapshot
from gateway.examining.checklist import Finding, Seen, examine
from gateway.examining.inspecting import (
    Comparison,
    LoadedTokenizer,
    ReplicaReport,
    Streaming,
    compare_tokenizers,
    counting_of,
    inspect_replica,
    load_tokenizers,
    try_streaming,
    upstream,
)
from gateway.settings import Settings
from gateway.tenants.authentication import digest_of
from gateway.tokens.counting import Counting


def doctor(
    config: ConfigOption = Path("routes.yaml"),
    live: LiveOption = False,
    tools: Annotated[
        bool, typer.Option("--tools", help="Clients will send tools: fail where an engine would drop them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Go through the checklist before production: each line passes, fails with its remedy, or cannot be
    told. --live asks every engine, also for a few tokens, and the gateway's own metrics."""
    try:
        snapshot, _ = load_snapshot(config, force_open=True)
        settings = Settings.from_environment()
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    except (OSError, ValueError) as error:
        typer.echo(f"headgate: {error}", err=True)
        raise typer.Exit(COULD_NOT_START) from None
    loaded = load_tokenizers(snapshot)
    seen = asyncio.run(_look(snapshot, loaded, settings.admin_key)) if live else None
    known = frozenset(map(digest_of, KEYS.values()))
    findings = examine(snapshot, loaded, seen, known, wants_tools=tools)
    totals = Counter(finding.verdict for finding in findings)
    if as_json:
        told = {"findings": [asdict(finding) for finding in findings], "totals": dict(totals)}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print("\n".join(map(line_of, findings)))
        print(f"\n{totals['pass']} pass, {totals['fail']} fail, {totals['cannot tell']} cannot be told")
    if totals["fail"]:
        raise typer.Exit(PROBLEM)


def line_of(finding: Finding) -> str:
    """One finding for people."""
    line = f"{finding.verdict:<12} {finding.check:<10} {finding.subject}: {finding.what}"
    return line if finding.remedy is None else f"{line} -> {finding.remedy}"


async def _look(snapshot: Snapshot, loaded: list[LoadedTokenizer], admin_key: str | None) -> Seen:
    """Ask all pools at once, each question of a pool after the other."""
    sound = {each.model for each in loaded if each.tokenizer is not None}
    async with counting_of(loaded, snapshot) as counting, asyncio.TaskGroup() as group:
        metrics = group.create_task(_metrics(snapshot, admin_key))
        pools = [
            group.create_task(_pool(snapshot, pool, sound, counting)) for pool in snapshot.pools.values()
        ]
    found = [pool.result() for pool in pools]
    return Seen(
        replicas=tuple(each for reports, _, _ in found for each in reports),
        comparisons=tuple(each for _, comparisons, _ in found for each in comparisons),
        streaming=tuple(each for _, _, streams in found for each in streams),
        metrics=metrics.result(),
    )


async def _pool(
    snapshot: Snapshot, pool: Pool, sound: set[str], counting: Counting
) -> tuple[list[ReplicaReport], list[Comparison], list[Streaming]]:
    reports: list[ReplicaReport] = []
    comparisons: list[Comparison] = []
    streams: list[Streaming] = []
    try:
        async with upstream(pool) as client:
            reports = [await inspect_replica(client, pool, replica) for replica in pool.replicas]
            well = [each for each, told in zip(pool.replicas, reports, strict=True) if told.ready]
            for name in pool.serves if well else ():
                if name in sound and name != "*":  # there is no name to ask for behind the wildcard
                    model = snapshot.models[name]
                    for found in await compare_tokenizers(client, pool, well, model, counting):
                        comparisons += found
                    streams.append(await try_streaming(client, pool, well[0], model, counting))
    except (OSError, ValueError) as error:
        reports = [ReplicaReport(pool.name, each.id, False, str(error)) for each in pool.replicas]
    return reports, comparisons, streams


async def _metrics(snapshot: Snapshot, admin_key: str | None) -> int | None:
    """The status of the running gateway's /metrics, asked as Prometheus would."""
    host, port = snapshot.server.admin
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
    headers = {} if admin_key is None else {"authorization": f"Bearer {admin_key}"}
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            return (await client.get(url, headers=headers)).status_code
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
