"""Schema and data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fwdb import errors
from fwdb.cli.program import FAILED, app, database, print_counts, say, stdout


@app.command()
def migrate(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print PostgreSQL's SQL; change nothing.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only report drift; exit 1 if any.")
    ] = False,
) -> None:
    """Bring both stores to the newest schema.

    Tables that already exist are adopted: what is missing is added, no row is lost.
    """
    from fwdb import migrating

    if sql:
        print(migrating.offline_sql())
        return
    with database(role="owner") as db:
        if not check:
            changes = migrating.migrate(
                db.postgres,
                db.mongodb,
                progress=lambda change: stdout.print(f"{change.database:<9} {change.sentence}"),
            )
            if not changes:
                stdout.print("Both stores have the newest schema.")
        differences = migrating.drift(db.postgres, db.mongodb)
    for difference in differences:
        stdout.print(f"{difference.database:<9} {difference.severity}: {difference.sentence}")
    if check and any(difference.severity != "information" for difference in differences):
        raise typer.Exit(FAILED)


@app.command()
def seed(
    scale: Annotated[
        int,
        typer.Option(help="Add this many users with a year of history.", min=0, max=1_000_000),
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same data.")] = 1,
) -> None:
    """Put in the seed data; running it twice changes nothing."""
    with database(role="owner") as db:  # a year of history goes into the trail itself
        print_counts("seeded", db.seeder.seed_all())
        if scale:
            print_counts("added", db.seeder.seed_scale(scale, seed=seed, progress=say))


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all rows; asks first.

    Users, avatars, catalog items, designs and audit entries go; the schema stays.
    """
    with database(role="owner") as db:
        if not yes:
            if not sys.stdin.isatty():
                raise errors.ParameterError("clear removes all rows; add --yes to mean it.")
            typer.confirm(
                f"Remove all rows of {db.postgres.address} and {db.mongodb.address}?", abort=True
            )
        print_counts("removed", db.seeder.clear_all(confirm=True))


@app.command()
def workload(
    seconds: Annotated[float, typer.Option(help="How long.", min=1, max=3600)] = 20,
    seed: Annotated[int, typer.Option(help="The same seed asks the same questions.")] = 1,
) -> None:
    """Run load, to have something to see.

    Readers and writers, some slow statements and some failures, through the package's pools.
    """
    from fwdb.demo import run_workload

    result = run_workload(seconds=seconds, seed=seed, progress=say)
    print_counts("done", result.operations)
    print_counts("failed as meant", result.errors)


@app.command()
def demo(
    scale: Annotated[int, typer.Option(help="Users to add.", min=1)] = 1000,
    seconds: Annotated[float, typer.Option(help="Seconds of load.", min=1, max=3600)] = 20,
    out: Annotated[Path, typer.Option(help="Where the reports go.")] = Path("reports"),
) -> None:
    """Do it all, from servers to reports.

    Starts both servers, migrates, seeds, runs a workload and writes all reports.
    """
    from fwdb.demo import run_demo

    index = run_demo(scale=scale, seconds=seconds, out=out, progress=say)
    stdout.print(f"\nOpen {index}")
