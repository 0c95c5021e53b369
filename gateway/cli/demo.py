"""`headgate demo`: simulated engines, the gateway before them, and a tour with the official OpenAI SDK."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import uvloop

from backends.simulated.server import serve as simulated
from gateway.admin.admin_key import AdminKey
from gateway.app import Gateway, load_snapshot
from gateway.cli.check import report
from gateway.cli.exits import COULD_NOT_START
from gateway.cli.serve import ConfigOption
from gateway.config.problems import ConfigInvalid
from gateway.serving import Addresses, bind, listening
from gateway.telemetry import logs
from gateway.tenants.authentication import digest_of, new_key
from gateway.tokens.counting import Counting

KEYS = {
    "acme": "hg-demo-acme-000000000000000000000000",
    "globex": "hg-demo-globex-0000000000000000000000",
}
"""The demo tenants' keys, whose hashes are in the shipped routes.yaml. For loopback and eyes only."""

URL_VARIABLE = "{pool}_{number}_URL"
"""The shipped routes.yaml takes each replica's URL from such a variable, e.g. SHORT_POOL_1_URL."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One request of the tour."""

    what: str
    model: str
    tenant: str
    text: str
    max_tokens: int | None = None


WAKE_S = 1.5
"""Seconds that a simulated engine takes to wake."""

LONG_TEXT = (
    "A canal is a promise that water makes to a field. The headgate keeps it: it measures what may enter, "
    "and where it goes. When the river is high the gate is lowered, and when the field is dry it is raised. "
)

TOUR = (
    Stop("a short chat in English", "llama3-8b-ru", "acme", "What does a headgate do? One sentence.", 48),
    Stop("a short chat in Russian", "llama3-8b-ru", "globex", "Что делает шлюз? Ответь одним словом.", 48),
    Stop("a short chat in Chinese", "llama3-ru", "acme", "水闸有什么用?请用一句话回答。", 48),
    Stop("a long document", "llama3-8b-ru", "acme", "Summarise this.\n" + LONG_TEXT * 110, 96),
    Stop("a short prompt with a long answer", "llama3-8b-ru", "acme", "Расскажи о каналах подробно.", 4090),
    Stop("code", "code-7b", "acme", "Write a Python function that opens a gate:\n```python\ndef ", 64),
    Stop("another model", "chat-mini", "globex", "Name three rivers.", None),
    Stop("a model that sleeps until it is asked for", "poet-13b", "acme", "A line about water, please.", 48),
)


def demo(
    config: ConfigOption = Path("routes.yaml"),
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    port: Annotated[int, typer.Option(help="Port of the data listener; 0 takes any free one.")] = 0,
    admin_port: Annotated[int, typer.Option(help="Port of the admin listener.")] = 0,
) -> None:
    """Start simulated TRT-LLM, Triton and TGI engines and the gateway, stream real chats, show where each
    went and why; then keep serving."""
    try:
        import openai
    except ImportError:
        print("headgate: the demo needs the OpenAI SDK: pip install openai", file=sys.stderr)
        raise typer.Exit(COULD_NOT_START) from None
    logs.configure("warning", "text")
    try:
        uvloop.run(_demo(openai, config, port, admin_port, once=once))
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(COULD_NOT_START) from None
    except KeyboardInterrupt:
        pass


async def _demo(openai: Any, config: Path, port: int, admin_port: int, *, once: bool) -> None:
    plan, _ = load_snapshot(config)
    async with contextlib.AsyncExitStack() as stack:
        urls: dict[str, str] = {}
        for pool in plan.pools.values():
            for number, _ in enumerate(pool.replicas, 1):
                served = next(iter(pool.serves.values()))
                asleep = pool.activation is not None and pool.state != "hot"
                engine = await stack.enter_async_context(
                    simulated(pool.engine, model=served, asleep=asleep, wake_s=WAKE_S)
                )
                name = URL_VARIABLE.format(pool=pool.name.upper().replace("-", "_"), number=number)
                urls[name] = engine.url
        snapshot, _ = load_snapshot(config, environ={**os.environ, **urls})
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-demo-"))
        snapshot = replace(snapshot, server=replace(snapshot.server, state=state))
        admin_key = new_key()
        counting = await asyncio.to_thread(Counting.build, snapshot)
        gateway = Gateway(
            snapshot,
            counting,
            AdminKey(digest_of(admin_key)),
        )
        data, admin = bind(("127.0.0.1", port), "--port"), bind(("127.0.0.1", admin_port), "--admin-port")
        addresses = await stack.enter_async_context(listening(gateway, data, admin))
        print(f"{len(urls)} simulated engines and the gateway are up: {addresses.data}/v1\n")
        for stop in TOUR:
            await _visit(openai, addresses, admin_key, stop)
        print("\nThe same in numbers:")
        await _totals(addresses, admin_key)
        if once:
            return
        print(f"\nServing until Ctrl-C. Address {addresses.data}/v1, key {KEYS['acme']}\n")
        print(_curl(addresses))
        print(f"\nAdmin: {addresses.admin}/admin/pools, key {admin_key}", flush=True)
        await asyncio.Event().wait()


