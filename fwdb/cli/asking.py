"""`fwdb audit …`: questions to the trail, and undoing what it tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fwdb.cli.program import Json, audit_app, database, print_csv, print_frame, stdout

if TYPE_CHECKING:
    import pandas as pd

    from fwdb.audit import Audit
    from fwdb.database import Database

EntityType = Annotated[str, typer.Argument(help="User, Avatar, CatalogItem or Design.")]
Id = Annotated[str, typer.Argument(help="A UUID, or the ObjectId of a design.")]
At = Annotated[str, typer.Argument(help="A span before now (24h, 7d) or an ISO time.")]
Since = Annotated[str | None, typer.Option(help="A span (24h, 7d) or an ISO time.")]
Until = Annotated[str, typer.Option(help="Where the window ends; a time as for --since.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Archives = Annotated[bool, typer.Option("--archives", help="Archived months too.")]


def trail(db: Database, *, archives: bool) -> Audit:
    """The trail of `db`, with the months that left it if they are wanted."""
    return db.audit.with_archives() if archives else db.audit


@audit_app.command("history")
def audit_history(
    entity_type: EntityType,
    id: Id,
    archives: Archives = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Print the rows of the trail of one entity.

    Oldest first, readings too.
    """
    with database(role="report") as db:
        frame = trail(db, archives=archives).history(entity_type, id)
    shown = ["created_at", "action", "user_id", "db_user", "changed_fields", "reason"]
    _print(frame, shown, csv=csv, as_json=as_json)


@audit_app.command("timeline")
def audit_timeline(
    entity_type: EntityType,
    id: Id,
    archives: Archives = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Print the life of one entity, field by field.

    Oldest first.
    """
    with database(role="report") as db:
        frame = trail(db, archives=archives).timeline(entity_type, id)
    shown = ["changed_at", "action", "field", "before", "after", "user_id", "reason"]
    _print(frame, shown, csv=csv, as_json=as_json)


@audit_app.command("diff")
def audit_diff(
    entity_type: EntityType,
    id: Id,
    since: Annotated[str, typer.Option(help="A span (24h, 7d) or an ISO time.")] = "24h",
    until: Until = "now",
    archives: Archives = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Print what is different of one entity between two times."""
    with database(role="report") as db:
        frame = trail(db, archives=archives).diff(entity_type, id, since, until)
    shown = ["field", "before", "after", "changes", "changed_at", "user_id"]
    _print(frame, shown, csv=csv, as_json=as_json)


@audit_app.command("as-of")
def audit_as_of(
    entity_type: EntityType,
    at: At,
    id: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    archives: Archives = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Print all entities of a type as they were.

    One row per entity; where known_since is empty or later, its values are the oldest known.
    """
    with database(role="report") as db:
        frame = trail(db, archives=archives).as_of(entity_type, at, id=id)
    _print(frame, list(frame.columns), csv=csv, as_json=as_json)


@audit_app.command("who-changed")
def audit_who_changed(
    field: Annotated[str, typer.Argument(help="The name of a field.")],
    entity_type: Annotated[
        str | None, typer.Option(help="User, Avatar, CatalogItem or Design.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="Of this entity only.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    archives: Archives = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Print who changed a field.

    Newest first, with the values before and after.
    """
    with database(role="report") as db:
        frame = trail(db, archives=archives).who_changed(
            field, entity_type=entity_type, id=id, since=since, limit=limit
        )
    shown = ["changed_at", "entity_type", "entity_id", "before", "after", "user_id", "db_user"]
    _print(frame, shown, csv=csv, as_json=as_json)


@audit_app.command("anomalies")
def audit_anomalies(
    since: Annotated[str, typer.Option(help="A span (24h, 7d) or an ISO time.")] = "7d",
    until: Until = "now",
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Print what is unusual in the trail."""
    with database(role="report") as db:
        frame = db.audit.anomalies(since, until)
    _print(frame, ["kind", "started_at", "events", "usual", "sentence"], csv=csv, as_json=as_json)


@audit_app.command("revert")
def audit_revert(
    entity_type: Annotated[str | None, typer.Argument(help="Of one entity: its type.")] = None,
    id: Annotated[str | None, typer.Argument(help="And its id.")] = None,
    to: Annotated[str | None, typer.Option(help="And the time to bring it back to.")] = None,
    event: Annotated[str | None, typer.Option(help="Or one row of the trail: its id.")] = None,
    transaction_id: Annotated[int | None, typer.Option(help="Or all of a transaction.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only the plan.")] = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Undo changes, or print what would be written.

    One entity since a time, one row of the trail, or a transaction. Exit 1 with the rows in the
    way when a later change would be lost or a constraint would break; nothing is changed then.
    """
    with database() as db:
        frame = db.audit.revert(
            entity_type, id, to=to, event=event, transaction_id=transaction_id, dry_run=not yes
        )
    _print(frame, list(frame.columns), csv=csv, as_json=as_json)
    if not csv and not as_json:
        done = "written" if yes else "a plan, nothing is written; --yes writes it"
        stdout.print("nothing to do" if frame.empty else done)


def _print(frame: pd.DataFrame, shown: list[str], *, csv: bool, as_json: bool) -> None:
    """All columns for programs, `shown` for people."""
    if csv:
        print_csv(frame)
    elif as_json:
        print(frame.to_json(orient="records", date_format="iso", indent=2))
    else:
        print_frame(frame[shown])
