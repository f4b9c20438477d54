"""A database in which tables are captured, and the changes it recorded."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa

from fwdb.stores import PostgresStore
from support import DATA
from support.urls import url_of

THINGS = """
CREATE SCHEMA IF NOT EXISTS shop;
CREATE TABLE shop.things (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text, price numeric, tags jsonb,
    at timestamptz, updated_at timestamptz, deleted_at timestamptz
)
"""


class Captured:
    """What happens to tables of `store`, and the rows of the trail that come of it."""

    def __init__(self, store: PostgresStore, *, emptied: bool = True) -> None:
        self.store = store
        if not emptied:
            return
        self.run("DROP SCHEMA IF EXISTS shop CASCADE")
        # What a test before left captured is gone with its schema.
        self.run("SELECT audit.recapture()")
        self.run("DELETE FROM audit.audit_logs")
        self.run(THINGS)

    @property
    def url(self) -> str:
        return url_of(self.store)

    def run(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        result = self.store.execute(sa.text(statement), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []

    def capture(self, table: str = "shop.things", **options: Any) -> None:
        """As `audit.capture`, with the entity type Thing."""
        ignore = {"ignore": ["updated_at"]} if table == "shop.things" else {}
        given = {"entity_type": "Thing", **ignore, **options}
        if isinstance(given.get("redact"), dict):
            given["redact"] = json.dumps(given["redact"])
        types = {"redact": "jsonb", "ignore": "text[]"}
        names = ", ".join(f"{n} => CAST(:{n} AS {types.get(n, 'text')})" for n in given)
        self.run(f"SELECT audit.capture(CAST(:table AS regclass), {names})", table=table, **given)

    def trail(self, entity_type: str = "Thing") -> list[tuple[Any, ...]]:
        """Action, old and new values, metadata of each change, in order."""
        return self.run(
            "SELECT action, old_values, new_values, metadata FROM audit.audit_logs"
            " WHERE entity_type = :type ORDER BY created_at, id",
            type=entity_type,
        )

    def actions(self, entity_type: str = "Thing") -> list[str]:
        return [row[0] for row in self.trail(entity_type)]

    def table(self, name: str = "shop.things") -> dict[str, Any]:
        """The rows that there are, by id, as the trail would write them."""
        with self.session() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            found = connection.execute(f"SELECT to_jsonb(t) FROM {name} AS t").fetchall()
        return {row["id"]: row for (row,) in found}

    def replayed(self, entity_type: str = "Thing") -> dict[str, Any]:
        """The rows that follow from the trail alone."""
        rows: dict[str, Any] = {}
        statement = (
            "SELECT entity_id, action, old_values, new_values FROM audit.audit_logs"
            " WHERE entity_type = :type ORDER BY created_at, id"
        )
        for id, action, old, new in self.run(statement, type=entity_type):
            id = str(id)
            if action == "CREATE":
                assert id not in rows, f"{id} was made twice"
                rows[id] = new
            elif new is None:
                assert rows.pop(id) == old
            else:
                assert {name: rows[id][name] for name in old} == old
                rows[id] = {**rows[id], **new}
        return rows

    @contextmanager
    def session(self, user: str | None = None) -> Iterator[psycopg.Connection[Any]]:
        """A connection of its own; `user` is a role that may log in with the password x."""
        url = self.store.url.set(drivername="postgresql")
        if user is not None:
            url = url.set(username=user, password="x")
        with psycopg.connect(
            url.render_as_string(hide_password=False), autocommit=True
        ) as connection:
            yield connection


def thing(captured: Captured, name: str = "a", **columns: Any) -> str:
    """The id of a new thing."""
    id = str(uuid.uuid4())
    given = {"id": id, "name": name, **columns}
    names, values = ", ".join(given), ", ".join(f":{n}" for n in given)
    captured.run(f"INSERT INTO shop.things ({names}) VALUES ({values})", **given)
    return id


def adopted(url: str) -> PostgresStore:
    """A database as the migrations and seed data of the existing service leave it."""
    store = PostgresStore(url)
    with store.transaction() as connection:
        connection.exec_driver_sql((DATA / "fashion_wallet.sql").read_text())
    return store
