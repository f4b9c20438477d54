"""What is captured of the things whose changes belong into the trail, one finding for each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "KINDS",
    "MONTHS_CRITICAL",
    "MONTHS_MADE",
    "NO_TRAIL",
    "STATUSES",
    "Finding",
    "Kind",
    "Status",
    "ahead",
    "collection",
    "follower",
    "functions",
    "gaps",
    "months",
    "rights",
    "tables",
    "trail",
]

Kind = Literal[
    "table",
    "column",
    "partition",
    "trigger",
    "right",
    "partition_ahead",
    "collection",
    "follower",
    "gap",
]
Status = Literal["uncovered", "gap", "behind", "exposed", "not_known", "redacted", "covered"]

# What can be uncovered in each store.
KINDS: dict[str, tuple[Kind, ...]] = {
    "postgres": ("table", "column", "partition", "trigger", "right", "partition_ahead"),
    "mongodb": ("collection", "follower"),
}
# What needs somebody first.
STATUSES: tuple[Status, ...] = (
    *("uncovered", "gap", "behind", "exposed", "not_known", "redacted", "covered"),
)

# `fwdb migrate` and `fwdb audit retain` make three; without the next one the first write of
# next month fails.
MONTHS_MADE, MONTHS_CRITICAL = 3, 1

# A follower that lives writes every 2 s and needs seconds for a burst. What is a minute late is a
# remark; after five nobody should rely on the trail.
BEHIND_SECONDS, LATE_SECONDS = 60.0, 300.0

ROWS, TRUNCATE = "00_fwdb_audit", "00_fwdb_audit_truncate"
_REDACTED = {
    "omit": "is left out of the trail",
    "mask": "is masked in the trail",
    "fingerprint": "is in the trail as a keyed fingerprint",
}
_AGAIN = "Run `fwdb migrate`, which makes the triggers anew."
_REWRITE = "As the owner of the trail: `SELECT audit.capture('{name}')`."
_STATES = {
    "D": "is switched off",
    "O": "does not fire in a session with session_replication_role = replica",
    "R": "fires in sessions with session_replication_role = replica only",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is captured or not. `remedy` is empty where there is nothing to do."""

    database: str
    object: str
    kind: Kind
    status: Status
    sentence: str
    remedy: str = ""


def _postgres(object: str, kind: Kind, status: Status, sentence: str, remedy: str = "") -> Finding:
    return Finding("postgres", object, kind, status, sentence, remedy)


NO_TRAIL = _postgres(
    "audit.audit_logs",
    "table",
    "uncovered",
    "There is no audit trail in this database.",
    "Run `fwdb migrate`.",
)


def tables(
    columns: Iterable[Mapping[str, Any]],
    captured: Mapping[str, Mapping[str, Any]],
    triggers: Iterable[Mapping[str, Any]],
) -> Iterator[Finding]:
    """Tables, their parts, columns and triggers; the rows are those of the query files."""
    there: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in columns:
        there[row["table_name"]].append(row)
    fired: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in triggers:
        fired[row["table_name"]][row["trigger_name"]] = row
    for name, rows in there.items():
        whole = rows[0]["part_of"]
        how = captured.get(whole or name)
        if how is not None:
            found = _table(name, rows, how, fired[name])
            yield from found if whole is None else _part(name, whole, fired[name], how)
        elif whole is None:
            yield _postgres(
                name,
                "table",
                "uncovered",
                f"Changes of {name} are not captured.",
                "`fwdb migrate` captures the tables of Fashion Wallet; for another one put "
                f"`op.audit_table('{name}')` into a revision.",
            )


