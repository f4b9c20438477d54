"""Databases that tests share one after the other: emptied, and made anew where the schema changed.

A copy of a migrated database costs some ten times what it costs to put its rows back. What a test
leaves is told by a fingerprint of the catalogs: only a database whose schema is as it was made is
given out again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pymongo
from pymongo.errors import PyMongoError
from sqlalchemy.engine import make_url

numbers = itertools.count(1)

# What only DDL changes: TRUNCATE, VACUUM and ANALYZE change other columns of pg_class. Of other
# catalogs any row counts that has come, gone or got another version, and of what the server brings
# along those with rights.
_CLASSES = """
SELECT hashtext(concat_ws(' ', oid, relname, relnamespace, relkind, relowner, relacl, reloptions,
    relrowsecurity, relforcerowsecurity, relispartition, relpartbound)) AS n
FROM pg_class WHERE oid >= 16384 AND relkind <> 't' OR relacl IS NOT NULL
"""
_VERSIONS = {
    "pg_attribute": "attrelid >= 16384 OR attacl IS NOT NULL",
    "pg_proc": "oid >= 16384 OR proacl IS NOT NULL",
    "pg_namespace": "true",
    "pg_extension": "true",
    "pg_event_trigger": "true",
    "pg_default_acl": "true",
    **dict.fromkeys(("pg_trigger", "pg_policy", "pg_sequence", "pg_inherits", "pg_enum"), "true"),
    "pg_rewrite": "ev_class >= 16384",
    "pg_index": "indexrelid >= 16384",
    **dict.fromkeys(
        ("pg_type", "pg_constraint", "pg_attrdef", "pg_operator", "pg_cast", "pg_opclass"),
        "oid >= 16384",
    ),
}
_XMIN = "count(*) AS rows, coalesce(sum(CAST(CAST(xmin AS text) AS bigint)), 0) AS versions"
_SCHEMA = (
    f"SELECT count(*) AS rows, sum(n) AS versions FROM ({_CLASSES}) AS c UNION ALL "
    + " UNION ALL ".join(f"SELECT {_XMIN} FROM {name} WHERE {of}" for name, of in _VERSIONS.items())
    + """ UNION ALL
SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = datname), hashtext(concat_ws(' ',
    datdba, datallowconn, datconnlimit, datacl,
    (SELECT string_agg(concat_ws(' ', setrole, setconfig), ' ' ORDER BY setrole)
     FROM pg_db_role_setting WHERE setdatabase = d.oid)))
FROM pg_database AS d WHERE datname = current_database()"""
)
_TABLES = """
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1
"""
_SEQUENCES = """
SELECT format('SELECT setval(%L, %s, %L);', format('%I.%I', schemaname, sequencename),
    coalesce(last_value, 1), last_value IS NOT NULL)
