"""What all parts of the audit trail stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

import pandas as pd
import sqlalchemy as sa

from fwdb import config
from fwdb.audit import partitions
from fwdb.errors import ParameterError
from fwdb.stores import MongoStore, PostgresStore

__all__ = ["AuditBase", "Past"]

TABLE, WITH_JOURNALS = "audit.audit_logs", "audit.trail"

Bounds = tuple[datetime | None, datetime | None]


@dataclass(frozen=True, slots=True)
class Past:
    """Relations to read `instead` of others, with their parameters.

    Changes before `reach` are not all in them; None where all there ever were are. `begins` is when
    triggers recorded the first of those that are in archives.
    """

    instead: Mapping[str, str]
    parameters: Mapping[str, Any]
    reach: datetime | None = None
    begins: datetime | None = None

    def since(self, captured: datetime | None) -> datetime | None:
        """From when on the past is known of a table that is captured since `captured`."""
        if captured is None:
            return None
        known = captured if self.begins is None else min(captured, self.begins)
        return known if self.reach is None else max(known, self.reach)


class AuditBase:
    """The stores that the parts of `Audit` ask; `_mongodb` is None where there is none."""

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore | None = None,
        *,
        settings: config.Settings | None = None,
    ) -> None:
        self._postgres = postgres
        self._mongodb = mongodb
        self._settings = settings or config.settings()

    def _frame(self, query: str, /, **parameters: Any) -> pd.DataFrame:
        """The answer of a query file to the whole trail, what is still in journals too."""
        return self._postgres.frame(query, instead=self._instead, **parameters)

    @contextmanager
    def _past(
        self, entity_type: str | None, id: UUID | None, window: Bounds = (None, None)
    ) -> Iterator[Past]:
        """What to read, within the block, to know what became of entities in a window."""
        yield Past(self._instead, {}, partitions.reach(self._postgres))

    def _within_reach(self, at: datetime, name: str, remedy: str = "") -> None:
        """Refuse to tell what was at `at` where changes since then are in archives."""
        reach = partitions.reach(self._postgres)
        if reach is not None and at < reach:
            raise ParameterError(
                f"'{name}' is {at:%Y-%m-%dT%H:%M}Z, and changes up to {reach:%Y-%m-%d} are in "
                f"archived months, not in the table; give a later time{remedy}.",
                name=name,
            )

    @cached_property
    def _instead(self) -> dict[str, str]:
        """The view of table and journals, read in place of the table where it is there."""
        found = self._postgres.rows(
            sa.text("SELECT to_regclass(:view) AS view /* fwdb */"), view=WITH_JOURNALS
        )
        return {TABLE: WITH_JOURNALS} if found[0]["view"] is not None else {}
