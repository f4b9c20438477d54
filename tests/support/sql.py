"""Statements on a store, in one line each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def as_role(store: PostgresStore, grants: str) -> Iterator[PostgresStore]:
    """The database as a role sees it that has no more than `grants`, which say its name as {}."""
    role = f"limited_{os.getpid()}"
    do(store, f"CREATE ROLE {role}; {grants.format(*[role] * grants.count('{}'))}")
    url = store.url.set(drivername="postgresql")
    url = url.update_query_dict({"options": f"-c role={role}"})
    limited = PostgresStore(url.render_as_string(hide_password=False))
    try:
        yield limited
    finally:
        limited.close()
        do(store, f"DROP OWNED BY {role}; DROP ROLE {role}")
