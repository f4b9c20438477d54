"""What the audit trail captures and what not: found in the catalogs, each with its remedy."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa

from fwdb.audit.context import Context
from fwdb.audit.relation import exists
from fwdb.errors import FwdbError
from fwdb.models import COLLECTIONS

__all__ = ["KINDS", "Coverage", "Standing", "as_frame", "coverage", "images", "standing"]

Kind = Literal[
    "table", "column", "partition", "trigger", "right", "partition_ahead", "collection", "follower",
    "gap",
]  # fmt: skip
Status = Literal["uncovered", "gap", "behind", "exposed", "not_known", "redacted", "covered"]
Row = Mapping[str, Any]

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

# Of each finding: its kind, status, sentence and remedy.
_FINDINGS = tomllib.loads(Path(__file__).with_name("coverage.toml").read_text("utf-8"))
_REDACTED = {
    "omit": "is left out of the trail",
    "mask": "is masked in the trail",
    "fingerprint": "is in the trail as a keyed fingerprint",
}
_STATES = {
    "D": "is switched off",
    "O": "does not fire in a session with session_replication_role = replica",
    "R": "fires in sessions with session_replication_role = replica only",
}
_GAPS = sa.text("""
SELECT follower AS name, since, until, reason, differences
FROM audit.gaps
WHERE follower = ANY (:names)
ORDER BY until DESC /* fwdb */
""")


@dataclass(frozen=True, slots=True)
class Coverage:
    """One thing that is captured or not. `remedy` is empty where there is nothing to do."""

    database: str
    object: str
    kind: Kind
    status: Status
    sentence: str
    remedy: str = ""


def _finding(what: str, object: str, /, *, status: Status | None = None, **facts: Any) -> Coverage:
    found = _FINDINGS[what]
    kind: Kind = found["kind"]
    database = "mongodb" if kind in (*KINDS["mongodb"], "gap") else "postgres"
    sentence, remedy = (found.get(name, "").format(**facts) for name in ("sentence", "remedy"))
    return Coverage(database, object, kind, status or found["status"], sentence, remedy)


@dataclass(frozen=True, slots=True)
class Standing:
    """The findings about one store, with the figures behind them; None where there is none.

    `is_on` says whether capture was ever switched on. `months_ahead` are whole months after this
    one that are ready, -1 when this one is not. `behind_seconds` is how late changes of MongoDB
    get into the trail, `gaps` are the times (from, to) of which not all could, newest first.
    """

    findings: tuple[Coverage, ...]
    is_on: bool = True
    months_ahead: int | None = None
    behind_seconds: float | None = None
    gaps: tuple[tuple[datetime | None, datetime], ...] | None = None

    def uncovered(self, kind: Kind) -> int:
        """How many things of this kind are uncovered."""
        return sum(f.status == "uncovered" and f.kind == kind for f in self.findings)

    def with_also(self, findings: Iterable[Coverage]) -> Standing:
        """The same with more findings."""
        return replace(self, findings=(*self.findings, *findings))


def as_frame(found: Iterable[Coverage]) -> pd.DataFrame:
    """Findings as a table, what needs somebody first."""
    order = sorted(found, key=lambda f: (STATUSES.index(f.status), f.database != "postgres"))
    names = [field.name for field in fields(Coverage)]
    return pd.DataFrame([astuple(f) for f in order], columns=names, dtype="str")


# -- what is asked ----------------------------------------------------------------------------


def coverage(self: Context) -> pd.DataFrame:
    """Everything whose changes belong into the trail, what is not captured first.

    `database`, `object`, `kind`, `status`, `sentence`, `remedy`. `kind` is table, column,
    partition, trigger, right, partition_ahead, collection, follower or gap;
    `status` is ``uncovered`` (changes are lost, or soon will be), ``gap`` (changes of some
    time in the past are not known), ``behind`` (captured, but late or by an older trigger),
    ``exposed`` (somebody else than the owner may write to the trail), ``not_known``,
    ``redacted`` (left out on purpose) or ``covered``. fwdb's own tables and those of
    migrations are not listed. Without MongoDB its rows say so. Raises `StoreUnavailable`
    without PostgreSQL.
    """
    found = list(standing(self).findings)
    if self.mongodb is not None:
        found += following_standing(self).findings
        try:
            found += images(self)
        except FwdbError as error:
            found += [_finding("images-not-known", name, why=error) for name in COLLECTIONS]
    return as_frame(found)


def standing(self: Context) -> Standing:
    """Of PostgreSQL: its tables and the trail itself."""
    store = self.postgres
    months = store.rows("audit_coverage_months", months=MONTHS_MADE)
    ahead = _ahead(months)
    rows = store.rows("audit_coverage_captured") if exists(store, "audit.captured") else []
    there = exists(store, "audit.audit_logs")
    return Standing(
        (
            *tables(
                store.rows("audit_coverage_columns"),
                {row["table_name"]: row for row in rows},
                store.rows("audit_coverage_triggers"),
            ),
            *([] if there else [_finding("no-trail", "audit.audit_logs")]),
            *rights(store.rows("audit_coverage_rights")),
            *_functions(store.rows("audit_coverage_functions")),
            *trail(store.rows("audit_coverage_trail")),
            *_months(months, ahead),
        ),
        is_on=bool(rows),
        months_ahead=ahead,
    )


def following_standing(self: Context) -> Standing:
    """Of MongoDB, as PostgreSQL knows it: whether its changes are read, and how far."""
    if not exists(self.postgres, "audit.runs"):
        return Standing(tuple(follower(name, None) for name in COLLECTIONS), is_on=False)
    rows = {row["name"]: row for row in self.postgres.rows("audit_followers")}
    lost = self.postgres.rows(_GAPS, names=list(COLLECTIONS))
    late = [rows[name]["behind_seconds"] for name in COLLECTIONS if name in rows]
    return Standing(
        (*(follower(name, rows.get(name)) for name in COLLECTIONS), *gaps(lost)),
        is_on=bool(late),
        behind_seconds=max((each for each in late if each is not None), default=None),
        gaps=tuple((gap["since"], gap["until"]) for gap in lost) if late else None,
    )


def images(self: Context) -> list[Coverage]:
    """Whether MongoDB keeps what a follower needs to know of a change, of each collection."""
    assert self.mongodb is not None
    with self.mongodb.errors():
        there = {one["name"]: one for one in self.mongodb.database.list_collections()}
    return [collection(name, there.get(name)) for name in COLLECTIONS]


# -- tables -----------------------------------------------------------------------------------


def tables(
    columns: Iterable[Row], captured: Mapping[str, Row], triggers: Iterable[Row]
) -> Iterator[Coverage]:
    """Tables, their parts, columns and triggers; the rows are those of the query files."""
    there: dict[str, list[Row]] = defaultdict(list)
    for row in columns:
        there[row["table_name"]].append(row)
    fired: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in triggers:
        fired[row["table_name"]][row["trigger_name"]] = row
    for name, rows in there.items():
        whole = rows[0]["part_of"]
        how = captured.get(whole or name)
        if how is None:
            if whole is None:
                yield _finding("not-captured", name, name=name)
            continue
        off = list(_triggers(name, fired[name], how))
        if whole is None:
            yield from _columns(name, rows, how, off)
        elif off:
            # A partition, or a table that inherits: rows may be written to it directly.
            why = off[0].sentence[:1].lower() + off[0].sentence[1:]
            facts = {"name": name, "whole": whole, "why": why, "remedy": off[0].remedy}
            yield _finding("part-without-trigger", name, **facts)
        else:
            yield _finding("part", name, name=name)


def _columns(name: str, rows: list[Row], how: Row, off: list[Coverage]) -> Iterator[Coverage]:
    redact, ignored = json.loads(how["redact"]), json.loads(how["ignored"])
    known = {*json.loads(how["columns"]), *redact, *ignored}
    there = [r["column_name"] for r in rows if r["column_name"] and not r["computed"]]
    new = [column for column in there if column not in known]
    if not off:
        facts: dict[str, Any] = {"known": len(there) - len(new), "all": len(there)}
        yield _finding("captured", name, name=name, entity_type=how["entity_type"], **facts)
    yield from off
    for column in new:
        yield _finding("new-column", f"{name}.{column}", name=name, column=column)
    for column, way in redact.items():
        said = _REDACTED.get(way, f"is {way}")
        yield _finding("redacted", f"{name}.{column}", name=name, column=column, how=said)
    for column in ignored:
        yield _finding("ignored", f"{name}.{column}", name=name, column=column)


def _triggers(name: str, fired: Mapping[str, Row], how: Row) -> Iterator[Coverage]:
    """What is wrong with the triggers of a table; nothing when nothing is."""
    for trigger, lost in ((ROWS, "Changes of rows"), (TRUNCATE, "TRUNCATE")):
        row = fired.get(trigger)
        facts = {"name": name, "trigger": trigger, "what": lost, **(row or {})}
        if row is None:
            yield _finding("no-trigger", f"{name} {trigger}", **facts)
        elif row["state"] != "A":
            facts["state"] = _STATES[row["state"]]
            yield _finding("trigger-off", f"{name} {trigger}", **facts)
        elif not row["as_owner"]:
            yield _finding("unsafe-trigger", f"{name} {trigger}", **facts)
        elif (row["function"], row["body_md5"]) != (how["function"], how["body_md5"]):
            yield _finding("other-trigger", f"{name} {trigger}", **facts)


# -- the trail itself -------------------------------------------------------------------------


def rights(rows: Iterable[Row]) -> Iterator[Coverage]:
    """Who else than the owner may write to the trail."""
    for row in rows:
        what = "may-write" if row["made"] else "may-write-by-design"
        facts = {"name": row["table_name"], "rights": row["rights"], **_role(row["role"])}
        yield _finding(what, f"{row['table_name']} {row['role']}", **facts)


def trail(rows: Iterable[Row]) -> Iterator[Coverage]:
    """What stands between the trail and those who write or read it.

    On a table that was there before fwdb it may belong there, as long as it hides nothing.
    """
    for row in rows:
        what, name = row["what"], row["name"]
        ours = row["made"] or row["hides"] or what == "kind"
        yield _finding(
            f"between-{what}",
            f"{row['table_name']} {name or what}",
            status="uncovered" if ours else "exposed",
            table=row["table_name"],
            name=name,
            hides=", and hides rows from the role that asks" if row["hides"] else "",
        )


def _functions(rows: Iterable[Row]) -> Iterator[Coverage]:
    """Functions of ours that others may lead astray, or call when they should not."""
    for row in rows:
        name, role = row["function_name"], row["role"]
        if role is None:
            yield _finding("astray", name, name=name)
        else:
            yield _finding("may-call", name, name=name, **_role(role))


def _role(role: str) -> dict[str, Any]:
    if role == "PUBLIC":
        return {"who": "Everybody", "to": role}
    return {"who": f"The role {role}", "to": f'"{role}"'}


def _ahead(rows: list[dict[str, Any]]) -> int | None:
    """Whole months after this one that are ready; -1 when this one is not; None for one table."""
    missing = [number for number, row in enumerate(rows) if not row["is_there"]]
    return min(missing, default=len(rows)) - 1 if rows else None


def _months(rows: list[dict[str, Any]], ready: int | None) -> Iterator[Coverage]:
    """Whether the trail has a place for what comes."""
    for number, row in enumerate(rows):
        if not row["is_there"]:
            status: Status = "uncovered" if number <= MONTHS_CRITICAL else "behind"
            month = f"{row['month_at']:%Y-%m}"
            yield _finding("no-month", row["table_name"], status=status, month=month)
    if ready is not None and ready >= MONTHS_MADE:
        yield _finding("months", "audit.audit_logs", month=f"{rows[-1]['month_at']:%Y-%m}")


# -- collections ------------------------------------------------------------------------------


def collection(name: str, listed: Row | None) -> Coverage:
    """Whether MongoDB keeps each document as it was before a change, of what it says of `name`."""
    if listed is None:
        return _finding("no-collection", name, name=name)
    options = listed.get("options", {}).get("changeStreamPreAndPostImages", {})
    return _finding("images" if options.get("enabled") else "no-images", name, name=name)


def follower(name: str, found: Row | None) -> Coverage:
    """Whether the changes of a collection are read, and how far."""
    if found is None:
        return _finding("not-followed", name, name=name)
    late, saved = found["behind_seconds"], found["saved_at"]
    if not found["running"]:
        since = "" if saved is None else f" since {saved:%Y-%m-%d %H:%M} UTC"
        return _finding("stopped", name, name=name, since=since)
    if late is None:
        return _finding("first-look", name, name=name)
    if late <= BEHIND_SECONDS:
        return _finding("followed", name, name=name)
    status: Status = "uncovered" if late > LATE_SECONDS else "behind"
    return _finding("late", name, status=status, name=name, late=late)


def gaps(rows: Sequence[Row]) -> Iterator[Coverage]:
    """Times of which changes are not known one by one. Nothing brings them back."""
    for row in rows:
        added = row["differences"]
        yield _finding(
            "gap",
            row["name"],
            name=row["name"],
            since="" if row["since"] is None else f"from {row['since']:%Y-%m-%d %H:%M:%S} ",
            until=row["until"],
            reason=row["reason"].rstrip("."),
            added="" if added is None else f" A comparison afterwards added {added:,} rows.",
        )
