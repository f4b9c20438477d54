"""`fwdb audit`: the trail, and what keeps it."""

from __future__ import annotations

import threading
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from fwdb.cli.program import (
    FAILED,
    Json,
    audit_app,
    database,
    ended_by_signals,
    print_counts,
    print_frame,
    print_json,
    print_rows,
    say,
    stdout,
)

if TYPE_CHECKING:  # half of the time that any command takes to start
    from fwdb.audit import Erasure, Sealed

Days = Annotated[int | None, Option(help="Keep this many days.", min=1)]
DryRun = Annotated[bool, Option("--dry-run", help="Only say what would go.")]
Once = Annotated[bool, Option("--once", help="Up to the present, then end.")]
Status = Annotated[bool, Option("--status", help="Only say how far it is.")]
Interval = Annotated[float | None, Option(help="Seal every so many seconds, until Ctrl-C.", min=1)]
Export = Annotated[Path | None, Option(help="Write the seal file for an auditor.", dir_okay=False)]
Sign = Annotated[bool, Option("--sign", help="Sign seals that another key, or none, made.")]
Against = Annotated[Path | None, Option(help="A seal file of earlier.", dir_okay=False)]
Since = Annotated[
    str | None, Option(help="Read rows from that month on: a span (24h, 7d) or a time.")
]
Reason = Annotated[str, Option(help="Why; it is kept in the trail.")]
UserId = Annotated[str | None, Option(help="Erase who did it, of this user.")]
EntityType = Annotated[str | None, Option(help="With --entity-id: erase what rows about it hold.")]
EntityId = Annotated[str | None, Option(help="Its id.")]
Yes = Annotated[bool, Option("--yes", help="Erase; without it, only count.")]
Month = Annotated[str, Argument(help="Year and month, such as 2025-10.")]
HoldReason = Annotated[str | None, Option(help="Why; kept with the hold.")]
Released = Annotated[bool, Option("--released", help="Those that ended, too.")]


@audit_app.command("retain")
def audit_retain(days: Days = None, dry_run: DryRun = False) -> None:
    """Archive and drop months older than one year.

    Makes the months ahead first. An existing table in one piece loses the rows of these months.
    """
    with database(role="owner") as db:
        kept = db.audit.retain(days, dry_run=dry_run, progress=say)
    for month in kept.months:
        fate = month.left or (f"in {month.archive}" if month.archive else "would be archived")
        stdout.print(f"{month.month}  {month.rows:>12,} rows  {fate}")
    left = sum(month.rows for month in kept.months if month.left)
    print_counts(
        "would remove" if dry_run else "removed",
        {"audit_logs": kept.expired - left if dry_run else kept.removed},
    )


@audit_app.command("follow")
def audit_follow(once: Once = False, status: Status = False) -> None:
    """Record the changes of documents in MongoDB.

    Every change becomes a row of the trail, exactly once, also after a crash. Runs until Ctrl-C,
    or once; one at a time.
    """
    from fwdb.models import COLLECTIONS

    if status:
        with database(role="report") as db:
            for collection in COLLECTIONS:
                found = db.audit.follower(collection)
                if len(COLLECTIONS) > 1:
                    stdout.print(f"{'collection':<14} {collection}")
                for name in (field.name for field in fields(found)):
                    stdout.print(f"{name:<14} {getattr(found, name)}")
        return
    stop = threading.Event()
    with database(role="owner", application_name="fwdb-follower") as db, ended_by_signals(stop):
        if not once:
            say(f"following {', '.join(COLLECTIONS)} of {db.mongodb.address}; Ctrl-C ends it")
        followed = db.audit.follow(once=once, stop=stop, progress=say)
    print_counts("followed", followed)


