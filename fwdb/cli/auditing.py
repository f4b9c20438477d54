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
    archives: Annotated[bool, typer.Option("--archives", help="Archived months too.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print the newest audit entries."""
    with database(role="report") as db:
        trail = db.audit.with_archives() if archives else db.audit
        frame = trail.search(since=since, entity_type=entity_type, action=action, limit=limit)
    if csv:
        print(frame.to_csv(index=False), end="")
    else:
        shown = ["created_at", "action", "entity_type", "entity_id", "user_id", "changed_fields"]
        print_frame(frame[shown])


@audit_app.command("retain")
def audit_retain(
    days: Annotated[int | None, typer.Option(help="Keep this many days.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Archive and drop months older than one year.

    Makes the months ahead first. An existing table in one piece loses its old rows in small
    batches, without a file.
    """
    with database(role="owner") as db:
        kept = db.audit.retain(days, dry_run=dry_run, progress=say)
    for month in kept.months:
        fate = month.left or (f"in {month.archive}" if month.archive else "would be archived")
        stdout.print(f"{month.month}  {month.rows:>12,} rows  {fate}")
    if kept.held and not kept.months:
        stdout.print(f"left, because they are held: {', '.join(kept.held)}")
    left = sum(month.rows for month in kept.months if month.left)
    print_counts(
        "would remove" if dry_run else "removed",
        {"audit_logs": kept.expired - left if dry_run else kept.removed},
    )


Month = Annotated[str, typer.Argument(help="Year and month, such as 2025-10.")]


@audit_app.command("partitions")
def audit_partitions(as_json: Json = False) -> None:
    """List the months of the trail.

    In the table, on their way out, or in a file; exit 1 when the present month is missing.
    """
    with database(role="report") as db:
        months, ahead = db.audit.partitions(), db.audit.partitions_ahead()
    shown = months[["month", "state", "rows", "bytes", "held", "path"]]
    if as_json:
        print(months.to_json(orient="records", date_format="iso", indent=2))
    else:
        print_frame(shown)
        stdout.print(ahead.reason or f"{ahead.value} months ahead, until {ahead.until:%Y-%m-%d}")
    if ahead.value == 0 and ahead.reason:
        raise typer.Exit(FAILED)


@audit_app.command("hold")
def audit_hold(
    month: Month,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the hold.")] = None,
) -> None:
    """Keep a month in the trail until it is released."""
    with database(role="owner") as db:
        db.audit.hold(month, reason=reason)
    stdout.print(f"{month} is held")


@audit_app.command("release")
def audit_release(month: Month) -> None:
    """End the hold of a month."""
    with database(role="owner") as db:
        db.audit.release(month)
    stdout.print(f"{month} is released")


@audit_app.command("holds")
def audit_holds(
    released: Annotated[bool, typer.Option("--released", help="Those that ended, too.")] = False,
) -> None:
    """List the months that are held."""
    with database(role="report") as db:
        print_frame(db.audit.holds(released=released))
