"""What all parts of the audit trail stand on."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pandas as pd
import sqlalchemy as sa

from fwdb import config
from fwdb.stores import MongoStore, PostgresStore

__all__ = ["AuditBase"]

TABLE, WITH_JOURNALS = "audit.audit_logs", "audit.trail"


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

    @cached_property
    def _instead(self) -> dict[str, str]:
        """The view of table and journals, read in place of the table where it is there."""
        found = self._postgres.rows(
            sa.text("SELECT to_regclass(:view) AS view /* fwdb */"), view=WITH_JOURNALS
        )
        return {TABLE: WITH_JOURNALS} if found[0]["view"] is not None else {}
