"""Questions to the databases and to the audit trail."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from fwdb.cli.program import (
    FAILED,
    Json,
    Parameters,
    app,
    audit_app,
    database,
    pairs,
    print_json,
    print_rows,
    stdout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TYPES = "{types}."  # filled by `_Question`
EntityType = Annotated[str, Argument(help=TYPES)]
OfType = Annotated[str | None, Option(help=TYPES)]
Id = Annotated[str, Argument(help="A UUID, or the ObjectId of a document.")]
OnlyId = Annotated[str | None, Option(help="Only this one.")]
FieldName = Annotated[str, Argument(help="The name of a field.")]
Action = Annotated[str | None, Option(help="CREATE, UPDATE, DELETE or READ.")]
At = Annotated[str, Argument(help="A span before now (24h, 7d) or an ISO time.")]
Since = Annotated[str | None, Option(help="A span (24h, 7d) or an ISO time.")]
Until = Annotated[str, Option(help="Where the window ends; a time as for --since.")]
Limit = Annotated[int, Option(min=1)]
Archives = Annotated[bool, Option("--archives", help="Archived months too.")]
Csv = Annotated[bool, Option("--csv", help="Print CSV.")]
Name = Annotated[str, Argument(help="A query; 'fwdb sql' lists them.")]
SqlName = Annotated[str | None, Argument(help="A query; without it, their list.")]
ChangedId = Annotated[str | None, Option(help="Of this entity only.")]
RevertEntityType = Annotated[str | None, Argument(help="Of one entity: its type.")]
RevertId = Annotated[str | None, Argument(help="And its id.")]
To = Annotated[str | None, Option(help="And the time to bring it back to.")]
Event = Annotated[str | None, Option(help="Or one row of the trail: its id.")]
TransactionId = Annotated[int | None, Option(help="Or all of a transaction.")]
Yes = Annotated[bool, Option("--yes", help="Do it; else only the plan.")]


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
    name: Name,
    parameter: Parameters = None,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Run one query file and print its rows.

    Values in the texts of statements are shown as ?.
    """
    from fwdb.monitoring.redaction import redacted_frame

    with database(role="report") as db:
        frame = redacted_frame(db.postgres.frame(name, **pairs(parameter)))
    print_rows(frame, csv=csv, as_json=as_json)


@app.command()
def sql(name: SqlName = None) -> None:
    """Print a query, ready for psql.

    Without a name it lists what there is.
    """
    from fwdb import queries

    if name is None:
        for known in queries.names():
            stdout.print(f"{known:<24} {queries.load(known).about}")
        return
    print(queries.load(name).text, end="")


class _Question(TyperCommand):
    """A command whose help names the entity types, loaded only when somebody reads it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from fwdb.models import ENTITIES

        *names, last = ENTITIES
        types = f"{', '.join(names)} or {last}"
        for parameter in self.params:
            if text := getattr(parameter, "help", None):
                vars(parameter)["help"] = text.replace("{types}", types)
        super().format_help(ctx, formatter)


def question(
    shown: str = "", method: str = "", *, flags: Iterable[str] = ("archives", "csv", "as_json")
) -> Callable[[Callable[..., None]], None]:
    """Make a function a command that prints what the method of `Audit` of its name answers.

    The function has the parameters and the help. `shown` are the columns for people, all of them
    if none is named; programs get all. `flags` are the common options that the command has.
    """

    def register(asked: Callable[..., None]) -> None:
        def command(
            *, archives: bool = False, csv: bool = False, as_json: bool = False, **given: Any
        ) -> None:
            with database(role="report") as db:
                audit = db.audit.with_archives() if archives else db.audit
                frame = getattr(audit, method or asked.__name__)(**given)
            print_rows(frame, shown.split(), csv=csv, as_json=as_json)

        common = inspect.signature(_common, eval_str=True).parameters
        signature = inspect.signature(asked, eval_str=True)
        parameters = [*signature.parameters.values(), *(common[flag] for flag in flags)]
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters
        )
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        name = asked.__name__.replace("_", "-")
        audit_app.command(name, cls=_Question, help=asked.__doc__)(command)

    return register


def _common(archives: Archives = False, csv: Csv = False, as_json: Json = False) -> None: ...


@question("created_at action user_id db_user changed_fields reason")
def history(entity_type: EntityType, id: Id) -> None:
    """Print the rows of the trail of one entity.

    Oldest first, readings too.
    """


@question("changed_at action field before after user_id reason")
def timeline(entity_type: EntityType, id: Id) -> None:
    """Print the life of one entity, field by field.

    Oldest first.
    """


@question("field before after changes changed_at user_id")
def diff(entity_type: EntityType, id: Id, since: Since = "24h", until: Until = "now") -> None:
    """Print what is different of one entity between two times."""


@question()
def as_of(entity_type: EntityType, at: At, id: OnlyId = None) -> None:
    """Print all entities of a type as they were.

    One row per entity; where known_since is empty or later, its values are the oldest known.
    """


@question("changed_at entity_type entity_id before after user_id db_user")
def who_changed(
    field: FieldName,
    entity_type: OfType = None,
    id: ChangedId = None,
    since: Since = None,
    limit: Limit = 50,
) -> None:
    """Print who changed a field.

    Newest first, with the values before and after.
    """


@question("kind started_at events usual sentence", flags=("csv", "as_json"))
def anomalies(since: Since = "7d", until: Until = "now") -> None:
    """Print what is unusual in the trail."""


@audit_app.command("revert")
def audit_revert(
    entity_type: RevertEntityType = None,
    id: RevertId = None,
    to: To = None,
    event: Event = None,
    transaction_id: TransactionId = None,
    yes: Yes = False,
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
    print_rows(frame, csv=csv, as_json=as_json)
    if not csv and not as_json:
        done = "written" if yes else "a plan, nothing is written; --yes writes it"
        stdout.print("nothing to do" if frame.empty else done)


@question(
    "created_at action entity_type entity_id user_id changed_fields",
    "search",
    flags=("archives", "csv"),
)
def trail(
    since: Since = "24h", entity_type: OfType = None, action: Action = None, limit: Limit = 50
) -> None:
    """Print the newest audit entries."""
