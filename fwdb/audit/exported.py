"""Months of the trail that were exported, as far as the proof reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from fwdb.stores import PostgresStore

__all__ = ["Export", "exports", "rows_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A row of `audit.archives`: where a month lies, and whether it left the database."""

    month: date
    path: Path
    rows: int
    sha256: str
    dropped_at: datetime | None

    @property
    def name(self) -> str:
        """It, for a sentence."""
        return f"The archive of {self.month:%Y-%m}, {self.path},"

    def trouble(self) -> str | None:
        """What is wrong with the file itself, as a sentence; None if it is what was exported."""
        try:
            with self.path.open("rb") as file:
                found = file_digest(file, "sha256").hexdigest()
            with pq.ParquetFile(self.path) as parquet:
                rows = parquet.metadata.num_rows
        except FileNotFoundError:
            return (
                f"{self.name} is missing; put it back from a copy, or set FWDB_AUDIT_ARCHIVE to "
                "the folder that has it."
            )
        except (OSError, pa.ArrowException):
            return f"{self.name} cannot be read."
        if found != self.sha256:
            return f"{self.name} is not the file that was exported: its checksum differs."
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
        except (OSError, ValueError, AttributeError):
            return f"The manifest of {self.name[4:]} cannot be read."
        if said != {"file": self.path.name, "rows": self.rows, "sha256": self.sha256}:
            return f"The manifest of {self.name[4:]} does not say what the database says."
        return None

    def is_readable(self) -> bool:
        """Whether rows can be had from the file, changed or not."""
        try:
            with pq.ParquetFile(self.path):
                return True
        except (OSError, pa.ArrowException):
            return False


def exports(store: PostgresStore, folder: Path | None) -> dict[date, Export]:
    """All exported months, by month; none where nothing was ever exported.

    Their paths are names in `folder`.
    """
    known = store.rows(sa.text("SELECT to_regclass('audit.archives') AS name /* fwdb */"))
    if known[0]["name"] is None:
        return {}
    found = store.rows(
        sa.text("SELECT month, path, rows, sha256, dropped_at FROM audit.archives ORDER BY month")
    )
    return {
        row["month"]: Export(**{**row, "path": (folder or Path()) / row["path"]}) for row in found
    }


def rows_of(export: Export, *, entity_type: str, action: str) -> Iterator[dict[str, Any]]:
    """The rows of a file about entities of one type, with one action."""
    wanted = ["entity_type", "entity_id", "action", "created_at", "old_values", "new_values"]
    with pq.ParquetFile(export.path) as file:
        for batch in file.iter_batches(columns=wanted):
            fits = pc.and_(
                pc.equal(pc.cast(batch["entity_type"], pa.string()), entity_type),
                pc.equal(pc.cast(batch["action"], pa.string()), action),
            )
            yield from batch.filter(fits).to_pylist()
