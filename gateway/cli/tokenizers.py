"""`headgate tokenizers verify`: what counts for each model, and whether engines count the same."""

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gateway.app import load_snapshot
from gateway.cli.check import report
from gateway.cli.exits import PROBLEM
from gateway.cli.keys import ConfigOption
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Pool, Snapshot
from gateway.inspecting import (
    SAMPLES,
    Comparison,
    LoadedTokenizer,
    compare_tokenizer,
    counting_of,
    first_well,
    load_tokenizers,
    upstream,
)
from gateway.tokens.counting import Counting

app = typer.Typer(help="Look at the tokenizers of a routes file.", no_args_is_help=True)

LiveOption = Annotated[bool, typer.Option("--live", help="Ask the engines too.")]


@app.callback()
def tokenizers() -> None:
    """Look at the tokenizers of a routes file."""


@app.command()
def verify(config: ConfigOption = Path("routes.yaml"), live: LiveOption = False) -> None:
    """Load every model's tokenizer; with --live count twenty texts and chats as the engines do, and print
    what differs. Where an engine has no route for it, it is asked for one token and its usage read."""
    try:
        snapshot, _ = load_snapshot(config, force_open=True)
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    loaded = load_tokenizers(snapshot)
    for each in loaded:
        print(line_of(each))
    wrong = any(each.error is not None for each in loaded)
    if live:
        wrong |= asyncio.run(_live(snapshot, loaded))
    if wrong:
        raise typer.Exit(PROBLEM)


def line_of(loaded: LoadedTokenizer) -> str:
    """What counts for a model: tier, source, vocabulary, template, time to load."""
    spec, tokenizer = loaded.spec, loaded.tokenizer
    if tokenizer is None:
        return f"{loaded.model}: {spec.kind}, cannot be loaded: {loaded.error}"
    if spec.kind == "estimate":
        return f"{loaded.model}: estimate, {spec.bytes_per_token:g} bytes per token"
    took = f"loaded in {loaded.seconds * 1e3:.0f} ms" if loaded.seconds >= 5e-4 else "loaded already"
    template = "no chat template: chats are estimated" if tokenizer.template is None else "chat template"
    return (
        f"{loaded.model}: exact, {spec.kind} {spec.encoding or ''}".rstrip()
        + f" from {spec.path}, {tokenizer.counter.vocabulary} tokens, {template}, {took}"
    )


async def _live(snapshot: Snapshot, loaded: list[LoadedTokenizer]) -> bool:
    """Print what each pool says; whether anything is wrong."""
    wrong = False
    async with counting_of(loaded) as counting:
        sound = {each.model for each in loaded if each.tokenizer is not None}
        for pool in snapshot.pools.values():
            wrong |= await _pool(snapshot, pool, sound, counting)
    return wrong


async def _pool(snapshot: Snapshot, pool: Pool, sound: set[str], counting: Counting) -> bool:
    wrong = False
    try:
        async with upstream(pool) as client:
            replica = await first_well(client, pool)
            if replica is None:
                print(f"pool {pool.name}: no replica answers that it is well", file=sys.stderr)
                return pool.state != "cold"
            for name in pool.serves:
                if name not in sound or name == "*":
                    continue
                found = await compare_tokenizer(client, pool, replica, snapshot.models[name], counting)
                print(summary_of(pool.name, name, replica.id, found))
                for each in found:
                    if each.differs:
                        wrong = True
                        print(f"  {each.sample} as {each.form}: {each.ours} here, {each.theirs} there")
    except (OSError, ValueError) as error:
        print(f"pool {pool.name}: {error}", file=sys.stderr)
        return True
    return wrong


def summary_of(pool: str, model: str, replica: str, found: list[Comparison]) -> str:
    """One line for a model in a pool."""
    head = f"pool {pool}, model {model}, replica {replica}: "
    if not found:
        return head + f"nothing of {len(SAMPLES)} texts to compare, the gateway itself only estimates"
    ways = Counter(each.by for each in found)
    parts = [f"{count} by {way}" for way, count in ways.items() if way != "nothing"]
    if ways["nothing"]:
        parts.append(f"{ways['nothing']} that the engine does not tell")
    differing = sum(each.differs for each in found)
    return head + f"{differing} of {len(found)} counts differ ({', '.join(parts)})"
