"""What the audit trail does not capture: found in the catalogs, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime

import pandas as pd
import sqlalchemy as sa

from fwdb.audit import checks
from fwdb.audit import coverage_findings as findings
from fwdb.audit.context import Context
from fwdb.audit.coverage_findings import STATUSES, Finding, Kind
from fwdb.audit.questions import Moment
from fwdb.errors import FwdbError

__all__ = ["Standing", "as_frame", "coverage", "standing"]

COLLECTION = "designs"


def _waiting(journal: str) -> sa.TextClause:
    """How many changes are in this journal, and the age of the oldest. It has no index."""
    return sa.text(
        "SELECT count(*) AS rows, "
        "CAST(extract(epoch FROM clock_timestamp() - min(created_at)) AS float) AS age "
        f'FROM audit."{journal}" /* fwdb */'
    )


_GAPS = sa.text("""
SELECT follower, since, until, reason, differences
FROM audit.gaps
WHERE follower = :name
ORDER BY until DESC /* fwdb */
""")


@dataclass(frozen=True, slots=True)
class Standing:
    """The findings about one store, with the figures behind them; None where there is none.

    `is_on` says whether capture was ever switched on. `months_ahead` are whole months after this
    one that are ready, -1 when this one is not. `behind_seconds` is how late changes of MongoDB
    get into the trail, `gaps` are the times (from, to) of which not all could, newest first.
    `journal_rows` changes wait in journals, the oldest for `journal_age_seconds`.
    """

    findings: tuple[Finding, ...]
    is_on: bool = True
    months_ahead: int | None = None
    behind_seconds: float | None = None
    gaps: tuple[tuple[datetime | None, datetime], ...] | None = None
    journal_rows: int | None = None
    journal_age_seconds: float | None = None

    def uncovered(self, kind: Kind) -> int:
        """How many things of this kind are uncovered."""
        return sum(f.status == "uncovered" and f.kind == kind for f in self.findings)

    def with_also(self, finding: Finding) -> Standing:
        """The same with one more finding."""
        return replace(self, findings=(*self.findings, finding))


def as_frame(found: Iterable[Finding]) -> pd.DataFrame:
    """Findings as a table, what needs somebody first."""
    order = sorted(found, key=lambda f: (STATUSES.index(f.status), f.database != "postgres"))
    names = [field.name for field in fields(Finding)]
    return pd.DataFrame([astuple(f) for f in order], columns=names, dtype="str")


def coverage(self: Context) -> pd.DataFrame:
    """Everything whose changes belong into the trail, what is not captured first.

    `database`, `object`, `kind`, `status`, `sentence`, `remedy`. `kind` is table, column,
    partition, trigger, right, partition_ahead, journal, collection, follower or gap;
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
            found.append(images(self))
        except FwdbError as error:
            found.append(Finding("mongodb", COLLECTION, "collection", "not_known", str(error)))
    return as_frame(found)


def standing(self: Context) -> Standing:
    """Of PostgreSQL: its tables and the trail itself."""
    store = self.postgres
    months = store.rows("audit_coverage_months", months=findings.MONTHS_MADE)
    ahead = findings.ahead(months)
    captured = (
        {row["table_name"]: row for row in store.rows("audit_coverage_captured")}
        if _has(self, "audit.captured")
        else {}
    )
    journals = {
        name: store.rows(_waiting(row["journal"]))[0]
        for name, row in captured.items()
        if row["journal"] is not None
    }
    return Standing(
        (
            *findings.tables(
                store.rows("audit_coverage_columns"),
                captured,
                store.rows("audit_coverage_triggers"),
            ),
            *(findings.journal(name, r["rows"], r["age"]) for name, r in journals.items()),
            *([] if _has(self, "audit.audit_logs") else [findings.NO_TRAIL]),
            *findings.rights(store.rows("audit_coverage_rights")),
            *findings.functions(store.rows("audit_coverage_functions")),
            *findings.trail(store.rows("audit_coverage_trail")),
            *findings.months(months, ahead),
        ),
        is_on=bool(captured),
        months_ahead=ahead,
        journal_rows=sum(r["rows"] for r in journals.values()) if journals else None,
        journal_age_seconds=max(
            (r["age"] for r in journals.values() if r["age"] is not None), default=None
        ),
    )


def without_actor(self: Context, since: Moment) -> int | None:
    """Changes from `since` on of which nobody said who made them; None without a trail."""
    if not _has(self, "audit.audit_logs"):
        return None
    start, end = checks.closed_window(since, "now")
    rows = self.source.frame(
        "audit_totals", since=start, until=end, entity_type=None, user_id=None, action=None
    )
    return int(rows.loc[rows["action"] != "READ", "without_actor"].sum())


def following_standing(self: Context) -> Standing:
    """Of MongoDB, as PostgreSQL knows it: whether its changes are read, and how far."""
    if not _has(self, "audit.runs"):
        return Standing((findings.follower(COLLECTION, None),), is_on=False)
    rows = self.postgres.rows("audit_followers")
    gaps = self.postgres.rows(_GAPS, name=COLLECTION)
    found = next((one for one in rows if one["name"] == COLLECTION), None)
    return Standing(
        (findings.follower(COLLECTION, found), *findings.gaps(gaps)),
        is_on=found is not None,
        behind_seconds=None if found is None else found["behind_seconds"],
        gaps=tuple((g["since"], g["until"]) for g in gaps) if found else None,
    )


def images(self: Context) -> Finding:
    """Whether MongoDB keeps what a follower needs to know of a change."""
    assert self.mongodb is not None
    with self.mongodb.errors():
        listed = [*self.mongodb.database.list_collections(filter={"name": COLLECTION})]
    return findings.collection(COLLECTION, listed)


def _has(self: Context, table: str) -> bool:
    """Whether there is this table; a database that nobody migrated has none of ours."""
    asked = sa.text("SELECT to_regclass(:name) IS NOT NULL AS there /* fwdb */")
    return bool(self.postgres.rows(asked, name=table)[0]["there"])
