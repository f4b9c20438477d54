"""Statements on a store, in one line each."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fwdb.stores import PostgresStore


def do(store: PostgresStore, statement: str, **given: Any) -> None:
    store.execute(sa.text(statement), given)


def ask(store: PostgresStore, statement: str, **given: Any) -> list[dict[str, Any]]:
    return store.rows(sa.text(statement), **given)


def value(store: PostgresStore, statement: str, **given: Any) -> Any:
    """The first column of the first row."""
    return next(iter(ask(store, statement, **given)[0].values()))


def clock(store: PostgresStore) -> datetime:
    return value(store, "SELECT clock_timestamp()")
