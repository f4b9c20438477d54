"""What may differ from the seals with reason: recorded erasures, and users who were removed.

A row of the trail excuses something only if the application cannot have written it: a removal if a
trigger recorded it, an erasure if `erase` told of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from fwdb.audit.exported import Export, rows_of
from fwdb.audit.findings import Finding
from fwdb.stores import PostgresStore

__all__ = ["ENTITY_TYPE", "ORIGIN", "Erasures", "Removals", "listed", "recorded", "said_of"]

# Of the row in which the trail itself tells of an erasure; no application can write this origin.
ENTITY_TYPE, ORIGIN = "AuditLog", "erase"


@dataclass(frozen=True, slots=True)
class Erasures:
    """The runs of `erase`: `erasure_id`, `erased_at`, `rows`; and what is wrong with them."""

    runs: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]


class Removals:
    """Users whose removal a trigger recorded, asked for when first needed.

    Whether there is a user of that id again does not matter.
    """

    def __init__(self, store: PostgresStore, exports: Mapping[date, Export]) -> None:
        self._store = store
        self._exports = exports
        self._found: list[tuple[bytes, int]] | None = None

    def __call__(self) -> list[tuple[bytes, int]]:
        """Their ids as a line has them, and the last transaction in which they went."""
        if self._found is None:
            last: dict[str, int] = {}
            for id, transaction in self._ask():
                last[id] = max(transaction, last.get(id, transaction))
            self._found = [(id.encode(), transaction) for id, transaction in last.items()]
        return self._found

    def _ask(self) -> Iterator[tuple[str, int]]:
        for row in self._store.rows(_REMOVED):
            yield row["id"], row["transaction_id"]
        for row in _archived(self._exports, entity_type="User", action="DELETE"):
            if row["new_values"] is None and row["origin"] == "trigger":
                yield str(row["entity_id"]), int(row["transaction_id"] or 0)


def recorded(store: PostgresStore, numbers: Sequence[int]) -> dict[tuple[int, bytes, str], bytes]:
    """Digests of parts that were erased from rows of these seals."""
    found = store.rows(
        sa.text(
            "SELECT seal, uuid_send(log_id) AS id, part, digest FROM audit.erasures"
            " WHERE seal = ANY(CAST(:numbers AS bigint[]))"
        ),
        numbers=list(numbers),
    )
    return {(row["seal"], row["id"], row["part"]): row["digest"] for row in found}


def listed(store: PostgresStore, exports: Mapping[date, Export]) -> Erasures:
    """All erasures, each compared with the row in which the trail tells of it.

    `erased_at` is the time of that row, which is sealed.
    """
    runs = store.rows(_RUNS)
    findings = []
    told = _told(store, exports) if runs else {}
    for run in runs:
        kept = {str(run.pop("first_at")), str(run.pop("last_at"))}
        at = told.get((run["erasure_id"], run["rows"], run["digest"]))
        if at is not None:
            run["erased_at"], said = at
        if at is None or (said is not None and [*kept] != [said]):
            findings.append(
                Finding(
                    kind="erasure",
                    sentence=f"The erasure {run['erasure_id']} of {run['rows']:,} rows is not "
                    "recorded in the trail as it stands in audit.erasures.",
                )
            )
    return Erasures(tuple(runs), tuple(findings))


def said_of(store: PostgresStore, erasure_id: str) -> dict[str, Any]:
    """Rows, digest and time of one erasure, which its row in the trail repeats."""
    run = next(run for run in store.rows(_RUNS) if run["erasure_id"] == erasure_id)
    return {"rows": run["rows"], "digest": run["digest"], "erased_at": run["first_at"]}


def _told(
    store: PostgresStore, exports: Mapping[date, Export]
) -> dict[tuple[str, int, str], tuple[datetime, str | None]]:
    """What the trail says of erasures (id, rows, digest): when, and the time that it repeats.

    Rows of before `ORIGIN` count if their login was the owner's, or is none any more.
    """
    rows = store.rows(_TOLD, type=ENTITY_TYPE)
    rows += _archived(exports, entity_type=ENTITY_TYPE, action="DELETE")
    others = {row["role"] for row in store.rows(_OTHERS)}
    told = {}
    # The word of `erase` itself comes last, and counts.
    for row in sorted(rows, key=lambda row: row["origin"] == ORIGIN):
        ours = row["origin"] == ORIGIN
        if not ours and (row["db_user"] is None or row["db_user"] in others):
            continue
        try:
            said = json.loads(row["old_values"] or "")
            erasure = (str(row["entity_id"]), said["rows"], said["digest"])
            told[erasure] = (row["created_at"], said["erased_at"] if ours else None)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # tells of none
    return told


def _archived(exports: Mapping[date, Export], **wanted: str) -> Iterable[dict[str, Any]]:
    """Rows of the months that are in files only."""
    for export in exports.values():
        if export.dropped and export.is_readable():
            yield from rows_of(export, **wanted)


_REMOVED = sa.text("""
SELECT CAST(entity_id AS text) AS id, coalesce(max(transaction_id), 0) AS transaction_id
FROM audit.audit_logs
WHERE entity_type = 'User' AND origin = 'trigger' AND action = 'DELETE' AND new_values IS NULL
GROUP BY entity_id
""")

# Times that Python has none for are none of `erase`.
_AT = "least(greatest({}, '0001-01-02Z'), '9999-12-30Z')"

_TOLD = sa.text(f"""
SELECT CAST(entity_id AS text) AS entity_id, CAST(old_values AS text) AS old_values,
    origin, db_user, {_AT.format("created_at")} AS created_at
FROM audit.audit_logs
WHERE entity_type = :type AND action = 'DELETE'
    AND entity_id = ANY(ARRAY(SELECT DISTINCT erasure_id FROM audit.erasures))
""")

_OTHERS = sa.text("""
SELECT CAST(rolname AS text) AS role FROM pg_roles WHERE NOT pg_has_role(oid, (
    SELECT relowner FROM pg_class WHERE oid = CAST('audit.erasures' AS regclass)), 'MEMBER')
""")

_RUNS = sa.text(f"""
SELECT CAST(erasure_id AS text) AS erasure_id, {_AT.format("min(erased_at)")} AS erased_at,
    count(*) AS rows, encode(sha256(convert_to(string_agg(
        concat_ws(' ', log_id, part, seal, encode(digest, 'hex')), ','
        ORDER BY log_id, part COLLATE "C", seal
    ), 'UTF8')), 'hex') AS digest,
    CAST(min(erased_at) AS text) AS first_at, CAST(max(erased_at) AS text) AS last_at
FROM audit.erasures GROUP BY erasure_id ORDER BY min(erased_at), erasure_id
""")
