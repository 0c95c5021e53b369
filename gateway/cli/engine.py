"""`headgate engine`: one simulated engine on its own, speaking a real engine's dialect."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from backends.simulated.engine import PROFILES
from backends.simulated.faults import FAULTS
from backends.simulated.server import SimulatedServer, run
from gateway.cli.exits import COULD_NOT_START
from gateway.telemetry import logs

Kind = Literal["trtllm", "triton", "triton-openai", "tgi", "vllm", "sglang", "llamacpp", "openai"]
Notice = Literal["at_once", "poll", "next_token", "next_write", "quiet_second", "realistic"]
TextMode = Literal["delta", "cumulative"]
Vocabulary = Literal["classic", "llmapi"]

FAULT_HELP = "A fault as name[=value][*times], e.g. die_after=3*1; may be repeated. " + " ".join(
    f"{name}: {meaning}." for name, meaning in FAULTS.items()
)


def engine(
    kind: Annotated[Kind, typer.Option(help="Whose dialect it speaks.")],
    port: Annotated[int, typer.Option(help="0 takes any free port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="The model's name.")] = "headgate-mini",
    profile: Annotated[
        str,
        typer.Option(
            help=f"How fast and how large it is: {', '.join(PROFILES)}, or a file of `headgate calibrate`."
        ),
    ] = "demo",
    speed: Annotated[float, typer.Option(min=0.001, help="Factor on its pace.")] = 1.0,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer directory.")] = None,
    max_input_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are refused.")] = 16_384,
    max_total_tokens: Annotated[int, typer.Option(min=2, help="Prompt and output together.")] = 16_384,
    max_concurrent_requests: Annotated[int, typer.Option(min=1, help="tgi: more are refused.")] = 128,
    max_queue_size: Annotated[
        int | None,
        typer.Option(min=0, help="Waiting requests; not trtllm, tgi, llamacpp, which know no such limit."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Engines of one model share it: same context, same text.")] = 0,
    mean_tokens: Annotated[float, typer.Option(help="Mean length of an answer.")] = 120.0,
    says: Annotated[
        str | None, typer.Option(help="What every answer says; else a hash of what was asked.")
    ] = None,
    spells: Annotated[
        bool, typer.Option("--spells", help="It says that byte by byte, each in an event of its own.")
    ] = False,
    reasoning_tokens: Annotated[
        int,
        typer.Option(
            min=0, help="vllm, sglang, llamacpp, trtllm: tokens of a chat's answer that are reasoning."
        ),
    ] = 0,
    vocabulary: Annotated[Vocabulary, typer.Option(help="triton: the names of its tensors.")] = "classic",
    decoupled: Annotated[bool, typer.Option(help="triton: whether its models may stream.")] = True,
    text_mode: Annotated[
        TextMode, typer.Option(help="triton, classic: what an event of tensorrt_llm_bls holds.")
    ] = "delta",
    keep_alive: Annotated[
        float | None, typer.Option(min=0, help="tgi, vllm, llamacpp: seconds of silence before a comment.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option(help="sglang, llamacpp, trtllm: whether it was started with metrics.")
    ] = True,
    loading: Annotated[float, typer.Option(min=0, help="sglang, llamacpp: seconds until it is ready.")] = 0.0,
    sleeps: Annotated[
        bool, typer.Option("--sleeps", help="vllm, triton: it can be put to sleep, or models unloaded.")
    ] = False,
    asleep: Annotated[bool, typer.Option("--asleep", help="vllm, triton: so, and it starts asleep.")] = False,
    wake: Annotated[float, typer.Option(min=0, help="vllm, triton: seconds that it takes to wake.")] = 0.0,
    prefix_cache: Annotated[
        int, typer.Option(min=0, help="Tokens of past prompts that it keeps for those that begin alike.")
    ] = 0,
    tells_cached: Annotated[
        bool, typer.Option("--tells-cached", help="vllm, sglang: its usage tells what was cached.")
    ] = False,
    adapter: Annotated[list[str] | None, typer.Option(help="A LoRA adapter that it has.")] = None,
    priorities: Annotated[
        bool, typer.Option("--priorities", help="vllm: started with --scheduling-policy priority.")
    ] = False,
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
            sleeps=sleeps,
            asleep=asleep,
            wake_s=wake,
            prefix_cache=prefix_cache,
            tells_cached=tells_cached,
            adapters=tuple(adapter or ()),
            priorities=priorities,
            says=says,
            spells=spells,
            reasoning_tokens=reasoning_tokens,
            vocabulary=vocabulary,
            decoupled=decoupled,
            text_mode=text_mode,
            keep_alive_s=keep_alive,
            metrics=metrics,
            loading_s=loading,
            notice=notice,
        )
    except (ValueError, OSError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(COULD_NOT_START) from None


def _announce(server: SimulatedServer) -> None:
    print(f"simulated {server.kind} engine at {server.url}; statistics at /_simulated/statistics", flush=True)
