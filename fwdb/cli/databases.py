"""The built-in servers, and the schema and data of both stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from fwdb import errors
from fwdb.cli.program import FAILED, Json, app, database, print_counts, print_json, say, stdout

Replica = Annotated[bool, Option("--replica", help="And a streaming replica of PostgreSQL.")]
Sql = Annotated[bool, Option("--sql", help="Print PostgreSQL's SQL; change nothing.")]
Check = Annotated[bool, Option("--check", help="Only report drift; exit 1 if any.")]
Scale = Annotated[
    int, Option(help="Add this many users with a year of history.", min=0, max=1_000_000)
]
Seed = Annotated[int, Option(help="The same seed makes the same data.")]
Yes = Annotated[bool, Option("--yes", help="Do not ask.")]
Seconds = Annotated[float, Option(help="How long.", min=1, max=3600)]
WorkloadSeed = Annotated[int, Option(help="The same seed asks the same questions.")]
DemoScale = Annotated[int, Option(help="Users to add.", min=1)]
DemoSeconds = Annotated[float, Option(help="Seconds of load.", min=1, max=3600)]
Out = Annotated[Path, Option(help="Where the reports go.")]


@app.command()
def up(replica: Replica = False) -> None:
    """Start the built-in servers, or join them if they run."""
    from fwdb import embedded

    embedded.up(replica=replica, progress=say)
    status()


@app.command()
def down() -> None:
    """Stop the built-in servers."""
    from fwdb import embedded

    stopped = embedded.down()
    stdout.print(
        "The built-in servers are stopped." if stopped else "No built-in server runs here."
    )


@app.command()
def status(as_json: Json = False) -> None:
    """Say which built-in servers run, where, and with which data."""
    from fwdb import embedded

    found = embedded.status()
    if as_json:
        print_json(found.as_dict())
        return
    stdout.print(f"home      {found.home}")
    for store in found.stores:
        where = f"{store.engine} {store.version}  {store.url}" if store.running else store.reason
        stdout.print(f"{store.store:<9} {where}")


@app.command()
def doctor() -> None:
    """Say which server binaries are taken.

    Each finding says what was found, what is taken and why. Exit 1 if one is wrong.
    """
    from fwdb import embedded

    findings = embedded.doctor()
    for finding in findings:
        stdout.print(f"{'ok ' if finding.ok else 'BAD'}  {finding.subject}: {finding.sentence}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


@app.command()
def migrate(sql: Sql = False, check: Check = False) -> None:
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
def seed(scale: Scale = 0, seed: Seed = 1) -> None:
    """Put in the seed data; running it twice changes nothing."""
    with database(role="owner") as db:  # a year of history goes into the trail itself
        print_counts("seeded", db.seeder.seed_all())
        if scale:
            print_counts("added", db.seeder.seed_scale(scale, seed=seed, progress=say))


@app.command()
def clear(yes: Yes = False) -> None:
    """Remove all rows; asks first.

    Every entity goes, with the audit trail; the schema stays.
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
def workload(seconds: Seconds = 20, seed: WorkloadSeed = 1) -> None:
    """Run load, to have something to see.

    Readers and writers, some slow statements and some failures, through the package's pools.
    """
    from fwdb.demo import run_workload

    result = run_workload(seconds=seconds, seed=seed, progress=say)
    print_counts("done", result.operations)
    print_counts("failed as meant", result.errors)


@app.command()
def demo(scale: DemoScale = 1000, seconds: DemoSeconds = 20, out: Out = Path("reports")) -> None:
    """Do it all, from servers to reports.

    Starts both servers, migrates, seeds, runs a workload and writes all reports.
    """
    from fwdb.demo import run_demo

    index = run_demo(scale=scale, seconds=seconds, out=out, progress=say)
    stdout.print(f"\nOpen {index}")
