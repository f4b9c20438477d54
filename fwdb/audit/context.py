"""What all questions of the audit trail are asked with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import pandas as pd

from fwdb import config
from fwdb.audit import partitions
from fwdb.errors import ParameterError
from fwdb.models import ACTIONS
from fwdb.stores import MongoStore, PostgresStore

__all__ = ["Context", "Past", "Source", "Table"]

TABLE = "audit.audit_logs"

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


class Source(Protocol):
    """Where rows of the trail come from."""

    def frame(self, query: str, /, **parameters: Any) -> pd.DataFrame:
        """The answer to a query file."""

    def past(
        self, entity_type: str | None, id: UUID | None, window: Bounds = (None, None)
    ) -> AbstractContextManager[Past]:
        """What to read, within the block, to know what became of entities in a window."""

    def require(self, at: datetime, name: str, remedy: str = "") -> None:
        """Refuse to tell what was at `at` where changes since then are out of reach."""


@dataclass(frozen=True)
class Table:
    """The rows that are in the table."""

    store: PostgresStore

    def frame(self, query: str, /, **parameters: Any) -> pd.DataFrame:
        return self.store.frame(query, **parameters)

    @contextmanager
    def past(
        self, entity_type: str | None, id: UUID | None, window: Bounds = (None, None)
    ) -> Iterator[Past]:
        yield Past({}, {}, partitions.reach(self.store))

    def require(self, at: datetime, name: str, remedy: str = "") -> None:
        reach = partitions.reach(self.store)
        if reach is not None and at < reach:
            raise ParameterError(
                f"'{name}' is {at:%Y-%m-%dT%H:%M}Z, and changes up to {reach:%Y-%m-%d} are in "
                f"archived months, not in the table; give a later time{remedy}.",
                name=name,
            )


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
        self.source: Source = Table(postgres)
        self.tally = Tally()
