"""What `verify` found: values, nothing that asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pandas as pd

__all__ = ["OF_ROWS", "Finding", "Verification"]

# What happened to a row; all other kinds are about seals, files and what belongs to them.
OF_ROWS = ("altered", "missing", "inserted", "moved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it was sealed.

    `kind` is about a row (``altered``, ``missing``, ``inserted``, or ``moved``: its time, and so
    its month, was changed), a ``seal``, the ``chain`` of seals, a ``signature``, an ``erasure``,
    an ``archive``, the seal file (``anchor``) or the ``trail`` as a table. `count` rows of that
    seal are like `row_id`, the first. Of a row that is missing, the entity is not known.
    """

    kind: str
    sentence: str
    seal: int | None = None
    month: date | None = None
    count: int = 1
    row_id: str | None = None
    created_at: datetime | None = None
    entity_type: str | None = None
    entity_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the seals say of the trail now.

    `intact` is True when nothing was found and something was sealed. Of `sealed_rows`,
    `checked_rows` were there and as sealed; `archived_rows` of them were read from archives,
    `erased_rows` had a part erased and recorded, and of `forgotten_rows` the user was removed.
    `unsealed_rows` are too new to be sealed. `since` is the first month whose rows were read, None
    for all; `unread_rows` are sealed in those before. `not_proven` are sentences about what this
    run could not show. `head` is the newest, in hexadecimal.
    """

    intact: bool
    findings: tuple[Finding, ...]
    not_proven: tuple[str, ...]
    seals: int
    sealed_rows: int
    checked_rows: int
    archived_rows: int
    erased_rows: int
    forgotten_rows: int
    unsealed_rows: int
    unread_rows: int
    since: date | None
    head: str | None
    sealed_at: datetime | None
    key_id: str | None
    erasures: tuple[Mapping[str, Any], ...] = ()

    @property
    def first(self) -> Finding | None:
        """The first finding about a row, else the first of all."""
        rows = [found for found in self.findings if found.kind in OF_ROWS]
        return next(iter(rows or self.findings), None)

    @property
    def summary(self) -> str:
        """One sentence."""
        if not self.seals:
            return "Nothing is sealed yet, so nothing can be verified."
        if self.first is not None:
            more = len(self.findings) - 1
            return self.first.sentence + (f" And {more} more." if more else "")
        if self.since is not None:
            read, months = self.sealed_rows - self.unread_rows, f"{self.since:%Y-%m} and later"
            if not read:
                return f"The seals are whole, and none is of {months}."
            return f"All {read:,} sealed rows of {months} are as they were sealed."
        return f"All {self.sealed_rows:,} sealed rows are as they were sealed."

    def frame(self) -> pd.DataFrame:
        """The findings as a table: `kind`, `seal`, `month`, `rows`, `row_id`, `created_at`,
        `entity_type`, `entity_id`, `sentence`."""
        rows = [
            (
                f.kind, f.seal, None if f.month is None else f"{f.month:%Y-%m}", f.count, f.row_id,
                f.created_at, f.entity_type, f.entity_id, f.sentence,
            )
            for f in self.findings
        ]  # fmt: skip
        return pd.DataFrame(
            rows,
            columns=[
                "kind", "seal", "month", "rows", "row_id", "created_at", "entity_type",
                "entity_id", "sentence",
            ],
        ).astype(
            {
                "kind": "str", "seal": "Int64", "month": "str", "rows": "int64", "row_id": "str",
                "created_at": "datetime64[us, UTC]", "entity_type": "str", "entity_id": "str",
                "sentence": "str",
            }
        )  # fmt: skip
