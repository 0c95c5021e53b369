"""`headgate keys`: make keys for routes.yaml."""

import typer

from gateway.tenants.authentication import digest_of, new_key

app = typer.Typer(help="Make keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make keys."""


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
