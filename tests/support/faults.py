"""What the faults of the catalogue are made with, and how a check is asked about frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from fwdb import config
from fwdb.database import Database
from fwdb.reports import check
from fwdb.reports.parameters import window
from fwdb.reports.results import Check
from fwdb.stores import MongoStore, PostgresStore
from support.urls import url_of

# What the sentences of a fault are filled with, and maybe the `db` that is to report it.
Facts = dict[str, Any]
ME = os.getpid()


@dataclass(frozen=True)
class Scene:
    """What a fault has to work with."""

    db: Database
    patch: pytest.MonkeyPatch
    wait_until: Callable[..., None]

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.db.postgres.execute(sa.text(statement))

    def limits(self, text: str) -> None:
        """Moves lines of checks, as FWDB_LIMITS does."""
        lower(self.db, text)

    def hour_ago(self) -> None:
        """What was sampled till now, an hour ago."""
        self.run(
            "UPDATE monitoring.readings SET read_at = read_at - interval '61 minutes', details = "
            "details || CASE WHEN details ? 'commands_since' THEN jsonb_build_object("
            "'commands_since', CAST(details ->> 'commands_since' AS timestamptz) "
            "- interval '61 minutes') ELSE '{}' END"
        )


def lower(db: Database, limits: str) -> None:
    """Moves lines of checks for one database, as FWDB_LIMITS does."""
    db.settings = db.settings.model_copy(update={"limits": config.limits(limits)})


def judge(
    report: str,
    rule: check.Rule,
    frames: dict[str, Any],
    *,
    db: Any = None,
    settings: config.Settings | None = None,
    checks: Iterable[Check] = (),
    **given: Any,
) -> check.Facts:
    """What a check of a report finds in these frames, without a server."""
    parameters = check.module(report).Parameters(**given)
    settings = settings or config.settings()
    facts = check.gather(report, db, window("1h", "now"), parameters, settings)
    facts.frames |= frames
    facts.checks += checks
    check.run(facts, [rule])
    return facts


@contextmanager
def application(db: Database, name: str, **update: Any) -> Iterator[Database]:
    """The same databases as another program sees them."""
    settings = config.settings().model_copy(update=update)
    url = url_of(db.postgres)
    with Database(
        PostgresStore(url, application_name=name, settings=settings),
        MongoStore(url_of(db.mongodb), application_name=name, settings=settings),
        settings=settings,
    ) as found:
        yield found


def thresholds(**update: Any) -> config.Thresholds:
    return config.settings().thresholds.model_copy(update=update)


def in_threads(*jobs: Callable[[], object]) -> ExitStack:
    """Runs `jobs` at once; leaving waits for them."""
    stack = ExitStack()
    for job in jobs:
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        stack.callback(thread.join)
    return stack


def pid(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
