"""Databases that tests share are given out as they were made."""

from __future__ import annotations

import psycopg
import pytest

ROWS = "SELECT (SELECT count(*) FROM shared.users), (SELECT count(*) FROM audit.audit_logs)"


def test_rows_are_put_back_and_what_they_left_in_the_trail_is_gone(postgres_pool):
    name = postgres_pool.take()
    with psycopg.connect(postgres_pool.url(name)) as connection:
        before = connection.execute(ROWS).fetchone()
        connection.execute("DELETE FROM avatar.avatars")
        connection.execute("UPDATE shared.users SET first_name = 'Eve', created_by = NULL")
        connection.execute("TRUNCATE audit.audit_logs")
        connection.execute("DELETE FROM shared.users")
    postgres_pool.give_back(name)

    assert postgres_pool.take() == name
    with psycopg.connect(postgres_pool.url(name)) as connection:
        assert connection.execute(ROWS).fetchone() == before
        eves = connection.execute("SELECT count(*) FROM shared.users WHERE first_name = 'Eve'")
        assert eves.fetchone() == (0,)
    postgres_pool.give_back(name)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE shared.other (id int)",
        "ALTER TABLE shared.users ADD COLUMN nickname text",
        'ALTER TABLE shared.users DISABLE TRIGGER "00_fwdb_audit"',
        "GRANT SELECT ON shared.users TO PUBLIC",
        "CREATE OR REPLACE FUNCTION shared.f() RETURNS int LANGUAGE sql RETURN 1",
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(float8) FROM PUBLIC",
        "ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY",
    ],
)
def test_a_database_with_another_schema_is_not_given_out_again(postgres_pool, change):
    name = postgres_pool.take()
    with psycopg.connect(postgres_pool.url(name)) as connection:
        connection.execute(change)
    postgres_pool.give_back(name)

    again = postgres_pool.take()
    assert again != name
    postgres_pool.give_back(again)
