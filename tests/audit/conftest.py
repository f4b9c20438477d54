"""The audit trail over two databases: one of our migrations, one of the existing service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from support import retention
from support.retention import (  # noqa: F401
    archive_fixture,
    fwdb_fixture,
    open_trail_fixture,
    settings_fixture,
)
from support.sql import ask, do, value

from fwdb.audit import Audit
from fwdb.stores import PostgresStore, without_capture

# What the existing service's migrations leave: no partitions, an enum, a foreign key.
EXISTING = """
CREATE SCHEMA shared;
CREATE SCHEMA audit;
CREATE TABLE shared.users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email varchar(255) NOT NULL UNIQUE,
    password_hash varchar(255) NOT NULL DEFAULT 'x',
    first_name varchar(100) NOT NULL DEFAULT 'A',
    last_name varchar(100) NOT NULL DEFAULT 'B'
);
CREATE TYPE audit.audit_action AS ENUM ('CREATE', 'UPDATE', 'DELETE', 'READ');
CREATE TABLE audit.audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid REFERENCES shared.users (id) ON DELETE SET NULL,
    entity_type varchar(100) NOT NULL,
    entity_id uuid NOT NULL,
    action audit.audit_action NOT NULL,
    old_values jsonb,
    new_values jsonb,
    metadata text,
    ip_address varchar(45),
    user_agent text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON audit.audit_logs (user_id, created_at DESC);
CREATE INDEX ON audit.audit_logs (entity_type, entity_id);
CREATE INDEX ON audit.audit_logs (action, created_at DESC);
CREATE INDEX ON audit.audit_logs (created_at DESC);
"""


@pytest.fixture(scope="session")
def existing() -> str:
    """The statements that make the trail of the existing service."""
    return EXISTING


@pytest.fixture(scope="session", params=["own", "existing"])
def made(request: pytest.FixtureRequest, servers: Any) -> Iterator[PostgresStore]:
    """A database made by our migrations, and one that the existing service made."""
    name = f"test_{os.getpid()}_audit_{request.param}"
    own = request.param == "own"
    template = f" TEMPLATE {request.getfixturevalue('template')}" if own else ""
    admin = PostgresStore(servers.postgres)
    do(admin, f"CREATE DATABASE {name}{template}")
    url = make_url(servers.postgres).set(database=name)
    store = PostgresStore(url.render_as_string(hide_password=False))
    if not own:
        do(store, EXISTING)
    yield store
    store.close()
    do(admin, f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()


@pytest.fixture
def store(made: PostgresStore) -> PostgresStore:
    """The database with an empty trail."""
    do(made, "DELETE FROM shared.users WHERE email LIKE '%@example.com'")
    do(made, "TRUNCATE audit.audit_logs")
    return made


@pytest.fixture
def audit(store: PostgresStore) -> Audit:
    return Audit(store)


@pytest.fixture
def actor(store: PostgresStore) -> str:
    """The id of a user who does things."""
    made = (
        "INSERT INTO shared.users (email, password_hash, first_name, last_name)"
        " VALUES ('actor@example.com', 'x', 'A', 'C') RETURNING id"
    )
    with without_capture(store, ["shared.users"]):
        return str(value(store, made))


@pytest.fixture
def count(store: PostgresStore) -> Callable[[], int]:
    """The number of rows of the trail."""
    return lambda: int(value(store, "SELECT count(*) AS n FROM audit.audit_logs"))


@pytest.fixture
def put(audit: Audit) -> Callable[[list[dict[str, Any]]], None]:
    """Writes rows of the past, which `log_…` cannot; months of three years are there."""
    if value(audit.postgres, "SELECT to_regproc('audit.add_partitions')"):
        since = "CAST(now() - interval '3 years' AS date)"
        ask(audit.postgres, f"SELECT audit.add_partitions({since}, current_date)")
    return lambda rows: retention.put(audit, *rows)