def _table(
    name: str,
    rows: list[Mapping[str, Any]],
    how: Mapping[str, Any],
    fired: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    off = list(_triggers(name, fired, how, (ROWS, TRUNCATE)))
    redact, ignored = json.loads(how["redact"]), json.loads(how["ignored"])
    known = {*json.loads(how["columns"]), *redact, *ignored}
    there = [r["column_name"] for r in rows if r["column_name"] and not r["computed"]]
    missing = [column for column in there if column not in known]
    if not off:
        yield _postgres(
            name,
            "table",
            "covered",
            f"Changes of {name} are captured as {how['entity_type']}, "
            f"{len(there) - len(missing)} of {len(there)} columns.",
        )
    yield from off
    for column in missing:
        said = (
            f"The column {column} of {name} is newer than its trigger: changes are recorded, in "
            "clear, though nobody has said whether they may be."
        )
        yield _postgres(f"{name}.{column}", "column", "behind", said, _AGAIN)
    for column, way in redact.items():
        said = f"The value of {name}.{column} {_REDACTED.get(way, f'is {way}')}, on purpose."
        yield _postgres(f"{name}.{column}", "column", "redacted", said)
    for column in ignored:
        said = f"A change of {name}.{column} alone makes no row, on purpose."
        yield _postgres(f"{name}.{column}", "column", "redacted", said)


def _part(
    name: str, whole: str, fired: Mapping[str, Mapping[str, Any]], how: Mapping[str, Any]
) -> Iterator[Finding]:
    """A partition, or a table that inherits: rows may be written to it directly."""
    off = list(_triggers(name, fired, how, (ROWS, TRUNCATE)))
    if off:
        first = off[0].sentence[:1].lower() + off[0].sentence[1:]
        said = f"Changes written to {name} directly are not captured, though {whole} is: {first}"
        yield _postgres(name, "partition", "uncovered", said, off[0].remedy)
    else:
        said = f"Changes written to {name} directly are captured as well."
        yield _postgres(name, "partition", "covered", said)


def _triggers(
    name: str,
    fired: Mapping[str, Mapping[str, Any]],
    how: Mapping[str, Any],
    wanted: tuple[str, ...],
) -> Iterator[Finding]:
    """What is wrong with the triggers of a table; nothing when nothing is."""
    for trigger in wanted:
        thing, row = f"{name} {trigger}", fired.get(trigger)
        if row is None:
            what = "TRUNCATE" if trigger == TRUNCATE else "Changes of rows"
            said = f"The trigger {trigger} of {name} is missing. {what} would leave no trace."
            yield _postgres(thing, "trigger", "uncovered", said, _AGAIN)
        elif row["state"] != "A":
            said = f"The trigger {trigger} of {name} {_STATES[row['state']]}."
            on = f'`ALTER TABLE {name} ENABLE ALWAYS TRIGGER "{trigger}"`.'
            yield _postgres(thing, "trigger", "uncovered", said, on)
        elif not row["as_owner"]:
            said = (
                f"The trigger {trigger} of {name} runs {row['function']} without the rights of "
                "its owner or with any search_path: it can fail, or be led astray."
            )
            yield _postgres(thing, "trigger", "uncovered", said, _REWRITE.format(name=name))
        elif not _generated(row, how):
            what = f"{row['function']}, which is not as it was generated"
            said = f"The trigger {trigger} of {name} runs {what}."
            yield _postgres(thing, "trigger", "uncovered", said, _REWRITE.format(name=name))


def _generated(row: Mapping[str, Any], how: Mapping[str, Any]) -> bool:
    """Whether the trigger runs the function that is generated for the table as it was captured."""
    return bool(row["function"] == how["function"] and row["body_md5"] == how["body_md5"])


def rights(rows: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Who else than the owner may write to the trail."""
    for row in rows:
        name, role, granted = row["table_name"], row["role"], row["rights"]
        who = "Everybody" if role == "PUBLIC" else f"The role {role}"
        said = f"{who} may {granted} on {name}: rows can be forged, changed or removed."
        to = role if role == "PUBLIC" else f'"{role}"'
        revoke = f"`REVOKE {granted} ON {name} FROM {to}`"
        if row["made"]:
            yield _postgres(f"{name} {role}", "right", "uncovered", said, f"{revoke}.")
        else:
            said = f"{said[:-1]}. The table was there before fwdb, whose programs may need it."
            after = f"When no program writes to it any more: {revoke}."
            yield _postgres(f"{name} {role}", "right", "exposed", said, after)


def functions(rows: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Functions of ours that others may lead astray, or call when they should not."""
    for row in rows:
        name, role = row["function_name"], row["role"]
        if role is None:
            said = f"{name} looks up names where its caller says: it can run what a caller made."
            remedy = f"`ALTER FUNCTION {name} SET search_path = pg_catalog, pg_temp`."
        else:
            who = "Everybody" if role == "PUBLIC" else f"The role {role}"
            said = f"{who} may call {name}, which is not for everybody."
            to = role if role == "PUBLIC" else f'"{role}"'
            remedy = f"`REVOKE ALL ON FUNCTION {name} FROM {to}`."
        yield _postgres(name, "right", "uncovered", said, remedy)


_BETWEEN = {
    "trigger": "The trigger {name} of {table} runs before or after its rows are written, and may "
    "change or drop them.",
    "rule": "The rule {name} of {table} stands in for what is written to it, and may drop it.",
    "security": "Row security is on for {table}{hides}.",
    "kind": "{table} is no table: what is read from it is what somebody chose to show.",
}
_REMOVES: dict[str, tuple[Kind, str]] = {
    "trigger": ("trigger", '`DROP TRIGGER "{name}" ON {table}`.'),
    "rule": ("trigger", '`DROP RULE "{name}" ON {table}`.'),
    "security": ("right", "`ALTER TABLE {table} DISABLE ROW LEVEL SECURITY`."),
    "kind": ("table", "Find out who put it there, and where the table is now."),
}


def trail(rows: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """What stands between the trail and those who write or read it.

    On a table that was there before fwdb it may belong there, as long as it hides nothing.
    """
    for row in rows:
        what, table, name = row["what"], row["table_name"], row["name"]
        hides = ", and hides rows from the role that asks" if row["hides"] else ""
        said = _BETWEEN[what].format(table=table, name=name, hides=hides)
        kind, remedy = _REMOVES[what]
        remedy = remedy.format(table=table, name=name)
        ours = row["made"] or row["hides"] or what == "kind"
        thing = f"{table} {name or what}"
        yield _postgres(thing, kind, "uncovered" if ours else "exposed", said, remedy)


def ahead(rows: list[dict[str, Any]]) -> int | None:
    """Whole months after this one that are ready; -1 when this one is not; None for one table."""
    if not rows:
        return None
    ready = 0
    for row in rows:
        if not row["is_there"]:
            break
        ready += 1
    return ready - 1


def months(rows: list[dict[str, Any]], ready: int | None) -> Iterator[Finding]:
    """Whether the trail has a place for what comes."""
    if ready is None:
        return
    make = "`fwdb audit retain`, and have it run daily."
    for number, row in enumerate(rows):
        month = f"{row['month_at']:%Y-%m}"
        if row["is_there"]:
            continue
        status: Status = "uncovered" if number <= MONTHS_CRITICAL else "behind"
        said = f"There is no partition for {month}: a change made then could not be recorded."
        yield _postgres(row["table_name"], "partition_ahead", status, said, make)
    if ready >= MONTHS_MADE:
        said = f"There are partitions up to {rows[-1]['month_at']:%Y-%m}."
        yield _postgres("audit.audit_logs", "partition_ahead", "covered", said)


def collection(name: str, listed: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether MongoDB keeps each document as it was before a change, of what it says of `name`."""
    make = "Run `fwdb migrate`."
    if not listed:
        said = f"There is no collection {name}."
        return Finding("mongodb", name, "collection", "uncovered", said, make)
    options = listed[0].get("options", {}).get("changeStreamPreAndPostImages", {})
    if not options.get("enabled"):
        said = f"{name} keeps no pre-images: what a change replaced cannot be recorded."
        return Finding("mongodb", name, "collection", "uncovered", said, make)
    said = f"{name} keeps what each change replaces."
    return Finding("mongodb", name, "collection", "covered", said)


def follower(name: str, found: Mapping[str, Any] | None) -> Finding:
    """Whether the changes of a collection are read, and how far."""
    start = "Run `fwdb audit follow`, and keep it running."
    if found is None:
        said = f"Changes of {name} are not followed, and leave no trace by themselves."
        return Finding("mongodb", name, "follower", "uncovered", said, start)
    late = found["behind_seconds"]
    if not found["running"]:
        when = "" if found["saved_at"] is None else f" since {found['saved_at']:%Y-%m-%d %H:%M} UTC"
        said = f"The follower of {name} does not run{when}; MongoDB remembers changes for a time."
        return Finding("mongodb", name, "follower", "uncovered", said, start)
    if late is None:
        said = f"The follower of {name} takes its first look at the documents."
        return Finding("mongodb", name, "follower", "behind", said)
    status: Status = (
        "uncovered" if late > LATE_SECONDS else "behind" if late > BEHIND_SECONDS else "covered"
    )
    if status == "covered":
        return Finding("mongodb", name, "follower", status, f"Changes of {name} are followed.")
    said = f"The follower of {name} is {late:.0f} s behind; changes since are not in the trail yet."
    more = "Look whether PostgreSQL writes slowly (`fwdb health`), or wait for the end of a load."
    return Finding("mongodb", name, "follower", status, said, more)


def gaps(rows: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Times of which changes are not known one by one. Nothing brings them back."""
    for row in rows:
        start = "" if row["since"] is None else f"from {row['since']:%Y-%m-%d %H:%M:%S} "
        when = f"{start}to {row['until']:%Y-%m-%d %H:%M:%S} UTC"
        reason = row["reason"].rstrip(".")
        said = f"Not each change of {row['follower']} {when} could be seen: {reason}."
        if row["differences"] is not None:
            said += f" A comparison afterwards added {row['differences']:,} rows."
        yield Finding("mongodb", row["follower"], "gap", "gap", said)