async def _visit(openai: Any, addresses: Addresses, admin_key: str, stop: Stop) -> None:
    """Ask why first, then stream the answer and tell what happened."""
    body = {
        "model": stop.model,
        "messages": [{"role": "user", "content": stop.text}],
        "max_tokens": stop.max_tokens,
        "stream": True,
    }
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"{addresses.admin}/admin/routes/explain",
            headers={"authorization": f"Bearer {admin_key}"},
            json={"tenant": stop.tenant, "request": body},
        )
    why = answer.raise_for_status().json()
    async with openai.AsyncOpenAI(base_url=f"{addresses.data}/v1", api_key=KEYS[stop.tenant]) as client:
        asked = time.perf_counter()
        raw = await client.chat.completions.with_raw_response.create(
            **{name: value for name, value in body.items() if value is not None},
            stream_options={"include_usage": True},
        )
        first, text, tokens = None, "", 0
        async for chunk in raw.parse():
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter()
                text += chunk.choices[0].delta.content
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    ended = time.perf_counter()
    first = first or ended
    print(f"# {stop.what}: {_excerpt(stop.text)} -> {_excerpt(text)}")
    print(_line(raw.headers, why, stop, first - asked, tokens / max(ended - first, 1e-9)))
    if (held := raw.headers.get("x-headgate-wake-ms")) is not None:
        print(f"  it was asleep: the request was held for {float(held) / 1e3:.2f} s until it was awake")
    print(f"  why: {_why(why)}\n", flush=True)


def _line(headers: Mapping[str, str], why: dict[str, Any], stop: Stop, ttft: float, rate: float) -> str:
    engines = {target["pool"]: target["engine"] for target in why["chain"]}
    pool = headers["x-headgate-pool"]
    return (
        f"pool={pool} replica={headers['x-headgate-replica']} engine={engines.get(pool)} model={stop.model} "
        f"tenant={stop.tenant} prompt={headers['x-headgate-prompt-tokens']} "
        f"est_total={why['estimate']['total']} max_tokens={headers.get('x-headgate-max-tokens', 'none')} "
        f"rule={headers['x-headgate-rule']} ttft_ms={ttft * 1e3:.0f} tok_s={rate:.0f}"
    )


def _why(why: dict[str, Any]) -> str:
    """The rules passed over, the one that took it, and the pools skipped."""
    parts = [
        f"rule {trial['rule']} " + ("takes it" if trial["matched"] else f"does not ({trial['why']})")
        for trial in why["rules"]
    ]
    parts += [
        f"pool {target['pool']} is skipped ({target['why']})"
        for target in why["chain"]
        if not target["usable"]
    ]
    return "; ".join(parts)


async def _totals(addresses: Addresses, admin_key: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(
            f"{addresses.admin}/admin/pools", headers={"authorization": f"Bearer {admin_key}"}
        )
    for pool in answer.raise_for_status().json()["pools"]:
        sent = sum(replica["requests_total"] for replica in pool["replicas"])
        line = f"  {pool['pool']}: {pool['engine']}, relay {pool['relay']}, {sent} requests"
        if (sleeper := pool["activation"]) is not None:
            line += f", {sleeper['state']}, a wake takes {sleeper['wake_seconds']:.2f} s"
        print(line)


def _curl(addresses: Addresses) -> str:
    return (
        f"curl -N {addresses.data}/v1/chat/completions -H 'authorization: Bearer {KEYS['acme']}' "
        "-H 'content-type: application/json' -d "
        """'{"model": "llama3-8b-ru", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'"""
    )


def _excerpt(text: str, length: int = 40) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= length else line[: length - 1] + "…")
