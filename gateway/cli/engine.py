"""`headgate engine`: one simulated engine on its own, speaking a real engine's dialect."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from backends.simulated.faults import FAULTS
from backends.simulated.server import SimulatedServer, run
from gateway.cli.exits import COULD_NOT_START
from gateway.telemetry import logs

Kind = Literal["trtllm", "triton", "tgi", "openai"]
Profile = Literal["demo", "h200", "h200-slow-host"]
Notice = Literal["at_once", "poll", "next_token", "next_write", "realistic"]
TextMode = Literal["delta", "cumulative"]

FAULT_HELP = "A fault as name[=value][*times], e.g. die_after=3*1; may be repeated. " + " ".join(
    f"{name}: {meaning}." for name, meaning in FAULTS.items()
)


def engine(
    kind: Annotated[Kind, typer.Option(help="Whose dialect it speaks.")],
    port: Annotated[int, typer.Option(help="0 takes any free port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="The model's name.")] = "headgate-mini",
    profile: Annotated[Profile, typer.Option(help="How fast and how large it is.")] = "demo",
    speed: Annotated[float, typer.Option(min=0.001, help="Factor on its pace.")] = 1.0,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer directory.")] = None,
    max_input_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are refused.")] = 16_384,
    max_total_tokens: Annotated[int, typer.Option(min=2, help="Prompt and output together.")] = 16_384,
    max_concurrent_requests: Annotated[int, typer.Option(min=1, help="tgi: more are refused.")] = 128,
    max_queue_size: Annotated[int | None, typer.Option(help="triton, openai: waiting requests.")] = None,
    seed: Annotated[int, typer.Option(help="Engines of one model share it: same context, same text.")] = 0,
    mean_tokens: Annotated[float, typer.Option(help="Mean length of an answer.")] = 120.0,
    text_mode: Annotated[TextMode, typer.Option(help="triton: what an event holds.")] = "delta",
    notice: Annotated[
        Notice, typer.Option(help="How it notices a closed connection; realistic: as the real engine does.")
    ] = "at_once",
    fault: Annotated[list[str] | None, typer.Option(help=FAULT_HELP)] = None,
) -> None:
    """Run one simulated engine until SIGTERM or SIGINT."""
    logs.configure()
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    try:
        run(
            kind,
            profile,
            host=host,
            port=port,
            speed=speed,
            tokenizer=None if tokenizer is None else str(tokenizer),
            faults=fault or (),
            on_start=_announce,
            model=model,
            max_input_tokens=max_input_tokens,
            max_total_tokens=max_total_tokens,
            max_concurrent_requests=max_concurrent_requests,
            max_queue_size=max_queue_size,
            seed=seed,
            mean_tokens=mean_tokens,
            text_mode=text_mode,
            notice=notice,
        )
    except (ValueError, OSError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(COULD_NOT_START) from None


def _announce(server: SimulatedServer) -> None:
    print(f"simulated {server.kind} engine at {server.url}; statistics at /_simulated/statistics", flush=True)
