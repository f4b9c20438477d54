"""`fwdb audit`: the trail, and what keeps it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fwdb.audit import Erasure, Sealed
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


@audit_app.command("seal")
def audit_seal(
    interval: Annotated[
        float | None, typer.Option(help="Seal every so many seconds, until Ctrl-C.", min=1)
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the seal file for an auditor.", dir_okay=False)
    ] = None,
    sign: Annotated[
        bool, typer.Option("--sign", help="Sign seals that another key, or none, made.")
    ] = False,
) -> None:
    """Seal what was recorded, so that changes to it show.

    Once, unless --interval is given. With FWDB_AUDIT_KEY the seals are signed.
    """
    with database(role="owner", application_name="fwdb-seal") as db:
        _print_sealed(db.audit.seal(sign=sign, progress=say))
        if export is not None:
            stdout.print(f"wrote {db.audit.seal_file(export)}")
        if interval is not None:
            say(f"sealing every {interval:g} s; Ctrl-C ends it")
            db.audit.run_sealer(interval=interval, sealed=_print_sealed)


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
def audit_verify(
    against: Annotated[
        Path | None, typer.Option(help="A seal file of earlier.", dir_okay=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the trail with its seals; exit 1 if anything is wrong.

    Names the first row that was altered, is missing or was inserted, and says what is not proven.
    """
    with database(role="report") as db:
        found = db.audit.verify(against, progress=say)
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
        counts = ("sealed", "checked", "archived", "erased", "forgotten", "unsealed")
        print_counts("rows", {name: getattr(found, f"{name}_rows") for name in counts})
    if not found.intact:
        raise typer.Exit(FAILED)


@audit_app.command("erase")
def audit_erase(
    reason: Annotated[str, typer.Option(help="Why; it is kept in the trail.")],
    user_id: Annotated[str | None, typer.Option(help="Erase who did it, of this user.")] = None,
    entity_type: Annotated[
        str | None, typer.Option(help="With --entity-id: erase what rows about it hold.")
    ] = None,
    entity_id: Annotated[str | None, typer.Option(help="Its id.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase; without it, only count.")] = False,
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
        stdout.print(f"not erased from the archive {path}")
    if not yes and done.rows:
        stdout.print("Add --yes to mean it; nothing brings it back.")
