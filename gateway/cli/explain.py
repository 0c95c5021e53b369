"""`headgate explain`: where would a request go, and why? Nothing is sent, unless an engine is to
count the prompt."""

import asyncio
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.admin.endpoints import explain_request
from gateway.app import load_snapshot
from gateway.call import ROUTES, STREAMING
from gateway.cli.check import report
from gateway.cli.exits import PROBLEM
from gateway.cli.offline import offline
from gateway.cli.serve import ConfigOption
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Snapshot
from gateway.errors import GatewayError


class Door(StrEnum):
    """`call.ROUTES`, for the command line."""

    chat = "chat"
    completions = "completions"
    embeddings = "embeddings"
    responses = "responses"
    messages = "messages"
    rerank = "rerank"
    score = "score"


def explain(
    model: Annotated[str, typer.Option("--model", "-m", help="The model a client would name.")],
    config: ConfigOption = Path("routes.yaml"),
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Whose request it is.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="The prompt as text, one user message; '-' for standard input.")
    ] = None,
    door: Annotated[Door, typer.Option("--door", "-d", help="The endpoint that it comes to.")] = Door.chat,
    session: Annotated[
        str | None, typer.Option("--session", help="The conversation, as x-session-id names it.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="What the client asks for.")] = None,
    n: Annotated[int, typer.Option(help="Choices, of chats and completions.")] = 1,
    stream: Annotated[bool, typer.Option(help="Whether the client streams.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Explain the routing of one request: rules tried, count, bounds, chain, candidates, and why."""
    try:
        prompt = _prompt(prompt_file)
    except (OSError, UnicodeDecodeError) as error:
        print(f"headgate: cannot read {prompt_file}: {error}", file=sys.stderr)
        raise typer.Exit(PROBLEM) from None
    body = {"model": model, **body_at(door, prompt, max_tokens=max_tokens, n=n, stream=stream)}
    try:
        snapshot, _ = load_snapshot(config, force_open=True)
        asked = {"tenant": tenant, "dialect": door.value, "session": session, "request": body}
        answer = asyncio.run(_explain(snapshot, asked))
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    except GatewayError as error:
        print(f"refused with {error.status}: {error.message}", file=sys.stderr)
        raise typer.Exit(PROBLEM) from None
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines_of(answer)))
    if answer["refused"] is not None:
        raise typer.Exit(PROBLEM)


def _prompt(path: Path | None) -> str:
    if path is None:
        return "Hello!"
    return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")


def body_at(door: Door, prompt: str, *, max_tokens: int | None, n: int, stream: bool) -> dict[str, Any]:
    """What a client would send to this door, but for the model."""
    match door:
        case Door.completions:
            body: dict[str, Any] = {"prompt": prompt, "n": n}
        case Door.embeddings | Door.responses:
            body = {"input": prompt}
        case Door.rerank:
            body = {"query": "", "documents": [prompt]}
        case Door.score:
            body = {"text_1": "", "text_2": prompt}
        case _:
            body = {"messages": [{"role": "user", "content": prompt}]}
            body |= {"n": n} if door is Door.chat else {}
    if door in STREAMING:
        body["stream"] = stream
        if max_tokens is not None:
            body["max_output_tokens" if door is Door.responses else "max_tokens"] = max_tokens
    return body


async def _explain(snapshot: Snapshot, asked: dict[str, Any]) -> dict[str, Any]:
    async with offline(snapshot) as gateway:
        return await explain_request(gateway.runtime, asked, gateway.clock())


def lines_of(answer: dict[str, Any]) -> list[str]:
    """The explanation for people."""
    prompt, bound, estimate = answer["prompt"], answer["max_tokens"], answer["estimate"]
    lines = [
        f"model     {answer['model']}   tenant {answer['tenant']}   class {answer['class']}",
        f"door      {ROUTES[answer['dialect']]}"
        + ("" if answer["session"] is None else f"   session {answer['session']}"),
        f"prompt    {prompt['tokens']} tokens, {_exact(prompt['exact'])}: {prompt['source']}"
        + (f" ({prompt['why']})" if prompt["why"] else ""),
        f"output    asked {_or_none(bound['asked'])}, bound {_or_none(bound['bound'])} by {bound['by']}"
        + (" (clamped)" if bound["clamped"] else ""),
        f"estimate  {_sum(estimate, prompt)} ({estimate['output_by']})",
        "rules",
    ]
    lines += [
        f"  {'->' if trial['matched'] else '  '} {trial['rule']}: {trial['why']}" for trial in answer["rules"]
    ]
    lines.append(f"chain     fit: {answer['fit']}, on: {', '.join(answer['on'])}")
    for draw in answer["split"]:
        share = f"{draw['weight']:g} of {draw['of']:g}"
        lines.append(f"split     {draw['pool']}, {share}, drawn by {draw['by']}; lighter pools are left out")
    if answer["mirror"] is not None:
        lines.append(f"mirror    {answer['mirror']['pool']}, a share of {answer['mirror']['share']:g}")
    for target in answer["chain"]:
        mark = "->" if target["pool"] == answer["goes_to"] else "  "
        state = "usable" if target["usable"] else "skipped"
        lines.append(
            f"  {mark} {target['pool']} ({target['engine']}): {state}, {target['why']}; "
            f"max_tokens {_or_none(target['max_tokens'])}"
        )
        if target["usable"]:
            lines += [
                f"       {each['replica']}: {each['why']}{_held(each)}" for each in target["candidates"]
            ]
    for ladder in answer["overload"]:
        wait = f"wait {ladder['queue_wait_ms']:.0f} ms, {ladder['waiting']} waiting"
        lines.append(f"overload  {ladder['of']}, by the line of {ladder['pool']}: {wait}")
        for step in ladder["steps"]:
            state = "on " if step["on"] else "off"
            lines.append(f"  {state} {_pairs(step['takes'], '=')} from {_pairs(step['when'], ' ')}")
    if answer["degraded"] is not None:
        lines.append(f"degraded  {answer['degraded']}")
    if answer["refused"] is not None:
        lines.append(f"refused   {answer['refused']['status']}: {answer['refused']['message']}")
    return lines


def _held(candidate: dict[str, Any]) -> str:
    held = candidate["cached_tokens"]
    return f"; holds {held} tokens of the prompt" if held else ""


def _sum(estimate: dict[str, Any], prompt: dict[str, Any]) -> str:
    return f"{estimate['total']} = {prompt['tokens']} + {estimate['n']} x {estimate['output']}"


def _pairs(pairs: dict[str, Any], sign: str) -> str:
    return ", ".join(f"{key}{sign}{value:g}" if isinstance(value, float) else f"{key}{sign}{value}"
                     for key, value in pairs.items())  # fmt: skip


def _exact(exact: bool) -> str:
    return "exact" if exact else "estimated"


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)
