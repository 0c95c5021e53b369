"""`headgate limits`: how a tenant's limits stand, and which of them would answer what.

What is used is known to the gateway that runs, so it is asked, through its admin API: at the address that
the file names (or `--url`), with the key in HEADGATE_ADMIN_KEY. `try --fresh` asks nobody, no Redis either:
it answers from the file as if nothing were used.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer

from gateway.admin.limits import try_limits
from gateway.app import load_snapshot
from gateway.cli.check import report
from gateway.cli.exits import PROBLEM
from gateway.cli.offline import offline
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Snapshot
from gateway.errors import GatewayError
from gateway.settings import Settings

app = typer.Typer(help="Show limits, and try what they would answer.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The routes file.", show_default=True)]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The admin listener, if it is not where the file says.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="All of it, as JSON.")]


@app.callback()
def limits() -> None:
    """Show limits, and try what they would answer."""


@app.command()
def show(
    tenant: Annotated[str | None, typer.Argument(help="Whose limits; all, if left out.")] = None,
    config: ConfigOption = Path("routes.yaml"),
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how limits stand at this moment."""
    answer = _ask("GET", "/admin/limits", config, url, params={} if tenant is None else {"tenant": tenant})
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    table = [("ACCOUNT", "UNIT", "PER", "AMOUNT", "USED", "FREE", "FULL IN", "")]
    table += [
        (
            row["account"], row["unit"], row["per"] or "at a time", _number(row["amount"]),
            _number(row["used"]), _number(row["free"]), _seconds(row["reset"]),
            "" if row["enforce"] else "not enforced",
        )
        for row in answer["limits"]
    ]  # fmt: skip
    _print(table)


@app.command("try")
def try_(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Whose request it would be.")],
    tokens: Annotated[int | None, typer.Option(min=0, help="Its tokens, as prompt.")] = None,
    prompt: Annotated[int | None, typer.Option(min=0, help="Tokens of its prompt.")] = None,
    output: Annotated[int | None, typer.Option(min=0, help="Expected output tokens.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="The id of its key.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model it would name.")] = None,
    pool: Annotated[str | None, typer.Option(help="The pool it would go to.")] = None,
    fresh: Annotated[bool, typer.Option(help="As if nothing were used; asks no gateway.")] = False,
    config: ConfigOption = Path("routes.yaml"),
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain which limits would answer what to a request. Nothing is charged."""
    given = {
        "tenant": tenant, "key": key, "model": model, "pool": pool, "tokens": tokens, "prompt": prompt,
        "output": output,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    answer = _fresh(config, asked) if fresh else _ask("POST", "/admin/limits/try", config, url, body=asked)
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        table = [("ANSWER", "ACCOUNT", "UNIT", "PER", "NEEDS", "FREE", "AMOUNT", "WAIT")]
        table += [
            (
                row["answer"], row["account"], row["unit"], row["per"] or "at a time", _number(row["needs"]),
                _number(row["free"]), _number(row["amount"]), _seconds(row["wait"]),
            )
            for row in answer["limits"]
        ]  # fmt: skip
        _print(table)
        print("granted" if answer["granted"] else "refused")
    if not answer["granted"]:
        raise typer.Exit(PROBLEM)


def _ask(
    method: str,
    path: str,
    config: Path,
    url: str | None,
    *,
    params: dict[str, str] | None = None,
    body: dict[str, Any] | None = None,
) -> Any:
    """The gateway's answer. What cannot be had ends the command with one line."""
    base = (_base(_loaded(config)) if url is None else url).rstrip("/")
    try:
        key = Settings.from_environment().admin_key
        if key is None:
            _end("put the admin key into HEADGATE_ADMIN_KEY: the gateway is asked how its limits stand")
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(timeout=10, trust_env=False) as client:
            answer = client.request(method, base + path, params=params, json=body, headers=headers)
        if answer.status_code != 200:
            _end(f"{base} answers {answer.status_code}: {answer.json()['error']['message']}")
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _end(f"no gateway answers at {base}: {error}")
    except (OSError, ValueError, LookupError) as error:
        _end(str(error))


def _fresh(config: Path, asked: dict[str, Any]) -> Any:
    snapshot = _loaded(config)

    async def answer() -> Any:
        async with offline(snapshot) as gateway:
            return await try_limits(gateway.runtime, asked)

    try:
        return asyncio.run(answer())
    except GatewayError as error:
        _end(error.message)


def _loaded(config: Path) -> Snapshot:
    try:
        return load_snapshot(config, force_open=True)[0]
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None


def _base(snapshot: Snapshot) -> str:
    host, port = snapshot.server.admin
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # asked, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _end(message: str) -> NoReturn:
    typer.echo(f"headgate: {message}", err=True)
    raise typer.Exit(PROBLEM)


def _print(table: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _number(value: float) -> str:
    return f"{value:.10g}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") + " s"
