"""`fwdb migrate` on a database that the Fashion Wallet service made, with rows in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from support import DATA

from fwdb import errors, migrating, models
from fwdb.stores import PostgresStore

MADE_BY_THE_SERVICE = (DATA / "fashion_wallet.sql").read_text()


@pytest.fixture(params=["newest", "15"])
def store(request, postgres_database: Callable[..., str]) -> Iterator[PostgresStore]:
    """The existing database, in the built-in PostgreSQL and in PostgreSQL 15."""
    server = request.getfixturevalue("postgres15") if request.param == "15" else None
    store = PostgresStore(postgres_database(server))
    with store.transaction() as connection:
        connection.exec_driver_sql(MADE_BY_THE_SERVICE)
    yield store
    store.close()


def ask(store: PostgresStore, statement: str) -> list:
    return [tuple(row.values()) for row in store.rows(sa.text(statement))]


def rows(store: PostgresStore) -> list:
    """All rows of the existing tables, in the columns that the service knows."""
    return [
        ask(store, f"SELECT {columns} FROM {table} ORDER BY id")
        for table, columns in (
            ("public.migrations", "*"),
            ("shared.users", "id, email, password_hash, role, is_active, created_at, updated_at"),
            ("avatar.avatars", "*"),
            (
                "audit.audit_logs",
                "id, user_id, entity_type, entity_id, action, old_values, new_values, metadata,"
                " ip_address, user_agent, created_at",
            ),
        )
    ]


def objects(store: PostgresStore) -> set:
    """Definitions of all indexes, constraints, triggers and functions there are."""
    found = ask(
        store,
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE NOT indisprimary"
        " UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)"
        " FROM pg_constraint UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger"
        " UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE prokind = 'f'"
        " AND pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('shared', 'audit'))",
    )
    return {definition for (definition,) in found}


def test_adoption_loses_no_row_and_takes_nothing_away(store):
    """Every row is as it was, and so is every index, constraint, trigger and function."""
    before, had = rows(store), objects(store)
    changes = migrating.migrate(store, None)
    again = migrating.migrate(store, None)

    assert rows(store) == before
    assert had <= objects(store)
    assert again == []
    assert migrating.current(store) == migrating.head()
    assert {
        (change.kind, change.name)
        for change in changes
        if change.kind in {"column", "trigger", "index", "constraint"}
        and not change.name.startswith("monitoring.")
    } == {
        ("column", "shared.users.email_verified"),
        ("column", "shared.users.created_by"),
        ("column", "shared.users.updated_by"),
        ("index", "shared.users.ix_users_email_live"),
        ("index", "shared.users.ix_users_is_active_live"),
        ("index", "avatar.avatars.ix_avatars_user_id_live"),
        ("index", "catalog.catalog_items.ix_catalog_items_type_category_live"),
        ("trigger", "avatar.avatars.fwdb_touch_updated_at"),
        ("trigger", "catalog.catalog_items.fwdb_touch_updated_at"),
    }


def test_the_models_read_and_write_the_adopted_tables(store):
    """Enums take the same statements as text, and unknown columns are no obstacle: an enum, a
    nullable flag and a missing reference are information and no failure.
    """
    migrating.migrate(store, None)
    drift = migrating.drift(store, None)
    avatars, log = models.avatars, models.audit_logs
    with store.transaction() as connection:
        one = connection.execute(sa.select(avatars).where(avatars.c.gender == "female")).first()
        connection.execute(
            avatars.insert().values(
                user_id=one.user_id, name="New", gender="male", measurements={"height": 1}
            )
        )
        connection.execute(
            log.insert().values(
                user_id=one.user_id, entity_type="Avatar", entity_id=one.id, action="READ"
            )
        )
    reads = sa.select(sa.func.count().label("n")).select_from(log).where(log.c.action == "READ")

    assert store.rows(reads) == [{"n": 1}]
    assert [(d.severity, d.object) for d in drift] == [
        ("information", "shared.users.is_active"),
        ("information", "avatar.avatars.gender"),
        ("information", "avatar.avatars.user_id"),
        ("information", "audit.audit_logs.action"),
    ]


def test_going_back_keeps_the_tables_of_the_service(store):
    """A downgrade drops what fwdb made and nothing that it found."""
    before = rows(store)
    migrating.migrate(store, None)
    migrating.downgrade(store, "base")

    assert rows(store) == before
    assert ask(store, "SELECT to_regclass('catalog.catalog_items')") == [(None,)]
    migrating.migrate(store, None)
    assert rows(store) == before


def test_what_stands_in_the_way_is_left_and_said(store):
    """Making e-mails unique would need somebody to choose which account goes; without a label of
    ours in their enum, readings cannot be logged.
    """
    for statement in (
        'ALTER TABLE shared.users DROP CONSTRAINT "UQ_97672ac88f789774dd47f7c8be3"',
        "UPDATE shared.users SET email = 'same@example.com'",
        "ALTER TYPE audit.audit_logs_action_enum RENAME VALUE 'READ' TO 'VIEW'",
    ):
        store.execute(sa.text(statement))
    changes = migrating.migrate(store, None)

    assert [c.sentence for c in changes if c.kind == "constraint"] == [
        "left shared.users.email not unique: values repeat."
    ]
    assert [d.sentence for d in migrating.drift(store, None) if d.severity == "warning"] == [
        "shared.users.email is not unique.",
        "audit.audit_logs.action: the enum audit.audit_logs_action_enum has no label READ.",
    ]


def test_a_role_that_owns_nothing_is_told_so(store):
    """One sentence, no half adoption."""
    role = f"stranger_{store.url.database}"
    store.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
    store.execute(sa.text(f"GRANT CREATE ON DATABASE {store.url.database} TO {role}"))
    other = PostgresStore(
        store.url.set(username=role, password="x").render_as_string(hide_password=False)
    )
    try:
        with pytest.raises(errors.PermissionDenied):
            migrating.migrate(other, None)
    finally:
        other.close()
        store.execute(sa.text(f"DROP OWNED BY {role}"))
        store.execute(sa.text(f"DROP ROLE {role}"))

    assert migrating.current(store) is None
