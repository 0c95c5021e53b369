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
from gateway.examining.inspecting import (
    SAMPLES,
    Comparison,
    LoadedTokenizer,
    compare_tokenizers,
    counting_of,
    is_well,
    load_tokenizers,
    upstream,
)
from gateway.tokens.counters import HuggingFaceCounter, RankedCounter, TiktokenCounter, tiktoken_file
from gateway.tokens.counting import Counting
from gateway.tokens.tokenizing import Tokenizer

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
    if spec.kind == "engine":
        return (
            f"{loaded.model}: exact, engine: a replica of pool {spec.pool} is asked, for "
            f"{spec.timeout * 1e3:g} ms at most; else estimate, {spec.bytes_per_token:g} bytes per token"
        )
    took = f"loaded in {loaded.seconds * 1e3:.0f} ms" if loaded.seconds >= 5e-4 else "loaded already"
    template = "no chat template: chats are estimated" if tokenizer.template is None else "chat template"
    path = spec.path or tiktoken_file(spec.encoding or "")
    return (
        f"{loaded.model}: exact, {spec.kind} {spec.encoding or ''}".rstrip()
        + f" from {path}, {tokenizer.counter.vocabulary} tokens, {template}, {_engine(tokenizer)}, {took}"
    )


def _engine(tokenizer: Tokenizer) -> str:
    """Which library counts, and whether conversations are remembered piece by piece."""
    counter, cache = tokenizer.counter, tokenizer.cache
    if isinstance(counter, RankedCounter):
        engine = "counted by tiktoken (proved equal)"
    elif isinstance(counter, HuggingFaceCounter):
        engine = f"counted by tokenizers, not tiktoken: {counter.slow_because or 'not tried'}"
    else:
        engine = f"counted by {'tiktoken' if isinstance(counter, TiktokenCounter) else 'transformers'}"
    if cache is None or not cache.splitter.longest:
        engine += ", counts remembered for whole texts only" if cache else ", counts not remembered"
    return engine


async def _live(snapshot: Snapshot, loaded: list[LoadedTokenizer]) -> bool:
    """Print what each pool says; whether anything is wrong."""
    wrong = False
    async with counting_of(loaded, snapshot) as counting:
        sound = {each.model for each in loaded if each.tokenizer is not None}
        for pool in snapshot.pools.values():
            wrong |= await _pool(snapshot, pool, sound, counting)
    return wrong


async def _pool(snapshot: Snapshot, pool: Pool, sound: set[str], counting: Counting) -> bool:
    wrong = False
    try:
        async with upstream(pool) as client:
            well = [replica for replica in pool.replicas if await is_well(client, pool, replica)]
            for replica in pool.replicas:
                if replica not in well:
                    wrong |= pool.state != "cold"
                    print(
                        f"pool {pool.name}: replica {replica.id} does not answer that it is well",
                        file=sys.stderr,
                    )
            for name in pool.serves if well else ():
                if name not in sound or name == "*":
                    continue
                found = await compare_tokenizers(client, pool, well, snapshot.models[name], counting)
                for replica, counts in zip(well, found, strict=True):
                    print(summary_of(pool.name, name, replica.id, counts))
                    for each in counts:
                        if each.differs:
                            wrong = True
                            print(f"  {each.sample} as {each.form}: {each.ours} here, {each.theirs} there")
                if (odd := odd_ones(found)) is not None:
                    print(f"pool {pool.name}, model {name}: the replicas do not count alike: {odd}")
    except (OSError, ValueError) as error:
        print(f"pool {pool.name}: {error}", file=sys.stderr)
        return True
    return wrong


def odd_ones(found: list[list[Comparison]]) -> str | None:
    """Which replicas differ from our counts where others agree; None where all do, or none."""
    differ = [counts[0].replica for counts in found if any(each.differs for each in counts)]
    agree = [counts[0].replica for counts in found if counts and counts[0].replica not in differ]
    if not differ or not agree:
        return None
    return f"{', '.join(differ)} differ{'s' if len(differ) == 1 else ''}, {', '.join(agree)} not"


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