@audit_app.command("seal")
def audit_seal(interval: Interval = None, export: Export = None, sign: Sign = False) -> None:
    """Seal what was recorded, so that changes to it show.

    Once, unless --interval is given. With FWDB_AUDIT_KEY the seals are signed.
    """
    stop = threading.Event()
    with database(role="owner", application_name="fwdb-seal") as db:
        _print_sealed(db.audit.seal(sign=sign, progress=say))
        if export is not None:
            stdout.print(f"wrote {db.audit.seal_file(export)}")
        if interval is not None:
            say(f"sealing every {interval:g} s; Ctrl-C ends it")
            with ended_by_signals(stop):
                db.audit.run_sealer(interval=interval, stop=stop, sealed=_print_sealed)


def _print_sealed(found: Sealed) -> None:
    if found.head is None:
        stdout.print("There is nothing to seal.")
        return
    signed = f"signed with key {found.key_id}" if found.key_id else "not signed"
    stdout.print(
        f"sealed {found.rows:,} rows, {found.total_rows:,} in all; {found.unsealed_rows:,} wait; "
        f"head {found.head[:16]}, {signed}"
    )


@audit_app.command("verify")
def audit_verify(against: Against = None, since: Since = None, as_json: Json = False) -> None:
    """Compare the trail with its seals; exit 1 if anything is wrong.

    Names the first row that was altered, is missing or was inserted, and says what is not proven.
    """
    with database(role="report") as db:
        found = db.audit.verify(against, since=since, progress=say)
    if as_json:
        print_json({**asdict(found), "summary": found.summary})
    else:
        stdout.print(found.summary)
        for finding in found.findings:
            more = f" ({finding.count:,} rows like it in this seal)" if finding.count > 1 else ""
            stdout.print(f"  {finding.kind:<10}{finding.sentence}{more}")
        for run in found.erasures:
            stdout.print(f"  erased    {run['rows']:,} rows, {run['erased_at']:%Y-%m-%d %H:%M} UTC")
        for sentence in found.not_proven:
            stdout.print(f"  not proven: {sentence}")
        counts = ("sealed", "checked", "unread", "archived", "erased", "forgotten", "unsealed")
        print_counts("rows", {name: getattr(found, f"{name}_rows") for name in counts})
    if not found.intact:
        raise typer.Exit(FAILED)


@audit_app.command("erase")
def audit_erase(
    reason: Reason,
    user_id: UserId = None,
    entity_type: EntityType = None,
    entity_id: EntityId = None,
    yes: Yes = False,
) -> None:
    """Take personal data out of the trail for good; the seals still hold.

    Counts, unless --yes is given.
    """
    with database(role="owner") as db:
        done: Erasure = db.audit.erase(
            user_id=user_id, entity_type=entity_type, id=entity_id, reason=reason,
            dry_run=not yes, progress=say,
        )  # fmt: skip
    print_counts("erased" if yes else "would erase", {f"rows: their {done.part}": done.rows})
    for path in done.archives:
        stdout.print(f"  archive {'written anew in place of' if yes else 'to write anew:'} {path}")
    if not yes and done.rows:
        stdout.print("Add --yes to mean it; nothing brings it back.")


@audit_app.command("partitions")
def audit_partitions(as_json: Json = False) -> None:
    """List the months of the trail.

    In the table, on their way out, or in a file; exit 1 when the present month is missing.
    """
    with database(role="report") as db:
        months, ahead = db.audit.partitions(), db.audit.partitions_ahead()
    print_rows(months, ["month", "state", "rows", "bytes", "held", "path"], as_json=as_json)
    if not as_json:
        stdout.print(ahead.reason or f"{ahead.value} months ahead, until {ahead.until:%Y-%m-%d}")
    if ahead.value == 0 and ahead.reason:
        raise typer.Exit(FAILED)


@audit_app.command("hold")
def audit_hold(month: Month, reason: HoldReason = None) -> None:
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
def audit_holds(released: Released = False) -> None:
    """List the months that are held."""
    with database(role="report") as db:
        print_frame(db.audit.holds(released=released))


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