FROM pg_sequences WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
"""
_OTHERS = """
SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend';
"""
_MANY = 5_000  # rows beyond which a copy is cheaper than what they leave behind


def plain(url: str) -> str:
    """`url` as libpq takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class PostgresPool:
    """Copies of the database `template` on the server of the superuser's URL `admin`."""

    def __init__(self, admin: str, template: str) -> None:
        self._admin = admin
        self.template = template
        self._free: list[str] = []
        self._rows: dict[str, list[Any]] = {}
        # Of each database, schema and rows: a copy has versions of its own.
        self._known: dict[str, tuple[Any, Any]] = {}
        with psycopg.connect(self.url(template)) as connection:
            for (name,) in connection.execute(_TABLES).fetchall():
                with connection.cursor().copy(f"COPY {name} TO STDOUT") as copy:
                    self._rows[name] = list(copy)
            sequences = connection.execute(_SEQUENCES).fetchall()
        self._sequences = "".join(statement for (statement,) in sequences)
        self._versions = " UNION ALL ".join(f"SELECT {_XMIN} FROM {name}" for name in self._rows)

    def url(self, name: str) -> str:
        """The superuser's URL of a database of this server, for libpq."""
        found = make_url(self._admin).set(drivername="postgresql", database=name)
        return found.render_as_string(hide_password=False)

    def take(self) -> str:
        """The name of a database that is as the template."""
        if self._free:
            return self._free.pop()
        name = f"test_{os.getpid()}_{next(numbers)}"
        with psycopg.connect(plain(self._admin), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            self._known[name] = self._state(connection)
        return name

    def give_back(self, name: str) -> None:
        """Put its rows back; a database of which that cannot be done is dropped."""
        schema, rows = self._known[name]
        try:
            with psycopg.connect(self.url(name), autocommit=True) as connection:
                connection.execute(_OTHERS + self._sequences)
                found, now = self._state(connection)
                changed = [
                    table
                    for table, one, other in zip(self._rows, rows, now, strict=True)
                    if one != other
                ]
                if found == schema and sum(n for n, _ in now) < _MANY:
                    if changed:
                        self._reset(connection, changed)
                        self._known[name] = self._state(connection)
                    self._free.append(name)
                    return
        except psycopg.Error:
            pass  # it does not take its rows, or no connection
        self._drop(name)

    def close(self) -> None:
        """Drop all that are free."""
        while self._free:
            self._drop(self._free.pop())

    def _drop(self, name: str) -> None:
        with psycopg.connect(plain(self._admin), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _state(self, connection: psycopg.Connection[Any]) -> tuple[Any, Any]:
        """The state of the schema, and that of each table."""
        cursor = connection.execute(f"{_SCHEMA}; {self._versions}")
        schema = cursor.fetchall()
        cursor.nextset()
        return schema, cursor.fetchall()

    def _reset(self, connection: psycopg.Connection[Any], changed: list[str]) -> None:
        """Put back the rows of the tables that `changed`, and all of the trail, which notices."""
        trail = [name for name in self._rows if name.startswith("audit.")]
        with connection.transaction():
            connection.execute(
                "SET LOCAL session_replication_role = replica; SET LOCAL lock_timeout = '2s'"
            )
            for emptied in ([name for name in changed if name not in trail], trail):
                connection.execute("".join(f"DELETE FROM {name};" for name in emptied))
                for name in filter(self._rows.get, emptied):
                    with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
                        for row in self._rows[name]:
                            copy.write(row)


class MongoPool:
    """Databases of the server at `url_of(name)` that `prepare(url)` has made, without documents."""

    def __init__(self, url_of: Any, prepare: Any) -> None:
        self._url_of = url_of
        self._prepare = prepare
        self._free: list[str] = []
        self._known: dict[str, Any] = {}

    def take(self) -> str:
        """The URL of a database that is as it was prepared."""
        if self._free:
            return self._free.pop()
        url: str = self._url_of(f"test_{os.getpid()}_{next(numbers)}")
        self._prepare(url)
        with self._database(url) as database:
            self._known[url] = self._schema(database), self._documents(database)
        return url

    def give_back(self, url: str) -> None:
        """Put its documents back; a database that has another schema now is dropped."""
        schema, documents = self._known[url]
        try:
            with self._database(url) as database:
                if self._schema(database) == schema:
                    for name, kept in documents.items():
                        database[name].delete_many({})
                        if kept:
                            database[name].insert_many(kept)
                    self._free.append(url)
                    return
        except PyMongoError:
            pass
        self._drop(url)

    def close(self) -> None:
        """Drop all that are free."""
        while self._free:
            self._drop(self._free.pop())

    @contextmanager
    def _database(self, url: str) -> Iterator[pymongo.database.Database[Any]]:
        with pymongo.MongoClient[Any](url) as client:
            yield client.get_default_database()

    def _drop(self, url: str) -> None:
        with self._database(url) as database:
            database.client.drop_database(database.name)

    @staticmethod
    def _schema(database: pymongo.database.Database[Any]) -> Any:
        return sorted(
            (one["name"], repr(one), repr(list(database[one["name"]].list_indexes())))
            for one in database.list_collections()
        )

    @staticmethod
    def _documents(database: pymongo.database.Database[Any]) -> dict[str, list[Any]]:
        return {name: list(database[name].find()) for name in database.list_collection_names()}
