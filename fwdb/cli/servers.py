"""The built-in servers."""

from __future__ import annotations

from typing import Annotated

import typer

from fwdb.cli.program import FAILED, Json, app, print_json, say, stdout


@app.command()
def up(
    replica: Annotated[
        bool, typer.Option("--replica", help="And a streaming replica of PostgreSQL.")
    ] = False,
) -> None:
    """Start the built-in servers, or join them if they run."""
    from fwdb import config, embedded

    embedded.up(config.settings().home, replica=replica, progress=say)
    _print_status()


@app.command()
def down() -> None:
    """Stop the built-in servers."""
    from fwdb import config, embedded

    stopped = embedded.down(config.settings().home)
    stdout.print(
        "The built-in servers are stopped." if stopped else "No built-in server runs here."
    )


@app.command()
def status(as_json: Json = False) -> None:
    """Say which built-in servers run, where, and with which data."""
    _print_status(as_json=as_json)


@app.command()
def doctor() -> None:
    """Say which server binaries are taken.

    Each finding says what was found, what is taken and why. Exit 1 if one is wrong.
    """
    from fwdb import config, embedded

    findings = embedded.doctor(config.settings().home)
    for finding in findings:
        stdout.print(f"{'ok ' if finding.ok else 'BAD'}  {finding.subject}: {finding.sentence}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


def _print_status(*, as_json: bool = False) -> None:
    from fwdb import config, embedded

    found = embedded.status(config.settings().home)
    if as_json:
        print_json(found.as_dict())
        return
    stdout.print(f"home      {found.home}")
    for store in found.stores:
        where = f"{store.engine} {store.version}  {store.url}" if store.running else store.reason
        stdout.print(f"{store.store:<9} {where}")
