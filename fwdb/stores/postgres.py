"""The PostgreSQL store: pool, transactions, frames, loads, and errors by SQLSTATE."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import pandas as pd
import psycopg
import pyarrow as pa
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.engine import Connection, CursorResult, Engine
from sqlalchemy.sql import Executable

from fwdb import config, errors, queries
from fwdb.errors import FwdbError
from fwdb.stores import actor, frames, session
from fwdb.stores.errors import error_type, of_postgres, without_values
from fwdb.stores.pool import STORES, CountingPool, Hold, PoolStats
from fwdb.stores.session import Session, driver_of
from fwdb.stores.timing import CONNECT, OWN, QueryStats, QueryTimes, TimedCursor

T = TypeVar("T")

# A parameter and not SET LOCAL, whose every value would be a statement of its own in
# pg_stat_statements. Local to the transaction: nothing is left for who gets the connection next.
_SET_ACTOR = f"SELECT set_config('fwdb.actor', %s, true) {OWN}"

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

# Rows and TRUNCATE. Their names sort before those of other triggers, which fire in this order.
TRIGGERS = ("00_fwdb_audit", "00_fwdb_audit_truncate")

_CAPTURED = sa.text("""
    SELECT CAST(CAST(t.tgrelid AS regclass) AS text) AS relation, t.tgname AS trigger,
           pg_has_role(c.relowner, 'USAGE') AS owned
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE t.tgname = ANY (:triggers) AND t.tgenabled <> 'D'
      AND t.tgrelid = ANY (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
    ORDER BY 1, 2 /* fwdb */
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
        self.settings = settings or config.settings()
        self.url = session.parse_url(url)
        self.address = config.address(url, 5432)
        self.application_name = application_name
        self.read_only = read_only
        self.remedy = remedy
        self.waits_for = "FWDB_MONITOR_TIMEOUT_SECONDS" if monitors else "FWDB_TIMEOUT_SECONDS"
        self._lock_timeout_ms = 100 if monitors else 0
        self._local = threading.local()
        self._functions: set[str] = set()
        self.begin()
        STORES.add(self)

    def begin(self) -> None:
        """Begin with no connection and with no counts, as each process does."""
        settings = self.settings
        self._of_parent = self.__dict__.get("engine")  # kept: closing its connections is not ours
        self.engine: Engine = sa.create_engine(
            self.url,
            poolclass=CountingPool,
            pool_size=settings.pool_size,
            max_overflow=settings.pool_max_overflow,
            pool_timeout=settings.pool_timeout_seconds,
            pool_recycle=int(settings.pool_lifetime_seconds),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=session.options(
                self.url,
                connect_seconds=settings.connect_timeout_seconds,
                silence=settings.timeout_seconds,
                name=self.application_name,
            ),
        )
        self.engine.dialect.do_ping = Session.ping  # type: ignore[assignment]
        self.times = QueryTimes(slow_ms=settings.thresholds.slow_query_ms)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        sa.event.listen(self.engine, "do_connect", self._dial)
        # After SQLAlchemy's own listener, whose questions at the first connection do not count.
        sa.event.listen(self.engine, "connect", self._count)

    def __repr__(self) -> str:
        return f"PostgresStore({self.address})"

    def twin(self, *, application_name: str, connections: int = 1) -> PostgresStore:
        """A second store on the same database with a small pool of its own.

        For questions about the server: they neither take a connection from the work nor wait
        long behind it (100 ms for a lock, 2 s for a connection, FWDB_MONITOR_TIMEOUT_SECONDS for
        an answer).
        """
        seconds = self.settings.monitor_timeout_seconds
        small = {
            "pool_size": connections,
            "pool_max_overflow": 0,
            "connect_timeout_seconds": min(2.0, self.settings.connect_timeout_seconds),
            "statement_timeout_seconds": 0.9 * seconds,  # the rest is for saying so
            "timeout_seconds": seconds,
        }
        return PostgresStore(
            self.url.render_as_string(hide_password=False),
            application_name=application_name,
            settings=self.settings.model_copy(update=small),
            read_only=self.read_only,
            monitors=True,
            remedy=self.remedy,
        )

    def _dial(
        self,
        dialect: sa.engine.Dialect,
        record: object,
        arguments: list[Any],
        options: dict[str, Any],
    ) -> Session:
        """A new connection with our settings, in the time that counts as dialling."""
        settings, started = self.settings, time.perf_counter()
        connection = Session.connect(*arguments, **options)
        try:
            connection.silence = connection.ping_seconds = settings.connect_timeout_seconds
            session.prepare(
                connection,
                self.address,
                timeout_ms=round(1000 * settings.statement_timeout_seconds),
                lock_timeout_ms=self._lock_timeout_ms,
                read_only=self.read_only,
            )
        except BaseException:
            connection.close()
            raise
        connection.silence = settings.timeout_seconds
        connection.allow(settings.statement_timeout_seconds)
        connection.answers = lambda: session.answers(*arguments, **options)
        self._pool.usage.dialled(time.perf_counter() - started)
        return connection

    def _count(self, connection: Session, record: object) -> None:
        connection.times = self.times
        connection.cursor_factory = TimedCursor

    @property
    def _pool(self) -> CountingPool:
        pool = self.engine.pool
        assert isinstance(pool, CountingPool)
        return pool

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
                    self._name(connection, actor.current())
                    yield connection

    @contextmanager
    def _connect(self, engine: Engine) -> Iterator[Connection]:
        """A connection of the pool; not to get one is an operation that failed."""
        started = time.perf_counter()
        try:
            connection = engine.connect()
        except BaseException as error:
            self.times.add(CONNECT, time.perf_counter() - started, error_type(error))
            raise
        with connection:
            try:
                yield connection
            except BaseException:  # Ctrl-C too
                if not connection.invalidated and driver_of(connection).closed:
                    connection.invalidate()  # SQLAlchemy does not see what the driver is asked
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
        acts is named first, unless nothing can be written. Raises `Transient` when the same work
        may succeed if tried again; `run` does that.
        """
        if isolation is not None and isolation.lower() not in ISOLATIONS:
            raise errors.UnknownName("isolation", isolation, ISOLATIONS)
        current: Connection | None = getattr(self._local, "connection", None)
        with self.errors():
            if current is not None:
                with current.begin_nested():
                    yield current
                return
            options: dict[str, Any] = {"postgresql_readonly": True} if read_only else {}
            if isolation is not None:
                options["isolation_level"] = isolation.upper()
            with self._connect(self.engine) as connection, ExitStack() as ending:
                connection = connection.execution_options(**options)
                ending.enter_context(connection.begin())
                self._local.connection = connection
                ending.callback(setattr, self._local, "connection", None)
                ending.enter_context(self._limited(connection, self._limits(timeout_ms)))
                if not (read_only or self.read_only):
                    ending.enter_context(actor.listening(lambda who: self._name(connection, who)))
                    if (who := actor.current()) is not None:
                        self._name(connection, who)
                yield connection

    def _name(self, connection: Connection, who: actor.Actor | None) -> None:
        """Tell the server who acts in a transaction.

        One that failed is left alone: its rollback, or that to a savepoint, brings back who acted
        before.
        """
        if connection.invalidated:
            return
        driver = driver_of(connection)
        if driver.info.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
            with self.errors():
                driver.execute(_SET_ACTOR, ["" if who is None else who.json])

    def _limits(self, timeout_ms: int | None) -> dict[str, int]:
        """The limits in milliseconds that a transaction has of its own."""
        if timeout_ms is None:
            return {}
        if timeout_ms:
            return {"statement_timeout": timeout_ms}
        return {
            "statement_timeout": round(1000 * self.settings.long_timeout_seconds),
            "lock_timeout": round(1000 * self.settings.timeout_seconds),
        }

    @contextmanager
    def _limited(self, connection: Connection, limits: Mapping[str, int]) -> Iterator[None]:
        """While the block, a transaction, runs, its own limits are what counts.

        They are set by SET, which takes no snapshot: who locks first reads what was committed
        before.
        """
        if not limits:
            yield
            return
        driver = driver_of(connection)
        sets = "; ".join(f"SET LOCAL {name} = {ms} {OWN}" for name, ms in limits.items())
        driver.execute(sets, prepare=False)
        driver.allow(limits["statement_timeout"] / 1000)
        try:
            yield
        finally:
            driver.allow(self.settings.statement_timeout_seconds)

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
        with self.connection(naming=not _only_reads(query)) as connection:
            result = connection.execute(statement, parameters)
            names = list(result.keys())
            # Much quicker than dict(row): each mapping of SQLAlchemy looks its keys up again.
            return [dict(zip(names, row, strict=True)) for row in result]

    def frame(
        self,
        query: str | Executable,
        /,
        *,
        instead: Mapping[str, str] = MappingProxyType({}),
        **parameters: Any,
    ) -> pd.DataFrame:
        """The answer of a query file, or of a statement, as a DataFrame.

        A query file (given by name) has the column types that its header declares. A statement
        comes through COPY in the types of `fwdb.stores.frames`; both keep columns and types
        when there are no rows. `instead` names relations of a query file and what to read in
        their place.
        """
        statement = self._statement(query, parameters, instead)
        with self.connection(naming=not _only_reads(query)) as connection:
            if isinstance(query, str):
                result = connection.execute(statement, parameters)
                declared = queries.load(query, self.name).columns
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
            for line in frames.lines(connection, statement, parameters):
                feed(line)

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
            for table in frames.tables(connection, statement, parameters, batch_bytes=batch_bytes):
                consume(table)

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
        instead: Mapping[str, str] = MappingProxyType({}),
    ) -> Executable:
        if not isinstance(query, str):
            return query
        found = queries.load(query, self.name).reading(instead)
        found.check(parameters)
        # The marker lets the slow-query questions leave fwdb's own statements out. It ends the
        # text because pg_stat_statements drops a leading comment from PostgreSQL 18 on.
        return sa.text(f"{found.text}\n{OWN}")

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
        return self._pool.stats(self.name)

    def query_stats(self) -> QueryStats:
        """What was asked through this store since it was made, and how long it took."""
        return self.times.read()

    def holds(self) -> list[Hold]:
        """The connections of this process that are lent now, longest first."""
        return self._pool.usage.holds(self.name)

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
            raise of_postgres(error.orig, self) from without_values(error.orig)
        except sa.exc.StatementError as error:
            # A value that one of our own column types refuses has its fwdb error inside.
            if isinstance(error.orig, FwdbError):
                raise error.orig from None
            raise
        except psycopg.Error as error:
            raise of_postgres(error, self) from without_values(error)
        except UnicodeEncodeError:  # its text quotes the value
            raise errors.InvalidData("postgres: a text is no valid Unicode.") from None


def _only_reads(query: str | Executable) -> bool:
    """Whether a question is sure to change nothing, so that the server need not know who asks.

    A query file is a question. A selection of plain columns is one too; one that calls a
    function may be anything.
    """
    if isinstance(query, sa.Select):
        return all(isinstance(column, sa.Column) for column in query.selected_columns)
    return isinstance(query, str)


@contextmanager
def without_capture(store: PostgresStore, tables: Sequence[str]) -> Iterator[Connection]:
    """A transaction in which writes to `tables` leave no row in the audit trail.

    For history that is loaded with its own trail, not for changes. Other writers of the tables
    wait until the transaction ends; rolled back or committed, the triggers are as before. Joins
    an open transaction. A table that is not captured, or is not there, is no obstacle. Raises
    `PermissionDenied` for a role that does not own a captured table.
    """
    with store.transaction() as connection:
        found = store.rows(_CAPTURED, triggers=list(TRIGGERS), tables=list(tables))
        for row in found:
            if not row["owned"]:
                raise errors.PermissionDenied(
                    f"only the owner of {row['relation']} may write to it without a row in the "
                    "audit trail; connect as the owner."
                )
            _alter(connection, row, "DISABLE")
        yield connection
        for row in found:
            _alter(connection, row, "ENABLE ALWAYS")


def _alter(connection: Connection, row: dict[str, str], how: str) -> None:
    connection.execute(sa.text(f'ALTER TABLE {row["relation"]} {how} TRIGGER "{row["trigger"]}"'))
