"""What `verify` found: values, nothing that asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd

from fwdb.audit.seal import canonical
from fwdb.audit.seal.seals import Seal
from fwdb.models import entity_id

__all__ = ["OF_ROWS", "Finding", "Verification", "iso", "named", "of_row", "of_seal"]

# What happened to a row; all other kinds are about seals, files and what belongs to them.
OF_ROWS = ("altered", "missing", "inserted", "moved")
_COLUMNS = {
    "kind": "str", "seal": "Int64", "month": "str", "rows": "int64", "row_id": "str",
    "created_at": "datetime64[us, UTC]", "entity_type": "str", "entity_id": "str",
    "sentence": "str",
}  # fmt: skip


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
        if self.since is None:
            return f"All {self.sealed_rows:,} sealed rows are as they were sealed."
        read, months = self.sealed_rows - self.unread_rows, f"{self.since:%Y-%m} and later"
        if not read:
            return f"The seals are whole, and none is of {months}."
        return f"All {read:,} sealed rows of {months} are as they were sealed."

    def frame(self) -> pd.DataFrame:
        """The findings as a table: `kind`, `seal`, `month`, `rows`, `row_id`, `created_at`,
        `entity_type`, `entity_id`, `sentence`."""
        rows = [
            {**asdict(f), "rows": f.count, "month": f.month and f"{f.month:%Y-%m}"}
            for f in self.findings
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


# -- how they are made ----------------------------------------------------------------------------


def of_seal(seal: Seal, kind: str, sentence: str) -> Finding:
    """A finding about a seal."""
    return Finding(kind=kind, sentence=sentence, seal=seal.number, month=seal.month)


def of_row(kind: str, seal: Seal | None, fields: Sequence[bytes], what: str) -> Finding:
    """A finding about the row of a line, whose sentence goes on with `what`."""
    entity = canonical.value(fields[3])
    with suppress(ValueError):  # a file holds whatever was put into it
        entity = entity and entity_id(entity)
    return Finding(
        kind=kind,
        sentence=f"{named(fields)} was {kind}: {what}.",
        seal=None if seal is None else seal.number,
        month=None if seal is None else seal.month,
        row_id=fields[0].decode(),
        created_at=canonical.clamped(fields[1]),
        entity_type=canonical.value(fields[2]),
        entity_id=entity,
    )


def named(fields: Sequence[bytes]) -> str:
    """The row of a line, for a sentence."""
    what = f"{canonical.value(fields[4])} of {canonical.value(fields[2])}"
    return f"Row {fields[0].decode()} of {iso(canonical.clamped(fields[1]))} ({what})"


def iso(at: datetime | None) -> str:
    """A time, for a sentence."""
    if at is None or at == datetime.max.replace(tzinfo=UTC):
        return "a time after the year 9999"
    if at == datetime.min.replace(tzinfo=UTC):
        return "a time before the year 1"
    return f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"
