"""The head of the audit seal in every report: a copy that nobody can take back from a reader."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fwdb.reports.asking import REFUSALS
from fwdb.reports.results import Result
from fwdb.reports.words import figure

if TYPE_CHECKING:
    from fwdb.database import Database


def with_seal(db: Database, result: Result) -> Result:
    """`result` with one more source, where PostgreSQL answers and something was ever sealed."""
    answers = any(
        check.id.endswith(".reachable") and check.database == "postgres" and check.status == "ok"
        for check in result.checks
    )
    if not answers:
        return result
    try:
        sealed = db.audit.sealed()
    except tuple(REFUSALS):
        return result  # a report about something else does not fail for it
    if sealed is None or sealed.head is None:
        return result
    key = f"signed with key {sealed.key_id}" if sealed.key_id else "not signed"
    line = (
        f"head {sealed.head} of seal {sealed.number}, {figure(sealed.total_rows)} rows up to "
        f"{sealed.sealed_at:%Y-%m-%dT%H:%MZ}, {key}"
    )
    return replace(result, sources=(*result.sources, ("Audit seal", line)))
