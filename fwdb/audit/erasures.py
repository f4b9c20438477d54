"""What may differ from the seals with reason: recorded erasures, and users who were removed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from fwdb.audit.base import TABLE, WITH_JOURNALS
from fwdb.audit.exported import Export, rows_of
from fwdb.audit.findings import Finding
from fwdb.stores import PostgresStore

__all__ = ["ENTITY_TYPE", "Erasures", "Removals", "listed", "recorded", "said_of"]

ENTITY_TYPE = "AuditLog"  # of the row in which the trail itself tells of an erasure


@dataclass(frozen=True, slots=True)
class Erasures:
    """The runs of `erase`: `erasure_id`, `erased_at`, `rows`; and what is wrong with them."""

    runs: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]


class Removals:
    """Users whose removal is in the trail and who are gone, asked for when first needed."""

    def __init__(self, store: PostgresStore, exports: Mapping[date, Export]) -> None:
        self._store = store
        self._exports = exports
        self._found: list[tuple[bytes, datetime]] | None = None

    def __call__(self) -> list[tuple[bytes, datetime]]:
        """Their ids as a line has them, and when they went."""
        if self._found is None:
            self._found = list(self._ask())
        return self._found

    def _ask(self) -> Iterator[tuple[bytes, datetime]]:
        view = self._store.rows(
            sa.text("SELECT coalesce(to_regclass(:view), to_regclass(:table)) AS name"),
            view=WITH_JOURNALS,
            table=TABLE,
        )
        there = self._store.rows(sa.text(_REMOVED.format(trail=view[0]["name"])))
        removed: dict[str, datetime] = {row["id"]: row["at"] for row in there}
        for export in self._exports.values():
            if export.dropped_at is None or not export.is_readable():
                continue
            for row in rows_of(export, entity_type="User", action="DELETE"):
                if row["new_values"] is None:
                    id = str(row["entity_id"])
                    removed[id] = max(row["created_at"], removed.get(id, row["created_at"]))
        live = self._store.rows(
            sa.text(
                "SELECT CAST(id AS text) AS id FROM shared.users"
                " WHERE id = ANY(CAST(:ids AS uuid[]))"
            ),
            ids=list(removed),
        )
        for row in live:
            del removed[row["id"]]
        return ((id.encode(), at) for id, at in removed.items())


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
    """All erasures, each compared with the row in which the trail tells of it."""
    runs = tuple(store.rows(_RUNS))
    findings = []
    if runs:
        told = _told(store, exports)
        for run in runs:
            if told.get(run["erasure_id"]) != (run["rows"], run["digest"]):
                findings.append(
                    Finding(
                        kind="erasure",
                        sentence=f"The erasure {run['erasure_id']} of {run['rows']:,} rows is not "
                        "recorded in the trail as it stands in audit.erasures.",
                    )
                )
    return Erasures(runs, tuple(findings))


def said_of(store: PostgresStore, erasure_id: str) -> dict[str, Any]:
    """Rows and digest of one erasure, which its row in the trail repeats."""
    run = next(run for run in store.rows(_RUNS) if run["erasure_id"] == erasure_id)
    return {"rows": run["rows"], "digest": run["digest"]}


def _told(
    store: PostgresStore, exports: Mapping[date, Export]
) -> dict[str, tuple[int, str] | None]:
    """What the trail says of each erasure: rows and digest."""
    there = store.rows(
        sa.text(
            "SELECT CAST(entity_id AS text) AS entity_id,"
            " CAST(old_values AS text) AS old_values FROM audit.audit_logs"
            " WHERE entity_type = :type AND CAST(action AS text) = 'DELETE'"
            " AND entity_id = ANY(ARRAY(SELECT DISTINCT erasure_id FROM audit.erasures))"
        ),
        type=ENTITY_TYPE,
    )
    rows: list[dict[str, Any]] = [*there]
    for export in exports.values():
        if export.dropped_at is not None and export.is_readable():
            rows += rows_of(export, entity_type=ENTITY_TYPE, action="DELETE")
    return {str(row["entity_id"]): _said(row["old_values"]) for row in rows}


def _said(values: str | None) -> tuple[int, str] | None:
    try:
        said = json.loads(values or "")
        return said["rows"], said["digest"]
    except (ValueError, KeyError, TypeError):
        return None


# {trail} is the view that has what is still in journals, where there is one.
_REMOVED = """
SELECT CAST(entity_id AS text) AS id, max(created_at) AS at FROM {trail}
WHERE entity_type = 'User' AND CAST(action AS text) = 'DELETE' AND new_values IS NULL
GROUP BY entity_id
"""

_RUNS = sa.text("""
SELECT CAST(erasure_id AS text) AS erasure_id, min(erased_at) AS erased_at, count(*) AS rows,
    encode(sha256(convert_to(string_agg(
        concat_ws(' ', log_id, part, seal, encode(digest, 'hex')), ','
        ORDER BY log_id, part COLLATE "C", seal
    ), 'UTF8')), 'hex') AS digest
FROM audit.erasures GROUP BY erasure_id ORDER BY min(erased_at), erasure_id
""")
