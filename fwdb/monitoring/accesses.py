"""Blocks by kind of access: ordinary reads apart from large scans and vacuum.

PostgreSQL 16 and later count this in pg_stat_io, for all databases of the server together. Large
scans and vacuum go through a small ring of buffers and are not meant to be found in memory: in
one ratio with the rest they hide how the working set does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from fwdb.measure import Measure
from fwdb.monitoring.cache import LEAST_BLOCKS
from fwdb.monitoring.history import History
from fwdb.stores import PostgresStore, frames

COLUMNS = {
    "database": "string",
    "counted": "string",
    "access": "string",
    "found_bytes": "Int64",
    "read_bytes": "Int64",
    "hit_ratio": "float64",
    "read_ms_per_block": "float64",
    "status": "string",
    "reason": "string",
}

MINIMUM = 160000  # pg_stat_io came with PostgreSQL 16


def counters(store: PostgresStore) -> dict[str, Any]:
    """`io_counters.sql`, ready for JSON."""
    rows = store.rows("io_counters")
    reset = rows[0]["stats_reset"]
    return {
        "read_at": datetime.now(UTC).isoformat(),
        "stats_reset": reset.isoformat() if reset else None,
        "io_timed": rows[0]["io_timed"],
        "block_bytes": rows[0]["block_bytes"],
        "accesses": {
            row["access"]: [row["found_bytes"], row["read_bytes"], row["read_ms"]] for row in rows
        },
    }


def stored(history: History, reading_id: int) -> dict[str, Any] | None:
    """The counters in a stored reading, or None when it has none."""
    for row in history.rows("stored_counters", reading_id=reading_id):
        if row["database"] == "postgres" and row["subject"] == "io":
            found: dict[str, Any] = json.loads(row["counters"])
            return found
    return None


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per kind of access with what happened between two readings."""
    block = int(second["block_bytes"])
    rows = []
    for access, now in second["accesses"].items():
        before = first["accesses"].get(access, [0, 0, 0.0])
        anew = first["stats_reset"] != second["stats_reset"] or any(
            n < b for n, b in zip(now[:2], before[:2], strict=True)
        )
        found, read, spent = now if anew else [n - b for n, b in zip(now, before, strict=True)]
        reasons = ["the counters began anew within the window"] if anew else []
        row: dict[str, Any] = {
            "database": "postgres",
            "counted": "all databases",
            "access": access,
            "found_bytes": found,
            "read_bytes": read,
            "status": "ok",
        }
        if found + read >= LEAST_BLOCKS * block:
            row["hit_ratio"] = found / (found + read)
        else:
            row["status"] = "no_data"
            reasons.append(f"fewer than {LEAST_BLOCKS:,} blocks were asked for")
        if read and first["io_timed"] and second["io_timed"]:
            row["read_ms_per_block"] = spent / (read / block)
        elif read:
            reasons.append("reads are not timed (track_io_timing is off)")
        rows.append(row | {"reason": "; ".join(reasons)})
    return rows


def of_database(measure: Measure) -> dict[str, Any]:
    """The ratio of one database by its own counters, as a row of the same kind."""
    return {
        "database": measure.database,
        "counted": "this database",
        "access": "all",
        "hit_ratio": measure.value,
        "status": measure.status,
        "reason": measure.reason,
    }


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `difference` and `of_database` as a frame."""
    return frames.from_rows(
        list(COLUMNS), [[row.get(name) for name in COLUMNS] for row in rows], COLUMNS
    )
