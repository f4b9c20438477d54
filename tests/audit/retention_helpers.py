"""What the tests of retention and of archives share: a trail by months with rows of the past."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from fwdb import config
from fwdb.audit import Audit
from fwdb.stores import PostgresStore

NOW = datetime.now(UTC)


def month(ago: int) -> datetime:
    """The start of the month that was `ago` months before this one."""
    months = NOW.year * 12 + NOW.month - 1 - ago
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def name(ago: int) -> str:
    return f"{month(ago):%Y-%m}"


def days_into(ago: int, days: float) -> datetime:
    return month(ago) + timedelta(days=days)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The folder for archived months; it need not exist."""
    return tmp_path / "archive"


@pytest.fixture
def settings(archive: Path) -> config.Settings:
    return config.settings().model_copy(update={"audit_archive": archive})


@pytest.fixture
def open_trail(settings: config.Settings) -> Iterator[Callable[[str], Audit]]:
    """Opens the trail of a database by its URL."""
    opened: list[Audit] = []

    def trail(url: str) -> Audit:
        opened.append(Audit(PostgresStore(url), settings=settings))
        return opened[-1]

    yield trail
    for audit in opened:
        audit._postgres.close()


@pytest.fixture
def audit(
    template: str, postgres_database: Callable[..., str], open_trail: Callable[[str], Audit]
) -> Audit:
    """The trail of a migrated database of this test alone."""
    return open_trail(postgres_database(template=template))


def put(audit: Audit, *rows: dict[str, Any] | datetime) -> None:
    """Rows of the past: of a moment, or with whatever is given."""
    given = [row if isinstance(row, dict) else {"created_at": row} for row in rows]
    first = min(row["created_at"] for row in given)
    asked = sa.text("SELECT audit.add_partitions(CAST(:first AS date), current_date)")
    audit._postgres.rows(asked, first=first)
    usual = {"entity_type": "User", "action": "UPDATE", "user_id": None}
    audit._postgres.copy(
        "audit.audit_logs",
        pd.DataFrame([{**usual, "entity_id": str(uuid.uuid4()), **row} for row in given]),
    )


def states(audit: Audit) -> dict[str, str]:
    """The months that are there, and how."""
    found = audit.partitions()
    return dict(zip(found["month"], found["state"], strict=True))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
