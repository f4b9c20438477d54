"""The PostgreSQL store: pool, transactions, frames, loads, and errors by SQLSTATE."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Self, TypeVar

import pandas as pd
import psycopg
import pyarrow as pa
import sqlalchemy as sa
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy.engine import Connection, CursorResult, Engine
from sqlalchemy.sql import Executable

from fwdb import errors, queries
from fwdb.errors import FwdbError
from fwdb.stores import actor, frames, session
from fwdb.stores.base import Store
from fwdb.stores.errors import error_type, of_postgres, without_values
from fwdb.stores.pool import CountingPool
from fwdb.stores.session import Session, driver_of
from fwdb.stores.timing import CONNECT, OWN, QueryTimes, TimedCursor, operation

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


class PostgresStore(Store):
    """One PostgreSQL database. Nothing is dialled before the first question.

    Outside a transaction each statement commits by itself. Inside ``with store.transaction()``
    every call on this store from the same thread joins that transaction.
    """

    name = "postgres"
    port = 5432

    def __init__(self, url: str, *, read_only: bool = False, **options: Any) -> None:
        self.url = session.parse_url(url)
        self.read_only = read_only
        self._functions: set[str] = set()
        super().__init__(url, **options)

    def _begin(self) -> None:
        settings = self.settings
        self._of_parent = self.__dict__.get("engine")  # kept: closing its connections is not ours
        self.engine = sa.create_engine(
            self.url,
            poolclass=CountingPool,
            pool_size=settings.pool_size,
            max_overflow=settings.pool_max_overflow,
            pool_timeout=settings.pool_timeout_seconds,
            pool_recycle=int(settings.pool_lifetime_seconds),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": max(2, round(settings.connect_timeout_seconds)),
                "application_name": self.application_name,
                # So that the system notices a network that lost an idle connection.
                "keepalives_idle": max(1, round(settings.timeout_seconds)),
                "keepalives_interval": 1,
                "keepalives_count": 3,
                **{n: v for n, v in self.url.query.items() if n.startswith("keepalives")},
            },
        )
        self.engine.dialect.do_ping = Session.ping  # type: ignore[assignment]
        self.times = QueryTimes(slow_ms=settings.thresholds.slow_query_ms)
        self._connections = self.engine.pool  # type: ignore[assignment]
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        sa.event.listen(self.engine, "do_connect", self._dial)
        # After SQLAlchemy's own listener, whose questions at the first connection do not count.
        sa.event.listen(self.engine, "connect", self._count)

    def twin(self, **options: Any) -> Self:
        return super().twin(read_only=self.read_only, **options)

    def _dial(
        self, _dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]
    ) -> Session:
        """A new connection with our settings, in the time that counts as dialling."""
        settings, started = self.settings, time.perf_counter()
        connection = Session.connect(*arguments, **options)
        try:
            connection.silence = connection.ping_seconds = settings.connect_timeout_seconds
            session.require_version(connection, self.address)
            connection.autocommit = True
            connection.execute(self._sets)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        connection.silence = settings.timeout_seconds
        connection.allow(settings.statement_timeout_seconds)
        connection.answers = lambda: session.answers(*arguments, **options)
        self._connections.usage.dialled(time.perf_counter() - started)
        return connection

    @property
    def _sets(self) -> str:
        """What a session is told first, as statements: poolers refuse them at the start-up."""
        # Planned anew each time: optional parameters (NULL lets all through) want another plan
        # for each use, and a generic one would read the whole table for the narrowest question.
        settings = (
            "SET plan_cache_mode = force_custom_plan; SET TimeZone = 'UTC'; SET DateStyle = 'ISO';"
            f" SET statement_timeout = {round(1000 * self.settings.statement_timeout_seconds)};"
            f" SET default_transaction_read_only = {'on' if self.read_only else 'off'}"
        )
        return settings + ("; SET lock_timeout = 100" if self._monitors else "")

    def _count(self, connection: Session, record: object) -> None:
        connection.times = self.times
        connection.cursor_factory = TimedCursor

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
                if not connection.invalidated and driver_of(connection).is_lost:
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
            options |= {"isolation_level": isolation.upper()} if isolation else {}
            with self._connect(self.engine) as connection, ExitStack() as ending:
                connection = connection.execution_options(**options)
                ending.enter_context(connection.begin())
                self._local.connection = connection
                ending.callback(setattr, self._local, "connection", None)
                ending.enter_context(self._limited(connection, timeout_ms))
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

    @contextmanager
    def _limited(self, connection: Connection, timeout_ms: int | None) -> Iterator[None]:
        """While the block, a transaction, runs, its own limits are what counts.

        They are set by SET, which takes no snapshot: who locks first reads what was committed
        before.
        """
        if timeout_ms is None:
            yield
            return
        settings, driver = self.settings, driver_of(connection)
        milliseconds = timeout_ms or round(1000 * settings.long_timeout_seconds)
        limits = f"SET LOCAL statement_timeout = {milliseconds} {OWN}"
        if not timeout_ms:
            limits += f"; SET LOCAL lock_timeout = {round(1000 * settings.timeout_seconds)} {OWN}"
        driver.execute(limits, prepare=False)
        driver.allow(milliseconds / 1000)
        try:
            yield
        finally:
            driver.allow(settings.statement_timeout_seconds)

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
        **parameters: Any,
    ) -> pd.DataFrame:
        """The answer of a query file, or of a statement, as a DataFrame.

        A query file (given by name) has the column types that its header declares. A statement
        comes through COPY in the types of `fwdb.stores.frames`; both keep columns and types
        when there are no rows.
        """
        statement = self._statement(query, parameters)
        with self.connection(naming=not _only_reads(query)) as connection:
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
        asked = sa.text(f"SELECT current_setting('server_version_num') AS version {OWN}")
        return int(self.rows(asked)[0]["version"])

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

    def _ask(self) -> None:
        self.rows(sa.text(f"SELECT 1 AS one {OWN}"))

    def close(self) -> None:
        """Close the idle connections; the store can be used again and dials anew."""
        self.engine.dispose()
        self._connections = self.engine.pool  # type: ignore[assignment]

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
        alter = 'ALTER TABLE {relation} {how} TRIGGER "{trigger}"'
        for row in found:
            connection.execute(sa.text(alter.format(**row, how="DISABLE")))
        yield connection
        for row in found:
            connection.execute(sa.text(alter.format(**row, how="ENABLE ALWAYS")))


# Planning takes milliseconds, a join of very many tables more; longer, something is locked.
PLAN_TIMEOUT_MS = 2000


def generic_plan(store: PostgresStore, statement: str) -> str:
    """The plan for any values of ``$1``, ``$2``, … as text; the statement is not executed.

    It is the plan of all values alike, so that a value that is rare or frequent may be planned
    another way. Needs PostgreSQL 16. Raises `FeatureUnavailable` before, `InvalidData` for what
    is not one statement that has a plan, or that the server cannot plan without its values.
    """
    if store.server_version < 160000:
        raise errors.FeatureUnavailable(
            f"postgres at {store.address} is version {store.server_version // 10000}; a plan "
            "without the values of a statement needs 16 or newer."
        )
    # EXPLAIN takes others too, which would be run or changed.
    if operation(statement) not in {"select", "insert", "update", "delete", "merge"}:
        raise errors.InvalidData("only SELECT, INSERT, UPDATE, DELETE and MERGE have a plan.")
    with store.transaction(read_only=True, timeout_ms=PLAN_TIMEOUT_MS) as connection:
        driver = driver_of(connection)
        try:
            # Parse refuses more than one command, and executes none: a text like "SELECT 1; COMMIT;
            # DROP …" would leave the read-only transaction.
            answer = driver.pgconn.prepare(b"", statement.encode())
            if answer.status != ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(answer, encoding="utf-8")
            # The extended protocol would want values for the parameters.
            query: Any = f"EXPLAIN (GENERIC_PLAN)\n{statement}\n{OWN}"
            return "\n".join(row[0] for row in psycopg.ClientCursor(driver).execute(query))
        except (psycopg.errors.SyntaxError, psycopg.errors.ProgrammingError) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise
            said = error.diag.message_primary or type(error).__name__
            raise errors.InvalidData(
                f"the server cannot plan it without its values: {said}."
            ) from None
