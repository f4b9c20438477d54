"""The PostgreSQL store: pool, transactions, frames, loads, and errors by SQLSTATE."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd
import psycopg
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection, CursorResult, Engine
from sqlalchemy.sql import Executable

from fwdb import config, errors, queries
from fwdb.errors import FwdbError
from fwdb.stores import actor, dialling, frames, opening, sqlstate
from fwdb.stores.failures import error_type, without_values
from fwdb.stores.pools import Hold, PoolStats, WaitCountingPool, anew_in_child
from fwdb.stores.statements import time_statements
from fwdb.stores.timings import CONNECT, OWN, QueryStats, QueryTimes

T = TypeVar("T")

_HOLDERS = sa.text(f"""
    SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed') AS application,
           a.state
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_class c ON c.oid = l.relation
    WHERE l.granted AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (CAST(c.relnamespace AS regnamespace) || '.' || c.relname LIKE ANY (:tables)
           OR l.locktype = 'advisory' AND l.classid = 0 AND l.objid = :key)
    ORDER BY a.pid {OWN}
""")

ISOLATIONS = ("read committed", "repeatable read", "serializable")


class PostgresStore:
    """One PostgreSQL database. Nothing is dialled before the first question.

    Outside a transaction each statement commits by itself. Inside ``with store.transaction()``
    every call on this store from the same thread joins that transaction.
    """

    name = "postgres"

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "fwdb",
        settings: config.Settings | None = None,
        read_only: bool = False,
        monitors: bool = False,
        remedy: str = "Check FWDB_POSTGRES_URL.",
    ) -> None:
        settings = settings or config.settings()
        self.url = dialling.parse_url(url)
        self.address = config.address(url, 5432)
        self.application_name = application_name
        self.read_only = read_only
        self._settings = settings
        self._remedy = remedy
        self._waits_for = "FWDB_MONITOR_TIMEOUT_SECONDS" if monitors else "FWDB_TIMEOUT_SECONDS"
        self._local = threading.local()
        self._functions: set[str] = set()
        self._session = dialling.session(
            timeout_ms=round(1000 * settings.statement_timeout_seconds),
            lock_timeout_ms=100 if monitors else 0,
            read_only=read_only,
        )
        self._open()
        anew_in_child(self._open)

    def _open(self) -> None:
        """Begin with no connection and with no counts, as each process does."""
        settings = self._settings
        self._of_parent = self.__dict__.get("engine")  # kept: closing its connections is not ours
        keepalives = {n: v for n, v in self.url.query.items() if n.startswith("keepalives")}
        self.engine: Engine = sa.create_engine(
            self.url,
            poolclass=WaitCountingPool,
            pool_size=settings.pool_size,
            max_overflow=settings.pool_max_overflow,
            pool_timeout=settings.pool_timeout_seconds,
            pool_recycle=int(settings.pool_lifetime_seconds),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": max(2, round(settings.connect_timeout_seconds)),
                "application_name": self.application_name,
                # Those of the URL win.
                **dialling.keepalive(settings.timeout_seconds),
                **keepalives,
            },
        )
        self.engine.dialect.do_ping = dialling.Session.ping  # type: ignore[assignment]
        self.times = QueryTimes(slow_ms=settings.thresholds.slow_query_ms)
        time_statements(self.engine, self.times)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        pool = self.engine.pool
        assert isinstance(pool, WaitCountingPool)
        self._usage = pool.usage
        sa.event.listen(self.engine, "do_connect", self._dial)
        sa.event.listen(self.engine, "close", self._usage.connection_closed)
        sa.event.listen(self.engine, "close_detached", self._usage.connection_closed)
        sa.event.listen(self.engine, "invalidate", self._usage.connection_invalidated)

    def __repr__(self) -> str:
        return f"PostgresStore({self.address})"

    def twin(self, *, application_name: str, connections: int = 1) -> PostgresStore:
        """A second store on the same database with a small pool of its own.

        For questions about the server: they neither take a connection from the work nor wait
        long behind it (100 ms for a lock, 2 s for a connection, FWDB_MONITOR_TIMEOUT_SECONDS for
        an answer).
        """
        seconds = self._settings.monitor_timeout_seconds
        small = {
            "pool_size": connections,
            "pool_max_overflow": 0,
            "connect_timeout_seconds": min(2.0, self._settings.connect_timeout_seconds),
            "statement_timeout_seconds": 0.9 * seconds,  # the rest is for saying so
            "timeout_seconds": seconds,
        }
        return PostgresStore(
            self.url.render_as_string(hide_password=False),
            application_name=application_name,
            settings=self._settings.model_copy(update=small),
            read_only=self.read_only,
            monitors=True,
            remedy=self._remedy,
        )

    def _dial(
        self,
        dialect: sa.engine.Dialect,
        record: object,
        arguments: list[Any],
        options: dict[str, Any],
    ) -> dialling.Session:
        """A new connection with our settings, in the time that counts as dialling."""
        settings = self._settings
        with self._usage.dialling(record):
            connection = dialling.Session.connect(*arguments, **options)
            try:
                connection.silence = connection.ping_seconds = settings.connect_timeout_seconds
                dialling.prepare(connection, self._session, self.address)
            except BaseException:
                connection.close()
                raise
            connection.silence = settings.timeout_seconds
            connection.allow(settings.statement_timeout_seconds)
            connection.answers = lambda: dialling.answers(*arguments, **options)
            return connection

    # -- connections and transactions ---------------------------------------------------------

    @contextmanager
    def connection(self, *, naming: bool = True) -> Iterator[Connection]:
        """A connection: the open transaction's, else one that commits each statement.

        While somebody acts (`fwdb.stores.actor`), what is done on it is one short transaction
        that names them; without `naming` it is not, for what changes nothing or tells itself.
        """
        current: Connection | None = getattr(self._local, "connection", None)
        with self.errors():
            if current is not None:
                yield current
            elif not naming or self.read_only or actor.current() is None:
                with self._connect(self._autocommit) as connection:
                    yield connection
            else:
                with self._connect(self.engine) as connection, connection.begin():
                    opening.begin(connection, actor.current())
                    yield connection

    def _connect(self, engine: Engine) -> Connection:
        """A connection of the pool; not to get one is an operation that failed."""
        started = time.perf_counter()
        try:
            return engine.connect()
        except BaseException as error:
            self.times.add(CONNECT, time.perf_counter() - started, error_type(error))
            raise

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside ``with store.transaction()``."""
        return getattr(self._local, "connection", None) is not None

    @contextmanager
    def transaction(
        self,
        *,
        isolation: str | None = None,
        timeout_ms: int | None = None,
        read_only: bool = False,
    ) -> Iterator[Connection]:
        """A transaction, or a savepoint when one is open; rolled back on any error.

        `isolation` is ``read committed`` (the server's default), ``repeatable read`` or
        ``serializable``; `timeout_ms` bounds each statement in it, 0 for long work by
        FWDB_LONG_TIMEOUT_SECONDS, of which waits for locks may take FWDB_TIMEOUT_SECONDS. Who
        acts is named in the same round trip as BEGIN, unless nothing can be written. Raises
        `Transient` when the same work may succeed if tried again; `run` does that.
        """
        if isolation is not None and isolation.lower() not in ISOLATIONS:
            raise errors.UnknownName("isolation", isolation, ISOLATIONS)
        current: Connection | None = getattr(self._local, "connection", None)
        with self.errors():
            if current is not None:
                with current.begin_nested():
                    yield current
                return
            with self._connect(self.engine) as connection:
                if isolation is not None:
                    connection = connection.execution_options(isolation_level=isolation.upper())
                with connection.begin():
                    writes = not (read_only or self.read_only)
                    who = actor.current() if writes else None
                    limits = self._limits(timeout_ms)
                    opening.begin(connection, who, limits=limits, read_only=read_only)
                    self._local.connection = connection
                    try:
                        with (
                            self._allowing(connection, limits),
                            opening.hearing(connection, self.errors) if writes else nullcontext(),
                        ):
                            yield connection
                    finally:
                        self._local.connection = None

    def _limits(self, timeout_ms: int | None) -> dict[str, int]:
        """The limits in milliseconds that a transaction has of its own."""
        if timeout_ms is None:
            return {}
        if timeout_ms:
            return {"statement_timeout": timeout_ms}
        settings = self._settings
        return {
            "statement_timeout": round(1000 * settings.long_timeout_seconds),
            "lock_timeout": round(1000 * settings.timeout_seconds),
        }

    @contextmanager
    def _allowing(self, connection: Connection, limits: Mapping[str, int]) -> Iterator[None]:
        """While the block, a transaction, runs, its own limit on statements is what counts."""
        if not limits:
            yield
            return
        driver = frames.driver_of(connection)
        driver.allow(limits["statement_timeout"] / 1000)
        try:
            yield
        finally:
            driver.allow(self._settings.statement_timeout_seconds)

    def run(
        self,
        work: Callable[[], T],
        *,
        retries: int = 3,
        first_delay_ms: float = 100,
        isolation: str | None = None,
    ) -> T:
        """What `work()` returns, run in a transaction and again after a `Transient` error.

        The wait doubles from `first_delay_ms`, with up to half of it left to chance so that two
        rivals do not meet again.
        """
        for attempt in range(retries + 1):
            try:
                with self.transaction(isolation=isolation):
                    return work()
            except errors.Transient:
                if attempt == retries or self.in_transaction:
                    raise
                delay = first_delay_ms * 2**attempt
                time.sleep((delay - random.uniform(0, delay / 2)) / 1000)  # noqa: S311
        raise AssertionError("unreachable: the last attempt returns or raises")

    # -- asking -------------------------------------------------------------------------------

    def rows(self, query: str | Executable, /, **parameters: Any) -> list[dict[str, Any]]:
        """All rows of a query file or statement as dictionaries; for small answers."""
        statement = self._statement(query, parameters)
        with self.connection(naming=not opening.only_reads(query)) as connection:
            result = connection.execute(statement, parameters)
            names = list(result.keys())
            # Much quicker than dict(row): each mapping of SQLAlchemy looks its keys up again.
            return [dict(zip(names, row, strict=True)) for row in result]

    def frame(
        self,
        query: str | Executable,
        /,
        **parameters: Any,
    ) -> pd.DataFrame:
        """The answer of a query file, or of a statement, as a DataFrame.

        A query file (given by name) has the column types that its header declares. A statement
        comes through COPY in the types of `fwdb.stores.frames`; both keep columns and types
        when there are no rows.
        """
        statement = self._statement(query, parameters)
        with self.connection(naming=not opening.only_reads(query)) as connection:
            if isinstance(query, str):
                result = connection.execute(statement, parameters)
                declared = queries.load(query).columns
                return frames.from_rows(list(result.keys()), result.fetchall(), declared)
            with self.times.timed("copy"):
                return frames.from_copy(connection, statement, parameters)

    def lines(
        self, statement: Executable, feed: Callable[[bytes], Any], /, **parameters: Any
    ) -> None:
        """Give `feed` each row as a line of COPY's text format, without its line end.

        As the rows arrive, so that the server goes on while one is looked at; none is kept.
        """
        with self.connection() as connection, self.times.timed("copy"):
            frames.each_line(connection, statement, parameters, feed)

    def stream(
        self,
        statement: Executable,
        consume: Callable[[pa.Table], None],
        /,
        *,
        batch_bytes: int = 16 << 20,
        **parameters: Any,
    ) -> None:
        """Hand the answer of `statement` to `consume`, in Arrow tables of some `batch_bytes`.

        For answers that do not fit into memory. The types are those of `fwdb.stores.frames`
        before they become pandas'; at least one table comes, also when there are no rows.
        """
        with self.connection() as connection, self.times.timed("copy"):
            frames.copy_tables(connection, statement, parameters, consume, batch_bytes=batch_bytes)

    def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | list[dict[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Run one statement that returns no rows; the result tells ``rowcount``."""
        with self.connection() as connection:
            return connection.execute(statement, parameters)

    def copy(self, table: str, frame: pd.DataFrame) -> int:
        """Load `frame` into `table` (``schema.table``) by COPY; the number of rows loaded.

        Columns are matched by name and converted by the server; all rows are loaded or none.
        Raises `InvalidData` with the line and column the server names.
        """
        with self.transaction() as connection, self.times.timed("copy"):
            return frames.copy_into(connection, table, frame)

    def _statement(
        self,
        query: str | Executable,
        parameters: Mapping[str, Any],
    ) -> Executable:
        if not isinstance(query, str):
            return query
        found = queries.load(query)
        found.check(parameters)
        # The marker lets the slow-query questions leave fwdb's own statements out. It ends the
        # text because pg_stat_statements drops a leading comment from PostgreSQL 18 on.
        return sa.text(f"{found.statement}\n{OWN}")

    # -- the server and the pool --------------------------------------------------------------

    @cached_property
    def server_version(self) -> int:
        """The server's version as one number: 180006 is 18.6. Asked once."""
        found = self.rows(
            sa.text("SELECT current_setting('server_version_num') AS version /* fwdb */")
        )
        return int(found[0]["version"])

    def has_function(self, name: str) -> bool:
        """Whether the database has a function `name` (``schema.function``); asked until it has."""
        if name not in self._functions:
            asked = sa.text(f"SELECT to_regproc(:name) IS NOT NULL AS there {OWN}")
            if self.rows(asked, name=name)[0]["there"]:
                self._functions.add(name)
        return name in self._functions

    def lock_holders(self, tables: Iterable[str], key: int = 0) -> str:
        """Sessions with a lock on `tables` (as LIKE), or the advisory lock `key`, as a clause."""
        rows = self.rows(_HOLDERS, tables=list(tables), key=key)
        sessions = [f"pid {row['pid']} ({row['application']}, {row['state']})" for row in rows]
        return f"; locks are held by {', '.join(sessions)}" if sessions else ""

    def ping(self) -> float:
        """Milliseconds that an empty question took through the pool."""
        started = time.perf_counter()
        self.rows(sa.text("SELECT 1 AS one /* fwdb */"))
        return 1000 * (time.perf_counter() - started)

    def pool(self) -> PoolStats:
        """The connection pool of this process, now."""
        pool = self.engine.pool
        assert isinstance(pool, WaitCountingPool)
        return pool.stats(self.name)

    def query_stats(self) -> QueryStats:
        """What was asked through this store since it was made, and how long it took."""
        return self.times.read()

    def holds(self) -> list[Hold]:
        """The connections of this process that are lent now, longest first."""
        return self._usage.holds(self.name)

    def close(self) -> None:
        """Close the idle connections; the store can be used again and dials anew."""
        self.engine.dispose()

    # -- errors -------------------------------------------------------------------------------

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of SQLAlchemy and psycopg into fwdb's, the cause chained."""
        try:
            yield
        except sa.exc.TimeoutError as error:
            pool = self.pool()
            raise errors.PoolExhausted(
                f"no connection to postgres at {self.address} became free in time: all "
                f"{pool.capacity} of this process are in use. "
                "Return connections sooner, or raise FWDB_POOL_MAX_OVERFLOW.",
                database=self.name,
            ) from error
        except sa.exc.DBAPIError as error:
            if not isinstance(error.orig, psycopg.Error):
                raise
            raise self._fwdb_error(error.orig) from without_values(error.orig)
        except sa.exc.StatementError as error:
            # A value that one of our own column types refuses has its fwdb error inside.
            if isinstance(error.orig, FwdbError):
                raise error.orig from None
            raise
        except psycopg.Error as error:
            raise self._fwdb_error(error) from without_values(error)
        except UnicodeEncodeError:  # its text quotes the value
            raise errors.InvalidData("postgres: a text is no valid Unicode.") from None

    def _fwdb_error(self, error: psycopg.Error) -> FwdbError:
        return sqlstate.translate(
            error,
            self.address,
            connect_seconds=self._settings.connect_timeout_seconds,
            waits_for=self._waits_for,
            remedy=self._remedy,
        )
