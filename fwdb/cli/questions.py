"""Questions to the databases."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fwdb.cli.program import (
    FAILED,
    Json,
    Parameters,
    app,
    database,
    pairs,
    print_csv,
    print_frame,
    print_json,
    stdout,
)


@app.command()
def health(as_json: Json = False) -> None:
    """Say whether each store is up.

    A store is up, degraded or down; exit 1 if one is down.
    """
    with database() as db:
        found = db.health()
    if as_json:
        print_json(asdict(found))
    else:
        for store in found.stores:
            latency = f"{store.latency_ms:.1f} ms" if store.latency_ms is not None else ""
            stdout.print(
                f"{store.database:<9} {store.status:<9} {latency:<9} {store.reason}".rstrip()
            )
    if found.status == "down":
        raise typer.Exit(FAILED)


@app.command()
def query(
    name: Annotated[str, typer.Argument(help="A query; 'fwdb sql' lists them.")],
    parameter: Parameters = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Run one query file and print its rows.

    Values in the texts of statements are shown as ?.
    """
    from fwdb.monitoring.redaction import redacted_frame

    with database(role="report") as db:
        frame = redacted_frame(db.postgres.frame(name, **pairs(parameter)))
    if csv:
        print_csv(frame)
    elif as_json:
        print(frame.to_json(orient="records", date_format="iso", indent=2))
    else:
        print_frame(frame)


@app.command()
def sql(
    name: Annotated[str | None, typer.Argument(help="A query; without it, their list.")] = None,
) -> None:
    """Print a query, ready for psql.

    Without a name it lists what there is.
    """
    from fwdb import queries

    if name is None:
        for known in queries.names():
            stdout.print(f"{known:<24} {queries.load(known).about}")
        return
    print(queries.load(name).text, end="")
