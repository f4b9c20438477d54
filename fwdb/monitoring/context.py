"""What the questions of `Monitor` are asked with, and the frames that they answer by."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import pandas as pd

from fwdb import config
from fwdb.config import Thresholds
from fwdb.errors import FwdbError
from fwdb.monitoring.commands import CommandLedger
from fwdb.monitoring.health import Behind, probes
from fwdb.monitoring.history import History
from fwdb.monitoring.readings import Row, Rows
from fwdb.stores import MongoStore, PostgresStore, frames

DATABASES = ("postgres", "mongodb")
APPLICATION = "fwdb-monitor"

Database = Annotated[str, DATABASES]

_numbers = itertools.count(1)


class Context:
    """The stores that are watched, connections of its own to ask them on, and the history."""

    def __init__(
        self,
        postgres: PostgresStore,
        mongodb: MongoStore,
        *,
        thresholds: Thresholds | None = None,
        settings: config.Settings | None = None,
        history: PostgresStore | None = None,
        behind: Behind = lambda store: "",
    ) -> None:
        settings = settings or config.settings()
        self.thresholds = thresholds or settings.thresholds
        self.watched: tuple[PostgresStore, MongoStore] = (postgres, mongodb)
        self.postgres = postgres.twin(application_name=APPLICATION, connections=2)
        self.mongodb = mongodb.twin(application_name=APPLICATION)
        kept = history and history.twin(application_name=APPLICATION, connections=2)
        self.history = History(kept or self.postgres, days=settings.history_days)
        self.detail_days = settings.history_detail_days
        self.tidy_at = time.monotonic()  # when old readings are dealt with next
        self.ledger = CommandLedger(mongodb)
        number = next(_numbers)
        suffix = f"#{number}" if number > 1 else ""
        # Who takes the readings.
        self.process = f"{postgres.application_name}@{socket.gethostname()}:{os.getpid()}{suffix}"

        # The question of `health` to each store is asked on connections kept for it.
        self._kept = (
            postgres.twin(application_name=APPLICATION),
            mongodb.twin(application_name=APPLICATION),
        )
        self.probes = probes(*self._kept, behind)

    def close(self) -> None:
        """Close the monitor's own connections."""
        for store in (self.postgres, self.history.store, self.mongodb, *self._kept):
            store.close()


def frame(columns: Mapping[str, str], rows: Iterable[Row], **attrs: Any) -> pd.DataFrame:
    """`rows` as a DataFrame of these columns, what a row does not have missing."""
    found = frames.from_rows(
        list(columns), [[row.get(name) for name in columns] for row in rows], columns
    )
    found.attrs.update(attrs)
    return found


def both_stores(
    columns: Mapping[str, str],
    questions: Mapping[str, Callable[[], tuple[Rows, dict[str, str]]]],
    *attrs: str,
) -> pd.DataFrame:
    """The rows of each store that is asked, one store below the other.

    A question gives its rows and, by the name of an attribute of the frame, what is to be said of
    its store. ``attrs["missing"]`` says of a store why it has no rows, that it cannot be asked
    among others. Raises the first store's error when none can be.
    """
    rows: Rows = []
    notes: dict[str, dict[str, str]] = {name: {} for name in ("missing", *attrs)}
    problems: list[FwdbError] = []
    for database, ask in questions.items():
        try:
            found, told = ask()
        except FwdbError as error:
            problems.append(error)
            found, told = [], {"missing": str(error)}
        rows += found
        for name, text in told.items():
            if text:
                notes[name][database] = text
    if len(problems) == len(questions):
        raise problems[0]
    return frame(columns, rows, **notes)
