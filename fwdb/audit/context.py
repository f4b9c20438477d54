"""What all questions of the audit trail are asked with."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Self

from fwdb import config
from fwdb.audit.source import Source
from fwdb.models import ACTIONS
from fwdb.stores import MongoStore, PostgresStore

__all__ = ["Context"]


@dataclass
class Tally:
    """Entries that were written, by action, and how many could not be."""

    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ACTIONS, 0))
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Context:
    """The stores, `mongodb` None where there is none, the settings, and the `source` of rows."""

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore | None = None,
        *,
        settings: config.Settings | None = None,
    ) -> None:
        self.postgres = postgres
        self.mongodb = mongodb
        self.settings = settings or config.settings()
        self.source = Source(postgres)
        self.tally = Tally()

    def with_archives(self) -> Self:
        """The same trail with its archived months: ``db.audit.with_archives().history(…)``.

        `history`, `search`, `by_user`, `recent`, `totals`, `activity` and `actors` then read the
        table and the files in FWDB_AUDIT_ARCHIVE as one, with the columns, types and order that
        they have without; so do `timeline`, `who_changed`, `diff` and `as_of`, for which the
        server is handed the archived changes. Each file is compared with its checksum before its
        first use. Raises, when asked, `ArchiveError` for a file that is missing or damaged,
        `FeatureUnavailable` for another question, and for the first seven without DuckDB (the
        extra ``archive``), `ParameterError` for more changes than can be handed over.
        """
        other = copy.copy(self)
        other.source = Source(self.postgres, archives=self.settings)
        return other
