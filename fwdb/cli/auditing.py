"""`fwdb audit`: the trail, and what keeps it."""

from __future__ import annotations

import time
import threading
from dataclasses import fields
from typing import Annotated

import typer

from fwdb import errors
from fwdb.cli.program import audit_app, database, print_counts, print_frame, say
from fwdb.cli.program import (
    audit_app,
    database,
    ended_by_signals,
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


@audit_app.command("drain")
def audit_drain(
    once: Annotated[bool, typer.Option("--once", help="Drain what is there and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two rounds.", min=0.1)] = 5,
) -> None:
    """Move changes from the journals into the trail, until Ctrl-C.

    For tables captured in journal mode; each change is moved once, also when this is killed.
    """
    with database(role="owner") as db:
        while not once:
            try:
                db.audit.drain(progress=say)
            except (errors.StoreUnavailable, errors.Transient) as error:
                say(f"waiting: {error}")
            time.sleep(interval)
        drained = db.audit.drain(progress=say)
    print_counts("drained", {"changes": drained.moved, "left": drained.left})
@audit_app.command("follow")
def audit_follow(
    once: Annotated[bool, typer.Option("--once", help="Up to the present, then end.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only say how far it is.")] = False,
) -> None:
    """Record the changes of designs in MongoDB.

    Every change becomes a row of the trail, exactly once, also after a crash. Runs until Ctrl-C,
    or once; one at a time.
    """
    if status:
        with database(role="report") as db:
            found = db.audit.follower()
            for name in (field.name for field in fields(found)):
                stdout.print(f"{name:<14} {getattr(found, name)}")
        return
    stop = threading.Event()
    with database(role="owner", application_name="fwdb-follower") as db, ended_by_signals(stop):
        if not once:
            say(f"following designs of {db.mongodb.address}; Ctrl-C ends it")
        followed = db.audit.follow(once=once, stop=stop, progress=say)
    print_counts("followed", followed)
