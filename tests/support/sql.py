"""Statements on a store, in one line each."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from fwdb.stores import PostgresStore


def do(store: PostgresStore, statement: str, **given: Any) -> None:
    store.execute(sa.text(statement), given)


def ask(store: PostgresStore, statement: str, **given: Any) -> list[dict[str, Any]]:
    return store.rows(sa.text(statement), **given)
