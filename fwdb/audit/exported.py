"""Months of the trail that were exported, as far as the proof reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from fwdb.audit import canonical
from fwdb.stores import PostgresStore

__all__ = ["Export", "exports", "rows_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A row of `audit.archives`: where a month lies, and whether it left the trail.

    `dropped` is a month too whose table is detached and waits for the next `retain` to drop it.
    """

    month: date
    path: Path
    rows: int
    bytes: int
    sha256: str
    dropped: bool

    @property
    def name(self) -> str:
        """It, for a sentence."""
        return f"The archive of {self.month:%Y-%m}, {self.path},"

    def trouble(self) -> str | None:
        """What is wrong with the file itself, as a sentence; None if it is what was exported."""
        try:
            with self.path.open("rb") as file:
                found, size = file_digest(file, "sha256").hexdigest(), file.tell()
            with pq.ParquetFile(self.path) as parquet:
                rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
        except FileNotFoundError:
            return (
                f"{self.name} is missing; put it back from a copy, or set FWDB_AUDIT_ARCHIVE to "
                "the folder that has it."
            )
        except canonical.DAMAGE:
            return f"{self.name} cannot be read."
        if found != self.sha256:
            return f"{self.name} is not the file that was exported: its checksum differs."
        if len(set(columns)) != len(columns):
            return f"{self.name} has a column twice."
        if size != self.bytes:
            return f"{self.name} has {size:,} bytes where {self.bytes:,} are recorded."
        if rows != self.rows:
            return f"{self.name} has {rows:,} rows where {self.rows:,} are recorded."
        return self._manifest_trouble()

    def _manifest_trouble(self) -> str | None:
        """The manifest beside the file says the same as the database."""
        try:
            found = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            said = {name: found.get(name) for name in ("file", "rows", "sha256")}
        except FileNotFoundError:
            return f"{self.name} has lost the manifest beside it."
        except (OSError, ValueError, AttributeError, RecursionError):
            return f"The manifest of {self.name[4:]} cannot be read."
        if said != {"file": self.path.name, "rows": self.rows, "sha256": self.sha256}:
            return f"The manifest of {self.name[4:]} does not say what the database says."
        return None

    def is_readable(self) -> bool:
        """Whether rows can be had from the file, changed or not."""
        try:
            with pq.ParquetFile(self.path) as parquet:
                columns = parquet.schema_arrow.names
                return len(set(columns)) == len(columns)
        except canonical.DAMAGE:
            return False


def exports(store: PostgresStore, folder: Path | None) -> dict[date, Export]:
    """All exported months, by month; none where nothing was ever exported.

    Their paths are names in `folder`, whatever the database says.
    """
    known = store.rows(sa.text("SELECT to_regclass('audit.archives') AS name /* fwdb */"))
    if known[0]["name"] is None:
        return {}
    found = store.rows(_EXPORTS)
    for row in found:
        row["path"] = (folder or Path()) / row["path"].replace("/", "?")
    return {row["month"]: Export(**row) for row in found}


# By the snapshot, as rows are read, and not by to_regclass(), which knows of later drops.
_EXPORTS = sa.text("""
SELECT least(greatest(month, '0001-01-01'), '9999-12-31') AS month, path, rows, bytes, sha256,
    dropped_at IS NOT NULL OR EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'audit' AND c.relname = 'audit_logs_' || to_char(month, 'YYYY_MM')
            AND NOT EXISTS (
                SELECT FROM pg_inherits WHERE inhrelid = c.oid AND NOT inhdetachpending)
    ) AS dropped
FROM audit.archives ORDER BY month
""")


def rows_of(export: Export, *, entity_type: str, action: str) -> Iterator[dict[str, Any]]:
    """The rows of a file about entities of one type, with one action; as far as it can be read."""
    wanted = [name for name in canonical.FIELDS if name not in canonical.ACTOR]
    try:
        with pq.ParquetFile(export.path) as file:
            for batch in file.iter_batches(columns=wanted):
                fits = pc.and_(
                    pc.equal(pc.cast(batch["entity_type"], pa.string()), entity_type),
                    pc.equal(pc.cast(batch["action"], pa.string()), action),
                )
                for row in batch.filter(fits).to_pylist():
                    yield {**dict.fromkeys(wanted), **row}
    except canonical.DAMAGE:
        return  # what it would tell is told by nobody: that is a finding
