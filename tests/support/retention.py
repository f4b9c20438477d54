"""What the tests of retention and of archives share: a trail by months with rows of the past."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fwdb import cli, config
from fwdb.audit import Audit
from fwdb.database import Database
from fwdb.stores import PostgresStore
from support.sql import ask, do, value
from support.urls import url_of

NOW = datetime.now(UTC)

RESET = """
DO $$ DECLARE
    month regclass;
BEGIN
    FOR month IN
        SELECT oid FROM pg_class
        WHERE relnamespace = CAST('audit' AS regnamespace) AND relname LIKE 'audit_logs_20%'
            AND relkind = 'r'
    LOOP
        EXECUTE format('DROP TABLE %s', month);
    END LOOP;
    ALTER TABLE audit.audit_logs DROP COLUMN IF EXISTS later;
    DELETE FROM audit.archives;
    DELETE FROM audit.seals;
    DELETE FROM audit.holds;
    PERFORM audit.add_partitions(current_date, CAST(now() + interval '3 months' AS date));
END $$"""


def month(ago: int) -> datetime:
    """The start of the month that was `ago` months before this one."""
    months = NOW.year * 12 + NOW.month - 1 - ago
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def name(ago: int) -> str:
    return f"{month(ago):%Y-%m}"


def days_into(ago: int, days: float) -> datetime:
    return month(ago) + timedelta(days=days)


@pytest.fixture(name="archive")
def archive_fixture(tmp_path: Path) -> Path:
    """The folder for archived months; it need not exist."""
    return tmp_path / "archive"


@pytest.fixture(name="settings")
def settings_fixture(archive: Path) -> config.Settings:
    return config.settings().model_copy(update={"audit_archive": archive})


@pytest.fixture(name="open_trail")
def open_trail_fixture(settings: config.Settings) -> Iterator[Callable[[str], Audit]]:
    """Opens the trail of a database by its URL."""
    opened: list[Audit] = []

    def trail(url: str) -> Audit:
        opened.append(Audit(PostgresStore(url), settings=settings))
        return opened[-1]

    yield trail
    for audit in opened:
        audit.postgres.close()


@pytest.fixture(name="audit")
def audit_fixture(module_db: Database, open_trail: Callable[[str], Audit]) -> Audit:
    """The trail of a migrated database, with the months from now on and no row."""
    audit = open_trail(url_of(module_db.postgres))
    do(audit.postgres, RESET)
    return audit


def put(audit: Audit, *rows: dict[str, Any] | datetime) -> None:
    """Rows of the past: of a moment, or with whatever is given."""
    given = [row if isinstance(row, dict) else {"created_at": row} for row in rows]
    first = min(row["created_at"] for row in given)
    if value(audit.postgres, "SELECT to_regproc('audit.add_partitions')"):
        made = "SELECT audit.add_partitions(CAST(:first AS date), current_date)"
        ask(audit.postgres, made, first=first)
    usual = {"entity_type": "User", "action": "UPDATE", "user_id": None}
    audit.postgres.copy(
        "audit.audit_logs",
        pd.DataFrame([{**usual, "entity_id": str(uuid.uuid4()), **row} for row in given]),
    )


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="fwdb")
def fwdb_fixture(
    servers: Any, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Audit], Command]:
    """Runs ``fwdb audit …`` on the database of a trail: exit code, output, what was said."""

    def on(audit: Audit) -> Command:
        monkeypatch.setenv("FWDB_POSTGRES_URL", url_of(audit.postgres))
        monkeypatch.setenv("FWDB_MONGODB_URL", servers.mongodb)
        monkeypatch.setenv("FWDB_AUDIT_ARCHIVE", str(archive))

        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["fwdb", "audit", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            return int(ended.value.code or 0), *capsys.readouterr()

        return run

    return on


def states(audit: Audit) -> dict[str, str]:
    """The months that are there, and how."""
    found = audit.partitions()
    return dict(zip(found["month"], found["state"], strict=True))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
