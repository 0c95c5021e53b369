"""`headgate serve`: run the gateway."""

import gc
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from gateway.admin.admin_key import AdminKeyRefused
from gateway.api.probes import is_loopback
from gateway.app import Gateway, load_snapshot
from gateway.cli.check import report, warn
from gateway.cli.exits import COULD_NOT_START, PROBLEM
from gateway.cli.upstreams import SOURCE, NothingThere, Upstreams
from gateway.config.problems import ConfigInvalid, Problem
from gateway.config.snapshot import CommandWake, Server, Snapshot
from gateway.reloading import Source
from gateway.serving import Addresses, CannotListen, bind, run_until_signal
from gateway.settings import Settings
from gateway.state.store import StateUnusable
from gateway.tasks import TaskSet
from gateway.telemetry import logs

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The routes file.", show_default=True)]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Allow `authentication: off` on an address that is not loopback.")
]


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The routes file.", show_default="routes.yaml")
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream", "-u", metavar="URL", help="No file: serve what is recognised here; may be repeated."
        ),
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=DIRECTORY", help="With --upstream: what counts a model's tokens."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="With --upstream: seconds to wait for the first that answers.")
    ] = 60.0,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="With --upstream: print the same as routes.yaml, and end.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="Address of the data listener.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the data listener.")] = None,
    admin_host: Annotated[str | None, typer.Option(help="Address of the admin listener.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the admin listener.")] = None,
    insecure: InsecureOption = False,
    allow_commands: Annotated[
        bool,
        typer.Option(
            "--allow-commands",
            envvar="HEADGATE_ALLOW_COMMANDS",
            help="Let the file name programs that wake pools (`wake: {kind: command}`).",
        ),
    ] = False,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, then drain."""
    if upstream and config is not None:
        raise typer.BadParameter(
            "--upstream is for going without a file; give one of --config and --upstream"
        )
    if not upstream and (tokenizer or print_config):
        raise typer.BadParameter("--tokenizer and --print-config go with --upstream")
    upstreams = None
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level, settings.log_format)
        path = config if config is not None else Path("routes.yaml")
        load = partial(load_snapshot, path, force_open=insecure)
        if upstream:
            upstreams = Upstreams(
                upstream,
                listen=_written(host, port, Server().listen),
                admin=_written(admin_host, admin_port, Server().admin),
                tokenizers=_directories(tokenizer or ()),
            )
            uvloop.run(upstreams.wait(wait))
            path, load = SOURCE, partial(upstreams.load, force_open=insecure)
        loaded, warnings = load()
        warn(warnings)
        if upstreams is not None and print_config:
            print(upstreams.text(), end="")
            for url in upstreams.missing:
                print(f"headgate: {url} is not in this file, for it did not answer", file=sys.stderr)
            print(f"headgate: the key of this file, shown only now: {upstreams.key}", file=sys.stderr)
            return
        snapshot = with_listeners(loaded, host, port, admin_host, admin_port)
        admit = partial(refuse_unwanted, insecure=insecure, commands=allow_commands)
        admit(snapshot)
        source = Source(path, load=load, declared=loaded.server, admit=admit)
        uvloop.run(_serve(snapshot, settings, source, warnings, upstreams))
    except ConfigInvalid as invalid:
        report(invalid)
        raise typer.Exit(COULD_NOT_START) from None
    except KeyboardInterrupt:  # while waiting for upstreams; once it serves, signals drain
        raise typer.Exit(PROBLEM) from None
    except (AdminKeyRefused, CannotListen, NothingThere, StateUnusable, OSError, ValueError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(COULD_NOT_START) from None


def with_listeners(
    snapshot: Snapshot, host: str | None, port: int | None, admin_host: str | None, admin_port: int | None
) -> Snapshot:
    """The snapshot with the listeners that flags ask for."""
    server = snapshot.server
    listen = (host if host is not None else server.listen[0], port if port is not None else server.listen[1])
    admin = (
        admin_host if admin_host is not None else server.admin[0],
        admin_port if admin_port is not None else server.admin[1],
    )
    return replace(snapshot, server=replace(server, listen=listen, admin=admin))


def refuse_open_door(snapshot: Snapshot, *, insecure: bool) -> None:
    """Raise ValueError where flags put an open gateway on an address that others can reach."""
    host = snapshot.server.listen[0]
    if snapshot.server.authentication == "off" and not is_loopback(host) and not insecure:
        raise ValueError(f"`authentication: off` is for loopback, not for {host} (--insecure allows it)")


def refuse_commands(snapshot: Snapshot) -> None:
    """Raise ValueError where the file would have the gateway run programs: who may write the file need not be
    one who may run what he likes here."""
    for pool in snapshot.pools.values():
        if pool.activation is not None and isinstance(pool.activation.wake, CommandWake):
            how = "--allow-commands, or HEADGATE_ALLOW_COMMANDS=1, allows it"
            raise ValueError(f"pools.{pool.name}.wake runs a command ({how})")


def refuse_unwanted(snapshot: Snapshot, *, insecure: bool, commands: bool) -> None:
    """Raise ValueError for what the file may say and flags have not allowed."""
    refuse_open_door(snapshot, insecure=insecure)
    if not commands:
        refuse_commands(snapshot)


def _written(host: str | None, port: int | None, default: tuple[str, int]) -> str:
    """An address as routes.yaml writes it."""
    host = default[0] if host is None else host
    return f"{f'[{host}]' if ':' in host else host}:{default[1] if port is None else port}"


def _directories(options: Iterable[str]) -> dict[str, str]:
    """`MODEL=DIRECTORY` -> whole paths by model."""
    directories = {}
    for option in options:
        model, equals, directory = option.partition("=")
        if not (model and equals and directory):
            raise typer.BadParameter(f"{option!r} is not MODEL=DIRECTORY", param_hint="--tokenizer")
        directories[model] = os.path.abspath(directory)
    return directories


async def _serve(
    snapshot: Snapshot,
    settings: Settings,
    source: Source,
    warnings: tuple[Problem, ...],
    upstreams: Upstreams | None = None,
) -> None:
    data = bind(snapshot.server.listen, "--host, --port or server.listen")
    try:
        admin = bind(snapshot.server.admin, "--admin-host, --admin-port or server.admin")
    except CannotListen:
        data.close()
        raise
    gateway = await Gateway.create(snapshot, settings, source=source, warnings=warnings)
    freeze_the_furniture()
    tasks = TaskSet()

    def started(addresses: Addresses) -> None:
        _announce(gateway, addresses)
        if upstreams is not None:
            upstreams.announce(snapshot, addresses)
            tasks.start(upstreams.follow(gateway), "upstreams")

    try:
        await run_until_signal(gateway, data, admin, started)
    finally:
        await tasks.aclose()


def freeze_the_furniture() -> None:
    """Take what lives as long as the process out of the garbage collector's sight, and let it look less.

    Requests make few cycles; looking through tokenizers and configuration for them cost 12 to 16 % of the CPU
    of a plain request (docs/benchmarks.md). The second figure bounds how much is looked through at once: with
    twenty, hostile bodies (16 of 600 KB, nested) made pauses of 150 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 3, 300)


def _announce(gateway: Gateway, addresses: Addresses) -> None:
    snapshot = gateway.runtime.snapshot
    print(f"headgate serves {addresses.data}/v1   admin {addresses.admin}/admin", file=sys.stderr)
    for pool in snapshot.pools.values():
        replicas = ", ".join(f"{replica.id} {replica.url}" for replica in pool.replicas)
        models = ", ".join(pool.serves)
        print(
            f"  {pool.name}: {pool.engine}, serves {models}, relay {pool.relay}: {replicas}", file=sys.stderr
        )
    if snapshot.server.authentication == "off":
        print("  authentication is off: whoever reaches the address may use it", file=sys.stderr)
    if gateway.admin_key.made is not None:
        print(f"  admin key, shown only now: {gateway.admin_key.made}", file=sys.stderr)
