"""`fwdb audit`: the trail, and what keeps it."""

from __future__ import annotations

from typing import Annotated

import typer

from fwdb.cli.program import (
    FAILED,
    Json,
    audit_app,
    database,
    print_counts,
    print_frame,
    print_json,
    say,
    stdout,
)


@audit_app.command("trail")
def audit_trail(
    since: Annotated[str, typer.Option(help="A span (24h, 7d) or an ISO time.")] = "24h",
    entity_type: Annotated[
        str | None, typer.Option(help="User, Avatar, CatalogItem or Design.")
    ] = None,
    action: Annotated[str | None, typer.Option(help="CREATE, UPDATE, DELETE or READ.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print the newest audit entries."""
    with database(role="report") as db:
        frame = db.audit.search(since=since, entity_type=entity_type, action=action, limit=limit)
    if csv:
        print(frame.to_csv(index=False), end="")
    else:
        shown = ["created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"]
        print_frame(frame[shown])


@audit_app.command("retain")
def audit_retain(
    days: Annotated[int | None, typer.Option(help="Keep this many days.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
) -> None:
    """Remove audit entries older than one year, in small batches."""
    with database(role="owner") as db:
        kept = db.audit.retain(days, dry_run=dry_run, progress=say)
    print_counts(
        "would remove" if dry_run else "removed",
        {"audit_logs": kept.expired if dry_run else kept.removed},
    )


@audit_app.command("coverage")
def audit_coverage(as_json: Json = False) -> None:
    """Say what the trail does not capture.

    Exit 1 when something is uncovered.
    """
    with database(role="report") as db:
        found = db.audit.coverage()
    if as_json:
        print_json(found.to_dict(orient="records"))
    else:
        shown = found[["status", "database", "sentence", "remedy"]]
        for status, database_name, sentence, remedy in shown.itertuples(index=False, name=None):
            stdout.print(f"{status:<10} {database_name:<9} {sentence}")
            if remedy:
                stdout.print(f"{'':<20} {remedy}")
    if (found["status"] == "uncovered").any():
        raise typer.Exit(FAILED)
