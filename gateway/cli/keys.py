"""`headgate keys`: keys for routes.yaml, and keys in the state store beside it.

`create`, `list`, `rotate` and `revoke` work on the state directory that the file names. A gateway that runs
on it follows within a second.
"""

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gateway.app import load_snapshot
from gateway.cli.check import report
from gateway.cli.exits import PROBLEM
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Snapshot
from gateway.errors import GatewayError
from gateway.state.store import StateStore, StateUnusable
from gateway.tenants.authentication import digest_of, new_key
from gateway.tenants.keys import KeyDesk, KeyRow, MadeKey, duration_of

app = typer.Typer(help="Make, list, rotate and revoke keys.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The routes file.", show_default=True)]


def _seconds(text: str) -> float:
    try:
        return duration_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.callback()
def keys() -> None:
    """Make, list, rotate and revoke keys."""


@app.command()
def new() -> None:
    """Make a key: give the key to its user, put the hash into routes.yaml."""
    key = new_key()
    print(f"key:  {key}")
    print(f'hash: "sha256:{digest_of(key)}"')


@app.command()
def hash(  # noqa: A001  # the verb an operator types
    key: str | None = typer.Argument(None, help="The key; asked for, unseen, if left out."),
) -> None:
    """Show the hash of a key that you have."""
    if key is None:
        key = typer.prompt("key", hide_input=True)
    print(f'"sha256:{digest_of(key)}"')


@app.command()
def create(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Whose key: a tenant of the file.")],
    key_id: Annotated[str | None, typer.Option("--id", help="Its name in logs; made up if left out.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="How long it is valid, e.g. 12h, 30d.", metavar="DURATION")
    ] = None,
    config: ConfigOption = Path("routes.yaml"),
) -> None:
    """Make a key for a tenant. It is shown once and kept as a hash."""
    lifetime = None if expires is None else _seconds(expires)
    with _desk(config) as (desk, snapshot):
        _show(desk.create(snapshot, tenant, key_id=key_id, lifetime=lifetime, who=_who()))


@app.command("list")
def list_(config: ConfigOption = Path("routes.yaml")) -> None:
    """List the keys of the file and of the store."""
    with _desk(config) as (desk, snapshot):
        rows = desk.rows(snapshot)
    table = [("ID", "TENANT", "STATE", "SOURCE", "CREATED", "EXPIRES", "BY")]
    table += [
        (row.id, row.tenant, row.state, row.source, _when(row.created), _when(_end(row)), row.who or "-")
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    grace: Annotated[
        str, typer.Option("--grace", help="How long the old key stays valid.", metavar="DURATION")
    ] = "0s",
    config: ConfigOption = Path("routes.yaml"),
) -> None:
    """Make a new key in the place of an old one. It is shown once and kept as a hash."""
    seconds = _seconds(grace)
    with _desk(config) as (desk, snapshot):
        _show(desk.rotate(snapshot, key_id, grace=seconds, who=_who()))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, or sha256:<its hash>.")],
    config: ConfigOption = Path("routes.yaml"),
) -> None:
    """Revoke a key, of the file or of the store, for good."""
    with _desk(config) as (desk, snapshot):
        rows = desk.revoke(snapshot, key_id, who=_who())
    for row in rows:
        print(f"revoked {row.id} of tenant {row.tenant}")
    if not rows:
        print("revoked; no tenant has this key now")


@contextmanager
def _desk(config: Path) -> Iterator[tuple[KeyDesk, Snapshot]]:
    """The desk over the state that `config` names. What cannot be done ends the command with one line."""
    store: StateStore | None = None
    try:
        snapshot, _ = load_snapshot(config, force_open=True)
        store = StateStore.at(Path(snapshot.server.state), must_keep=True)
        yield KeyDesk(store), snapshot
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(PROBLEM) from None
    except (GatewayError, StateUnusable, OSError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(PROBLEM) from None
    finally:
        if store is not None:
            store.close()


def _show(made: MadeKey) -> None:
    print(f"key:     {made.key}")
    print(f"id:      {made.row.id}")
    print(f"tenant:  {made.row.tenant}")
    print(f"expires: {_when(made.row.expires)}")
    print("The key is shown only now.", file=sys.stderr)


def _end(row: KeyRow) -> float | None:
    ends = [end for end in (row.expires, row.revoked) if end is not None]
    return min(ends, default=None)


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _who() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a numeric user in a container has no name
        return "cli"
